"""What a ledger knows of leases: which parts of a batch this station has taken in.

A ledger has a batch whole or in parts, never both. These functions work in the caller's transaction, as `intake` does.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime

from devicesim.errors import Conflict
from devicesim.line.batch import Batch, Span
from devicesim.line.ledger.disk import stamp


def spans(conn: sqlite3.Connection, batch_id: str) -> list[Span]:
    """Return the parts of a batch that are in the ledger, in their order."""
    rows = conn.execute("SELECT first, last FROM lease WHERE batch = ? ORDER BY first", (batch_id,))
    return [Span(*row) for row in rows]


def is_taken(conn: sqlite3.Connection, batch: Batch) -> bool:
    """Tell whether this part of a batch that the ledger knows is in it; raise Conflict when it must not come in."""
    taken = spans(conn, batch.id)
    listed = ", ".join(map(str, taken))
    if batch.span is None and taken:
        raise Conflict(
            f"this station has leases of batch {batch.id} (units {listed}), not the whole of it",
            advice="run it with --lease",
        )
    if batch.span is not None and not taken:
        raise Conflict(f"batch {batch.id} is in this ledger as a whole", advice="run it without --lease")
    if batch.span is None or batch.span in taken:
        return True
    mine = batch.span
    if any(mine.first <= other.last and other.first <= mine.last for other in taken):
        raise Conflict(
            f"the lease of units {mine} overlaps what is taken in of batch {batch.id}: {listed}",
            advice="two splits were made of one batch: keep one lease book, and split from there",
        )
    return False


def take(conn: sqlite3.Connection, batch: Batch, at: datetime) -> None:
    """Write down which part of a batch comes in; a whole batch leaves no row."""
    if batch.span is not None:
        conn.execute(
            "INSERT INTO lease (batch, first, last, taken_at) VALUES (?, ?, ?, ?)",
            (batch.id, batch.span.first, batch.span.last, stamp(at)),
        )
