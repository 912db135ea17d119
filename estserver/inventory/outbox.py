"""Announcements that are owed: written with what they announce, sent later, at least once.

Rules:
- A row is written in the transaction of what it tells; its event id and sequence number never change after.
- Sequence numbers of one source on one server have no gaps: a subscriber that misses one knows it.
- A row that was sent is kept until it is pruned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from estserver.inventory import counters
from estserver.inventory.database import Database
from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import outbox
from estserver.inventory.transaction import Transaction
from estserver.model import Event

_INSERT = Prepared(
    insert(outbox),
    (
        *("server_id", "event_id", "source", "sequence", "type", "subject", "topic", "retain", "at", "data"),
        "attempts",
    ),
)
_PRUNE_BATCH = 1000
_ERROR_MAX = 500


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One announcement that is still owed.

    Attributes:
        sequence: position among all events of its source, from 1.
        attempts: how often sending it failed, last for the reason `last_error`.
    """

    sequence: int
    event: Event
    attempts: int
    last_error: str | None


def add(tx: Transaction, events: Sequence[Event]) -> None:
    """Owe these announcements."""
    if not events:
        return
    next_of = {
        source: iter(counters.take(tx, counters.SEQUENCE + source, count))
        for source, count in Counter(event.source for event in events).items()
    }
    for event in events:
        _INSERT.run(tx.connection, **_values(tx, event, next(next_of[event.source])))


def _values(tx: Transaction, event: Event, sequence: int) -> dict[str, object]:
    return {
        "server_id": tx.server_id,
        "event_id": event.id,
        "source": event.source,
        "sequence": sequence,
        "type": event.type,
        "subject": event.subject,
        "topic": event.topic,
        "retain": event.retain,
        "at": event.at,
        "data": dict(event.data),
        "attempts": 0,
    }


def pending(connection: Connection, server_id: str, limit: int) -> list[OutboxRow]:
    """Return the oldest announcements that are owed, in order."""
    query = (
        select(outbox)
        .where(outbox.c.server_id == server_id, outbox.c.done_at.is_(None))
        .order_by(outbox.c.id)
        .limit(limit)
    )
    return [
        OutboxRow(
            row.sequence,
            Event(row.event_id, row.source, row.type, row.subject, row.topic, row.retain, row.at, row.data),
            row.attempts,
            row.last_error,
        )
        for row in connection.execute(query)
    ]


def done(tx: Transaction, event_ids: Iterable[str]) -> None:
    """Note that these were received by the broker; saying it twice changes nothing."""
    query = (
        update(outbox)
        .where(outbox.c.event_id == bindparam("sent"), outbox.c.done_at.is_(None))
        .values(done_at=bindparam("now", type_=outbox.c.done_at.type))
    )
    marked = sum(tx.connection.execute(query, {"sent": event_id, "now": tx.now}).rowcount for event_id in event_ids)
    if marked:
        counters.add(tx, counters.SENT, marked)


def failed(connection: Connection, event_id: str, reason: str) -> None:
    """Note why an announcement could not be sent; it stays owed."""
    connection.execute(
        update(outbox)
        .where(outbox.c.event_id == event_id)
        .values(attempts=outbox.c.attempts + 1, last_error=reason[:_ERROR_MAX])
    )


def prune(connection: Connection, before: datetime) -> int:
    """Forget a batch of announcements that were sent before a time; return how many."""
    old = select(outbox.c.id).where(outbox.c.done_at < before).limit(_PRUNE_BATCH)
    return connection.execute(delete(outbox).where(outbox.c.id.in_(old.scalar_subquery()))).rowcount


class Outbox:
    """What one server still has to tell; every method is one transaction."""

    def __init__(
        self, database: Database, write: Callable[..., AbstractContextManager[Transaction]], server_id: str
    ) -> None:
        self._database = database
        self._write = write
        self._server_id = server_id

    def pending(self, limit: int) -> list[OutboxRow]:
        """Return the oldest announcements that are still owed."""
        with self._database.read() as connection:
            return pending(connection, self._server_id, limit)

    def done(self, event_ids: Iterable[str], now: datetime) -> None:
        """Note that these arrived."""
        with self._write(now, durable=False) as tx:
            done(tx, event_ids)

    def failed(self, event_id: str, reason: str) -> None:
        """Note why one could not be sent; it stays owed."""
        with self._database.write(durable=False) as connection:
            failed(connection, event_id, reason)

    def prune(self, before: datetime) -> int:
        """Forget a batch of announcements that arrived before a time; return how many."""
        with self._database.write(durable=False) as connection:
            return prune(connection, before)
