"""Looking certificates up; every page is found by an index and starts where the last one ended."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, TypeAlias

from sqlalchemy import BindParameter, ColumnElement, Connection, Select, and_, bindparam, or_, select

from estserver.errors import NotFound
from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import certificate, device_certificate, device_key, reservation, vouched
from estserver.model import (
    CertificateRecord,
    Der,
    DeviceId,
    GeneralName,
    NameAttribute,
    Serial,
    SpkiHash,
)

Status = Literal["valid", "revoked", "superseded"]

_COLUMNS = [column for column in certificate.c if column.name not in {"csr_der", "issuer"}]
_STATUS: dict[Status, ColumnElement[bool]] = {
    "valid": and_(certificate.c.revoked_at.is_(None), certificate.c.superseded_by.is_(None)),
    "revoked": certificate.c.revoked_at.is_not(None),
    "superseded": and_(certificate.c.revoked_at.is_(None), certificate.c.superseded_by.is_not(None)),
}
ALL = select(*_COLUMNS)
"""Every certificate, in the columns that `to_record` reads."""
Query: TypeAlias = Select[Any]


def has_serial(serial: Serial | BindParameter[Serial]) -> ColumnElement[bool]:
    """Find a row of `certificate` through the narrow table, whose index is the only one on serials."""
    return certificate.c.id == select(reservation.c.id).where(reservation.c.serial == serial).scalar_subquery()


def by_sha256(connection: Connection, sha256_hex: str) -> CertificateRecord | None:
    """Find a certificate by the SHA-256 of its octets."""
    row = _BY_SHA256.one(connection, sha256=sha256_hex)
    return None if row is None else to_record(row)


_BY_SHA256 = Prepared(ALL.where(certificate.c.sha256 == bindparam("sha256")).limit(1))


def by_serial(connection: Connection, serial: Serial) -> CertificateRecord | None:
    """Find a certificate by its serial."""
    return _first(connection, ALL.where(has_serial(serial)))


def csr(connection: Connection, serial: Serial) -> Der | None:
    """Return the octets of the request a certificate answered."""
    found = connection.execute(select(certificate.c.csr_der).where(has_serial(serial))).scalar()
    return None if found is None else Der(found)


def current(connection: Connection, device: DeviceId, profile: str) -> CertificateRecord | None:
    """Find the certificate of a device and profile that no other supersedes; it may be revoked or expired."""
    query = _current_of(device).where(device_certificate.c.profile == profile)
    return _first(connection, query)


def current_by_names(
    connection: Connection,
    subject: tuple[NameAttribute, ...],
    san: Iterable[GeneralName],
    device: DeviceId,
) -> CertificateRecord | None:
    """Find the newest unsuperseded certificate of a device with exactly these names (RFC 7030 §4.2.2)."""
    names = set(san)
    query = _current_of(device).order_by(certificate.c.id.desc())
    for row in connection.execute(query).all():
        record = to_record(row)
        if record.subject == subject and set(record.san) == names:
            return record
    return None


def of_device(connection: Connection, device: DeviceId) -> list[CertificateRecord]:
    """Return every certificate of a device, oldest first."""
    query = ALL.where(certificate.c.device == device).order_by(certificate.c.id)
    return [to_record(row) for row in connection.execute(query)]


def vouched_by(connection: Connection, serial: Serial) -> list[CertificateRecord]:
    """Return the certificates of keys whose possession was stated with this one (RFC 9883)."""
    query = ALL.join(vouched, vouched.c.certificate_id == certificate.c.id).where(vouched.c.voucher == serial)
    return [to_record(row) for row in connection.execute(query.order_by(certificate.c.id))]


def key_device(connection: Connection, spki_sha256: SpkiHash) -> DeviceId | None:
    """Return the device a key belongs to, whether or not a certificate came of it."""
    query = select(device_key.c.device).where(device_key.c.spki_sha256 == spki_sha256)
    found = connection.execute(query).scalar()
    return None if found is None else DeviceId(found)


def key_compromised(connection: Connection, device: DeviceId, spki_sha256: SpkiHash) -> bool:
    """Return whether a certificate of this device and key was revoked because the key is known to others."""
    query = select(certificate.c.id).where(
        certificate.c.device == device,
        certificate.c.spki_sha256 == spki_sha256,
        certificate.c.revocation_reason == "keyCompromise",
    )
    return connection.execute(query.limit(1)).scalar() is not None


def page(
    connection: Connection,
    *,
    device: DeviceId | None,
    profile: str | None,
    status: Status | None,
    expiring_before: datetime | None,
    after: Serial | None,
    limit: int,
) -> list[CertificateRecord]:
    """Return the next certificates in order of issue, or of expiry when that is what is asked for.

    Raises:
        NotFound: `after` is no serial of this inventory.
    """
    query = ALL
    if device is not None:
        query = query.where(certificate.c.device == device)
    if profile is not None:
        query = query.where(certificate.c.profile == profile)
    if status is not None:
        query = query.where(_STATUS[status])
    if expiring_before is not None:
        query = query.where(certificate.c.not_after < expiring_before)
    query = _continue(connection, query, after, by_expiry=expiring_before is not None)
    return [to_record(row) for row in connection.execute(query.limit(limit))]


def _continue(connection: Connection, query: Select[Any], after: Serial | None, *, by_expiry: bool) -> Select[Any]:
    order = [certificate.c.not_after, certificate.c.id] if by_expiry else [certificate.c.id]
    if after is not None:
        last = connection.execute(
            select(reservation.c.id, certificate.c.not_after)
            .join(certificate, certificate.c.id == reservation.c.id)
            .where(reservation.c.serial == after)
        ).one_or_none()
        if last is None:
            raise NotFound(f"no certificate has the serial {after:x}")
        beyond = certificate.c.id > last.id
        if by_expiry:
            expiry = certificate.c.not_after
            beyond = and_(expiry >= last.not_after, or_(expiry > last.not_after, beyond))
        query = query.where(beyond)
    return query.order_by(*order)


def _current_of(device: DeviceId) -> Select[Any]:
    return ALL.join(device_certificate, device_certificate.c.certificate_id == certificate.c.id).where(
        device_certificate.c.device == device
    )


def _first(connection: Connection, query: Select[Any]) -> CertificateRecord | None:
    row = connection.execute(query.limit(1)).one_or_none()
    return None if row is None else to_record(row)


def to_record(row: Any) -> CertificateRecord:  # noqa: ANN401 - a row of SQLAlchemy's or of a Prepared
    """Turn a row into what the rest of the server knows."""
    return CertificateRecord(
        serial=row.serial,
        certificate=Der(row.certificate_der),
        sha256=row.sha256,
        device=DeviceId(row.device),
        profile=row.profile,
        label=row.label,
        operation=row.operation,
        requester=row.requester,
        spki_sha256=SpkiHash(row.spki_sha256),
        key_name=row.key_name,
        subject=row.subject,
        san=row.san,
        not_before=row.not_before,
        not_after=row.not_after,
        renew_after=row.renew_after,
        issued_at=row.issued_at,
        predecessor=row.predecessor,
        superseded_by=row.superseded_by,
        revoked_at=row.revoked_at,
        revocation_reason=row.revocation_reason,
    )
