"""What is owed to whoever is told of each PASS (`[hooks.done]`): written with the PASS, told in order, under one id."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from devicesim.line.ledger.chain import ChainPlace
from devicesim.line.ledger.disk import stamp
from devicesim.line.ledger.writing import Writing

REASON_MAX = 500


@dataclass(frozen=True, slots=True)
class Push:
    """What is told of one PASS.

    Attributes:
        id: the idempotency key; it and the body never change.
        body: JSON, the very octets that are sent.
    """

    id: str
    device_id: str
    body: str
    tries: int = 0
    reason: str | None = None


MakePush = Callable[[ChainPlace], Push]


def owe(writing: Writing, push: Push) -> None:
    """Owe it, in the caller's transaction."""
    writing.conn.execute(
        "INSERT INTO push (id, device_id, body, created_at) VALUES (?, ?, ?, ?)",
        (push.id, push.device_id, push.body, stamp(writing.at)),
    )


def pending(conn: sqlite3.Connection, limit: int) -> list[Push]:
    """Return the oldest that are owed, oldest first."""
    sql = "SELECT id, device_id, body, tries, reason FROM push WHERE done_at IS NULL ORDER BY seq LIMIT ?"
    return [Push(*row) for row in conn.execute(sql, (limit,))]


def count(conn: sqlite3.Connection) -> int:
    """Count what is owed."""
    return int(conn.execute("SELECT count(*) FROM push WHERE done_at IS NULL").fetchone()[0])


def mark_done(writing: Writing, push: Push) -> None:
    """Record that it was heard."""
    update = "UPDATE push SET done_at = ?, reason = NULL WHERE id = ? AND done_at IS NULL"
    if writing.conn.execute(update, (stamp(writing.at), push.id)).rowcount:
        writing.tell("pushed", {"device_id": push.device_id, "id": push.id})


def mark_failed(writing: Writing, push: Push, reason: str) -> None:
    """Record why it was not heard; it stays owed."""
    writing.conn.execute("UPDATE push SET tries = tries + 1, reason = ? WHERE id = ?", (reason[:REASON_MAX], push.id))
