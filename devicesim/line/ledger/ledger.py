"""The ledger as the line uses it: what it can be asked, and what can be written, each in one transaction.

Rules:
- Every change of a unit, the event row that tells of it and the announcement it causes are one transaction, durable
  (WAL, synchronous=FULL) before the call returns.
- A device id, serial, MAC, secure-element id, key, certificate or label belongs to one unit for ever, across batches
  (`guards`), and across lines as far as their sets are known.
- A checkpoint is signed within the transaction that makes it due: it costs no sync of its own.
- Reading needs no lock; a run holds the lock file beside the ledger, so that two runs exclude each other.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self, Unpack

from devicesim.errors import ConfigInvalid, Locked
from devicesim.line.batch import Batch
from devicesim.line.crew import Actor, Duty
from devicesim.line.known import KnownSets
from devicesim.line.ledger import chain, checkpoints, edges, intake, labels, rework, rows, schema
from devicesim.line.ledger.chain import ChainPlace, EventRow
from devicesim.line.ledger.checkpoints import Checkpoint
from devicesim.line.ledger.disk import exclusive, open_database, storage_errors
from devicesim.line.ledger.edges import BirthFacts, Learned
from devicesim.line.ledger.rework import Why
from devicesim.line.ledger.rows import AttemptRow, RevocationRow, SupersededRow, UnitRow
from devicesim.line.ledger.writing import Announce, Writing, read_unit
from devicesim.line.settings import OldCertificate
from devicesim.line.statements import Seal
from devicesim.line.states import Failure, State, Way
from devicesim.mqtt import outbox

DEFAULT_WAY = Way.through()
EVERYBODY = Duty()
NO_OTHERS = KnownSets()


class _LetGo(Exception):
    """A transaction was only tried."""


class Ledger:
    """One station's records. Safe for several threads; one process at a time may run units on it (`exclusive`).

    Args:
        path: the SQLite file, made by `create`; one of an older schema is brought up to date.
        clock: for the times in the records.
        way: the states a unit walks at this station.
        checkpoint_every: how many events there are at most between two checkpoints.

    Attributes:
        duty: who is at the station; set it when somebody else takes over.
        seal: signs checkpoints as the station; None, and there are none.
        others: what other lines have used up.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], datetime], way: Way = DEFAULT_WAY, checkpoint_every: int = 500
    ) -> None:
        self.path, self.way = path, way
        self.duty: Duty = EVERYBODY
        self.seal: Seal | None = None
        self.others: KnownSets = NO_OTHERS
        self._clock, self._checkpoint_every = clock, checkpoint_every
        self._mutex = threading.RLock()
        if not path.is_file():
            raise ConfigInvalid(f"there is no ledger at {path}", advice="make one with 'devicesim line init'")
        with storage_errors(path):
            self._conn = open_database(path, autocommit=True)
        try:
            self._bring_up_to_date()
        except BaseException:
            self._conn.close()
            raise

    @classmethod
    def create(cls, path: Path, *, clock: Callable[[], datetime], place: Mapping[str, str]) -> Ledger:
        """Make an empty ledger that belongs to one station; an existing file is left alone."""
        schema.create(path, place)
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

    # --- what is in it ----------------------------------------------------------------------------------------------

    def unit(self, device_id: str) -> UnitRow:
        """Return one unit."""
        with self._mutex, storage_errors(self.path):
            return read_unit(self._conn, device_id)

    def units(self, batch_id: str) -> list[UnitRow]:
        """Return a batch's units in the order of the manifest."""
        return [
            rows.unit_row(row) for row in self._read(f"{rows.UNIT} WHERE u.batch = ? ORDER BY u.position", batch_id)
        ]

    def attempts(self, batch_id: str) -> list[AttemptRow]:
        """Return every attempt at a batch's units, oldest first for each unit."""
        sql = f"{rows.ATTEMPT} JOIN unit u USING (device_id) WHERE u.batch = ? ORDER BY u.position, a.number"
        return [rows.attempt_row(row) for row in self._read(sql, batch_id)]

    def attempts_at(self, device_id: str) -> list[AttemptRow]:
        """Return every attempt at one unit, oldest first."""
        sql = f"{rows.ATTEMPT} WHERE a.device_id = ? ORDER BY a.number"
        return [rows.attempt_row(row) for row in self._read(sql, device_id)]

    def superseded(self, device_id: str) -> list[SupersededRow]:
        """Return the identities a unit had that ended, oldest first."""
        sql = f"{rows.SUPERSEDED} WHERE s.device_id = ? ORDER BY s.generation"
        return [rows.superseded_row(row) for row in self._read(sql, device_id)]

    def superseded_of(self, batch_id: str) -> list[SupersededRow]:
        """Return the identities that ended of a batch's units, in the order of the manifest."""
        sql = f"{rows.SUPERSEDED} JOIN unit u USING (device_id) WHERE u.batch = ? ORDER BY u.position, s.generation"
        return [rows.superseded_row(row) for row in self._read(sql, batch_id)]

    def revocations_owed(self) -> list[RevocationRow]:
        """Return the certificates that are to be revoked and were not yet confirmed to be, oldest first."""
        sql = f"{rows.REVOCATION} WHERE confirmed_at IS NULL ORDER BY ordered_at, device_id, generation"
        return [rows.revocation_row(row) for row in self._read(sql)]

    def timing(self, unit: UnitRow) -> dict[str, float]:
        """Return how long each step of the attempt under way took, in milliseconds."""
        found = self._read("SELECT timing_ms FROM attempt WHERE id = ?", unit.attempt_id)
        return dict(json.loads(found[0][0])) if found else {}

    def batches(self) -> list[tuple[str, int]]:
        """Return id and quantity of every batch, oldest first."""
        return [(row[0], row[1]) for row in self._read("SELECT id, quantity FROM batch ORDER BY opened_at, id")]

    def guards(self) -> list[tuple[str, str]]:
        """Return the kind and value of everything this line has used up."""
        return [(row[0], row[1]) for row in self._read("SELECT kind, value FROM guard")]

    def place(self) -> dict[str, str]:
        """Return site, line and station of this ledger."""
        return dict(self._place)

    def owed(self) -> int:
        """Count the announcements no broker has confirmed."""
        with self._mutex, storage_errors(self.path):
            return outbox.pending_count(self._conn)

    # --- one unit's way ---------------------------------------------------------------------------------------------

    def open_batch(self, batch: Batch) -> bool:
        """Take a batch in, whole or not at all; False when it is already there, unchanged.

        Raises Conflict when the same batch id stands for other units, or a unit collides with another batch or another
        line; the message names every collision.
        """
        with self._transaction() as writing:
            if intake.known(writing.conn, batch):
                return False
            intake.take_in(writing, batch)
        return True

    def rehearse_batch(self, batch: Batch) -> bool:
        """Do as `open_batch` does, by the very same rules, and let go of it again."""
        taken = True
        with suppress(_LetGo), self._transaction() as writing:
            if intake.known(writing.conn, batch):
                taken = False
            else:
                intake.take_in(writing, batch)
            raise _LetGo
        return taken

    def begin_attempt(self, device_id: str, *, attempt_id: str, slot: int) -> UnitRow:
        """Begin to work on a unit: a new attempt, or the one that a crash left open."""
        with self._transaction(slot=slot) as writing:
            edges.begin(writing, device_id, attempt_id)
        return self.unit(device_id)

    def advance(self, device_id: str, to: State, *, took_ms: float = 0.0, **learned: Unpack[Learned]) -> UnitRow:
        """Move a unit along one edge, keeping what was learned on it; walked already, it changes nothing."""
        with self._transaction() as writing:
            edges.advance(writing, self.way, device_id, to, took_ms, learned)
        return self.unit(device_id)

    def printed(self, device_id: str, label: str, why: Why | None = None) -> UnitRow:
        """Record that a unit's label was printed, which claims what it says; `why`: that it was printed again."""
        with self._transaction() as writing:
            labels.printed(writing, device_id, label, why)
        return self.unit(device_id)

    def record(self, device_id: str, *, took_ms: float, announce: Announce | None, birth: bool) -> UnitRow:
        """PASS: write the unit down as recorded and owe its announcement, in one transaction."""
        with self._transaction() as writing:
            edges.record(writing, self.way, device_id, took_ms, announce, birth=birth)
        return self.unit(device_id)

    def fail(self, device_id: str, failure: Failure, *, step: State, announce: Announce | None) -> UnitRow:
        """End a unit's attempt that failed on its way to `step`; the next attempt goes on from the state it has."""
        with self._transaction() as writing:
            edges.fail(writing, device_id, failure, step, announce)
        return self.unit(device_id)

    def birth_event(self, device_id: str, event_id: str, source: str) -> BirthFacts:
        """Return id, time and number of a device's birth: the same ones, however often it is tried."""
        with self._transaction() as writing:
            return edges.birth_event(writing, device_id, event_id, source)

    def mark_birth(self, device_id: str) -> None:
        """Record that the device itself has announced its birth."""
        with self._transaction() as writing:
            edges.mark_birth(writing, device_id)

    def settle_announced(self) -> list[str]:
        """Move every recorded unit whose announcement the broker has confirmed to `announced`."""
        with self._transaction() as writing:
            return edges.settle_announced(writing)

    # --- rework -----------------------------------------------------------------------------------------------------

    def retry(self, device_id: str, why: Why) -> UnitRow:
        """Let a unit that failed wait for the next run."""
        with self._rework() as (writing, idle):
            rework.retry(writing, device_id, why, idle=idle)
        return self.unit(device_id)

    def reissue(self, device_id: str, why: Why, *, old: OldCertificate) -> UnitRow:
        """End a unit's identity and have the next run give it a new one."""
        with self._rework() as (writing, idle):
            rework.reissue(writing, device_id, why, old, idle=idle)
        return self.unit(device_id)

    def scrap(self, device_id: str, why: Why, *, old: OldCertificate, announce: Announce | None) -> UnitRow:
        """Take a unit off the line for ever, and owe the announcement of it."""
        with self._rework() as (writing, idle):
            rework.scrap(writing, device_id, why, old, announce, idle=idle)
        return self.unit(device_id)

    def confirm_revoked(self, device_id: str) -> int:
        """Record that a unit's old certificates are revoked; return how many were owed."""
        with self._transaction() as writing:
            return rework.confirm_revoked(writing, device_id)

    # --- the chain --------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[EventRow]:
        """Give every event from the first, each proven to follow the one before it, or say which row is wrong."""
        conn = open_database(self.path, autocommit=True)
        try:
            with storage_errors(self.path):
                yield from chain.checked(conn.execute(chain.ROWS))
        finally:
            conn.close()

    def story(self, device_id: str) -> list[EventRow]:
        """Return the events that tell of one unit, oldest first."""
        return [EventRow._make(row) for row in self._read(chain.OF_DEVICE, device_id)]

    def verify_chain(self) -> ChainPlace:
        """Recompute the chain from its beginning and return its head, or say which row is wrong."""
        last = ChainPlace(0, chain.GENESIS)
        for event in self.events():
            last = ChainPlace(event.seq, event.hash)
        return last

    def checkpoint(self) -> Checkpoint | None:
        """Sign the ledger as it stands, when there is something new to sign and a key to sign it with."""
        if self.seal is None:
            return None
        with self._transaction() as writing:
            return checkpoints.write(writing, self.seal)

    def checkpoints(self) -> list[Checkpoint]:
        """Return every checkpoint, oldest first."""
        with self._mutex, storage_errors(self.path):
            return checkpoints.stored(self._conn)

    # --- how it is done ---------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, *, slot: int | None = None) -> Iterator[Writing]:
        with self._mutex, storage_errors(self.path):
            self._conn.execute("BEGIN IMMEDIATE")
            try:
                writing = self._writing(slot)
                yield writing
                if self.seal is not None:
                    checkpoints.write(writing, self.seal, behind=self._checkpoint_every)
                self._conn.execute("COMMIT")
            except BaseException:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
                raise

    def _writing(self, slot: int | None) -> Writing:
        at, duty = self._clock(), self.duty
        by = Actor(**self._place, shift=duty.shifts.at(at), operator=duty.operator, second=duty.second, slot=slot)
        return Writing(self._conn, at, by, self.others)

    @contextmanager
    def _rework(self) -> Iterator[tuple[Writing, bool]]:
        """Open a transaction, and tell whether no run is on: then an attempt that is open is of a crash."""
        with ExitStack() as held:
            idle = True
            try:
                held.enter_context(self.exclusive())
            except Locked:
                idle = False
            yield held.enter_context(self._transaction()), idle

    def _read(self, sql: str, *values: object) -> list[Any]:
        with self._mutex, storage_errors(self.path):
            return self._conn.execute(sql, values).fetchall()

    def _bring_up_to_date(self) -> None:
        with storage_errors(self.path):
            try:
                found = schema.bring_up_to_date(self._conn, self.path)
                self._place = dict(self._read("SELECT name, value FROM meta WHERE name <> 'schema'"))
                if found < schema.VERSION and self._conn.in_transaction:
                    self._writing(None).tell("upgraded", {"from": found, "to": schema.VERSION})
                    self._conn.execute("COMMIT")
            except BaseException:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
                raise
