"""TLS as EST needs it, over pyOpenSSL: explicit trust, facts that can be asked for, one deadline, one cap.

Rules:
- TLS 1.2 or 1.3 only (RFC 8996); no session is resumed and none renegotiated.
- The server is authorised inside the handshake: path to the explicit anchors, then its name or id-kp-cmcRA (RFC 7030
  §3.6.1). Until then it learns nothing, neither the client's certificate nor a byte of HTTP. The one exception is
  `trust=None`, which only `bootstrap` uses (RFC 7030 §4.1.1).
- The channel binding is tls-unique on TLS 1.2 with the extended master secret (RFC 5929, RFC 7627), tls-exporter on
  TLS 1.3 (RFC 9266), and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import ipaddress
import os
import select
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto

from devicesim.csr import PrivateKey, spki
from devicesim.errors import BadAnswer, DeviceSimError, EstRefused, KeyStoreError, ServerNotTrusted, Unreachable
from devicesim.trust import TrustAnchors, authorises

TlsChoice = Literal["auto", "1.2", "1.3"]
_TLS_RANGE: dict[str, tuple[int, int]] = {
    "auto": (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION),
    "1.2": (SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION),
    "1.3": (SSL.TLS1_3_VERSION, SSL.TLS1_3_VERSION),
}
_RECORD_MAX_BYTES = 16384
_EXPORTER_LABEL = b"EXPORTER-Channel-Binding"  # RFC 9266 §2
_NOT_UNDER_ANCHOR = "it does not chain to a trust anchor"
_EXPIRED = 10
_DATE_ERRORS = frozenset({9, _EXPIRED})
_ROOT_ENDED = (
    "if it is the trust anchor and the clock is right, learn the new one by its fingerprint, as the first time"
)
_PATH_ERRORS = {  # X509_V_ERR_*
    9: "it is not valid yet",
    10: "it has expired",
    18: _NOT_UNDER_ANCHOR,
    19: _NOT_UNDER_ANCHOR,
    20: _NOT_UNDER_ANCHOR,
    21: _NOT_UNDER_ANCHOR,
    7: "a signature in its chain is wrong",
    26: "it is not one for a server",
    79: "an issuer in its chain is not a CA",
}
# Alerts by which a server says that the certificate it was shown, or the lack of one, is why it hung up.
_CERTIFICATE_ALERTS = ("certificate", "unknown ca", "access denied", "decrypt error")


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """A certificate (leaf first, then intermediates) and its key, to authenticate with in the handshake."""

    certificates: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)

    def __post_init__(self) -> None:
        if not self.certificates or spki(self.certificates[0]) != spki(self.key):
            raise KeyStoreError("the client certificate does not belong to its key", advice="give the pair")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection leads: host and port, always https."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """The form used in a Host header and in URLs."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        """Return the origin as a URL."""
        return f"https://{self.authority}"


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How to connect.

    Attributes:
        trust: the explicit anchors; None leaves the server unauthenticated, for the bootstrap alone.
        identity: shown when the server asks for a client certificate.
        versions: the TLS versions to offer.
        timeout_seconds: for connecting and shaking hands together, and for each exchange after that.
        answer_max_bytes: head and body of one answer together.
        verify_at: the instant certificates must be valid at; None is when it happens, by OpenSSL's own clock.
    """

    trust: TrustAnchors | None
    identity: ClientIdentity | None = None
    versions: TlsChoice = "auto"
    timeout_seconds: float = 30.0
    answer_max_bytes: int = 256 * 1024
    verify_at: datetime | None = None


class TlsSocket:
    """As much of a socket as http.client needs, over pyOpenSSL, with one deadline for everything in an exchange."""

    def __init__(self, tls: SSL.Connection, raw: socket.socket, timeout_seconds: float) -> None:
        self.tls = tls
        self._raw = raw
        self._readers = 0
        self._closing = False
        self._budget_bytes = 0
        self._deadline = time.monotonic() + timeout_seconds

    @classmethod
    def connect(cls, origin: Origin, settings: TlsSettings) -> TlsSocket:
        """Connect and shake hands; the server is authorised when this returns."""
        context = _context(origin.host, settings)
        with network_errors(origin):
            raw = socket.create_connection((origin.host, origin.port), timeout=settings.timeout_seconds)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a body behind its head is not to wait for an ACK
        raw.setblocking(False)  # noqa: FBT003 - the argument has no name
        tls = SSL.Connection(context, raw)
        tls.set_connect_state()
        if not _is_address(origin.host):
            tls.set_tlsext_host_name(origin.host.encode("idna"))
        self = cls(tls, raw, settings.timeout_seconds)
        try:
            with network_errors(origin):
                self._run(tls.do_handshake)
        except BaseException:
            self.close()
            raise
        return self

    def begin(self, timeout_seconds: float, budget_bytes: int) -> None:
        """Start the clock and the byte count of one exchange."""
        self._deadline = time.monotonic() + timeout_seconds
        self._budget_bytes = budget_bytes

    def quiet(self) -> bool:
        """Tell whether the other side has said nothing since the last answer, goodbye included."""
        if self._closing:
            return False
        readable, _, _ = select.select([self._raw], [], [], 0)
        if not readable:
            return self.tls.pending() == 0
        try:
            self.tls.recv(1, socket.MSG_PEEK)
        except SSL.WantReadError:
            return True  # a TLS 1.3 session ticket, nothing of HTTP
        except SSL.Error:
            return False
        return False

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        sent = 0
        while sent < len(data):
            sent += self._run(functools.partial(self.tls.send, data[sent : sent + _RECORD_MAX_BYTES]))

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return what http.client reads an answer from."""
        self._readers += 1
        return io.BufferedReader(_Reader(self))

    def read_into(self, buffer: memoryview) -> int:
        """Read what there is, counting it against the cap; 0 is the end."""
        try:
            count: int = self._run(functools.partial(self.tls.recv_into, buffer))
        except SSL.ZeroReturnError:
            return 0
        self._budget_bytes -= count
        if self._budget_bytes < 0:
            raise BadAnswer("the answer is larger than any EST answer should be")
        return count

    def release(self) -> None:
        """Count a reader as gone, and close when that was waited for."""
        self._readers -= 1
        if self._closing:
            self.close()

    def close(self) -> None:
        """Close once the last reader has gone, as sockets do."""
        self._closing = True
        if self._readers > 0 or self._raw.fileno() < 0:
            return
        with contextlib.suppress(SSL.Error, OSError):
            self.tls.shutdown()
        self._raw.close()

    def _run(self, operation: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the operation gives
        while True:
            try:
                return operation()
            except SSL.WantReadError:
                self._wait([self._raw], [])
            except SSL.WantWriteError:
                self._wait([], [self._raw])

    def _wait(self, readers: list[socket.socket], writers: list[socket.socket]) -> None:
        left_seconds = self._deadline - time.monotonic()
        if left_seconds <= 0 or not any(select.select(readers, writers, [], left_seconds)):
            raise TimeoutError("it took too long to answer")


class _Reader(io.RawIOBase):
    """What http.client reads an answer from."""

    def __init__(self, owner: TlsSocket) -> None:
        self._owner = owner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        return self._owner.read_into(memoryview(buffer))

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._owner.release()


def _context(host: str, settings: TlsSettings) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    lowest, highest = _TLS_RANGE[settings.versions]
    context.set_min_proto_version(lowest)
    context.set_max_proto_version(highest)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if settings.trust is not None:
        store = context.get_cert_store()
        if store is None:
            raise ServerNotTrusted("this OpenSSL has no place for trust anchors")
        settings.trust.fill(store, settings.verify_at)
        context.set_verify(SSL.VERIFY_PEER, _authoriser(host))
    if settings.identity is not None:
        _use_identity(context, settings.identity)
    return context


def _authoriser(host: str) -> Callable[[SSL.Connection, crypto.X509, int, int, int], bool]:
    """Return the check OpenSSL calls for every certificate of the path, the server's own last (depth 0)."""

    def verify(_: SSL.Connection, certificate: crypto.X509, error: int, depth: int, accepted: int) -> bool:
        if not accepted:
            reason = _PATH_ERRORS.get(error, f"OpenSSL verify error {error}")
            advice = "is the clock right, here and there?" if error in _DATE_ERRORS else None
            if error == _EXPIRED and depth > 0:
                reason, advice = "a CA certificate above it has expired", _ROOT_ENDED
            raise ServerNotTrusted(f"the certificate of {host} was not accepted: {reason}", advice=advice)
        if depth == 0 and not authorises(certificate.to_cryptography(), host):
            raise ServerNotTrusted(f"the certificate shown is not one for {host}")
        return True

    return verify


def _use_identity(context: SSL.Context, identity: ClientIdentity) -> None:
    """Load certificate and key; the key by file, as only that way reads every kind (ML-DSA included)."""
    leaf, *intermediates = identity.certificates
    try:
        context.use_certificate(leaf)
        for certificate in intermediates:
            context.add_extra_chain_cert(certificate)
        pem = identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with _as_file(pem) as path:
            context.use_privatekey_file(path)
    except SSL.Error as error:
        raise KeyStoreError(f"the client certificate cannot be used for TLS: {_tls_text(error)}") from error


@contextlib.contextmanager
def _as_file(secret: bytes) -> Iterator[str]:
    """Lend a secret as a file that nobody else can open: in memory where the system can, else 0600 and deleted."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("key")
        try:
            os.write(handle, secret)
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(secret)
            file.flush()
            yield file.name


def channel_binding(tls: SSL.Connection) -> bytes | None:
    """Return the channel binding of a connection, or None when it has none that is safe (RFC 7030 §3.5)."""
    version = tls.get_protocol_version_name()
    if version == "TLSv1.3":
        return tls.export_keying_material(_EXPORTER_LABEL, 32, b"")
    if version != "TLSv1.2":
        return None
    # RFC 7627: without the extended master secret two connections can be made to share it.
    # pyOpenSSL does not offer the question in public.
    if SSL._lib.SSL_get_extms_support(tls._ssl) != 1:  # type: ignore[attr-defined]  # noqa: SLF001
        return None
    return tls.get_finished()  # a full handshake: the client's Finished is the first one


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# --- what can go wrong ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def network_errors(origin: Origin) -> Iterator[None]:
    """Let only our own errors out."""
    try:
        yield
    except DeviceSimError:
        raise
    except SSL.ZeroReturnError as error:
        raise Unreachable(f"{origin} closed the connection") from error
    except SSL.SysCallError as error:
        raise Unreachable(f"{origin} broke the connection: {error.args[-1]}") from error
    except SSL.Error as error:
        raise _tls_error(origin, error) from error
    except (http.client.NotConnected, http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
        raise Unreachable(f"{origin} closed the connection before its answer was complete") from error
    except http.client.HTTPException as error:
        raise BadAnswer(f"{origin} does not answer in HTTP: {type(error).__name__}") from error
    except TimeoutError as error:
        raise Unreachable(f"{origin} took too long to answer") from error
    except socket.gaierror as error:
        raise Unreachable(f"{origin.host} is not a known host name") from error
    except OSError as error:
        raise Unreachable(f"{origin} cannot be reached: {error.strerror or error}") from error


def _tls_error(origin: Origin, error: SSL.Error) -> DeviceSimError:
    text = _tls_text(error)
    if "alert" in text and any(word in text for word in _CERTIFICATE_ALERTS):
        return EstRefused(
            f"{origin} did not accept the client certificate: {text}",
            advice="show a certificate this server trusts, or use a password",
        )
    return Unreachable(f"no TLS connection to {origin}: {text}", advice="is it an https port, with TLS 1.2 or 1.3?")


def _tls_text(error: SSL.Error) -> str:
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(reason for *_, reason in reasons if reason) or "the handshake failed"
