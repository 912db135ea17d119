"""The buckets of `estserver.limits`: one row for each that is not full.

Rules:
- Taking is one statement, so that no two workers can take the same token.
- A full bucket needs no row: the table holds at most what was asked for within one period, whoever asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import bucket
from estserver.inventory.transaction import Transaction
from estserver.limits import PERIOD_MAX, Bucket

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_full_at = bucket.c.full_at_microseconds


def _take(insert: Any) -> Prepared:  # noqa: ANN401 - each dialect has an `insert` of its own, and they share no type
    """Build GCRA in one statement: no row comes back when the bucket is empty."""
    foreign = or_(_full_at < bindparam("now"), _full_at > bindparam("horizon"))
    statement = insert(bucket).values(key=bindparam("key"), full_at_microseconds=bindparam("first"))
    return Prepared(
        statement.on_conflict_do_update(
            index_elements=[bucket.c.key],
            set_={"full_at_microseconds": case((foreign, bindparam("first")), else_=_full_at + bindparam("interval"))},
            where=or_(_full_at <= bindparam("last"), _full_at > bindparam("horizon")),
        ).returning(_full_at)
    )


_TAKE = {"sqlite": _take(sqlite.insert), "postgresql": _take(postgresql.insert)}
_FULL_AT = Prepared(select(_full_at).where(bucket.c.key == bindparam("key")))
_PRUNE = delete(bucket).where(or_(_full_at <= bindparam("now"), _full_at > bindparam("horizon")))


def pay(tx: Transaction, payment: Sequence[Bucket]) -> None:
    """Take one out of each bucket.

    Raises:
        RateLimited: one is empty; the transaction is to be rolled back.
    """
    take = _TAKE[tx.connection.dialect.name]
    for one in payment:
        if take.one(tx.connection, **_values(one, tx.now)) is None:
            require(tx.connection, (one,), tx.now)
            raise one.refusal(one.rate.interval)


def require(connection: Connection, payment: Sequence[Bucket], now: datetime) -> None:
    """Look whether each bucket has one left, and take nothing.

    Raises:
        RateLimited: one is empty.
    """
    for one in payment:
        found = _FULL_AT.one(connection, key=one.key)
        wait = one.rate.wait(None if found is None else _EPOCH + found.full_at_microseconds * _MICROSECOND, now)
        if wait:
            raise one.refusal(wait)


def prune(tx: Transaction) -> int:
    """Forget the buckets that are full, or were filled by a clock that was far ahead; return how many."""
    values = {"now": _microseconds(tx.now), "horizon": _microseconds(tx.now + 2 * PERIOD_MAX)}
    return tx.connection.execute(_PRUNE, values).rowcount


def _values(one: Bucket, now: datetime) -> dict[str, object]:
    interval, depth = one.rate.interval, one.rate.depth
    return {
        "key": one.key,
        "now": _microseconds(now),
        "interval": interval // _MICROSECOND,
        "first": _microseconds(now + interval),
        "last": _microseconds(now + depth - interval),
        "horizon": _microseconds(now + one.rate.horizon),
    }


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND
