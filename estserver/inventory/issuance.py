"""One certificate: reserved before it is signed, recorded after, or void.

Rules:
- The same request gets the same bytes while its certificate is valid, unrevoked, not superseded and not yet due.
- A key belongs to one device for ever; it is certified once, unless the profile lets the device keep it, and then
  until it is revoked as compromised.
- A use of a credential and the reservation it pays for are one transaction; a repeat of a request costs nothing for as
  long as nothing came of it, or what came of it is still the answer. What is void gives its use back.
- Where an operator has to agree, a request is queued instead of reserved until one has (`pending`).
- One certificate of a device and profile is current; recording a new one supersedes it.
- Everything here that could be found twice by two processes is looked up again when it is recorded.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, literal_column, select, true, update

from estserver.errors import (
    AwaitingApproval,
    InternalError,
    KeyReused,
    NotAuthorized,
    StorageUnavailable,
)
from estserver.inventory import audit, buckets, certificates, counters, outbox, pending, uses
from estserver.inventory.prepared import Prepared
from estserver.inventory.queries import has_serial, key_compromised
from estserver.inventory.revocation_tables import blocked_device
from estserver.inventory.schema import (
    PendingState,
    ReservationState,
    canonical_json,
    certificate,
    device_certificate,
    device_key,
    reservation,
    station,
)
from estserver.inventory.transaction import Transaction
from estserver.inventory.void import mark_void
from estserver.limits import DEFAULT_QUEUE, Bucket, Queue
from estserver.model import Der, DeviceId, Event, Grant, Issued, Reservation, Serial


@dataclass(frozen=True, slots=True)
class Claim:
    """One grant that wants a serial, and the buckets its request is paid from.

    Attributes:
        queue: how long it may wait for an operator, where it has to; `events` are told when it begins to.
    """

    grant: Grant
    serial: Serial
    payment: tuple[Bucket, ...] = ()
    queue: Queue = DEFAULT_QUEUE
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Signed:
    """One certificate that may leave once it is recorded, what is told of it, and the id of the key that signs."""

    reservation: Reservation
    certificate: Der
    events: tuple[Event, ...] = ()
    issuer: str = ""


def fingerprint(grant: Grant) -> str:
    """Return what makes two requests the same: who asks for which names and key, where, and to replace what.

    The octets of the CSR are not part of it: a device that binds its CSR to the connection signs every retry anew.
    """
    csr, named = grant.csr, grant.csr.change or grant.csr
    values = [
        grant.requester,
        grant.label,
        str(grant.operation),
        csr.spki_sha256,
        [[attribute.oid, attribute.value] for attribute in named.subject],
        sorted([name.kind, name.value] for name in named.san),
        None if grant.predecessor is None else f"{grant.predecessor:x}",
    ]
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


# --- reserve --------------------------------------------------------------------------------------------------------


def reserve(tx: Transaction, claim: Claim) -> Reservation | Issued | AwaitingApproval:
    """Write a serial down for a grant, or find the certificate that already answers it.

    Returns:
        or that it waits for an operator: returned, not raised, so that the entry is committed.
    """
    buckets.pay(tx, claim.payment)
    grant = claim.grant
    same = fingerprint(grant)
    known = _KNOWN.one(tx.connection, spki=grant.csr.spki_sha256, whose=grant.device)
    if known.blocked is not None:
        raise NotAuthorized(f"the device {grant.device} was revoked and may not enrol", code="device-blocked")
    if known.key_certified:
        repeated = _answered(tx, same)
        if repeated:
            _tell_repeat(tx, grant, repeated)
            return repeated
    if known.station is not None and grant.holder == "device":
        raise NotAuthorized(f"the name {grant.device} is kept for a part of the site", code="name-taken")
    _keep_names_apart(grant, known.profiles)
    _check_key(tx.connection, grant, known)
    said = pending.state(tx, same) if grant.approval else None
    if grant.credential is not None and said is None:
        uses.charge(tx, grant.credential, same, again=bool(known.key_certified))
    if grant.approval and said != PendingState.APPROVED:
        if said is None:
            pending.add(tx, grant, same, claim.queue, claim.events)
            audit.append(tx, audit.Fact(grant.requester, "queue", "ok", _request_detail(grant)))
        return pending.waits(claim.queue)
    if known.key_device is None:
        _INSERT_KEY.run(tx.connection, spki_sha256=grant.csr.spki_sha256, device=grant.device, certified=False)
    _RESERVE.run(
        tx.connection,
        serial=claim.serial,
        fingerprint=same,
        device=grant.device,
        server_id=tx.server_id,
        at=tx.now,
        state=ReservationState.OPEN,
    )
    return Reservation(claim.serial, grant, tx.now)


_of_key = device_key.c.spki_sha256 == bindparam("spki")
_BLANK: Any = literal_column("' '")  # a plain str would be put in at each execution, which is not ours
_blocked = blocked_device.c
_profiles = (
    select(func.aggregate_strings(device_certificate.c.profile, _BLANK))
    .where(device_certificate.c.device == bindparam("whose"))
    .scalar_subquery()
    .label("profiles")
)
_KNOWN = Prepared(
    select(
        select(device_key.c.device).where(_of_key).scalar_subquery().label("key_device"),
        select(device_key.c.certified).where(_of_key).scalar_subquery().label("key_certified"),
        select(station.c.name).where(station.c.name == bindparam("whose")).scalar_subquery().label("station"),
        select(blocked_device.c.at)
        .where(blocked_device.c.device == bindparam("whose"))
        .scalar_subquery()
        .label("blocked"),
        _profiles,
    )
)
"""What is known of a key and a name before a serial is reserved, in one statement and always one row."""
_RESERVE = Prepared(insert(reservation), ("serial", "fingerprint", "device", "server_id", "at", "state"))
_INSERT_KEY = Prepared(insert(device_key), ("spki_sha256", "device", "certified"))
_ANSWERED = Prepared(
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
    row = _ANSWERED.one(tx.connection, same=same, now=tx.now)
    if row is None:
        return None
    return Issued(row.serial, Der(row.certificate_der), DeviceId(row.device), repeated=True)


def _keep_names_apart(grant: Grant, profiles: str | None) -> None:
    """Refuse a device the name of a part of the site, and the other way round: brokers go by the name alone."""
    for profile in (profiles or "").split():
        if profile in grant.apart_from:
            raise NotAuthorized(f"the name {grant.device} belongs to the profile {profile}", code="name-taken")


def _check_key(connection: Connection, grant: Grant, known: Any) -> None:  # noqa: ANN401 - a row of _KNOWN
    if known.key_device is None:
        return
    if known.key_device != grant.device:
        raise KeyReused(
            "this key belongs to another device",
            advice="make a new key on the device; two devices with one key usually share a flash image",
        )
    if known.key_certified:
        _require_reusable(connection, grant)


def _require_reusable(connection: Connection, grant: Grant) -> None:
    """Refuse a certified key, unless the profile lets the device keep it and nobody else knows it."""
    if not grant.key_reuse:
        raise KeyReused("this key was certified before", advice="make a new key for every certificate")
    if key_compromised(connection, grant.device, grant.csr.spki_sha256):
        raise KeyReused("this key was revoked as compromised", advice="make a new key on the device")


# --- record ---------------------------------------------------------------------------------------------------------


_old = reservation.alias("old")
_RESERVED = Prepared(
    select(
        reservation.c.id,
        reservation.c.fingerprint,
        reservation.c.state,
        device_key.c.device.label("key_device"),
        device_key.c.certified.label("key_certified"),
        _old.c.id.label("old_id"),
        _old.c.serial.label("old_serial"),
        _profiles,
    )
    .select_from(reservation)
    .join(device_key, _of_key)
    .outerjoin(
        device_certificate,
        and_(device_certificate.c.device == bindparam("whose"), device_certificate.c.profile == bindparam("rules")),
    )
    .outerjoin(_old, _old.c.id == device_certificate.c.certificate_id)
    .where(reservation.c.serial == bindparam("reserved"))
)
"""All that `record` has to look at again, in one statement."""
_CLOSE = Prepared(
    update(reservation)
    .where(reservation.c.id == bindparam("reserved"))
    .values(state=literal_column(f"'{ReservationState.RECORDED}'"))
)
_CERTIFY = Prepared(update(device_key).where(_of_key).values(certified=true()))


def record(tx: Transaction, signed: Signed) -> Issued | KeyReused | NotAuthorized:
    """Write a signed certificate down, with everything that follows from it.

    Returns:
        the certificate, or the one another process recorded for the same request meanwhile; or why this one must
        never leave the server, its reservation void: returned, not raised, so that the void is committed.
    """
    reserved, der = signed.reservation, signed.certificate
    grant = reserved.grant
    row = _open_reservation(tx.connection, reserved)
    repeated = _answered(tx, row.fingerprint) if row.key_certified else None
    if repeated:
        mark_void(tx, reserved.serial, grant.device, "answered meanwhile")
        _tell_repeat(tx, grant, repeated)
        return repeated
    try:
        _look_again(tx.connection, grant, row)
        if grant.approval:
            pending.take(tx, row.fingerprint, grant.credential)
    except (KeyReused, NotAuthorized) as problem:
        mark_void(tx, reserved.serial, grant.device, str(problem))
        return problem
    digest = hashlib.sha256(der).hexdigest()
    certificates.write(tx, row.id, reserved, der, digest, issuer=signed.issuer)
    _CLOSE.run(tx.connection, reserved=row.id)
    _CERTIFY.run(tx.connection, spki=grant.csr.spki_sha256)
    certificates.make_current(tx.connection, row.id, row.old_id, reserved)
    _tell_issue(tx, reserved, digest, row.old_serial)
    outbox.add(tx, signed.events)
    return Issued(reserved.serial, der, grant.device)


def _open_reservation(connection: Connection, reserved: Reservation) -> Any:  # noqa: ANN401 - a row of _RESERVED
    grant = reserved.grant
    row = _RESERVED.one(
        connection, spki=grant.csr.spki_sha256, whose=grant.device, rules=grant.profile, reserved=reserved.serial
    )
    if row is None or row.fingerprint != fingerprint(grant) or row.state == ReservationState.RECORDED:
        raise InternalError("the certificate does not belong to an open reservation")
    if row.state == ReservationState.VOID:
        raise StorageUnavailable("the reservation was withdrawn meanwhile", retry_after=timedelta(seconds=1))
    return row


def _look_again(connection: Connection, grant: Grant, row: Any) -> None:  # noqa: ANN401 - a row of _RESERVED
    """Decide again what another process may have changed since: key and name may be taken, the predecessor revoked.

    Raises:
        KeyReused, NotAuthorized: one of them is.
    """
    if row.key_device != grant.device:
        raise KeyReused("this key belongs to another device", advice="make a new key on the device")
    if row.key_certified:
        _require_reusable(connection, grant)
    _keep_names_apart(grant, row.profiles)
    for needed, what in ((grant.predecessor, "to be renewed"), (_voucher(grant), "that vouches for the key")):
        found = None if needed is None else _REVOKED.one(connection, which=needed)
        if found is not None and found.revoked_at is not None:
            raise NotAuthorized(f"the certificate {what} was revoked")


def _voucher(grant: Grant) -> Serial | None:
    return None if grant.csr.voucher is None else grant.csr.voucher.serial


_REVOKED = Prepared(select(certificate.c.revoked_at).where(has_serial(bindparam("which"))))


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
        **({"tolerated": list(grant.tolerated)} if grant.tolerated else {}),
        **({} if grant.csr.attestation is None else {"attestation": asdict(grant.csr.attestation)}),
    }


def _tell_repeat(tx: Transaction, grant: Grant, repeated: Issued) -> None:
    counters.add(tx, "repeated")
    detail = {**_request_detail(grant), "serial": f"{repeated.serial:x}"}
    audit.append(tx, audit.Fact(grant.requester, "repeat", "ok", detail))


def _tell_issue(tx: Transaction, reserved: Reservation, digest: str, superseded: Serial | None) -> None:
    counters.add(tx, "issued")
    grant = reserved.grant
    detail = {
        **_request_detail(grant),
        "serial": f"{reserved.serial:x}",
        "certificate_sha256": digest,
        "not_after": int(grant.not_after.timestamp()),
        "predecessor": None if grant.predecessor is None else f"{grant.predecessor:x}",
        "superseded": None if superseded is None else f"{superseded:x}",
    }
    audit.append(tx, audit.Fact(grant.requester, "issue", "ok", detail))
