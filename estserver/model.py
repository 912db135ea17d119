"""The values that flow through one enrolment, each frozen: Peer → Identity, Csr → Grant → Reservation → Issued.

Nothing here does anything; a value means what the room that makes it says. All times are aware UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, NewType

Der = NewType("Der", bytes)
DeviceId = NewType("DeviceId", str)
Serial = NewType("Serial", int)
SpkiHash = NewType("SpkiHash", str)
"""SHA-256 over the octets of a SubjectPublicKeyInfo as they arrived, 64 lower-case hex digits."""


class Operation(StrEnum):
    """The EST operations that ask who it is (RFC 7030 §4.2, §4.4, §4.5); all but the last end in a certificate."""

    SIMPLEENROLL = "simpleenroll"
    SIMPLEREENROLL = "simplereenroll"
    SERVERKEYGEN = "serverkeygen"
    CSRATTRS = "csrattrs"


# --- who asks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChannelBinding:
    """What ties a CSR to its TLS connection: tls-unique on TLS 1.2 (RFC 5929), tls-exporter on 1.3 (RFC 9266)."""

    kind: Literal["tls-unique", "tls-exporter"]
    value: bytes


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of the connection, as the handshake left it: a key was proven, nothing else.

    Attributes:
        address: IP address of the peer, for logs.
        tls_version: as OpenSSL prints it, `TLSv1.2` or `TLSv1.3`; empty when unknown.
        certificate: the leaf it presented, or None.
        intermediates: whatever else it presented, in its order.
        binding: None when this connection cannot give one that is safe to trust.
        cipher: OpenSSL's name of the cipher suite; empty when unknown.
        first_bound: given a key, returns the one that the binding of this connection vouched for first, which may be
            this one; None where what is asked on one connection cannot be told from the rest.
    """

    address: str
    tls_version: str = ""
    certificate: Der | None = None
    intermediates: tuple[Der, ...] = ()
    binding: ChannelBinding | None = None
    cipher: str = ""
    first_bound: Callable[[SpkiHash], SpkiHash] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """Name and secret from an Authorization header (RFC 7617); the secret never appears in a repr."""

    name: str
    secret: bytes = field(repr=False)


class IdentityKind(StrEnum):
    """How the requester was recognised; `IDEVID` is the implicit trust anchor database of RFC 7030 §3.3.2."""

    CREDENTIAL = "credential"
    CERTIFICATE = "certificate"
    STATION = "station"
    IDEVID = "idevid"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and which names they may ask for.

    Attributes:
        kind: how they were recognised.
        name: credential name, station name or device id.
        devices: patterns of the device ids they may name: exact, or shell-style with `*` and `?`.
        names: further subject alternative names they may ask for, as `dns:…`, `ip:…`, `uri:…` patterns.
        labels: the labels they may use; None means every label.
        certificate: the certificate of this CA they authenticated with, if that is how they came.
        credential: the credential that came with a certificate, where a label wants both; `within` are its devices.
        may_assert_binding: a registration authority posts what others signed (id-kp-cmcRA, RFC 7030 §3.7).
    """

    kind: IdentityKind
    name: str
    devices: tuple[str, ...]
    names: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    certificate: CertificateRecord | None = None
    may_assert_binding: bool = False
    credential: str | None = None
    within: tuple[str, ...] | None = None

    def __str__(self) -> str:
        """Return `kind:name`, the form used in audit rows and request fingerprints."""
        besides = "" if self.credential is None else f"+{IdentityKind.CREDENTIAL}:{self.credential}"
        return f"{self.kind}:{self.name}{besides}"


# --- what is asked --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NameAttribute:
    """One attribute of a distinguished name: dotted OID and text."""

    oid: str
    value: str


@dataclass(frozen=True, slots=True, order=True)
class GeneralName:
    """One subject alternative name; `value` is text (RFC 5280 §4.2.1.6), or hex DER for kinds we do not issue."""

    kind: Literal["dns", "ip", "uri", "email", "dirname", "rid", "other"]
    value: str

    def __str__(self) -> str:
        """Return `kind:value`."""
        return f"{self.kind}:{self.value}"


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What a public key is: `algorithm` is the family, `name` the exact kind.

    Attributes:
        algorithm: `EC`, `RSA`, `Ed25519`, `Ed448`, `ML-DSA`, or, to establish keys, `X25519` and `ML-KEM`.
        name: `P-256`, `P-384`, `P-521`, `RSA-3072`, `Ed25519`, `ML-DSA-65`, …
        bits: modulus or field size; 0 where it means nothing.
    """

    algorithm: str
    name: str
    bits: int = 0


@dataclass(frozen=True, slots=True)
class RequestedExtension:
    """One extension from the CSR's extensionRequest attribute (RFC 2985 §5.4.2): a wish, not yet a decision."""

    oid: str
    critical: bool
    value: Der


@dataclass(frozen=True, slots=True)
class NameChange:
    """The names to come of a ChangeSubjectName (RFC 6402 §2.8): what is empty was left out, and is to go."""

    subject: tuple[NameAttribute, ...]
    san: tuple[GeneralName, ...]


@dataclass(frozen=True, slots=True)
class Attestation:
    """An AttestationBundle that came with a request: nobody here reads it, the audit says which it was."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Csr:
    """A certification request whose signature was verified (RFC 2986), or is to be ignored (RFC 7030 §4.4.1).

    Attributes:
        der: the octets as they arrived.
        spki: SubjectPublicKeyInfo octets as they arrived; re-encoding can change them (RSA-PSS).
        spki_sha256: digest of `spki`.
        key: what kind of key it is.
        signature_hash: `SHA256`, …; empty for algorithms without a separate hash.
        subject: in the order of the request.
        san: as a sorted tuple without repeats; `san_critical` as asked.
        extensions: everything requested except the SAN.
        key_usage: the names of the requested bits (RFC 5280 §4.2.1.3), or None when none were asked for.
        extended_key_usage: requested purposes as dotted OIDs, or None.
        ca: basicConstraints CA:TRUE is requested.
        binding: text of the challengePassword attribute (RFC 7030 §3.5), or None.
        change: the names to certify instead, if there is a ChangeSubjectName.
        voucher: the certificate whose key signed, where the key to certify cannot (RFC 9883).
        attestation: what was attested of the key, unread, or None.
        attributes: dotted OIDs of further attributes, ignored unless a profile names them.
    """

    der: Der
    spki: Der
    spki_sha256: SpkiHash
    key: KeyFacts
    signature_hash: str
    subject: tuple[NameAttribute, ...]
    san: tuple[GeneralName, ...] = ()
    extensions: tuple[RequestedExtension, ...] = ()
    key_usage: tuple[str, ...] | None = None
    extended_key_usage: tuple[str, ...] | None = None
    ca: bool = False
    binding: str | None = None
    change: NameChange | None = None
    voucher: CertificateRecord | None = None
    attestation: Attestation | None = None
    attributes: tuple[str, ...] = ()


# --- what is given --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension of a certificate to be: dotted OID, criticality, DER value."""

    oid: str
    critical: bool
    value: Der


@dataclass(frozen=True, slots=True)
class Grant:
    """Everything that was decided about one request; signing adds no decision of its own.

    Attributes:
        operation, label, profile: which door it came through and which rules answered.
        requester: `str(identity)`; `credential` is its name when a credential is to be spent.
        device, csr: whose certificate it will be, and the request it answers.
        subject, san: the names to certify.
        extensions: key usage, extended key usage and whatever else the profile sets; SAN, SKI, AKI excluded.
        not_before, not_after, renew_after: the life of the certificate and when it becomes due.
        predecessor: serial of the certificate being renewed.
        key_reuse: the profile lets this device keep its key (fixed secure elements).
        binding: `verified`, `absent` or `asserted` (by a registration authority), for the audit (RFC 7030 §3.5).
        holder: whether the certificate is a device's or a part of the site's.
        apart_from: profiles of the other kind of holder; who has one of theirs may not have this one.
        approval: an operator has to agree before it is signed.
        peer_address, request_id: where the request came from and which it was, for the audit.
        tolerated: what the profile would refuse by now, and the certificate being renewed has.
    """

    operation: Operation
    label: str
    profile: str
    requester: str
    credential: str | None
    device: DeviceId
    csr: Csr
    subject: tuple[NameAttribute, ...]
    san: tuple[GeneralName, ...]
    extensions: tuple[Extension, ...]
    not_before: datetime
    not_after: datetime
    renew_after: datetime
    predecessor: Serial | None = None
    key_reuse: bool = False
    binding: Literal["verified", "absent", "asserted"] = "absent"
    peer_address: str = ""
    holder: Literal["device", "site"] = "device"
    apart_from: frozenset[str] = frozenset()
    request_id: str = ""
    approval: bool = False
    tolerated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reservation:
    """A serial written down for one grant before anything is signed; used once."""

    serial: Serial
    grant: Grant
    at: datetime


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is durably in the inventory; `repeated` when the request had been answered before."""

    serial: Serial
    certificate: Der
    device: DeviceId
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused request, or `count` alike of which this is the last, for an audit row."""

    code: str
    reasons: tuple[str, ...]
    operation: str
    label: str
    requester: str
    peer_address: str
    device: str | None = None
    spki_sha256: SpkiHash | None = None
    request_id: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell the world (provisioning.md conventions: CloudEvents over MQTT).

    Attributes:
        id: ULID, fixed when the row is written.
        source: who says it, `/ca/acme`; sequence numbers count within one source.
        type: `org.estline.certificate.issued.v1`, …
        subject: device id or serial.
        topic: below the configured domain, e.g. `d/acme-1/identity`; `retain` as in MQTT.
        data: JSON-serialisable facts; no key material.
    """

    id: str
    source: str
    type: str
    subject: str
    topic: str
    retain: bool
    at: datetime
    data: Mapping[str, object]


# --- what is known --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """One certificate of the inventory.

    Attributes:
        status: `valid`, `revoked` or `superseded`; expiry is arithmetic, not a status.
        requester: `kind:name` of who asked for it.
    """

    serial: Serial
    certificate: Der
    sha256: str
    device: DeviceId
    profile: str
    label: str
    operation: str
    requester: str
    spki_sha256: SpkiHash
    key_name: str
    subject: tuple[NameAttribute, ...]
    san: tuple[GeneralName, ...]
    not_before: datetime
    not_after: datetime
    renew_after: datetime
    issued_at: datetime
    predecessor: Serial | None = None
    superseded_by: Serial | None = None
    revoked_at: datetime | None = None
    revocation_reason: str | None = None

    @property
    def status(self) -> Literal["valid", "revoked", "superseded"]:
        """Revocation outweighs supersession."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if self.superseded_by is None else "superseded"
