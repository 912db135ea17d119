"""Taking certificates back (RFC 5280 §5.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import update

from estserver.errors import NotFound, StateError
from estserver.inventory import audit, counters, outbox, queries
from estserver.inventory.schema import certificate
from estserver.inventory.transaction import Transaction
from estserver.inventory.void import void_device
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


def revoke(tx: Transaction, serial: Serial, reason: str, actor: str, announce: Announce) -> CertificateRecord:
    """Revoke one certificate; one that is revoked already keeps its date and reason.

    Raises:
        NotFound: no such certificate.
    """
    record = queries.by_serial(tx.connection, serial)
    if record is None:
        raise NotFound(f"no certificate has the serial {serial:x}", advice="see: estserver inventory list")
    revoked = _revoke(tx, record, reason, actor, announce)
    _revoke_vouched(tx, record, reason, actor, announce)
    return revoked


def revoke_device(
    tx: Transaction, device: DeviceId, reason: str, actor: str, announce: Announce
) -> list[CertificateRecord]:
    """Revoke every certificate of a device that is still in force, and what is being issued for it right now.

    Raises:
        NotFound: the device has no certificate.
    """
    records = queries.of_device(tx.connection, device)
    if not records:
        raise NotFound(f"no certificate belongs to the device {device}", advice="see: estserver inventory list")
    void_device(tx, device, "device revoked")
    return [
        _revoke(tx, record, reason, actor, announce)
        for record in records
        if record.revoked_at is None and record.not_after >= tx.now
    ]


def _revoke_vouched(tx: Transaction, voucher: CertificateRecord, reason: str, actor: str, announce: Announce) -> None:
    """Revoke with a certificate what it vouched for, unless nothing is said against its key (RFC 9883 §6)."""
    if reason == "superseded":
        return
    for record in queries.vouched_by(tx.connection, voucher.serial):
        if record.revoked_at is None and record.not_after >= tx.now:
            _revoke(tx, record, reason, actor, announce)


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
    counters.add(tx, "revoked")
    detail = {"serial": f"{record.serial:x}", "device": record.device, "reason": reason}
    audit.append(tx, audit.Fact(actor, "revoke", "ok", detail))
    outbox.add(tx, announce(revoked))
    return revoked
