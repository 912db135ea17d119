"""What the inventory knows besides certificates: who may ask, and what happened. Frozen values, as in `model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, TypeAlias

from estserver.model import Der, DeviceId, GeneralName, NameAttribute, Serial, SpkiHash


@dataclass(frozen=True, slots=True)
class CredentialRecord:
    """An enrolment credential for HTTP Basic; the secret itself is not kept.

    Attributes:
        scheme: `hmac-sha256` for a generated 128-bit secret, `scrypt` for one a human chose.
        verifier, salt: digest bytes; `salt` is empty for `hmac-sha256`, whose key is the server's.
        label: the one label it opens; None for the default label.
        devices, names: as in `Identity`.
        uses: how many different requests it may be spent on; None for any number until it expires.
        spent: how many it has been spent on.
    nameless: it is offered by its secret alone, the user name empty; `name` is what the operator calls it. Only a
        generated secret can be, since it is what the credential is found by.
    """

    name: str
    scheme: Literal["hmac-sha256", "scrypt"]
    verifier: bytes = field(repr=False)
    salt: bytes = field(repr=False)
    label: str
    devices: tuple[str, ...]
    names: tuple[str, ...]
    uses: int | None
    spent: int
    created_at: datetime
    expires_at: datetime | None
    nameless: bool = False


@dataclass(frozen=True, slots=True)
class StationRecord:
    """A registration authority and the devices it may enrol; it authenticates with its certificate (id-kp-cmcRA)."""

    name: str
    devices: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AnchorRecord:
    """A manufacturer's CA whose IDevIDs may bootstrap: one of the implicit trust anchors (RFC 7030 §3.3.2).

    Attributes:
        certificate: the anchor; self-signed or not.
        device_id: how a device id is made from the IDevID: `{serial}` is its subject serialNumber, lower-cased.
        devices: patterns of the device ids it may vouch for.
    """

    name: str
    certificate: Der
    device_id: str
    devices: tuple[str, ...]
    created_at: datetime


Missing: TypeAlias = Literal["refuse", "accept"]
"""What counts where a list should be and none is, or it has ended: fail closed, or fail open."""


@dataclass(frozen=True, slots=True)
class AnchorCrlRecord:
    """The revocation list of a manufacturer's CA.

    Attributes:
        source: a file, or an http or https URL.
        next_update: None before there was a list; as `this_update` and `entries`.
        problem: why the last attempt to fetch it failed; None when it did not.
    """

    anchor: str
    source: str
    missing: Missing
    this_update: datetime | None = None
    next_update: datetime | None = None
    entries: int | None = None
    tried_at: datetime | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ListedStatus:
    """What the list of a manufacturer's CA says of one certificate; `next_update` is None where there is no list."""

    missing: Missing
    next_update: datetime | None
    revoked: bool


@dataclass(frozen=True, slots=True)
class BlockedRecord:
    """One IDevID that is refused though its manufacturer is trusted.

    Attributes:
        spki_sha256: of the key in it: a certificate made anew for the same key is refused too.
        subject: of the certificate it was blocked by; empty where only the hash was known.
    """

    spki_sha256: SpkiHash
    subject: str
    reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PendingRecord:
    """A request that an operator decides on, until it is issued or its time is over.

    Attributes:
        id: never used again for another request.
        requester, predecessor: as in `Grant`; `peer_address` is where it was first asked from.
        expires_at: when it is forgotten; a decision counts for as long again.
        reason: what the requester is told of a denial.
    """

    id: int
    state: Literal["waiting", "approved", "denied"]
    requester: str
    device: DeviceId
    operation: str
    label: str
    profile: str
    spki_sha256: SpkiHash
    key_name: str
    subject: tuple[NameAttribute, ...]
    san: tuple[GeneralName, ...]
    predecessor: Serial | None
    csr: Der
    peer_address: str
    asked_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None
    decided_by: str | None = None
    reason: str | None = None


class Tier(StrEnum):
    """Which CA of a hierarchy moves to a new key."""

    ROOT = "root"
    ISSUING = "issuing"


class Stage(StrEnum):
    """How far a rollover is (`estserver.rollover`)."""

    ANNOUNCE = "announce"
    CROSS = "cross"
    SWITCH = "switch"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class RolloverCertificates:
    """What is made at stage `cross`: the new certificate, and what ties old and new together.

    Attributes:
        new: the new root (NewWithNew), or the new issuing CA.
        new_with_old, old_with_new: of a root, the link certificates (RFC 4210 §4.4.1).
        issuing: of a root, the issuing CA as the new root certifies it: the same key.
    """

    new: Der
    new_with_old: Der | None = None
    old_with_new: Der | None = None
    issuing: Der | None = None


@dataclass(frozen=True, slots=True)
class RolloverRecord:
    """One rollover of one CA; those of the past stay, they say what the CA is.

    Attributes:
        id: in the order in which they were started.
        key_kind: row of `estserver.keys.KINDS`.
        key: where the new private key is, relative to the home if it is in it; a root's is not needed for serving.
        old: the certificate that is replaced.
        made: what was made for it; None before `cross`.
    """

    id: int
    ca: str
    tier: Tier
    stage: Stage
    key_kind: str
    key: str
    old: Der
    started_at: datetime
    stage_at: datetime
    made: RolloverCertificates | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a fleet has followed a CA.

    Attributes:
        live: devices with a certificate that is in time, unrevoked and not superseded.
        fetched: those of them that were given, when they last asked and were recognised, what `/cacerts` answers now.
        renewed: those whose every certificate was signed by the key that signs now.
    """

    live: int
    fetched: int
    renewed: int


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One link of the audit chain: `hash` covers the row and the hash before it."""

    seq: int
    at: datetime
    actor: str
    action: str
    outcome: str
    detail: Mapping[str, object]
    previous_hash: str
    hash: str


SPENT_CREDENTIAL_GRACE = timedelta(hours=24)
"""How long a spent one-time password still authenticates a repeat of the request that spent it."""
