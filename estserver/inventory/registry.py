"""Who may ask: credentials, stations and the anchors of manufacturers, each change with its audit row."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam, delete, exists, insert, not_, or_, select

from estserver.errors import NotFound, StateError
from estserver.inventory import audit, foreign
from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import IS_NAMELESS, anchor, credential, credential_use, pending, station
from estserver.inventory.transaction import Transaction
from estserver.model import Der
from estserver.records import SPENT_CREDENTIAL_GRACE, AnchorRecord, CredentialRecord, StationRecord

# --- credentials ----------------------------------------------------------------------------------------------------


def credential_add(tx: Transaction, record: CredentialRecord, actor: str) -> None:
    """Write a new credential down.

    Raises:
        StateError: the name is taken.
    """
    values: dict[str, object] = {
        name: getattr(record, name)
        for name in ("name", "scheme", "verifier", "salt", "label", "devices", "names", "uses", "spent", "nameless")
    }
    values |= {"created_at": record.created_at, "expires_at": record.expires_at}
    _add(tx.connection, credential, values, "credential")
    detail = {"name": record.name, "label": record.label, "devices": record.devices, "uses": record.uses}
    if record.nameless:
        detail["nameless"] = True
    _tell(tx, actor, "credential-add", detail)


def credential_remove(tx: Transaction, name: str, actor: str) -> None:
    """Forget a credential; what it enrolled stays.

    Raises:
        NotFound: there is none of that name.
    """
    found = select(credential.c.id).where(credential.c.name == name).scalar_subquery()
    tx.connection.execute(delete(credential_use).where(credential_use.c.credential_id == found))
    _remove(tx.connection, credential, name, "credential")
    _tell(tx, actor, "credential-remove", {"name": name})


def credentials(connection: Connection) -> list[CredentialRecord]:
    """Return every credential, by name."""
    return [_credential(row) for row in connection.execute(select(credential).order_by(credential.c.name))]


def credential_named(connection: Connection, name: str) -> CredentialRecord | None:
    """Find a credential, whatever its state."""
    row = connection.execute(select(credential).where(credential.c.name == name)).one_or_none()
    return None if row is None else _credential(row)


_MAY_AUTHENTICATE = or_(
    and_(
        or_(credential.c.expires_at.is_(None), credential.c.expires_at > bindparam("now")),
        or_(
            credential.c.uses.is_(None),
            credential.c.spent < credential.c.uses,
            credential.c.last_use_at > bindparam("retry_from"),
        ),
    ),
    exists().where(pending.c.credential == credential.c.name, pending.c.expires_at > bindparam("now")),
)
_AUTHENTICABLE = Prepared(
    select(credential).where(credential.c.name == bindparam("named"), not_(IS_NAMELESS), _MAY_AUTHENTICATE)
)
_NAMELESS = Prepared(
    select(credential).where(credential.c.verifier == bindparam("kept"), IS_NAMELESS, _MAY_AUTHENTICATE)
)


def authenticable(connection: Connection, name: str, now: datetime) -> CredentialRecord | None:
    """Find a named credential that may authenticate: not expired, not spent, or spent so lately that this is a retry.

    One that paid for a request which waits for an operator, or was decided on, authenticates for as long as that does.
    Whether a spent one pays for this very request is decided when it is reserved.
    """
    row = _AUTHENTICABLE.one(connection, named=name, now=now, retry_from=now - SPENT_CREDENTIAL_GRACE)
    return None if row is None else _credential(row)


def nameless(connection: Connection, verifier: bytes, now: datetime) -> CredentialRecord | None:
    """Find a credential without a name by what is kept of its secret, if it may authenticate, as `authenticable` does.

    How long that takes tells nothing: the verifier is a keyed hash, and nobody can steer what they look for.
    """
    row = _NAMELESS.one(connection, kept=verifier, now=now, retry_from=now - SPENT_CREDENTIAL_GRACE)
    return None if row is None else _credential(row)


def _credential(row: Any) -> CredentialRecord:  # noqa: ANN401 - a row of SQLAlchemy's or of a Prepared
    return CredentialRecord(
        name=row.name,
        scheme=row.scheme,
        verifier=row.verifier,
        salt=row.salt,
        label=row.label,
        devices=row.devices,
        names=row.names,
        uses=row.uses,
        spent=row.spent,
        created_at=row.created_at,
        expires_at=row.expires_at,
        nameless=bool(row.nameless),
    )


# --- stations -------------------------------------------------------------------------------------------------------


def station_add(tx: Transaction, record: StationRecord, actor: str) -> None:
    """Write a new station down.

    Raises:
        StateError: the name is taken.
    """
    values = {"name": record.name, "devices": record.devices, "created_at": record.created_at}
    _add(tx.connection, station, values, "station")
    detail = {"name": record.name, "devices": record.devices, "devices_total": len(record.devices)}
    _tell(tx, actor, "station-add", detail)


def station_remove(tx: Transaction, name: str, actor: str) -> None:
    """Forget a station: its certificate, though valid, no longer speaks for any device.

    Raises:
        NotFound: there is none of that name.
    """
    _remove(tx.connection, station, name, "station")
    _tell(tx, actor, "station-remove", {"name": name})


def stations(connection: Connection) -> list[StationRecord]:
    """Return every station, by name."""
    return [_station(row) for row in connection.execute(select(station).order_by(station.c.name))]


def station_named(connection: Connection, name: str) -> StationRecord | None:
    """Find a station."""
    row = _STATION.one(connection, named=name)
    return None if row is None else _station(row)


_STATION = Prepared(select(station).where(station.c.name == bindparam("named")))


def _station(row: Any) -> StationRecord:  # noqa: ANN401 - a row of SQLAlchemy's or of a Prepared
    return StationRecord(row.name, row.devices, row.created_at)


# --- anchors --------------------------------------------------------------------------------------------------------


def anchor_add(tx: Transaction, record: AnchorRecord, actor: str, digest: str) -> None:
    """Trust a manufacturer's CA.

    Raises:
        StateError: the name is taken.
    """
    values = {
        "name": record.name,
        "certificate": record.certificate,
        "device_id": record.device_id,
        "devices": record.devices,
        "created_at": record.created_at,
    }
    _add(tx.connection, anchor, values, "anchor")
    detail = {"name": record.name, "sha256": digest, "device_id": record.device_id, "devices": record.devices}
    _tell(tx, actor, "trust-add", detail)


def anchor_remove(tx: Transaction, name: str, actor: str) -> None:
    """Trust a manufacturer's CA no more; what its devices were given stays.

    Raises:
        NotFound: there is none of that name.
    """
    _remove(tx.connection, anchor, name, "anchor")
    foreign.forget(tx.connection, name)
    _tell(tx, actor, "trust-remove", {"name": name})


def anchors(connection: Connection) -> list[AnchorRecord]:
    """Return every anchor, by name."""
    return [
        AnchorRecord(row.name, Der(row.certificate), row.device_id, row.devices, row.created_at)
        for row in _ANCHORS.all(connection)
    ]


_ANCHORS = Prepared(select(anchor).order_by(anchor.c.name))


# --- alike ----------------------------------------------------------------------------------------------------------


def _add(connection: Connection, table: Table, values: dict[str, Any], kind: str) -> None:
    name = values["name"]
    if connection.execute(select(table.c.name).where(table.c.name == name)).scalar() is not None:
        raise StateError(
            f"the {kind} {name} exists already", advice=f"remove it first, or give the new {kind} another name"
        )
    connection.execute(insert(table), values)


def _remove(connection: Connection, table: Table, name: str, kind: str) -> None:
    if connection.execute(delete(table).where(table.c.name == name)).rowcount != 1:
        raise NotFound(f"there is no {kind} {name}")


def _tell(tx: Transaction, actor: str, action: str, detail: Mapping[str, object]) -> None:
    audit.append(tx, audit.Fact(actor, action, "ok", detail))
