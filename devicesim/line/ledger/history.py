"""What happened to many units, read in one snapshot: a unit at a time, and nothing of it is kept.

The chain is verified while it is read, so that a report's figures and the head it names are of one moment.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from devicesim.line.ledger import chain
from devicesim.line.ledger.chain import EventRow
from devicesim.line.ledger.checkpoints import Checkpoint
from devicesim.line.ledger.disk import storage_errors
from devicesim.line.ledger.ledger import Ledger
from devicesim.line.ledger.rows import ATTEMPT, AttemptRow, attempt_row
from devicesim.line.states import Failure, FailureCode, State

_UNITS = (
    ATTEMPT.replace("SELECT", "SELECT u.facts, u.state, u.failure_code, u.failure_text, u.device_id,").replace(
        "FROM attempt a", "FROM unit u LEFT JOIN attempt a USING (device_id)"
    )
    + " WHERE u.batch = ? ORDER BY u.position, a.number"
)


@dataclass(frozen=True, slots=True)
class UnitHistory:
    """A unit as it stands, and every attempt at it, oldest first."""

    device_id: str
    batch: str
    facts: Mapping[str, str]
    state: State
    failure: Failure | None
    attempts: tuple[AttemptRow, ...]


@dataclass(frozen=True, slots=True)
class History:
    """A ledger held as it was at one moment."""

    _conn: sqlite3.Connection

    def events(self) -> Iterator[EventRow]:
        """Give every event from the first, each proven to follow the one before it."""
        return chain.checked(self._conn.execute(chain.ROWS))

    def batches(self) -> list[str]:
        """Return the id of every batch, oldest first."""
        return [row[0] for row in self._conn.execute("SELECT id FROM batch ORDER BY opened_at, id")]

    def units(self, batch: str) -> Iterator[UnitHistory]:
        """Give a batch's units in the order of the manifest."""
        for device_id, rows in groupby(self._conn.execute(_UNITS, (batch,)), key=lambda row: str(row[4])):
            yield _unit(device_id, batch, list(rows))

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the last checkpoint, or None where there is none."""
        row = self._conn.execute("SELECT seq, envelope FROM checkpoint ORDER BY seq DESC LIMIT 1").fetchone()
        return Checkpoint(*row) if row else None


@contextmanager
def history(ledger: Ledger) -> Iterator[History]:
    """Hold a ledger as it is now for as long as the context lasts, whatever a run writes meanwhile."""
    with storage_errors(ledger.path), closing(ledger.connect()) as conn:
        conn.execute("BEGIN")
        yield History(conn)


def _unit(device_id: str, batch: str, rows: list[tuple[Any, ...]]) -> UnitHistory:
    facts, state, code, text = rows[0][:4]
    failure = Failure(FailureCode(code), text) if code else None
    attempts = tuple(attempt_row(row[5:]) for row in rows if row[5] is not None)
    return UnitHistory(device_id, batch, json.loads(facts), State(state), failure, attempts)
