"""The row of a certificate, and which one of a device and profile is current."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, insert, update

from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import certificate, device_certificate, vouched
from estserver.inventory.transaction import Transaction
from estserver.model import Der, Reservation

_INSERT = Prepared(
    insert(certificate),
    (
        *("id", "serial", "sha256", "device", "profile", "label", "operation", "requester", "spki_sha256", "key_name"),
        *("subject", "san", "not_before", "not_after", "renew_after", "issued_at", "predecessor"),
        *("certificate_der", "csr_der", "issuer"),
    ),
)


def write(tx: Transaction, row_id: int, reserved: Reservation, der: Der, digest: str, *, issuer: str) -> None:
    """Write a certificate down under the id of its reservation, with its request and with what vouched for its key."""
    grant = reserved.grant
    _INSERT.run(
        tx.connection,
        id=row_id,
        serial=reserved.serial,
        sha256=digest,
        device=grant.device,
        profile=grant.profile,
        label=grant.label,
        operation=grant.operation,
        requester=grant.requester,
        spki_sha256=grant.csr.spki_sha256,
        key_name=grant.csr.key.name,
        subject=grant.subject,
        san=grant.san,
        not_before=grant.not_before,
        not_after=grant.not_after,
        renew_after=grant.renew_after,
        issued_at=tx.now,
        predecessor=grant.predecessor,
        certificate_der=der,
        csr_der=grant.csr.der,
        issuer=issuer,
    )
    if grant.csr.voucher is not None:
        tx.connection.execute(insert(vouched).values(certificate_id=row_id, voucher=grant.csr.voucher.serial))


_SUPERSEDE = Prepared(
    update(certificate)
    .where(certificate.c.id == bindparam("old"))
    .values(superseded_by=bindparam("successor", type_=certificate.c.superseded_by.type))
)
_FIRST = Prepared(insert(device_certificate), ("device", "profile", "certificate_id"))
_REPLACE = Prepared(
    update(device_certificate)
    .where(device_certificate.c.device == bindparam("whose"), device_certificate.c.profile == bindparam("rules"))
    .values(certificate_id=bindparam("new"))
)


def make_current(connection: Connection, row_id: int, old_id: int | None, reserved: Reservation) -> None:
    """Make a certificate the one of its device and profile; the one before it, if any, is superseded."""
    device, profile = reserved.grant.device, reserved.grant.profile
    if old_id is None:
        _FIRST.run(connection, device=device, profile=profile, certificate_id=row_id)
    else:
        _SUPERSEDE.run(connection, old=old_id, successor=reserved.serial)
        _REPLACE.run(connection, whose=device, rules=profile, new=row_id)
