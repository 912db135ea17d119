"""Taking certificates back (RFC 5280 §5.3).

Rules:
- Who is revoked takes along what it superseded: an older certificate of the same device and profile, still in time,
  would authenticate a renewal as it did. One that shares its key shares its reason, the others are `superseded`.
- A revoked device is blocked besides: it gets no certificate, whoever vouches for it, until an operator lifts that.
- What lists have to say is written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import insert, update

from estserver.errors import NotFound, StateError
from estserver.inventory import audit, blocks, counters, outbox, queries
from estserver.inventory.prepared import Prepared
from estserver.inventory.revocation_tables import revocation
from estserver.inventory.schema import certificate
from estserver.inventory.transaction import Transaction
from estserver.key_ids import issuer_key_id
from estserver.model import CertificateRecord, DeviceId, Event, Serial

REASONS = (
    "unspecified",
    "keyCompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)
"""Names of RFC 5280 §5.3.1 that fit a device.

A CA's own reasons are not for devices; a hold could be lifted, and what was on hold must not come back by itself.
"""

Announce = Callable[[CertificateRecord], Sequence[Event]]
"""Makes the events that tell of one revocation."""


def nothing(_record: CertificateRecord) -> Sequence[Event]:
    """Announce nothing."""
    return ()


def revoke(tx: Transaction, serial: Serial, reason: str, actor: str, announce: Announce) -> list[CertificateRecord]:
    """Revoke a certificate and those that it superseded; one that is revoked already keeps its date and reason.

    Returns:
        the one that was named, then the others that were in force.

    Raises:
        NotFound: no such certificate.
    """
    record = queries.by_serial(tx.connection, serial)
    if record is None:
        raise NotFound(f"no certificate has the serial {serial:x}", advice="see: estserver inventory list")
    older = [_revoke(tx, one, why, actor, announce) for one, why in _superseded_by(tx, record, reason)]
    vouched = [_revoke(tx, one, reason, actor, announce) for one in _vouched_by(tx, record, reason)]
    return [_revoke(tx, record, reason, actor, announce), *older, *vouched]


def _superseded_by(tx: Transaction, last: CertificateRecord, reason: str) -> list[tuple[CertificateRecord, str]]:
    """Find the older certificates of a device and profile that are still in force, each with its reason."""
    records = queries.of_device(tx.connection, last.device)
    at = next(index for index, record in enumerate(records) if record.serial == last.serial)
    return [
        (record, reason if record.spki_sha256 == last.spki_sha256 else "superseded")
        for record in records[:at]
        if record.profile == last.profile and _in_force(tx, record)
    ]


def _vouched_by(tx: Transaction, voucher: CertificateRecord, reason: str) -> list[CertificateRecord]:
    """Find what goes with a certificate that vouched for it, unless nothing is said against its key (RFC 9883 §6)."""
    found = [] if reason == "superseded" else queries.vouched_by(tx.connection, voucher.serial)
    return [record for record in found if _in_force(tx, record)]


def _in_force(tx: Transaction, record: CertificateRecord) -> bool:
    return record.revoked_at is None and record.not_after >= tx.now


def revoke_device(
    tx: Transaction, device: DeviceId, reason: str, actor: str, announce: Announce
) -> list[CertificateRecord]:
    """Block a device, revoke all of its certificates in force, and withdraw what is being issued for it right now.

    Raises:
        NotFound: the device has no certificate.
    """
    records = queries.of_device(tx.connection, device)
    if not records:
        raise NotFound(f"no certificate belongs to the device {device}", advice="see: estserver inventory list")
    blocks.add(tx, device, reason, actor)
    return [_revoke(tx, record, reason, actor, announce) for record in records if _in_force(tx, record)]


def revoke_some(
    tx: Transaction, serials: Sequence[Serial], reason: str, actor: str, announce: Announce
) -> list[CertificateRecord]:
    """Revoke these certificates and no others; those that are revoked already keep their date and reason."""
    found = [queries.by_serial(tx.connection, serial) for serial in serials]
    return [_revoke(tx, one, reason, actor, announce) for one in found if one is not None and _in_force(tx, one)]


_INSERT = Prepared(insert(revocation), ("issuer", "serial", "at", "reason", "not_after"))


def _revoke(
    tx: Transaction, record: CertificateRecord, reason: str, actor: str, announce: Announce
) -> CertificateRecord:
    if reason not in REASONS:
        raise StateError(f"{reason} is not a reason for a revocation", advice=f"one of {', '.join(REASONS)}")
    if record.revoked_at is not None:
        return record
    revoked = replace(record, revoked_at=tx.now.replace(microsecond=0), revocation_reason=reason)
    tx.connection.execute(
        update(certificate).where(queries.has_serial(record.serial)).values(revoked_at=tx.now, revocation_reason=reason)
    )
    _INSERT.run(
        tx.connection,
        issuer=issuer_key_id(record.certificate),
        serial=record.serial,
        at=tx.now,
        reason=reason,
        not_after=record.not_after,
    )
    counters.add(tx, "revoked")
    detail = {"serial": f"{record.serial:x}", "device": record.device, "reason": reason}
    audit.append(tx, audit.Fact(actor, "revoke", "ok", detail))
    outbox.add(tx, announce(revoked))
    return revoked
