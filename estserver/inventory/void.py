"""Serials that were reserved and will never be recorded: given up, told, and their price given back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, delete, exists, select, update

from estserver.inventory import audit, counters
from estserver.inventory.schema import IS_OPEN, ReservationState, credential, credential_use, pending, reservation
from estserver.inventory.transaction import Transaction
from estserver.model import DeviceId, Reservation, Serial


@dataclass(frozen=True, slots=True)
class Leftover:
    """A serial that was reserved and never recorded: a process ended between the two."""

    serial: Serial
    device: DeviceId
    at: datetime


def void(tx: Transaction, reserved: Reservation, reason: str) -> None:
    """Give a reservation up; its serial is never used again. One that is closed already stays as it is."""
    mark_void(tx, reserved.serial, reserved.grant.device, reason)


def void_leftovers(tx: Transaction) -> list[Leftover]:
    """Give up every reservation of this server that nobody will record any more; return them."""
    query = select(reservation.c.serial, reservation.c.device, reservation.c.at).where(
        reservation.c.server_id == tx.server_id, IS_OPEN
    )
    found = [Leftover(row.serial, DeviceId(row.device), row.at) for row in tx.connection.execute(query)]
    for leftover in found:
        mark_void(tx, leftover.serial, leftover.device, "left over")
    return found


def void_device(tx: Transaction, device: DeviceId, reason: str) -> None:
    """Give up what is being issued for a device at this moment."""
    query = select(reservation.c.serial).where(reservation.c.device == device, IS_OPEN)
    for serial in tx.connection.execute(query).scalars().all():
        mark_void(tx, serial, device, reason)


_VOID = update(reservation).where(reservation.c.serial == bindparam("reserved"), IS_OPEN)
_PAID_IN_VAIN = select(credential_use.c.credential_id, credential_use.c.fingerprint).where(
    credential_use.c.fingerprint
    == select(reservation.c.fingerprint).where(reservation.c.serial == bindparam("reserved")).scalar_subquery(),
    ~exists().where(
        reservation.c.fingerprint == credential_use.c.fingerprint, reservation.c.state != ReservationState.VOID
    ),
    ~exists().where(pending.c.fingerprint == credential_use.c.fingerprint),
)
"""The use of a credential by a request of which nothing came, and nothing can come any more."""


def mark_void(tx: Transaction, serial: Serial, device: DeviceId, reason: str) -> None:
    """Give one serial up; one that is closed already stays as it is."""
    values = {"reserved": serial, "state": ReservationState.VOID, "reason": reason}
    if tx.connection.execute(_VOID, values).rowcount != 1:
        return
    _give_back(tx.connection, serial)
    counters.add(tx, "voided")
    detail = {"serial": f"{serial:x}", "device": device, "reason": reason}
    audit.append(tx, audit.Fact(f"server:{tx.server_id}", "void", "ok", detail))


def _give_back(connection: Connection, serial: Serial) -> None:
    """Let a credential be used again when what it paid for is void."""
    paid = connection.execute(_PAID_IN_VAIN, {"reserved": serial}).one_or_none()
    if paid is None:
        return
    use = and_(credential_use.c.credential_id == paid.credential_id, credential_use.c.fingerprint == paid.fingerprint)
    connection.execute(delete(credential_use).where(use))
    again = update(credential).where(credential.c.id == paid.credential_id).values(spent=credential.c.spent - 1)
    connection.execute(again)
