"""What may come into a ledger: a batch, whole or not at all, of units that share nothing with any other."""

from __future__ import annotations

import sqlite3

from devicesim.errors import Conflict
from devicesim.line.batch import Batch, content_sha256
from devicesim.line.ledger import guards, leases
from devicesim.line.ledger.disk import json_text, stamp
from devicesim.line.ledger.writing import Writing
from devicesim.line.states import State

SHOWN = 10


def known(conn: sqlite3.Connection, batch: Batch) -> bool:
    """Tell whether the batch, or the leased part of it, is in the ledger already.

    Raises Conflict when its id stands there for other units, or the part cannot come in beside what is there.
    """
    row = conn.execute("SELECT content_sha256 FROM batch WHERE id = ?", (batch.id,)).fetchone()
    if row is None or row[0] == batch.sha256():
        return row is not None and leases.is_taken(conn, batch)
    rows = conn.execute("SELECT device_id, facts FROM unit WHERE batch = ?", (batch.id,))
    before, after = dict(rows.fetchall()), {unit.device_id: json_text(unit.facts()) for unit in batch.units}
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    raise Conflict(
        _listing(f"batch {batch.id} was opened with other units", changed or ["their order"]),
        advice="a batch does not change once it is in the ledger: give the new one another id",
    )


def take_in(writing: Writing, batch: Batch) -> None:
    """Plan every unit of a new batch or part, or raise Conflict naming every collision with what is in the ledger."""
    conn = writing.conn
    clashes = [clash for unit in batch.units for clash in guards.collisions(writing, unit.facts())]
    if clashes:
        raise Conflict(
            _listing(f"batch {batch.id} repeats what is already taken", clashes),
            advice="take these units out, or correct them; nothing of the batch was taken in",
        )
    conn.execute(
        "INSERT INTO batch (id, content_sha256, quantity, opened_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET quantity = quantity + excluded.quantity",  # a further lease
        (batch.id, batch.sha256(), len(batch.units), stamp(writing.at)),
    )
    leases.take(conn, batch, writing.at)
    conn.executemany(
        "INSERT INTO unit (device_id, batch, position, facts, state) VALUES (?, ?, ?, ?, ?)",
        [
            (unit.device_id, batch.id, position, json_text(unit.facts()), State.PLANNED)
            for position, unit in enumerate(batch.units, batch.span.first - 1 if batch.span else 0)
        ],
    )
    conn.executemany(
        "INSERT INTO guard (kind, value, device_id) VALUES (?, ?, ?)",
        [(kind, value, unit.device_id) for unit in batch.units for kind, value in guards.of_facts(unit.facts())],
    )
    body = {"batch": batch.id, "content_sha256": batch.sha256(), "quantity": len(batch.units)}
    span = {"first": batch.span.first, "last": batch.span.last} if batch.span else {}
    units_sha256 = content_sha256(batch.id, [unit.facts() for unit in batch.units])
    writing.tell("batch-opened", {**body, **span, "units_sha256": units_sha256})


def _listing(what: str, items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{what}: {', '.join(items[:SHOWN])}{more}"
