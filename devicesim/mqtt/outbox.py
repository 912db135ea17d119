"""The outbox: announcements that are owed, kept in the database of whoever owes them.

A row is written in the transaction of the fact it announces, with its event id and its signed bytes, and neither ever
changes: whatever happens afterwards, the event is sent at least once and under one id. These functions take the
caller's open connection and never commit.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  id         TEXT    NOT NULL UNIQUE,
  topic      TEXT    NOT NULL,
  payload    BLOB    NOT NULL,
  retain     INTEGER NOT NULL CHECK (retain IN (0, 1)),
  created_at TEXT    NOT NULL,
  tries      INTEGER NOT NULL DEFAULT 0,
  next_at    TEXT    NOT NULL DEFAULT '',
  done_at    TEXT,
  reason     TEXT
);
CREATE INDEX IF NOT EXISTS outbox_owed ON outbox (seq) WHERE done_at IS NULL;
CREATE INDEX IF NOT EXISTS outbox_owed_state ON outbox (topic, seq) WHERE done_at IS NULL AND retain = 1;
CREATE TABLE IF NOT EXISTS event_counter (
  source TEXT PRIMARY KEY,
  last   INTEGER NOT NULL
) WITHOUT ROWID;
"""


DEAD_AFTER = 10
"""Refusals by a broker, with doubled pauses between them, that make a row a dead letter: an hour and a half of them."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One owed announcement."""

    id: str
    topic: str
    payload: bytes
    retain: bool
    tries: int = 0
    reason: str | None = None


def add(conn: sqlite3.Connection, *, id: str, topic: str, payload: bytes, retain: bool, at: datetime) -> None:  # noqa: A002 - CloudEvents' own name
    """Owe an announcement, in the caller's transaction. A second row with the same id is an IntegrityError."""
    conn.execute(
        "INSERT INTO outbox (id, topic, payload, retain, created_at) VALUES (?, ?, ?, ?, ?)",
        (id, topic, payload, int(retain), _stamp(at)),
    )


def pending(conn: sqlite3.Connection, limit: int, *, at: datetime | None = None) -> list[OutboxRow]:
    """Return the oldest owed rows, oldest first; with `at`, only those to be offered then: due, and not dead."""
    rows = conn.execute(
        "SELECT id, topic, payload, retain, tries, reason FROM outbox"
        " WHERE done_at IS NULL AND next_at <= ? AND tries < ? ORDER BY seq LIMIT ?",
        ("9999" if at is None else _stamp(at), sys.maxsize if at is None else DEAD_AFTER, limit),
    )
    return [_row(*row) for row in rows]


def pending_count(conn: sqlite3.Connection) -> int:
    """Count what is owed."""
    row = conn.execute("SELECT count(*) FROM outbox WHERE done_at IS NULL").fetchone()
    return int(row[0])


def owes_as_many_as(conn: sqlite3.Connection, limit: int) -> bool:
    """Tell whether at least so many are owed, counting no further."""
    row = conn.execute("SELECT 1 FROM outbox WHERE done_at IS NULL LIMIT 1 OFFSET ?", (limit - 1,)).fetchone()
    return row is not None


def dead(conn: sqlite3.Connection, limit: int) -> list[OutboxRow]:
    """Return the oldest dead letters: rows a broker has refused so often that they are no longer offered to one."""
    rows = conn.execute(
        "SELECT id, topic, payload, retain, tries, reason FROM outbox"
        " WHERE done_at IS NULL AND tries >= ? ORDER BY seq LIMIT ?",
        (DEAD_AFTER, limit),
    )
    return [_row(*row) for row in rows]


def dead_count(conn: sqlite3.Connection) -> int:
    """Count the dead letters; they stay owed."""
    sql = "SELECT count(*) FROM outbox WHERE done_at IS NULL AND tries >= ?"
    return int(conn.execute(sql, (DEAD_AFTER,)).fetchone()[0])


def revive(conn: sqlite3.Connection, ids: Iterable[str] | None = None) -> int:
    """Offer dead letters again, these or all of them; return how many."""
    if ids is None:
        sql = "UPDATE outbox SET tries = 0, next_at = '' WHERE done_at IS NULL AND tries >= ?"
        return conn.execute(sql, (DEAD_AFTER,)).rowcount
    sql = "UPDATE outbox SET tries = 0, next_at = '' WHERE done_at IS NULL AND tries >= ? AND id = ?"
    return sum(conn.execute(sql, (DEAD_AFTER, id_)).rowcount for id_ in ids)


def hasten(conn: sqlite3.Connection) -> None:
    """Let every row that is owed and not dead be due at once."""
    conn.execute("UPDATE outbox SET next_at = '' WHERE done_at IS NULL AND next_at <> ''")


def mark_done(conn: sqlite3.Connection, ids: Iterable[str], at: datetime) -> None:
    """Record that the broker has these events.

    A retained row is a state, so an older state of the same topic that is still owed is closed with it: sent later, it
    would overwrite the newer one.
    """
    done = [(_stamp(at), id_) for id_ in ids]
    conn.executemany("UPDATE outbox SET done_at = ?, reason = NULL WHERE id = ? AND done_at IS NULL", done)
    conn.executemany(
        "UPDATE outbox SET done_at = ?1, reason = 'superseded' WHERE done_at IS NULL AND retain = 1 AND (topic, 1) ="
        " (SELECT topic, retain FROM outbox WHERE id = ?2) AND seq < (SELECT seq FROM outbox WHERE id = ?2)",
        done,
    )


def mark_failed(conn: sqlite3.Connection, id: str, reason: str, next_at: datetime) -> None:  # noqa: A002 - as in add()
    """Record why an event was not taken, and when to offer it again. It stays owed."""
    conn.execute(
        "UPDATE outbox SET tries = tries + 1, reason = ?, next_at = ? WHERE id = ? AND done_at IS NULL",
        (reason[:500], _stamp(next_at), id),
    )


def next_sequence(conn: sqlite3.Connection, source: str) -> int:
    """Count one more event of a source, in the caller's transaction, so that a consumer can see a gap."""
    row = conn.execute(
        "INSERT INTO event_counter (source, last) VALUES (?, 1)"
        " ON CONFLICT (source) DO UPDATE SET last = last + 1 RETURNING last",
        (source,),
    ).fetchone()
    return int(row[0])


def _row(id_: str, topic: str, payload: bytes, retain: int, tries: int, reason: str | None) -> OutboxRow:
    return OutboxRow(id_, topic, bytes(payload), bool(retain), tries, reason)


def _stamp(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError("times are aware: pass datetime.now(UTC)")
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
