"""One certificate: reserved before it is signed, recorded after, or void.

Rules:
- The same request gets the same bytes while its certificate is valid, unrevoked, not superseded and not yet due.
- A key belongs to one device for ever; it is certified once, unless the profile lets the device keep it, and then
  until it is revoked as compromised.
- A use of a credential and the reservation it pays for are one transaction; a repeat of a request costs nothing for as
  long as nothing came of it, or what came of it is still the answer. What is void gives its use back.
- One certificate of a device and profile is current; recording a new one supersedes it.
- Everything here that could be found twice by two processes is looked up again when it is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, exists, insert, or_, select, update

from estserver.errors import BadCredentials, InternalError, KeyReused, NotAuthorized, StorageUnavailable
from estserver.inventory import audit, counters, outbox
from estserver.inventory.queries import has_serial, key_compromised
from estserver.inventory.schema import (
    IS_OPEN,
    ReservationState,
    canonical_json,
    certificate,
    credential,
    credential_use,
    device_certificate,
    device_key,
    reservation,
)
from estserver.inventory.transaction import Transaction
from estserver.model import Der, DeviceId, Event, Grant, Issued, Reservation, Serial


@dataclass(frozen=True, slots=True)
class Leftover:
    """A serial that was reserved and never recorded: a process ended between the two."""

    serial: Serial
    device: DeviceId
    at: datetime


def fingerprint(grant: Grant) -> str:
    """Return what makes two requests the same: who asks for which names and key, where, and to replace what.

    The octets of the CSR are not part of it: a device that binds its CSR to the connection signs every retry anew.
    """
    csr = grant.csr
    values = [
        grant.requester,
        grant.label,
        str(grant.operation),
        csr.spki_sha256,
        [[attribute.oid, attribute.value] for attribute in csr.subject],
        sorted([name.kind, name.value] for name in csr.san),
        None if grant.predecessor is None else f"{grant.predecessor:x}",
    ]
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


# --- reserve --------------------------------------------------------------------------------------------------------


def reserve(tx: Transaction, grant: Grant, serial: Serial) -> Reservation | Issued:
    """Write a serial down for a grant, or find the certificate that already answers it."""
    same = fingerprint(grant)
    key = tx.connection.execute(_KEY, {"spki": grant.csr.spki_sha256}).one_or_none()
    certified = key is not None and key.certified
    if certified:
        repeated = _answered(tx, same)
        if repeated:
            _tell_repeat(tx, grant, repeated)
            return repeated
    _claim_key(tx.connection, grant, key)
    if grant.credential is not None:
        _charge(tx, grant.credential, same, again=certified)
    values = {
        "serial": serial,
        "fingerprint": same,
        "device": grant.device,
        "server_id": tx.server_id,
        "at": tx.now,
        "state": ReservationState.OPEN,
    }
    tx.connection.execute(_RESERVE, values)
    return Reservation(serial, grant, tx.now)


_KEY = select(device_key.c.device, device_key.c.certified).where(device_key.c.spki_sha256 == bindparam("spki"))
_RESERVE = insert(reservation)
_INSERT_KEY = insert(device_key)
_USE = insert(credential_use)
_INSERT = insert(certificate)
_FIRST = insert(device_certificate)
_ANSWERED = (
    select(certificate.c.serial, certificate.c.certificate_der, certificate.c.device)
    .join(reservation, reservation.c.id == certificate.c.id)
    .where(
        reservation.c.fingerprint == bindparam("same"),
        certificate.c.revoked_at.is_(None),
        certificate.c.superseded_by.is_(None),
        certificate.c.not_after >= bindparam("now"),
        certificate.c.renew_after > bindparam("now"),
    )
    .limit(1)
)


def _answered(tx: Transaction, same: str) -> Issued | None:
    row = tx.connection.execute(_ANSWERED, {"same": same, "now": tx.now}).one_or_none()
    if row is None:
        return None
    return Issued(row.serial, Der(row.certificate_der), DeviceId(row.device), repeated=True)


def _claim_key(connection: Connection, grant: Grant, row: Row[*tuple[Any, ...]] | None) -> None:
    if row is None:
        connection.execute(
            _INSERT_KEY,
            {"spki_sha256": grant.csr.spki_sha256, "device": grant.device, "certified": False},
        )
    elif row.device != grant.device:
        raise KeyReused(
            "this key belongs to another device",
            advice="make a new key on the device; two devices with one key usually share a flash image",
        )
    elif row.certified and not grant.key_reuse:
        raise KeyReused("this key was certified before", advice="make a new key for every certificate")


_CREDENTIAL_ID = select(credential.c.id).where(
    credential.c.name == bindparam("spender"),
    or_(credential.c.expires_at.is_(None), credential.c.expires_at > bindparam("now")),
)
_USED = select(credential_use.c.at).where(
    credential_use.c.credential_id == bindparam("id"), credential_use.c.fingerprint == bindparam("same")
)
_SPEND = (
    update(credential)
    .where(
        credential.c.id == bindparam("spender"),
        or_(credential.c.uses.is_(None), credential.c.spent < credential.c.uses),
    )
    .values(spent=credential.c.spent + 1, last_use_at=bindparam("now", type_=credential.c.last_use_at.type))
)


def _charge(tx: Transaction, name: str, same: str, *, again: bool) -> None:
    """Spend a use, unless this request has paid for one; `again` when a certificate came of that already."""
    credential_id = tx.connection.execute(_CREDENTIAL_ID, {"spender": name, "now": tx.now}).scalar()
    if credential_id is None:
        raise BadCredentials
    used = tx.connection.execute(_USED, {"id": credential_id, "same": same}).scalar() is not None
    if used and not again:
        return
    if tx.connection.execute(_SPEND, {"spender": credential_id, "now": tx.now}).rowcount != 1:
        raise BadCredentials
    if not used:
        tx.connection.execute(_USE, {"credential_id": credential_id, "fingerprint": same, "at": tx.now})


# --- record ---------------------------------------------------------------------------------------------------------


_old = reservation.alias("old")
_RESERVED = (
    select(
        reservation.c.id,
        reservation.c.fingerprint,
        reservation.c.state,
        device_key.c.device.label("key_device"),
        device_key.c.certified.label("key_certified"),
        _old.c.id.label("old_id"),
        _old.c.serial.label("old_serial"),
    )
    .select_from(reservation)
    .join(device_key, device_key.c.spki_sha256 == bindparam("spki"))
    .outerjoin(
        device_certificate,
        and_(device_certificate.c.device == bindparam("whose"), device_certificate.c.profile == bindparam("rules")),
    )
    .outerjoin(_old, _old.c.id == device_certificate.c.certificate_id)
    .where(reservation.c.serial == bindparam("reserved"))
)
"""All that `record` has to look at again, in one statement."""
_CLOSE = update(reservation).where(reservation.c.id == bindparam("reserved")).values(state=ReservationState.RECORDED)
_CERTIFY = update(device_key).where(device_key.c.spki_sha256 == bindparam("spki")).values(certified=True)


def record(
    tx: Transaction, reserved: Reservation, der: Der, events: Sequence[Event]
) -> Issued | KeyReused | NotAuthorized:
    """Write a signed certificate down, with everything that follows from it.

    Returns:
        the certificate, or the one another process recorded for the same request meanwhile; or why this one must
        never leave the server, its reservation void: returned, not raised, so that the void is committed.
    """
    grant = reserved.grant
    row = _open_reservation(tx.connection, reserved)
    repeated = _answered(tx, row.fingerprint) if row.key_certified else None
    if repeated:
        _mark_void(tx, reserved.serial, grant.device, "answered meanwhile")
        _tell_repeat(tx, grant, repeated)
        return repeated
    problem = _overtaken(tx.connection, grant, row)
    if problem:
        _mark_void(tx, reserved.serial, grant.device, str(problem))
        return problem
    tx.connection.execute(_INSERT, _certificate_values(row.id, reserved, der, tx.now))
    tx.connection.execute(_CLOSE, {"reserved": row.id})
    tx.connection.execute(_CERTIFY, {"spki": grant.csr.spki_sha256})
    _make_current(tx.connection, row, reserved)
    _tell_issue(tx, reserved, der, row.old_serial)
    outbox.add(tx, events)
    return Issued(reserved.serial, der, grant.device)


def _open_reservation(connection: Connection, reserved: Reservation) -> Row[*tuple[Any, ...]]:
    grant = reserved.grant
    values = {"spki": grant.csr.spki_sha256, "whose": grant.device, "rules": grant.profile}
    row = connection.execute(_RESERVED, {**values, "reserved": reserved.serial}).one_or_none()
    if row is None or row.fingerprint != fingerprint(grant) or row.state == ReservationState.RECORDED:
        raise InternalError("the certificate does not belong to an open reservation")
    if row.state == ReservationState.VOID:
        raise StorageUnavailable("the reservation was withdrawn meanwhile", retry_after=timedelta(seconds=1))
    return row


def _overtaken(connection: Connection, grant: Grant, row: Row[*tuple[Any, ...]]) -> KeyReused | NotAuthorized | None:
    """Look again at what was decided before signing: the key may be certified by now, the predecessor revoked."""
    if row.key_device != grant.device or (row.key_certified and not grant.key_reuse):
        return KeyReused("this key was certified before", advice="make a new key for every certificate")
    if row.key_certified and key_compromised(connection, grant.device, grant.csr.spki_sha256):
        return KeyReused("this key was revoked as compromised", advice="make a new key on the device")
    if grant.predecessor is not None and connection.execute(_REVOKED, {"which": grant.predecessor}).scalar():
        return NotAuthorized("the certificate to be renewed was revoked")
    return None


_REVOKED = select(certificate.c.revoked_at).where(has_serial(bindparam("which")))


def _certificate_values(row_id: int, reserved: Reservation, der: Der, now: datetime) -> dict[str, object]:
    grant = reserved.grant
    return {
        "id": row_id,
        "serial": reserved.serial,
        "sha256": hashlib.sha256(der).hexdigest(),
        "device": grant.device,
        "profile": grant.profile,
        "label": grant.label,
        "operation": grant.operation,
        "requester": grant.requester,
        "spki_sha256": grant.csr.spki_sha256,
        "key_name": grant.csr.key.name,
        "subject": grant.subject,
        "san": grant.san,
        "not_before": grant.not_before,
        "not_after": grant.not_after,
        "renew_after": grant.renew_after,
        "issued_at": now,
        "predecessor": grant.predecessor,
        "certificate_der": der,
        "csr_der": grant.csr.der,
    }


_SUPERSEDE = (
    update(certificate)
    .where(certificate.c.id == bindparam("old"))
    .values(superseded_by=bindparam("successor", type_=certificate.c.superseded_by.type))
)
_REPLACE = (
    update(device_certificate)
    .where(device_certificate.c.device == bindparam("whose"), device_certificate.c.profile == bindparam("rules"))
    .values(certificate_id=bindparam("new"))
)


def _make_current(connection: Connection, row: Row[*tuple[Any, ...]], reserved: Reservation) -> None:
    """Make a certificate the one of its device and profile; the one before it, if any, is superseded."""
    device, profile = reserved.grant.device, reserved.grant.profile
    if row.old_id is None:
        connection.execute(_FIRST, {"device": device, "profile": profile, "certificate_id": row.id})
    else:
        connection.execute(_SUPERSEDE, {"old": row.old_id, "successor": reserved.serial})
        connection.execute(_REPLACE, {"whose": device, "rules": profile, "new": row.id})


# --- void -----------------------------------------------------------------------------------------------------------


def void(tx: Transaction, reserved: Reservation, reason: str) -> None:
    """Give a reservation up; its serial is never used again. One that is closed already stays as it is."""
    _mark_void(tx, reserved.serial, reserved.grant.device, reason)


def void_leftovers(tx: Transaction) -> list[Leftover]:
    """Give up every reservation of this server that nobody will record any more; return them."""
    query = select(reservation.c.serial, reservation.c.device, reservation.c.at).where(
        reservation.c.server_id == tx.server_id, IS_OPEN
    )
    found = [Leftover(row.serial, DeviceId(row.device), row.at) for row in tx.connection.execute(query)]
    for leftover in found:
        _mark_void(tx, leftover.serial, leftover.device, "left over")
    return found


def void_device(tx: Transaction, device: DeviceId, reason: str) -> None:
    """Give up what is being issued for a device at this moment."""
    query = select(reservation.c.serial).where(reservation.c.device == device, IS_OPEN)
    for serial in tx.connection.execute(query).scalars().all():
        _mark_void(tx, serial, device, reason)


_VOID = update(reservation).where(reservation.c.serial == bindparam("reserved"), IS_OPEN)
_PAID_IN_VAIN = select(credential_use.c.credential_id, credential_use.c.fingerprint).where(
    credential_use.c.fingerprint
    == select(reservation.c.fingerprint).where(reservation.c.serial == bindparam("reserved")).scalar_subquery(),
    ~exists().where(
        reservation.c.fingerprint == credential_use.c.fingerprint, reservation.c.state != ReservationState.VOID
    ),
)
"""The use of a credential by a request of which nothing came, and nothing can come any more."""


def _mark_void(tx: Transaction, serial: Serial, device: DeviceId, reason: str) -> None:
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


# --- tell -----------------------------------------------------------------------------------------------------------


def _request_detail(grant: Grant) -> dict[str, object]:
    return {
        "device": grant.device,
        "operation": grant.operation,
        "label": grant.label,
        "profile": grant.profile,
        "spki_sha256": grant.csr.spki_sha256,
        "csr_sha256": hashlib.sha256(grant.csr.der).hexdigest(),
        "binding": grant.binding,
        "peer_address": grant.peer_address,
        "request_id": grant.request_id,
    }


def _tell_repeat(tx: Transaction, grant: Grant, repeated: Issued) -> None:
    counters.add(tx, "repeated")
    detail = {**_request_detail(grant), "serial": f"{repeated.serial:x}"}
    audit.append(tx, audit.Fact(grant.requester, "repeat", "ok", detail))


def _tell_issue(tx: Transaction, reserved: Reservation, der: Der, superseded: Serial | None) -> None:
    counters.add(tx, "issued")
    grant = reserved.grant
    detail = {
        **_request_detail(grant),
        "serial": f"{reserved.serial:x}",
        "certificate_sha256": hashlib.sha256(der).hexdigest(),
        "not_after": int(grant.not_after.timestamp()),
        "predecessor": None if grant.predecessor is None else f"{grant.predecessor:x}",
        "superseded": None if superseded is None else f"{superseded:x}",
    }
    audit.append(tx, audit.Fact(grant.requester, "issue", "ok", detail))
