"""The ledger of a station: one SQLite file, and the only SQL of the line.

Rules:
- Every change of a unit, the event row that tells of it and the announcement it causes are one transaction, durable
  (WAL, synchronous=FULL) before the call returns.
- A device id, serial, MAC, secure-element id, key or certificate belongs to one unit for ever, across batches
  (`guard`).
- Reading needs no lock; a run holds the lock file beside the ledger, so that two runs exclude each other.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from devicesim.errors import ConfigInvalid, Conflict, StorageError, UsageProblem
from devicesim.line import chain, intake
from devicesim.line.batch import Batch
from devicesim.line.chain import ChainPlace
from devicesim.line.records import (
    ATTEMPT_COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    UNIT_COLUMNS,
    AttemptRow,
    UnitRow,
    attempt_row,
    exclusive,
    json_text,
    open_database,
    stamp,
    storage_errors,
    unit_row,
)
from devicesim.line.states import NEXT, Failure, FailureCode, State
from devicesim.mqtt import outbox


@dataclass(frozen=True, slots=True)
class Announcement:
    """A signed event, ready for the outbox."""

    id: str
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class BirthFacts:
    """What a device's birth is told under: fixed at the first try, but for the number of the session."""

    id: str
    time: datetime
    sequence: int
    session: int


Announce = Callable[[int, ChainPlace], Announcement]
"""Makes the announcement of what is being written, from the source's sequence number and the place in the chain."""


class Ledger:
    """One station's records. Safe for several threads; one process at a time may run units on it (`exclusive`).

    Args:
        path: the SQLite file, made by `create`.
        clock: for the times in the records.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime]) -> None:
        self.path = path
        self._clock = clock
        self._mutex = threading.RLock()
        if not path.is_file():
            raise ConfigInvalid(f"there is no ledger at {path}", advice="make one with 'devicesim line init'")
        with storage_errors(path):
            self._conn = open_database(path, autocommit=True)
        try:
            self._check_schema()
        except BaseException:
            self._conn.close()
            raise

    @classmethod
    def create(cls, path: Path, *, clock: Callable[[], datetime], place: Mapping[str, str]) -> Ledger:
        """Make an empty ledger that belongs to one station; an existing file is left alone."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise Conflict(f"{path} exists", advice="a ledger is never written over") from None
        except OSError as error:
            raise StorageError(f"cannot make {path}: {error.strerror}") from error
        with storage_errors(path):
            conn = open_database(path, autocommit=True)
            conn.execute("PRAGMA journal_mode=WAL")
            meta = {"schema": SCHEMA_VERSION, **place}
            conn.executescript("BEGIN IMMEDIATE;" + SCHEMA)
            conn.executemany("INSERT INTO meta (name, value) VALUES (?, ?)", meta.items())
            conn.execute("COMMIT")
            conn.close()
        return cls(path, clock=clock)

    def connect(self) -> sqlite3.Connection:
        """Open a connection for the announcer, which commits and closes it itself."""
        return open_database(self.path, autocommit=False)

    def close(self) -> None:
        """Close the file."""
        self._conn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other runs off this ledger for as long as the context lasts, or raise Locked at once."""
        return exclusive(self.path)

    # --- batches and units ------------------------------------------------------------------------------------------

    def open_batch(self, batch: Batch) -> bool:
        """Take a batch in, whole or not at all; False when it is already there, unchanged.

        Raises Conflict when the same batch id stands for other units, or a unit collides with another batch; the
        message names every collision.
        """
        with self._transaction() as conn:
            if intake.known(conn, batch):
                return False
            intake.take_in(conn, batch, self._clock())
            body = {"batch": batch.id, "content_sha256": batch.sha256(), "quantity": len(batch.units)}
            body |= {"first": batch.span.first, "last": batch.span.last} if batch.span else {}
            self._append(conn, "batch-opened", body)
        return True

    def unit(self, device_id: str) -> UnitRow:
        """Return one unit."""
        row = self._read(f"SELECT {UNIT_COLUMNS} FROM unit WHERE device_id = ?", (device_id,))  # noqa: S608 - a constant
        if not row:
            raise UsageProblem(f"{device_id!r} is not in the ledger")
        return unit_row(row[0])

    def units(self, batch_id: str) -> list[UnitRow]:
        """Return a batch's units in the order of the manifest."""
        sql = f"SELECT {UNIT_COLUMNS} FROM unit WHERE batch = ? ORDER BY position"  # noqa: S608 - a constant
        return [unit_row(row) for row in self._read(sql, (batch_id,))]

    def attempts(self, batch_id: str) -> list[AttemptRow]:
        """Return every attempt at a batch's units, oldest first for each unit."""
        sql = (
            f"SELECT {ATTEMPT_COLUMNS} FROM attempt a JOIN unit u USING (device_id)"  # noqa: S608 - a constant
            " WHERE u.batch = ? ORDER BY u.position, a.number"
        )
        return [attempt_row(row) for row in self._read(sql, (batch_id,))]

    def timing(self, unit: UnitRow) -> dict[str, float]:
        """Return how long each step of the attempt under way took, in milliseconds."""
        rows = self._read("SELECT timing_ms FROM attempt WHERE id = ?", (unit.attempt_id,))
        return dict(json.loads(rows[0][0])) if rows else {}

    def batches(self) -> list[tuple[str, int]]:
        """Return id and quantity of every batch, oldest first."""
        return [(row[0], row[1]) for row in self._read("SELECT id, quantity FROM batch ORDER BY opened_at, id")]

    def place(self) -> dict[str, str]:
        """Return site, line and station of this ledger."""
        return {name: value for name, value in self._read("SELECT name, value FROM meta") if name != "schema"}

    def owed(self) -> int:
        """Count the announcements no broker has confirmed."""
        with self._mutex, storage_errors(self.path):
            return outbox.pending_count(self._conn)

    # --- one unit's way ---------------------------------------------------------------------------------------------

    def begin_attempt(self, device_id: str, *, attempt_id: str, slot: int) -> UnitRow:
        """Begin to work on a unit: a new attempt, or the one that a crash left open."""
        with self._transaction() as conn:
            unit = self.unit(device_id)
            if unit.attempt_id is None:
                number, at = unit.attempts + 1, stamp(self._clock())
                conn.execute(
                    "INSERT INTO attempt (id, device_id, number, slot, started_at) VALUES (?, ?, ?, ?, ?)",
                    (attempt_id, device_id, number, slot, at),
                )
                conn.execute(
                    "UPDATE unit SET attempts = ?, attempt_id = ?, failure_code = NULL, failure_text = NULL"
                    " WHERE device_id = ?",
                    (number, attempt_id, device_id),
                )
                body = {"device_id": device_id, "attempt": number, "attempt_id": attempt_id, "slot": slot}
                self._append(conn, "attempt", body)
        return self.unit(device_id)

    def advance(
        self,
        device_id: str,
        to: State,
        *,
        took_ms: float = 0.0,
        spki_sha256: str | None = None,
        csr: bytes | None = None,
        certificate: bytes | None = None,
        cert_serial: str | None = None,
    ) -> UnitRow:
        """Move a unit along one edge, keeping what was learned on it; walked already, it changes nothing."""
        learned = {"spki_sha256": spki_sha256, "csr": csr, "certificate": certificate}
        with self._transaction() as conn:
            unit = self.unit(device_id)
            if unit.state == to:
                return unit
            self._step(conn, unit, to, took_ms)
            for kind, value in (("spki_sha256", spki_sha256), ("cert_serial", cert_serial)):
                if value is not None:
                    intake.claim(conn, kind, value, device_id)
            values = {name: value for name, value in learned.items() if value is not None}
            if values:
                columns = ", ".join(f"{name} = ?" for name in values)
                conn.execute(f"UPDATE unit SET {columns} WHERE device_id = ?", (*values.values(), device_id))  # noqa: S608 - our names
            self._append(conn, to, {"device_id": device_id, **_told(values, cert_serial)})
        return self.unit(device_id)

    def record(self, device_id: str, *, took_ms: float, announce: Announce | None, source: str, birth: bool) -> UnitRow:
        """PASS: write the unit down as recorded and owe its announcement, in one transaction."""
        with self._transaction() as conn:
            unit = self.unit(device_id)
            if unit.passed:
                return unit
            self._step(conn, unit, State.RECORDED, took_ms)
            self._end_attempt(conn, unit, "pass", None)
            place = self._append(conn, State.RECORDED, {"device_id": device_id, "attempt": unit.attempts})
            event_id = self._owe(conn, announce, source, place)
            conn.execute(
                "UPDATE unit SET event_id = ?, birth = ? WHERE device_id = ?",
                (event_id, "pending" if birth else "none", device_id),
            )
        return self.unit(device_id)

    def fail(self, device_id: str, failure: Failure, *, announce: Announce | None, source: str) -> UnitRow:
        """End a unit's attempt with a failure; the unit keeps its state, and the next attempt goes on from there."""
        with self._transaction() as conn:
            unit = self.unit(device_id)
            conn.execute(
                "UPDATE unit SET failure_code = ?, failure_text = ? WHERE device_id = ?",
                (failure.code, failure.text[:500], device_id),
            )
            self._end_attempt(conn, unit, "fail", failure.code)
            body = {"device_id": device_id, "code": failure.code, "text": failure.text[:500], "state": unit.state}
            self._owe(conn, announce, source, self._append(conn, "failed", body))
        return self.unit(device_id)

    def birth_event(self, device_id: str, event_id: str, source: str) -> BirthFacts:
        """Return id, time and number of a device's birth: the same ones, however often it is tried."""
        with self._transaction() as conn:
            row = conn.execute("SELECT birth_event FROM unit WHERE device_id = ?", (device_id,)).fetchone()
            if row[0] is None:
                number = outbox.next_sequence(conn, source)
                text = json_text([event_id, stamp(self._clock().replace(microsecond=0)), number])
                conn.execute("UPDATE unit SET birth_event = ? WHERE device_id = ?", (text, device_id))
            else:
                text = row[0]
            session = outbox.next_sequence(conn, f"{source}#session")
        id_, at, number = json.loads(text)
        return BirthFacts(id_, datetime.fromisoformat(at), number, session)

    def mark_birth(self, device_id: str) -> None:
        """Record that the device itself has announced its birth."""
        with self._transaction() as conn:
            done = conn.execute(
                "UPDATE unit SET birth = 'done' WHERE device_id = ? AND birth = 'pending'", (device_id,)
            ).rowcount
            if done:
                self._append(conn, "birth", {"device_id": device_id})

    def settle_announced(self) -> list[str]:
        """Move every recorded unit whose announcement the broker has confirmed to `announced`."""
        with self._transaction() as conn:
            rows = conn.execute(
                "SELECT u.device_id FROM unit u JOIN outbox o ON o.id = u.event_id"
                " WHERE u.state = 'recorded' AND o.done_at IS NOT NULL ORDER BY o.seq"
            ).fetchall()
            for (device_id,) in rows:
                conn.execute("UPDATE unit SET state = ? WHERE device_id = ?", (State.ANNOUNCED, device_id))
                self._append(conn, State.ANNOUNCED, {"device_id": device_id})
        return [row[0] for row in rows]

    # --- the chain --------------------------------------------------------------------------------------------------

    def verify_chain(self) -> ChainPlace:
        """Recompute the chain from its beginning and return its head, or say which row is wrong."""
        return chain.verify(self._read(chain.ROWS))

    # --- how it is done ---------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, storage_errors(self.path):
            self._conn.execute("BEGIN IMMEDIATE")
            try:
                yield self._conn
                self._conn.execute("COMMIT")
            except BaseException:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
                raise

    def _read(self, sql: str, values: tuple[object, ...] = ()) -> list[Any]:
        with self._mutex, storage_errors(self.path):
            return self._conn.execute(sql, values).fetchall()

    def _check_schema(self) -> None:
        try:
            found = self._conn.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
        except sqlite3.DatabaseError as error:
            raise ConfigInvalid(f"{self.path} is not a ledger: {error}", advice="check [ledger] path") from error
        if found is None or found[0] != SCHEMA_VERSION:
            raise ConfigInvalid(f"{self.path} was written by another version", advice="use that version of devicesim")

    def _step(self, conn: sqlite3.Connection, unit: UnitRow, to: State, took_ms: float) -> None:
        if NEXT.get(unit.state) != to:
            raise StorageError(f"{unit.device_id} cannot go from {unit.state} to {to}", advice="report this as a bug")
        conn.execute("UPDATE unit SET state = ? WHERE device_id = ?", (to, unit.device_id))
        conn.execute(
            "UPDATE attempt SET timing_ms = json_set(timing_ms, '$.' || ?, round(?, 3)) WHERE id = ?",
            (to, took_ms, unit.attempt_id),
        )

    def _end_attempt(
        self, conn: sqlite3.Connection, unit: UnitRow, outcome: str, failure_code: FailureCode | None
    ) -> None:
        conn.execute(
            "UPDATE attempt SET ended_at = ?, outcome = ?, failure_code = ? WHERE id = ?",
            (stamp(self._clock()), outcome, failure_code, unit.attempt_id),
        )
        conn.execute("UPDATE unit SET attempt_id = NULL WHERE device_id = ?", (unit.device_id,))

    def _owe(self, conn: sqlite3.Connection, announce: Announce | None, source: str, place: ChainPlace) -> str | None:
        if announce is None:
            return None
        made = announce(outbox.next_sequence(conn, source), place)
        outbox.add(conn, id=made.id, topic=made.topic, payload=made.payload, retain=False, at=self._clock())
        return made.id

    def _append(self, conn: sqlite3.Connection, kind: str, body: Mapping[str, object]) -> ChainPlace:
        return chain.append(conn, kind, body, self._clock())


def _told(values: Mapping[str, str | bytes], cert_serial: str | None) -> dict[str, str]:
    """Return what the chain says of what was learned: octets by their hash."""
    told = {name: value for name, value in values.items() if isinstance(value, str)}
    octets = {name: value for name, value in values.items() if isinstance(value, bytes)}
    hashed = {f"{name}_sha256": sha256(value).hexdigest() for name, value in octets.items()}
    return told | hashed | ({"cert_serial": cert_serial} if cert_serial else {})
