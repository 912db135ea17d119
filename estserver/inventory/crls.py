"""Revocation lists: numbered, kept in parts, replaced by one row; and what has to be in them.

Rules:
- A number is written down, durably, before a list is built with it, and is greater than every one before it; it is at
  least the time, so that a restored backup does not repeat one either (RFC 5280 §5.2.3).
- Nothing of a list is visible before the row that names its number is committed; the list before it stays readable for
  who is reading it. What a killed build left is removed by the next.
- One server builds a list at a time; another one waits until it has, or until it must have died.
- An entry leaves a list only after one regular list had it beyond the end of its certificate (RFC 5280 §3.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, or_, select, update

from estserver.crl import Revoked
from estserver.errors import InternalError
from estserver.inventory import audit
from estserver.inventory.prepared import Prepared
from estserver.inventory.revocation_tables import crl, crl_part, revocation
from estserver.inventory.room import Room

BUILD_MAX = timedelta(minutes=5)
"""How long another server is left alone with a build; it has died if it takes longer."""
PAGE = 10_000


@dataclass(frozen=True, slots=True)
class CrlRecord:
    """A list that is published.

    Attributes:
        issuer: key identifier of the CA, in hexadecimal.
        entries, size_bytes: how many certificates are on it, and how long it is.
    """

    issuer: str
    number: int
    this_update: datetime
    next_update: datetime
    entries: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How up to date the list of an issuer is.

    Attributes:
        published: None before the first one.
        regular_at: when the last one was published because it was time to.
        news: whether something was revoked since.
    """

    published: CrlRecord | None
    regular_at: datetime | None
    news: bool


@dataclass(frozen=True, slots=True)
class Build:
    """A number that was taken, and what the list with it has to hold.

    Attributes:
        covers: the last revocation that is looked at.
        keep_from: certificates that ended before this instant are on it no more; None keeps all.
        regular: whether it is published because it was time to.
    """

    issuer: str
    number: int
    covers: int
    keep_from: datetime | None
    regular: bool


_of_issuer = crl.c.issuer == bindparam("issuer")
_ROW = Prepared(select(crl).where(_of_issuer))
_LAST = Prepared(
    select(func.coalesce(func.max(revocation.c.seq), 0).label("seq")).where(revocation.c.issuer == bindparam("issuer"))
)
_BEGIN = Prepared(insert(crl), ("issuer", "last_number"))
_TAKE = Prepared(
    update(crl)
    .where(_of_issuer)
    .values(
        last_number=bindparam("taken"),
        builder=bindparam("by", type_=crl.c.builder.type),
        building_until=bindparam("until", type_=crl.c.building_until.type),
    )
)
_PAGE = Prepared(
    select(revocation.c.seq, revocation.c.serial, revocation.c.at, revocation.c.reason)
    .where(
        revocation.c.issuer == bindparam("issuer"),
        revocation.c.seq > bindparam("after"),
        revocation.c.seq <= bindparam("covers"),
        or_(revocation.c.not_after >= bindparam("keep_from"), revocation.c.at >= bindparam("keep_from")),
    )
    .order_by(revocation.c.seq)
    .limit(PAGE)
)
_PUT = Prepared(insert(crl_part), ("issuer", "number", "part", "octets"))
_PUBLISH = Prepared(
    update(crl)
    .where(_of_issuer, func.coalesce(crl.c.number, 0) < bindparam("built"))
    .values(
        builder=None,
        building_until=None,
        number=bindparam("built"),
        this_update=bindparam("begins", type_=crl.c.this_update.type),
        next_update=bindparam("ends", type_=crl.c.next_update.type),
        regular_at=bindparam("regular", type_=crl.c.regular_at.type),
        covers=bindparam("last", type_=crl.c.covers.type),
        entries=bindparam("count", type_=crl.c.entries.type),
        size_bytes=bindparam("size", type_=crl.c.size_bytes.type),
    )
)
_DROP = Prepared(
    delete(crl_part).where(
        crl_part.c.issuer == bindparam("issuer"),
        crl_part.c.number < bindparam("built"),
        crl_part.c.number != bindparam("before"),
    )
)
_PART = Prepared(
    select(crl_part.c.octets).where(
        crl_part.c.issuer == bindparam("issuer"),
        crl_part.c.number == bindparam("which"),
        crl_part.c.part == bindparam("at"),
    )
)
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Crls(Room):
    """The lists of one inventory, as one server sees them."""

    def published(self, issuer: str) -> CrlRecord | None:
        """Find the newest list of a CA's key."""
        return self.standing(issuer).published

    def standing(self, issuer: str) -> Standing:
        """Tell how up to date the list of a CA's key is."""
        with self._read() as connection:
            row = _ROW.one(connection, issuer=issuer)
            last = _LAST.one(connection, issuer=issuer).seq
        if row is None or row.number is None:
            return Standing(None, None, news=last > 0)
        return Standing(_record(row), row.regular_at, news=last > row.covers)

    def begin(self, issuer: str, now: datetime, *, regular: bool) -> Build | None:
        """Take the next number, to build a list with; None while another server does."""
        with self._write(now, durable=True) as tx:
            row = _ROW.one(tx.connection, issuer=issuer)
            if row is None:
                _BEGIN.run(tx.connection, issuer=issuer, last_number=0)
            elif row.builder not in (None, tx.server_id) and row.building_until > now:
                return None
            number = max(0 if row is None else row.last_number + 1, int(now.timestamp()))
            _TAKE.run(tx.connection, issuer=issuer, taken=number, by=tx.server_id, until=now + BUILD_MAX)
            covers = _LAST.one(tx.connection, issuer=issuer).seq
        return Build(issuer, number, covers, None if row is None else row.regular_at, regular)

    def entries(self, build: Build) -> Iterator[Revoked]:
        """Read what belongs into a list, a page at a time."""
        last, keep_from = 0, build.keep_from or _BEGINNING
        while True:
            with self._read() as connection:
                rows = _PAGE.all(connection, issuer=build.issuer, after=last, covers=build.covers, keep_from=keep_from)
            yield from (Revoked(row.serial, row.at, row.reason) for row in rows)
            if len(rows) < PAGE:
                return
            last = rows[-1].seq

    def put(self, build: Build, parts: Iterable[bytes], now: datetime) -> None:
        """Write the octets of a list, each part in a transaction of its own: nobody waits for all of them."""
        for at, octets in enumerate(parts):
            with self._write(now, durable=False) as tx:
                _PUT.run(tx.connection, issuer=build.issuer, number=build.number, part=at, octets=octets)

    def publish(self, build: Build, record: CrlRecord, now: datetime) -> bool:
        """Let everybody see a list whose parts are written; False when a newer one was published meanwhile."""
        with self._write(now, durable=True) as tx:
            before = _ROW.one(tx.connection, issuer=build.issuer)
            if before is None:
                raise InternalError("a list was built with a number that was never taken")
            done = _PUBLISH.run(
                tx.connection,
                issuer=build.issuer,
                built=build.number,
                begins=record.this_update,
                ends=record.next_update,
                regular=record.this_update if build.regular else before.regular_at,
                last=build.covers,
                count=record.entries,
                size=record.size_bytes,
            )
            if done:
                _DROP.run(tx.connection, issuer=build.issuer, built=build.number, before=before.number or 0)
                detail = {"issuer": build.issuer, "number": build.number, "entries": record.entries}
                audit.append(tx, audit.Fact(f"server:{tx.server_id}", "crl", "ok", detail))
            return bool(done)

    def parts(self, record: CrlRecord) -> Iterator[bytes]:
        """Read the octets of a list.

        Raises:
            InternalError: it was replaced twice while it was read.
        """
        at, left = 0, record.size_bytes
        while left:
            with self._read() as connection:
                row = _PART.one(connection, issuer=record.issuer, which=record.number, at=at)
            if row is None:
                raise InternalError("a revocation list was replaced while it was read")
            yield row.octets
            at, left = at + 1, left - len(row.octets)


def _record(row: Any) -> CrlRecord:  # noqa: ANN401 - a row of _ROW
    return CrlRecord(row.issuer, row.number, row.this_update, row.next_update, row.entries, row.size_bytes)
