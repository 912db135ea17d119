"""What may come into a ledger: every id, serial, address, key and certificate once, for one unit, for ever.

These functions take the ledger's open connection and work in its transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

from devicesim.errors import Conflict
from devicesim.line import lease_table
from devicesim.line.batch import Batch, Unit
from devicesim.line.records import json_text, open_database, stamp, storage_errors
from devicesim.line.states import State

GUARDED = ("device_id", "serial", "mac", "se_id")
SHOWN = 10


def known(conn: sqlite3.Connection, batch: Batch) -> bool:
    """Tell whether the batch, or the leased part of it, is in the ledger already.

    Raises Conflict when its id stands there for other units, or the part cannot come in beside what is there.
    """
    row = conn.execute("SELECT content_sha256 FROM batch WHERE id = ?", (batch.id,)).fetchone()
    if row is None or row[0] == batch.sha256():
        return row is not None and lease_table.is_taken(conn, batch)
    rows = conn.execute("SELECT device_id, facts FROM unit WHERE batch = ?", (batch.id,))
    before, after = dict(rows.fetchall()), {unit.device_id: json_text(unit.facts()) for unit in batch.units}
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    raise Conflict(
        _listing(f"batch {batch.id} was opened with other units", changed or ["their order"]),
        advice="a batch does not change once it is in the ledger: give the new one another id",
    )


def take_in(conn: sqlite3.Connection, batch: Batch, at: datetime) -> None:
    """Plan every unit of a new batch or part, or raise Conflict naming every collision with what is in the ledger."""
    clashes = [clash for unit in batch.units for clash in collisions(conn, unit)]
    if clashes:
        raise Conflict(
            _listing(f"batch {batch.id} repeats what is already in the ledger", clashes),
            advice="take these units out, or correct them; nothing of the batch was taken in",
        )
    conn.execute(
        "INSERT INTO batch (id, content_sha256, quantity, opened_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET quantity = quantity + excluded.quantity",  # a further lease
        (batch.id, batch.sha256(), len(batch.units), stamp(at)),
    )
    lease_table.take(conn, batch, at)
    conn.executemany(
        "INSERT INTO unit (device_id, batch, position, facts, state) VALUES (?, ?, ?, ?, ?)",
        [
            (unit.device_id, batch.id, position, json_text(unit.facts()), State.PLANNED)
            for position, unit in enumerate(batch.units, batch.span.first - 1 if batch.span else 0)
        ],
    )
    conn.executemany(
        "INSERT INTO guard (kind, value, device_id) VALUES (?, ?, ?)",
        [(kind, value, unit.device_id) for unit in batch.units for kind, value in _guards(unit)],
    )


def rehearse(path: Path, batch: Batch, at: datetime) -> bool:
    """Take a batch into a ledger and let go of it again: the very same rules, and nothing of it stays.

    Returns whether it was in already; raises Conflict as `take_in` does.
    """
    with storage_errors(path), closing(open_database(path, autocommit=True)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        try:
            if known(conn, batch):
                return True
            take_in(conn, batch, at)
        finally:
            conn.execute("ROLLBACK")
    return False


def collisions(conn: sqlite3.Connection, unit: Unit) -> Iterator[str]:
    """Name what of a planned unit another unit has already."""
    for kind, value in _guards(unit):
        row = conn.execute(
            "SELECT g.device_id, u.batch FROM guard g JOIN unit u USING (device_id) WHERE kind = ? AND value = ?",
            (kind, value),
        ).fetchone()
        if row is not None:
            yield f"{kind} {value} ({row[0]} of batch {row[1]})"


def claim(conn: sqlite3.Connection, kind: str, value: str, device_id: str) -> None:
    """Let a key or certificate belong to a unit, or raise Conflict when it belongs to another."""
    conn.execute("INSERT OR IGNORE INTO guard (kind, value, device_id) VALUES (?, ?, ?)", (kind, value, device_id))
    owner = conn.execute("SELECT device_id FROM guard WHERE kind = ? AND value = ?", (kind, value)).fetchone()[0]
    if owner != device_id:
        raise Conflict(f"{kind} {value} already belongs to {owner}", advice="take the unit out: it is a duplicate")


def _guards(unit: Unit) -> Iterator[tuple[str, str]]:
    facts = unit.facts()
    return ((kind, facts[kind]) for kind in GUARDED if facts[kind])


def _listing(what: str, items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{what}: {', '.join(items[:SHOWN])}{more}"
