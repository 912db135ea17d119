"""The EST client (RFC 7030): its operations under their own names, its refusals as typed errors.

Rules:
- The server is authorised before anything it says is used (RFC 7030 §3.6); a password leaves only as the answer to a
  challenge, once, on a connection that is authorised, and never for another origin (§3.2.3).
- A `CsrDraft` is signed after the handshake of the connection that carries it, and one connection carries one draft
  (§3.5, RFC 9266 §4.1). Whenever the connection changes, the request is made anew, for the same key.
- A request that may have arrived is never repeated here: the caller decides (`devicesim.retry`).
- Redirects are followed within the origin; a GET once to another one, a POST only where that was allowed. Each leads
  over a new connection, on which everything is authorised again (§3.2.1).
- What the server writes is shortened and made printable before anybody sees it.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from devicesim import codec
from devicesim.address import EstAddress, redirect_target
from devicesim.cacerts import CaCerts
from devicesim.challenge import Credentials, authorization
from devicesim.codec import CsrAttrs
from devicesim.csr import CsrDraft, PrivateKey, load_csr, spki
from devicesim.envelope import Decryptor, KeyAnswer, key_and_certificate, load_pkcs8, unseal
from devicesim.errors import BadAnswer, CannotComply, EstRefused, VerificationFailed
from devicesim.replies import Body, expect, http_date, refusal
from devicesim.transport import Answer, ClientIdentity, Connection, Origin, TlsChoice, TlsSettings
from devicesim.trust import TrustAnchors, authorises, build_path

_REDIRECTS_MAX = 3
_NOT_OFFERED = frozenset({204, 404, 501})  # RFC 7030 §4.5.2, §4.3.2

ChannelBinding = Literal["required", "auto", "off"]
"""Whether a request made here is bound to its connection: always, where there is a binding, or never."""


@dataclass(frozen=True, slots=True)
class ServerKey:
    """A key that the server made, and its certificate (RFC 7030 §4.4)."""

    key: PrivateKey = field(repr=False)
    certificate: x509.Certificate


class EstClient:
    """Speaks EST with one server, over one connection kept while it lasts.

    Args:
        url: `https://host[:port]`, with or without `/.well-known/est[/label]`.
        trust: the explicit trust anchors; there are no others.
        label: the CA label (RFC 7030 §3.2.2).
        credentials: for HTTP Digest or Basic, used when the server asks.
        identity: the certificate to show in the handshake.
        tls: the TLS version to speak, or `auto` for 1.2 and 1.3.
        timeout_seconds: for each connection and for each exchange.
        redirect_origins: other origins (`https://host:port`) to which a request may be redirected.
        pop: whether a draft is bound to the connection that carries it (RFC 7030 §3.5).
        clock: the instant at which the server's certificate must be valid; OpenSSL's own clock when None.
        on_date: hears the server's own time with every answer that tells it (`Date`, RFC 9110 §6.6.1).
    """

    def __init__(
        self,
        url: str,
        *,
        trust: TrustAnchors,
        label: str = "",
        credentials: Credentials | None = None,
        identity: ClientIdentity | None = None,
        tls: TlsChoice = "auto",
        timeout_seconds: float = 30.0,
        redirect_origins: Collection[str] = (),
        pop: ChannelBinding = "auto",
        clock: Callable[[], datetime] | None = None,
        on_date: Callable[[datetime], None] | None = None,
    ) -> None:
        self.address = EstAddress.parse(url, label)
        self.trust = trust
        self._settings = TlsSettings(trust, identity, tls, timeout_seconds)
        self._credentials = credentials
        self._redirect_origins = frozenset(EstAddress.parse(origin).origin for origin in redirect_origins)
        self._pop: ChannelBinding = pop
        self._clock, self._on_date = clock, on_date
        self._connection: Connection | None = None
        self._carried: tuple[CsrDraft, bytes] | None = None

    def __enter__(self) -> Self:
        """Return the client; it connects when it has something to ask."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next operation opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._carried = None

    def with_identity(self, identity: ClientIdentity, trust: TrustAnchors | None = None) -> EstClient:
        """Return a client for the same server that shows another certificate, and no password.

        Args:
            trust: other anchors to hold the server against, where they have changed.
        """
        return self._other(replace(self._settings, identity=identity, trust=trust or self.trust))

    def without_password(self, trust: TrustAnchors) -> EstClient:
        """Return a client for the same server that holds it against other anchors and answers no challenge."""
        return self._other(replace(self._settings, trust=trust))

    def _other(self, settings: TlsSettings) -> EstClient:
        other = EstClient(str(self.address), trust=settings.trust or self.trust, pop=self._pop, clock=self._clock)
        other._settings = settings
        other._redirect_origins, other._on_date = self._redirect_origins, self._on_date
        return other

    def forget_password(self) -> None:
        """Overwrite the password; it is not used again (RFC 7030 §6)."""
        if self._credentials is not None:
            self._credentials.wipe()
        self._credentials = None

    # --- the operations ---------------------------------------------------------------------------------------------

    def cacerts(self) -> CaCerts:
        """Fetch the CA certificates (RFC 7030 §4.1)."""
        answer = self._ask("GET", "cacerts")
        return CaCerts(codec.certs_only(expect(answer, Body.CERTS_ONLY)), self.trust)

    def csrattrs(self) -> CsrAttrs:
        """Ask what a request should contain; an answer of nothing is no wishes (RFC 7030 §4.5)."""
        answer = self._ask("GET", "csrattrs", accepted=_NOT_OFFERED)
        if answer.status in _NOT_OFFERED or not answer.body.strip():
            return CsrAttrs()
        return codec.parse_csrattrs(expect(answer, Body.CSR_ATTRS))

    def simpleenroll(self, csr: CsrDraft | bytes) -> x509.Certificate:
        """Get a certificate for a request (RFC 7030 §4.2.1).

        A draft is signed here, bound to the connection; DER made elsewhere is sent as it is.
        """
        return self._enrol("simpleenroll", csr)

    def simplereenroll(self, csr: CsrDraft | bytes) -> x509.Certificate:
        """Renew or rekey the certificate whose names the request repeats (RFC 7030 §4.2.2)."""
        return self._enrol("simplereenroll", csr)

    def serverkeygen(self, csr: CsrDraft | bytes, decryptor: Decryptor | None = None) -> ServerKey:
        """Get a key that the server makes, and its certificate (RFC 7030 §4.4); the request's own key is not certified.

        Args:
            decryptor: how the key is to be sealed beyond TLS; what DER made elsewhere asks for, it asks for itself.
        """
        sealed_for = replace(csr, attributes=decryptor.attributes()) if decryptor and isinstance(csr, CsrDraft) else csr
        answer = self._ask("POST", "serverkeygen", csr=sealed_for)
        found = key_and_certificate(answer.headers.get("content-type", ""), answer.body)
        key = self._received_key(found, decryptor)
        if type(key.public_key()) is not (wanted := _kind_of_key(csr)) and wanted is not None:
            raise VerificationFailed("the server made a key of another kind than was asked for")
        return ServerKey(key, _certificate_for(spki(key), codec.certs_only(found.certificates)))

    # --- how they are carried out -----------------------------------------------------------------------------------

    def _enrol(self, operation: str, csr: CsrDraft | bytes) -> x509.Certificate:
        key = spki(csr.key) if isinstance(csr, CsrDraft) else spki(load_csr(csr))
        answer = self._ask("POST", operation, csr=csr)
        return _certificate_for(key, codec.certs_only(expect(answer, Body.CERTS_ONLY)))

    def _received_key(self, found: KeyAnswer, decryptor: Decryptor | None) -> PrivateKey:
        """Open what came; the signer must be the server itself, or one that may stand in for it (RFC 7030 §3.6.1)."""
        if decryptor is None:
            if found.sealed:
                raise BadAnswer("the key is sealed, and nothing was given to open it with")
            return load_pkcs8(found.key)
        if not found.sealed:
            raise VerificationFailed(
                "a sealed key was asked for, and the server sent it in clear",
                advice="the key is compromised: do not use it, have its certificate revoked",
            )
        signed = unseal(found.key, decryptor)
        build_path(signed.signer, signed.certificates, self.trust, self._clock() if self._clock else datetime.now(UTC))
        if not authorises(signed.signer, self.address.origin.host):
            raise VerificationFailed("the key was signed by somebody who is not the server", advice="do not use it")
        return signed.key

    def _ask(
        self,
        method: str,
        operation: str,
        *,
        csr: CsrDraft | bytes | None = None,
        accepted: Collection[int] = frozenset({200}),
    ) -> Answer:
        """Carry out one operation: the challenge, the redirects, then the answer or the error it means."""
        origin, path = self.address.origin, self.address.path(operation)
        for _ in range(_REDIRECTS_MAX + 1):
            answer = self._send(origin, method, path, csr)
            if answer.status == 401:
                answer = self._answer_challenge(answer, origin, method, path, csr)
            if answer.status == 200 or answer.status in accepted:
                return answer
            target = redirect_target(answer, origin, path)
            if target is None:
                raise refusal(answer, operation)
            self._check_redirect(origin, target[0], method)
            self.close()
            origin, path = target
        raise EstRefused("the server redirects in circles", advice="report it to whoever runs the server")

    def _send(
        self,
        origin: Origin,
        method: str,
        path: str,
        csr: CsrDraft | bytes | None,
        extra: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = self._connect(origin, csr)
        headers = {"User-Agent": "devicesim", "Accept": "*/*", **(extra or {})}
        if csr is None:
            return self._heard(connection.exchange(method, path, headers))
        headers["Content-Type"] = "application/pkcs10"
        headers["Content-Transfer-Encoding"] = "base64"  # older servers insist on it (RFC 8951 §3)
        body = base64.b64encode(self._request_for(connection, csr)) + b"\n"
        return self._heard(connection.exchange(method, path, headers, body))

    def _heard(self, answer: Answer) -> Answer:
        date = http_date(answer.headers.get("date", ""))
        if self._on_date is not None and date is not None:
            self._on_date(date)
        return answer

    def _connect(self, origin: Origin, csr: CsrDraft | bytes | None) -> Connection:
        """Return a connection fit to carry this: the one there is, unless it is closed, elsewhere or bound."""
        bound_to_other = self._carried is not None and isinstance(csr, CsrDraft) and self._carried[0] is not csr
        if (
            self._connection is None
            or bound_to_other
            or self._connection.origin != origin
            or not self._connection.alive()
        ):
            self.close()
            at = self._clock() if self._clock else None
            self._connection = Connection(origin, replace(self._settings, verify_at=at))
        return self._connection

    def _request_for(self, connection: Connection, csr: CsrDraft | bytes) -> bytes:
        """Return the request for this very connection; the same octets when it is asked for again."""
        if isinstance(csr, bytes):
            if self._pop == "required":
                raise CannotComply(
                    "a request signed elsewhere cannot be bound to this connection", advice="give its key"
                )
            return csr
        if self._carried is not None and self._carried[0] is csr:
            return self._carried[1]
        binding = None if self._pop == "off" else connection.binding
        if binding is None and (csr.binding_required or self._pop == "required"):
            who = "the server wants" if csr.binding_required else "the caller wants"
            why = "that was switched off" if self._pop == "off" else f"this {connection.tls_version} has no binding"
            raise CannotComply(
                f"{who} the request bound to its connection, and {why}",
                advice="use TLS 1.3, or TLS 1.2 with the extended master secret, and do not switch it off",
            )
        self._carried = (csr, csr.sign(binding))
        return self._carried[1]

    def _answer_challenge(
        self, answer: Answer, origin: Origin, method: str, path: str, csr: CsrDraft | bytes | None
    ) -> Answer:
        """Answer a challenge of the configured origin, once; what cannot be answered ends it (RFC 7030 §3.2.3)."""
        if self._credentials is None or self._credentials.wiped or origin != self.address.origin:
            return answer
        offered = answer.headers.get("www-authenticate", "")
        said = authorization(offered, self._credentials, method, path, secrets.token_urlsafe(18))
        if said is None:
            self.close()
            raise EstRefused(
                "the server asks for an HTTP authentication other than Digest and Basic",
                status=401,
                advice="use a client certificate, or let the server offer one of them",
            )
        return self._send(origin, method, path, csr, {"Authorization": said})

    def _check_redirect(self, origin: Origin, target: Origin, method: str) -> None:
        """Stay within the origin, but for one GET elsewhere and for what was allowed (RFC 7030 §3.2.1)."""
        if target == origin or target in self._redirect_origins:
            return
        if method != "GET":
            raise EstRefused(
                f"the server redirects the request to {target}",
                advice="if that is right, name that server instead, or allow the redirect",
            )
        if origin != self.address.origin:
            raise EstRefused(f"the server redirects a second time, to {target}", advice="name that server instead")


def _certificate_for(key: bytes, found: Collection[x509.Certificate]) -> x509.Certificate:
    """Pick the certificate by its key; the order means nothing (RFC 5272 §4.1)."""
    for certificate in found:
        if spki(certificate) == key:
            return certificate
    raise VerificationFailed(
        "the server returned a certificate for another key",
        advice="do not use it; report it to whoever runs the server",
    )


def _kind_of_key(csr: CsrDraft | bytes) -> type | None:
    """Say what kind of key a request asks for, by the one in it; None when that one cannot be read."""
    try:
        return type((csr.key if isinstance(csr, CsrDraft) else load_csr(csr)).public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


__all__ = ["BadAnswer", "CaCerts", "ChannelBinding", "Credentials", "EstClient", "ServerKey"]
