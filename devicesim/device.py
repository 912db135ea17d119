"""One device, told in the order it happens: key → request → certificate → check → install → renew.

    FACTORY ──draft──▶ DRAFTED ──install──▶ ENROLLED ──draft──▶ RENEWING ──install──▶ ENROLLED
                          ▲ │                  │ time                                    ▲
                          └─┘ again            ▼                                         │
                                            EXPIRED ──────────────draft/install──────────┘

Rules:
- The key is made here and is written down, with the request, before anybody hears of it; asked again while a request is
  under way, the device repeats it with the same key, so that a lost answer costs nothing.
- What comes back is checked before it is installed, and installed as a whole or not at all.
- A renewal authenticates with the certificate it renews (RFC 7030 §3.3.2) and asks for the same names.
- Whom it trusts follows the CA from root to root (`devicesim.cacerts`). A certificate of a CA that was not there before
  is installed only when the CA certificates, fetched once more, lead from it to an anchor. The old anchor goes when a
  certificate was verified under the new one, and the server too.
- The state is read from the store: it is what a restart would find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from devicesim.cacerts import CaCerts, Succession, refresh_due, without_keys_of
from devicesim.check import chain_of, chains, check_certificate
from devicesim.client import EstClient
from devicesim.codec import CsrAttrs
from devicesim.csr import CsrDraft, PrivateKey, digest_for, key_type_of, spki
from devicesim.csr import key_type as key_type_row
from devicesim.envelope import Decryptor
from devicesim.errors import ConfigInvalid, Conflict, DeviceSimError, KeyStoreError, VerificationFailed
from devicesim.keystore import KeyStore, PendingRequest, StoredIdentity
from devicesim.transport import ClientIdentity
from devicesim.trust import TrustAnchors
from devicesim.wishes import LocalPolicy, OwnNames, choose_key_type, draft, key_fits

_NAMING = (NameOID.COMMON_NAME, NameOID.SERIAL_NUMBER)


class DeviceState(StrEnum):
    """Where a device stands in its life."""

    FACTORY = "factory"
    DRAFTED = "drafted"
    ENROLLED = "enrolled"
    RENEWING = "renewing"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """A certificate in use, its key, and where other programs find them.

    Attributes:
        device_id: whose it is.
        certificate: the device's own.
        chain: the intermediates, towards the anchor.
        trust: the anchors it was checked against.
        key: the private key.
        directory: the store; the paths below stay the same when the identity is renewed.
    """

    device_id: str
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    trust: TrustAnchors
    key: PrivateKey = field(repr=False)
    directory: Path

    @property
    def certificate_path(self) -> Path:
        """PEM: the certificate, then the intermediates."""
        return self.directory / "cert.pem"

    @property
    def key_path(self) -> Path:
        """PEM: the private key, 0600, encrypted if the store has a passphrase."""
        return self.directory / "key.pem"

    @property
    def chain_path(self) -> Path:
        """PEM: the intermediates, then the anchors."""
        return self.directory / "chain.pem"

    @property
    def trust_path(self) -> Path:
        """PEM: the trust anchors."""
        return self.directory / "trust.pem"

    def client_identity(self) -> ClientIdentity:
        """Return what a TLS client shows."""
        return ClientIdentity((self.certificate, *self.chain), self.key)


class Device:
    """A device that makes its own key and keeps it.

    Args:
        device_id: its identifier, the common name it asks for.
        store: where its key and certificates live.
        clock: aware UTC time.
        policy: what a server's wishes may make it do.
        subject: the subject it asks for, when that is more than its id.
        tell: hears, in one line, of a root that was adopted or refused.
    """

    def __init__(
        self,
        device_id: str,
        *,
        store: KeyStore,
        clock: Callable[[], datetime],
        policy: LocalPolicy | None = None,
        subject: x509.Name | None = None,
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        if not device_id or len(device_id) > 64 or not device_id.isprintable():
            raise ConfigInvalid(f"not a device id: {device_id!r}", advice="1 to 64 printable characters")
        self.device_id = device_id
        self._store = store
        self._clock = clock
        self._policy = policy or LocalPolicy()
        self._subject = subject
        self._tell = tell

    @property
    def state(self) -> DeviceState:
        """Where the device stands, as a restart would find it."""
        current, pending = self._store.current(), self._store.pending()
        if current is None:
            return DeviceState.DRAFTED if pending else DeviceState.FACTORY
        if pending:
            return DeviceState.RENEWING
        return DeviceState.EXPIRED if self._clock() > current.certificate.not_valid_after_utc else DeviceState.ENROLLED

    @property
    def identity(self) -> DeviceIdentity | None:
        """The identity in use, if any."""
        current = self._store.current()
        return None if current is None else self._identity(current)

    # --- step by step -----------------------------------------------------------------------------------------------

    def draft(
        self,
        csrattrs: CsrAttrs | None = None,
        *,
        key_type: str = "EC-P256",
        san: Iterable[str] = (),
    ) -> CsrDraft:
        """Return the request to send, its key made and both written down; while one is under way, the same again.

        A server's wish for another kind of key comes before `key_type`, as far as the policy lists it.
        """
        wishes = csrattrs or CsrAttrs()
        own = OwnNames(self.device_id, tuple(san), self._subject)
        kind = choose_key_type(wishes.key, key_type, self._policy)
        with self._store.locked():
            pending = self._store.pending()
            keep = pending is not None and (key_fits(pending.key, wishes.key) if wishes.key else True)
            key = pending.key if pending and keep else self._store.generate(kind)
            return self._write_down(draft(key, own, wishes, self._policy))

    def draft_renewal(self, *, key_type: str | None = None) -> CsrDraft:
        """Return the request for a successor: the same names, octet by octet, and a new key (RFC 7030 §4.2.2)."""
        with self._store.locked():
            current = self._store.current()
            if current is None:
                raise KeyStoreError(f"{self.device_id} has no certificate to renew", advice="enrol it first")
            pending = self._store.pending()
            kind = key_type or key_type_of(current.key)
            key = pending.key if pending else self._store.generate(kind)
            return self._write_down(CsrDraft.renewing(current.certificate, key))

    def discard_draft(self) -> None:
        """Forget the request under way and its key; the next draft makes a new one."""
        self._store.drop_pending()

    def install(
        self,
        certificate: x509.Certificate,
        *,
        chain: Iterable[x509.Certificate],
        trust: TrustAnchors,
        now: datetime | None = None,
    ) -> DeviceIdentity:
        """Check a certificate against what was asked for, then make it the identity in use, all of it or nothing."""
        at = now or self._clock()
        with self._store.locked():
            pending, current = self._store.pending(), self._store.current()
            if current is not None and current.certificate == certificate:
                return self._identity(current)
            asked: PendingRequest | StoredIdentity | None = pending or current
            if asked is None:
                raise VerificationFailed("no certificate was asked for", advice="draft a request first")
            request = asked.request if isinstance(asked, PendingRequest) else asked.certificate
            path = check_certificate(certificate, request, chain=chain, trust=trust, now=at)
            return self._identity(self._store.install(StoredIdentity(certificate, path, trust, asked.key, at)))

    # --- the whole sequence -----------------------------------------------------------------------------------------

    def enroll(self, client: EstClient, *, key_type: str = "EC-P256", san: Iterable[str] = ()) -> DeviceIdentity:
        """Get the first certificate: cacerts, csrattrs, request, answer, check, install (RFC 7030 §4.1, §4.5, §4.2.1).

        After an error or a crash, call it again: the same key is enrolled. A device that has a valid certificate keeps
        it; one whose certificate has expired starts again.
        """
        with self._store.locked():
            current = self.identity
            if current is not None:
                self._check_owner(current)
                if self._clock() <= current.certificate.not_valid_after_utc:
                    return current
            cacerts, after = self._cacerts(client)
            request = self.draft(client.csrattrs(), key_type=key_type, san=san)
            certificate = client.simpleenroll(request)
            return self.install(certificate, chain=cacerts.certificates, trust=after.trust)

    def renew(self, client: EstClient, *, new_key: bool = True) -> DeviceIdentity:
        """Get the successor of the certificate in use, with a new key unless told otherwise (RFC 7030 §4.2.2).

        The current certificate authenticates the request, whatever identity the client has. It stays in use until the
        successor is installed, and stays in the store after that.
        """
        with self._store.locked():
            current = self.identity
            if current is None:
                raise KeyStoreError(f"{self.device_id} has no certificate to renew", advice="enrol it first")
            request = self.draft_renewal() if new_key else CsrDraft.renewing(current.certificate, current.key)
            with client.with_identity(current.client_identity()) as authenticated:
                cacerts, after = self._cacerts(authenticated)
                certificate = authenticated.simplereenroll(request)
            if not chains(certificate, current.chain, current.trust, self._clock()):  # of a CA that is new here
                with client.with_identity(current.client_identity(), after.trust) as again:
                    cacerts, after = self._cacerts(again)
            trust = self._settle(client, certificate, cacerts, after)
            return self.install(certificate, chain=cacerts.certificates, trust=trust)

    def refresh(self, client: EstClient, *, always: bool = False) -> DeviceIdentity:
        """Fetch the CA certificates again when they are due, long before they expire (RFC 7030 §4.1.2).

        When the certificate in use would not chain to an anchor any more, everything is kept as it was.
        """
        with self._store.locked():
            stored, now = self._store.current(), self._clock()
            if stored is None:
                raise KeyStoreError(f"{self.device_id} has no identity to refresh", advice="enrol it first")
            if not always and stored.fetched_at and not refresh_due(stored.trust, stored.fetched_at, now):
                return self._identity(stored)
            cacerts, after = self._cacerts(client)
            trust = self._settle(client, stored.certificate, cacerts, after)
            chain = chain_of(stored.certificate, (*cacerts.certificates, *stored.chain), trust, now)
            return self._identity(self._store.refresh(replace(stored, chain=chain, trust=trust, fetched_at=now)))

    def receive(
        self,
        client: EstClient,
        *,
        key_type: str = "EC-P256",
        san: Iterable[str] = (),
        decryptor: Decryptor | None = None,
    ) -> DeviceIdentity:
        """Get a key that the server makes, and its certificate (RFC 7030 §4.4), for a device that cannot make its own.

        Only what was checked is kept. A lost answer loses the key in it: call it again, for another one.
        """
        with self._store.locked():
            current = self.identity
            if current is not None:
                self._check_owner(current)
            (cacerts, after), wishes = self._cacerts(client), client.csrattrs()
            own = OwnNames(self.device_id, tuple(san), self._subject)
            asking = key_type_row(choose_key_type(wishes.key, key_type, self._policy)).generate()  # signs, no more
            request = draft(asking, own, wishes, self._policy)
            made = client.serverkeygen(request, decryptor)
            asked = x509.load_der_x509_csr(replace(request, key=made.key, digest=digest_for(made.key)).sign())
            now = self._clock()
            path = check_certificate(made.certificate, asked, chain=cacerts.certificates, trust=after.trust, now=now)
            return self._identity(
                self._store.install(StoredIdentity(made.certificate, path, after.trust, made.key, now))
            )

    def fall_back(self) -> DeviceIdentity:
        """Return to the last known good identity."""
        return self._identity(self._store.fall_back())

    # --- parts ------------------------------------------------------------------------------------------------------

    def _cacerts(self, client: EstClient) -> tuple[CaCerts, Succession]:
        """Fetch the CA certificates and say whom to trust after them."""
        cacerts = client.cacerts()
        after = cacerts.succession(self._clock())
        if after.note:
            self._tell(after.note)
        if after.adopted and after.root is not None:
            self._tell(f"the trusted CA vouches for its successor {after.root.subject.rfc4514_string()!r}: trusted too")
        return cacerts, after

    def _settle(
        self, client: EstClient, certificate: x509.Certificate, cacerts: CaCerts, after: Succession
    ) -> TrustAnchors:
        """Let go of the anchor before once certificate and server are verified without it, else keep both."""
        if not after.before:
            return after.trust
        alone = after.settled()
        if not chains(certificate, without_keys_of(cacerts.certificates, after.before), alone, self._clock()):
            return after.trust
        try:
            with client.without_password(alone) as proving:
                proving.cacerts()
        except DeviceSimError as error:
            self._tell(f"the root before stays trusted beside the new one: {error}")
            return after.trust
        return alone

    def _write_down(self, made: CsrDraft) -> CsrDraft:
        """Persist a draft as a request without binding, unless it says what is written already."""
        pending = self._store.pending()
        request = x509.load_der_x509_csr(made.sign())
        if pending is None or not _same_request(pending.request, request):
            self._store.write_pending(PendingRequest(made.key, request))
        return made

    def _check_owner(self, identity: DeviceIdentity) -> None:
        """Stop when the store holds the identity of another device."""
        own = OwnNames(self.device_id, subject=self._subject)
        subject = identity.certificate.subject
        values = [str(found.value) for oid in _NAMING for found in subject.get_attributes_for_oid(oid)]
        if not any(value.casefold() == self.device_id.casefold() or own.owns(value, self._policy) for value in values):
            raise Conflict(
                f"this store holds the identity of {subject.rfc4514_string()}, not of {self.device_id}",
                advice="give each device a store of its own",
            )

    def _identity(self, stored: StoredIdentity) -> DeviceIdentity:
        return DeviceIdentity(
            self.device_id, stored.certificate, stored.chain, stored.trust, stored.key, self._store.directory
        )


def _same_request(one: x509.CertificateSigningRequest, other: x509.CertificateSigningRequest) -> bool:
    return spki(one) == spki(other) and one.subject == other.subject and list(one.extensions) == list(other.extensions)
