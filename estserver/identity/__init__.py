"""Who asks: peer facts + credentials + trust anchors → an `Identity`, or all reasons why not.

Rules:
- A credential, when one is offered, decides alone; it counts for the label it was made for. One with an empty user
  name is found by its secret (RFC 7030 §3.2.3); one that was made with a name never is.
- A certificate that reaches this CA's own anchor (explicit, RFC 7030 §3.3.2) must be in the inventory, unrevoked and
  in time. It makes a device, or, with id-kp-cmcRA and a registered station, a registration authority (§3.7).
- A certificate that reaches a manufacturer's anchor (implicit) makes an IDevID, which may enrol but not re-enrol; where
  a revocation list of the manufacturer is wanted, it is asked, and the operator has said what counts without one.
- The key of an IDevID that is blocked gets nothing, whatever else comes with it.
- Where a label wants both, the certificate says who it is and the credential what may be named besides (§3.2.3).
- A certificate that vouches for a key which cannot sign (RFC 9883) is one of this CA's and held to the same rules.
- What is neither is a stranger. Every reason is named; of a bad credential nothing is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from cryptography import x509
from cryptography.x509.oid import NameOID

from estserver.asn1 import issuer_and_serial
from estserver.errors import BadCredentials, NotAuthenticated, NotAuthorized
from estserver.identity.credentials import CredentialVerifier
from estserver.identity.paths import Anchor, AnchorSet, Path, extension, key_of
from estserver.model import BasicCredentials, CertificateRecord, Der, Identity, IdentityKind, Peer, Serial, SpkiHash
from estserver.policy.names import any_device, device_id
from estserver.possession import Statement
from estserver.records import AnchorRecord, CredentialRecord, ListedStatus, StationRecord

__all__ = ["Anchor", "AnchorSet", "Authenticator", "CredentialVerifier", "Lists", "Registry"]

_CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")


class Registry(Protocol):
    """What the inventory knows about those who may ask."""

    def certificate(self, sha256_hex: str) -> CertificateRecord | None:
        """Find a certificate of this CA by the digest of its DER."""

    def authenticable(self, name: str, now: datetime) -> CredentialRecord | None:
        """Find a credential that may still authenticate."""

    def by_serial(self, serial: Serial) -> CertificateRecord | None:
        """Find a certificate of this CA by its serial."""

    def nameless(self, verifier: bytes, now: datetime) -> CredentialRecord | None:
        """Find a credential without a name that may still authenticate, by what is kept of its secret."""

    def station(self, name: str) -> StationRecord | None:
        """Find a registered station."""

    def anchors(self) -> list[AnchorRecord]:
        """List the manufacturers' anchors."""

    @property
    def blocked(self) -> Blocked:
        """The single IDevIDs that are refused."""


class Blocked(Protocol):
    """The block list of IDevIDs."""

    def reason(self, spki_sha256: SpkiHash) -> str | None:
        """Return why a key is blocked; None when it is not."""


class Lists(Protocol):
    """What manufacturers' revocation lists say."""

    def status(self, name: str, serial: int) -> ListedStatus | None:
        """Look a serial up on the list of an anchor; None when none is wanted of it."""


class NoLists:
    """No list is wanted of anybody."""

    def status(self, name: str, serial: int) -> ListedStatus | None:
        """Know nothing."""
        return None


class Authenticator:
    """Recognises requesters.

    Args:
        registry: what is known about them.
        explicit: this CA's own anchors.
        verifier: compares credentials.
        implicit_trust: whether manufacturers' certificates count at all (RFC 7030 figure 4).
        lists: what manufacturers took back.
    """

    def __init__(
        self,
        registry: Registry,
        explicit: AnchorSet,
        verifier: CredentialVerifier,
        *,
        implicit_trust: bool,
        lists: Lists | None = None,
    ) -> None:
        self._registry = registry
        self._explicit = explicit
        self._verifier = verifier
        self._implicit_trust = implicit_trust
        self._lists = lists or NoLists()
        self._implicit: tuple[list[AnchorRecord], AnchorSet] | None = None

    def identify(
        self,
        peer: Peer,
        credentials: BasicCredentials | None,
        label: str,
        now: datetime,
        before_guess: Callable[[], None] = lambda: None,
        *,
        both: bool = False,
    ) -> Identity:
        """Establish who asks.

        Args:
            both: a credential is wanted in addition to a certificate, not instead of one (RFC 7030 §3.2.3).
            before_guess: called before a secret is compared at a price; what it raises goes to the caller.

        Raises:
            NotAuthenticated: nothing was offered.
            BadCredentials: a credential was offered and is not good, for whatever reason.
            NotAuthorized: a certificate was offered, with every reason why it does not count.
        """
        if credentials is None and both:
            raise NotAuthenticated("this label wants a credential besides the client certificate")
        vouched = None if credentials is None else self._by_credential(credentials, label, now, before_guess)
        if vouched is not None and not both:
            self._require_unblocked(peer.certificate)
            return vouched
        if peer.certificate is None:
            if vouched is not None:
                raise NotAuthorized("this label wants a client certificate besides the credential")
            raise NotAuthenticated("neither a client certificate nor a credential was offered")
        shown = self._by_certificate(peer.certificate, peer.intermediates, now)
        return shown if vouched is None else _both(shown, vouched)

    def vouch(self, statement: Statement, now: datetime) -> CertificateRecord:
        """Return the certificate that a statement of possession names, if it may make one (RFC 9883 §3).

        Raises:
            NotAuthorized: it is none of this CA's, or it does not count, with every reason.
        """
        record = self._registry.by_serial(Serial(statement.serial))
        named = record is not None and issuer_and_serial(record.certificate) == (statement.issuer, statement.serial)
        if record is None or not named or statement.certificate not in (None, record.certificate):
            raise NotAuthorized(
                "the statement of possession names a certificate that is none of this CA", code="unknown-certificate"
            )
        path = self._explicit.path(record.certificate, (), now)
        problems = ("it does not lead to this CA",) if path is None else path.problems
        _require_sound(record, problems)
        return record

    def _by_credential(
        self, credentials: BasicCredentials, label: str, now: datetime, before_guess: Callable[[], None]
    ) -> Identity:
        record = self._record(credentials, now)
        good = self._verifier.matches(record, credentials.secret, before_guess)
        if record is None or not good or record.label != label:
            raise BadCredentials("the credential is unknown, wrong, expired, spent, or not for this label")
        return Identity(IdentityKind.CREDENTIAL, record.name, record.devices, record.names, labels=(record.label,))

    def _record(self, credentials: BasicCredentials, now: datetime) -> CredentialRecord | None:
        if credentials.name:
            return self._registry.authenticable(credentials.name, now)
        return self._registry.nameless(self._verifier.kept_of(credentials.secret), now)

    def _require_unblocked(self, leaf: Der | None) -> None:
        spki_sha256 = None if leaf is None else key_of(leaf)
        reason = None if spki_sha256 is None else self._registry.blocked.reason(spki_sha256)
        if reason is not None:
            raise NotAuthorized(f"this IDevID is blocked here: {reason}", code="blocked-idevid")

    def _by_certificate(self, leaf: Der, presented: Sequence[Der], now: datetime) -> Identity:
        own = self._explicit.path(leaf, presented, now)
        if own is not None:
            return self._of_this_ca(leaf, own)
        anchors, implicit = self._manufacturers()
        foreign = implicit.path(leaf, presented, now) if implicit is not None else None
        if foreign is None:
            raise NotAuthorized(
                "the client certificate does not lead to a trust anchor of this server", code="unknown-certificate"
            )
        self._require_unblocked(leaf)
        self._require_unrevoked(foreign, now)
        return _idevid(foreign, next(a for a in anchors if a.name == foreign.anchor))

    def _require_unrevoked(self, path: Path, now: datetime) -> None:
        """Ask the list of the anchor about what it issued; of what others issued below it there is none.

        Who was revoked is refused by a list that has ended too; where it says nothing, what the operator wanted counts.
        """
        found = [self._lists.status(path.anchor, serial) for serial in path.below_anchor[-1:]]
        for status in (one for one in found if one is not None):
            if status.revoked:
                raise NotAuthorized(f"the certificate was revoked by its manufacturer {path.anchor}", code="revoked")
            known = status.next_update is not None and now <= status.next_update and len(path.below_anchor) == 1
            if not known and status.missing == "refuse":
                raise NotAuthorized(
                    f"there is no valid revocation list of {path.anchor} for this certificate",
                    code="revocation-unknown",
                    advice="the server's operator can look into it with: estserver trust crl list",
                )

    def _of_this_ca(self, leaf: Der, path: Path) -> Identity:
        record = self._registry.certificate(hashlib.sha256(leaf).hexdigest())
        if record is None:
            unknown = "the certificate is not in the inventory of this server"
            raise NotAuthorized(*path.problems, unknown, code="bad-certificate")
        _require_sound(record, path.problems)
        station = self._station(record, path.leaf)
        if station is not None:
            devices = (*station.devices, record.device)
            return Identity(IdentityKind.STATION, station.name, devices, certificate=record, may_assert_binding=True)
        return Identity(IdentityKind.CERTIFICATE, record.device, (record.device,), certificate=record)

    def _station(self, record: CertificateRecord, leaf: x509.Certificate) -> StationRecord | None:
        """Find the station of a certificate; it takes both the purpose in it and an entry by the operator."""
        purposes = extension(leaf, x509.ExtendedKeyUsage)
        if purposes is None or _CMC_RA not in purposes:
            return None
        return self._registry.station(record.device)

    def _manufacturers(self) -> tuple[list[AnchorRecord], AnchorSet | None]:
        if not self._implicit_trust:
            return [], None
        anchors = self._registry.anchors()
        if self._implicit is None or self._implicit[0] != anchors:
            self._implicit = anchors, AnchorSet([Anchor(a.name, a.certificate) for a in anchors])
        return self._implicit


def _require_sound(record: CertificateRecord, problems: Sequence[str]) -> None:
    """Refuse a certificate of this CA that does not count, with every reason."""
    if record.revoked_at is not None:
        revoked = f"the certificate was revoked on {record.revoked_at:%Y-%m-%d} ({record.revocation_reason})"
        raise NotAuthorized(*problems, revoked, code="revoked")
    if problems:
        raise NotAuthorized(*problems, code="bad-certificate")


def _both(shown: Identity, vouched: Identity) -> Identity:
    """Name whoever the certificate names, with what the credential allows, and nothing that it does not."""
    return replace(shown, names=vouched.names, labels=vouched.labels, credential=vouched.name, within=vouched.devices)


def _idevid(path: Path, anchor: AnchorRecord) -> Identity:
    """Name a device by its manufacturer's certificate: subject serialNumber (RFC 8995 §2.3.1), as the anchor says."""
    serials = path.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    problems = list(path.problems)
    device = None
    if len(serials) != 1:
        problems.append("the IDevID has no single serialNumber in its subject")
    else:
        device = device_id(anchor.device_id.replace("{serial}", str(serials[0].value)))
        if device is None:
            problems.append("the serialNumber of the IDevID does not make a device id")
        elif not any_device(anchor.devices, device):
            problems.append(f"the manufacturer {anchor.name} may not vouch for the device {device}")
    if problems or device is None:
        raise NotAuthorized(*problems, code="bad-certificate")
    return Identity(IdentityKind.IDEVID, f"{anchor.name}/{device}", (device,))
