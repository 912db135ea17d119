"""Devices that get no certificate, whoever vouches for them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select

from estserver.errors import NotFound
from estserver.inventory import audit
from estserver.inventory.prepared import Prepared
from estserver.inventory.revocation_tables import blocked_device
from estserver.inventory.transaction import Transaction
from estserver.inventory.void import void_device
from estserver.model import DeviceId


@dataclass(frozen=True, slots=True)
class BlockedDevice:
    """A device that gets no certificate; `reason` is one of a revocation's."""

    device: DeviceId
    at: datetime
    reason: str
    actor: str


_named = blocked_device.c.device == bindparam("named")
_FIND = Prepared(select(blocked_device).where(_named))
_ADD = Prepared(insert(blocked_device), ("device", "at", "reason", "actor"))
_REMOVE = Prepared(delete(blocked_device).where(_named))


def add(tx: Transaction, device: DeviceId, reason: str, actor: str) -> None:
    """Block a device, and withdraw what is being issued for it; one that is blocked already keeps its date."""
    void_device(tx, device, "device blocked")
    if _FIND.one(tx.connection, named=device) is not None:
        return
    _ADD.run(tx.connection, device=device, at=tx.now, reason=reason, actor=actor)
    audit.append(tx, audit.Fact(actor, "block", "ok", {"device": device, "reason": reason}))


def remove(tx: Transaction, device: DeviceId, actor: str) -> None:
    """Let a device enrol again.

    Raises:
        NotFound: it is not blocked.
    """
    if _REMOVE.run(tx.connection, named=device) != 1:
        raise NotFound(f"the device {device} is not blocked", advice="see: estserver block list")
    audit.append(tx, audit.Fact(actor, "unblock", "ok", {"device": device}))


def page(connection: Connection, *, after: str, limit: int) -> list[BlockedDevice]:
    """Return the next devices, by name."""
    query = select(blocked_device).where(blocked_device.c.device > after).order_by(blocked_device.c.device)
    return [
        BlockedDevice(DeviceId(row.device), row.at, row.reason, row.actor)
        for row in connection.execute(query.limit(limit))
    ]
