"""The tables of the inventory, and how values of `model` are written in their columns.

Rules:
- What must be unique stands in a narrow table of its own (`reservation`, `device_key`, `device_certificate`), so that
  the wide `certificate` can be partitioned by expiry one day.
- Nothing that a page or a list command needs is counted: `counter` is kept in the transactions that change it.
- Times are whole seconds since 1970 (UTC), serials 40 hex digits, digests lower-case hex: one spelling, any database.
  Only `bucket`, where many share a second, counts in microseconds.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    literal_column,
    true,
)

from estserver.model import GeneralName, NameAttribute, Serial

SCHEMA_VERSIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Every revision this code can migrate from; the last is the one it works with."""


class ReservationState(StrEnum):
    """What became of a serial: it is never used for a second grant, whatever the state."""

    OPEN = "open"
    RECORDED = "recorded"
    VOID = "void"


class PendingState(StrEnum):
    """What an operator has said to a request so far."""

    WAITING = "waiting"
    APPROVED = "approved"
    DENIED = "denied"


class Instant(TypeDecorator[datetime]):
    """An aware UTC time as whole seconds since 1970; sorts, and reaches beyond the year 9999."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Write; a naive time is a mistake of ours."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError("times are aware UTC")
        return int(value.timestamp())

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Read."""
        return None if value is None else datetime.fromtimestamp(value, UTC)


class SerialHex(TypeDecorator[Serial]):
    """A certificate serial as 40 hex digits: RFC 5280 §4.1.2.2 allows 20 octets, more than any integer column."""

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: Serial | None, dialect: Dialect) -> str | None:
        """Write."""
        return None if value is None else f"{value:040x}"

    def process_result_value(self, value: str | None, dialect: Dialect) -> Serial | None:
        """Read."""
        return None if value is None else Serial(int(value, 16))


class Json(TypeDecorator[Any]):
    """A small JSON value as compact text with sorted keys."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: object, dialect: Dialect) -> str:
        """Write."""
        return canonical_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ANN401 - JSON is any value
        """Read."""
        return None if value is None else json.loads(value)


class Subject(TypeDecorator[tuple[NameAttribute, ...]]):
    """A distinguished name as `[[oid, text], …]`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[NameAttribute, ...] | None, dialect: Dialect) -> str:
        """Write."""
        return canonical_json([[attribute.oid, attribute.value] for attribute in value or ()])

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[NameAttribute, ...]:
        """Read."""
        return tuple(NameAttribute(oid, text) for oid, text in json.loads(value or "[]"))


class AlternativeNames(TypeDecorator[tuple[GeneralName, ...]]):
    """Subject alternative names as `[[kind, text], …]`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[GeneralName, ...] | None, dialect: Dialect) -> str:
        """Write."""
        return canonical_json([[name.kind, name.value] for name in value or ()])

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[GeneralName, ...]:
        """Read."""
        return tuple(GeneralName(kind, text) for kind, text in json.loads(value or "[]"))


class Texts(TypeDecorator[tuple[str, ...]]):
    """A tuple of texts."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str:
        """Write."""
        return canonical_json(value or ())

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...]:
        """Read."""
        return tuple(json.loads(value or "[]"))


def canonical_json(value: object) -> str:
    """Write JSON in the one way that is hashed: sorted keys, no white space, ASCII."""
    return _CANONICAL.encode(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


Id = BigInteger().with_variant(Integer, "sqlite")
"""A row number; SQLite makes only INTEGER an alias of its own row number."""

metadata = MetaData()

# --- what was reserved and issued -----------------------------------------------------------------------------------

reservation = Table(
    "reservation",
    metadata,
    Column("id", Id, primary_key=True),
    Column("serial", SerialHex, nullable=False, unique=True),
    Column("fingerprint", String(64), nullable=False, index=True),
    Column("device", String(64), nullable=False),
    Column("server_id", String(64), nullable=False),
    Column("at", Instant, nullable=False),
    Column("state", String(8), nullable=False),
    Column("reason", Text),
)
IS_OPEN = reservation.c.state == literal_column(f"'{ReservationState.OPEN}'")
"""A literal, not a parameter: only then the partial index is used."""
Index("ix_reservation_open", reservation.c.server_id, sqlite_where=IS_OPEN, postgresql_where=IS_OPEN)

device_key = Table(
    "device_key",
    metadata,
    Column("spki_sha256", String(64), primary_key=True),
    Column("device", String(64), nullable=False),
    Column("certified", Boolean, nullable=False),
)

certificate = Table(
    "certificate",
    metadata,
    Column("id", Id, ForeignKey("reservation.id"), primary_key=True),
    Column("serial", SerialHex, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("device", String(64), nullable=False, index=True),
    Column("profile", String(64), nullable=False),
    Column("label", String(64), nullable=False),
    Column("operation", String(32), nullable=False),
    Column("requester", Text, nullable=False),
    Column("spki_sha256", String(64), ForeignKey("device_key.spki_sha256"), nullable=False),
    Column("key_name", String(32), nullable=False),
    Column("subject", Subject, nullable=False),
    Column("san", AlternativeNames, nullable=False),
    Column("not_before", Instant, nullable=False),
    Column("not_after", Instant, nullable=False, index=True),
    Column("renew_after", Instant, nullable=False),
    Column("issued_at", Instant, nullable=False),
    Column("predecessor", SerialHex),
    Column("superseded_by", SerialHex),
    Column("revoked_at", Instant),
    Column("revocation_reason", String(32)),
    Column("certificate_der", LargeBinary, nullable=False),
    Column("csr_der", LargeBinary, nullable=False),
    Column("issuer", String(64), nullable=False, server_default=""),
)
"""`issuer` is the key identifier of the CA key that signed: an issuing CA keeps its name over more than one key."""
Index(
    "ix_certificate_revoked",
    certificate.c.id,
    sqlite_where=certificate.c.revoked_at.is_not(None),
    postgresql_where=certificate.c.revoked_at.is_not(None),
)

vouched = Table(
    "vouched",
    metadata,
    Column("certificate_id", Id, ForeignKey("certificate.id"), primary_key=True),
    Column("voucher", SerialHex, nullable=False, index=True),
)

device_certificate = Table(
    "device_certificate",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("profile", String(64), primary_key=True),
    Column("certificate_id", Id, ForeignKey("certificate.id"), nullable=False),
)

pending = Table(
    "pending",
    metadata,
    Column("id", Id, primary_key=True),
    Column("fingerprint", String(64), nullable=False, unique=True),
    Column("state", String(8), nullable=False),
    Column("requester", Text, nullable=False),
    Column("credential", String(64), index=True),
    Column("device", String(64), nullable=False, index=True),
    Column("operation", String(32), nullable=False),
    Column("label", String(64), nullable=False),
    Column("profile", String(64), nullable=False),
    Column("spki_sha256", String(64), nullable=False),
    Column("key_name", String(32), nullable=False),
    Column("subject", Subject, nullable=False),
    Column("san", AlternativeNames, nullable=False),
    Column("predecessor", SerialHex),
    Column("csr_der", LargeBinary, nullable=False),
    Column("peer_address", Text, nullable=False),
    Column("asked_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False, index=True),
    Column("decided_at", Instant),
    Column("decided_by", Text),
    Column("reason", Text),
    sqlite_autoincrement=True,
)
"""Requests that an operator decides on; a number is never used again, lest somebody approve what took its place."""

# --- who may ask ----------------------------------------------------------------------------------------------------

credential = Table(
    "credential",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("scheme", String(16), nullable=False),
    Column("verifier", LargeBinary, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("label", String(64), nullable=False),
    Column("devices", Texts, nullable=False),
    Column("names", Texts, nullable=False),
    Column("uses", Integer),
    Column("spent", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("last_use_at", Instant),
    Column("nameless", Boolean, nullable=False, server_default=false()),
)
IS_NAMELESS = credential.c.nameless == true()
Index("ix_credential_nameless", credential.c.verifier)

credential_use = Table(
    "credential_use",
    metadata,
    Column("credential_id", Id, ForeignKey("credential.id"), primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
    Column("at", Instant, nullable=False),
)

station = Table(
    "station",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("devices", Texts, nullable=False),
    Column("created_at", Instant, nullable=False),
)

anchor = Table(
    "anchor",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("devices", Texts, nullable=False),
    Column("created_at", Instant, nullable=False),
)

blocked_idevid = Table(
    "blocked_idevid",
    metadata,
    Column("spki_sha256", String(64), primary_key=True),
    Column("subject", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
)
"""IDevIDs that are refused though their manufacturer is trusted."""

bucket = Table(
    "bucket",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("full_at_microseconds", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# --- what is told ---------------------------------------------------------------------------------------------------

audit = Table(
    "audit",
    metadata,
    Column("server_id", String(64), primary_key=True),
    Column("seq", Id, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("detail", Json, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("server_id", String(64), primary_key=True),
    Column("seq", Id, nullable=False),
    Column("hash", String(64), nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Id, primary_key=True),
    Column("server_id", String(64), nullable=False),
    Column("event_id", String(64), nullable=False, unique=True),
    Column("source", String(128), nullable=False),
    Column("sequence", Id, nullable=False),
    Column("type", String(128), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("topic", Text, nullable=False),
    Column("retain", Boolean, nullable=False),
    Column("at", Instant, nullable=False),
    Column("data", Json, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text),
    Column("done_at", Instant, index=True),
)
Index(
    "ix_outbox_pending",
    outbox.c.server_id,
    outbox.c.id,
    sqlite_where=outbox.c.done_at.is_(None),
    postgresql_where=outbox.c.done_at.is_(None),
)

counter = Table(
    "counter",
    metadata,
    Column("server_id", String(64), primary_key=True),
    Column("name", String(160), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
