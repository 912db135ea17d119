"""What the ledger keeps: its tables, its rows as values, and the one way its file is opened."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from devicesim.errors import Locked, StorageError
from devicesim.line.states import PASSED, Failure, FailureCode, State
from devicesim.mqtt import outbox

SCHEMA_VERSION = "1"
BUSY_SECONDS = 10.0

SCHEMA = (
    """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE batch (
  id TEXT PRIMARY KEY, content_sha256 TEXT NOT NULL, quantity INTEGER NOT NULL, opened_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE unit (
  device_id     TEXT PRIMARY KEY,
  batch         TEXT NOT NULL REFERENCES batch (id),
  position      INTEGER NOT NULL,
  facts         TEXT NOT NULL,
  state         TEXT NOT NULL,
  failure_code  TEXT,
  failure_text  TEXT,
  attempts      INTEGER NOT NULL DEFAULT 0,
  attempt_id    TEXT,
  spki_sha256   TEXT,
  csr           BLOB,
  certificate   BLOB,
  event_id      TEXT UNIQUE,
  birth         TEXT NOT NULL DEFAULT 'none' CHECK (birth IN ('none', 'pending', 'done')),
  birth_event   TEXT,
  UNIQUE (batch, position)
) WITHOUT ROWID;
CREATE INDEX unit_unannounced ON unit (event_id) WHERE state = 'recorded';
CREATE TABLE attempt (
  id TEXT PRIMARY KEY, device_id TEXT NOT NULL REFERENCES unit (device_id), number INTEGER NOT NULL,
  slot INTEGER NOT NULL, started_at TEXT NOT NULL, ended_at TEXT, outcome TEXT, failure_code TEXT,
  timing_ms TEXT NOT NULL DEFAULT '{}', UNIQUE (device_id, number)
) WITHOUT ROWID;
CREATE TABLE guard (
  kind TEXT NOT NULL, value TEXT NOT NULL, device_id TEXT NOT NULL, PRIMARY KEY (kind, value)
) WITHOUT ROWID;
CREATE TABLE event (
  seq INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
  prev_hash TEXT NOT NULL, hash TEXT NOT NULL UNIQUE
);
"""
    + outbox.SCHEMA
)
UNIT_COLUMNS = (
    "device_id, batch, facts, state, failure_code, failure_text, attempts, attempt_id, spki_sha256, csr, certificate,"
    " event_id, birth"
)


@dataclass(frozen=True, slots=True)
class UnitRow:
    """A unit as the ledger has it."""

    device_id: str
    batch: str
    facts: Mapping[str, str]
    state: State
    failure: Failure | None
    attempts: int
    attempt_id: str | None
    spki_sha256: str | None
    csr: bytes | None
    certificate: bytes | None
    event_id: str | None
    birth: str

    @property
    def passed(self) -> bool:
        """Whether the unit may leave the station."""
        return self.state in PASSED


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try at a unit; a run that goes on where a crash left off goes on with the same attempt."""

    id: str
    device_id: str
    number: int
    slot: int
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    failure_code: str | None
    timing_ms: Mapping[str, float]


ATTEMPT_COLUMNS = (
    "a.id, a.device_id, a.number, a.slot, a.started_at, a.ended_at, a.outcome, a.failure_code, a.timing_ms"
)


def unit_row(row: tuple[Any, ...]) -> UnitRow:
    """Read a row of UNIT_COLUMNS."""
    device_id, batch, facts, state, code, text, *rest = row
    failure = Failure(FailureCode(code), text) if code else None
    return UnitRow(device_id, batch, json.loads(facts), State(state), failure, *rest)


def attempt_row(row: tuple[Any, ...]) -> AttemptRow:
    """Read a row of ATTEMPT_COLUMNS."""
    id_, device_id, number, slot, started, ended, outcome, code, timing = row
    begun, over = datetime.fromisoformat(started), datetime.fromisoformat(ended) if ended else None
    return AttemptRow(id_, device_id, number, slot, begun, over, outcome, code, json.loads(timing))


def open_database(path: Path, *, autocommit: bool) -> sqlite3.Connection:
    """Open a ledger's file so that what is committed is on the disk."""
    conn = sqlite3.connect(
        path, isolation_level=None if autocommit else "DEFERRED", check_same_thread=False, timeout=BUSY_SECONDS
    )
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute("PRAGMA foreign_keys=ON")
    return conn


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite reports into the error that stops a line."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"the ledger {path} could not be written or read: {error}") from error


def json_text(value: object) -> str:
    """Write JSON in the one form that is hashed and compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def stamp(at: datetime) -> str:
    """Write a time as the ledger has it: UTC, milliseconds, sortable."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file beside a ledger, or raise Locked at once; it ends with the process, however that ends."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        handle = os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot open {lock_path}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise Locked(f"another run is working on {path}", advice="wait until it has ended") from None
    try:
        yield
    finally:
        os.close(handle)
