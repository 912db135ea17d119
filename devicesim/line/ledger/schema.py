"""The tables of a ledger, as the scripts that make them: one for each version of the schema.

A new ledger runs all of them; an older one runs those it lacks, when it is opened, in one transaction. The rows of its
chain stay as they were written, so that every hash that was ever announced still holds.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from devicesim.errors import ConfigInvalid, Conflict, StorageError
from devicesim.line.ledger.disk import exclusive, open_database, storage_errors
from devicesim.mqtt import outbox

_FIRST = (
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

_WHO_REWORK_LEASES_CHECKPOINTS = """
ALTER TABLE attempt ADD COLUMN site TEXT NOT NULL DEFAULT '';
ALTER TABLE attempt ADD COLUMN line TEXT NOT NULL DEFAULT '';
ALTER TABLE attempt ADD COLUMN station TEXT NOT NULL DEFAULT '';
ALTER TABLE attempt ADD COLUMN shift TEXT NOT NULL DEFAULT '';
ALTER TABLE attempt ADD COLUMN operator TEXT NOT NULL DEFAULT '';
UPDATE attempt SET
  site = (SELECT value FROM meta WHERE name = 'site'),
  line = (SELECT value FROM meta WHERE name = 'line'),
  station = (SELECT value FROM meta WHERE name = 'station');
ALTER TABLE unit ADD COLUMN generation INTEGER NOT NULL DEFAULT 1;
ALTER TABLE unit ADD COLUMN cert_serial TEXT;
ALTER TABLE unit ADD COLUMN label TEXT;
ALTER TABLE unit ADD COLUMN recorded_seq INTEGER;
UPDATE unit SET cert_serial = g.value FROM guard g WHERE g.kind = 'cert_serial' AND g.device_id = unit.device_id;
UPDATE unit SET recorded_seq = e.seq FROM event e
  WHERE e.kind = 'recorded' AND unit.device_id = json_extract(e.body, '$.device_id');
CREATE INDEX event_of_device ON event (json_extract(body, '$.device_id'))
  WHERE json_extract(body, '$.device_id') IS NOT NULL;
CREATE TABLE superseded (
  device_id TEXT NOT NULL REFERENCES unit (device_id), generation INTEGER NOT NULL,
  spki_sha256 TEXT NOT NULL, csr BLOB, certificate BLOB, cert_serial TEXT, label TEXT, event_id TEXT UNIQUE,
  recorded_seq INTEGER, superseded_at TEXT NOT NULL, reason TEXT NOT NULL,
  PRIMARY KEY (device_id, generation)
) WITHOUT ROWID;
CREATE TABLE revocation (
  device_id TEXT NOT NULL REFERENCES unit (device_id), generation INTEGER NOT NULL,
  spki_sha256 TEXT NOT NULL, cert_serial TEXT, reason TEXT NOT NULL, ordered_at TEXT NOT NULL, confirmed_at TEXT,
  PRIMARY KEY (device_id, generation)
) WITHOUT ROWID;
CREATE INDEX revocation_owed ON revocation (device_id) WHERE confirmed_at IS NULL;
CREATE TABLE lease (
  batch TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, taken_at TEXT NOT NULL,
  PRIMARY KEY (batch, first), CHECK (1 <= first AND first <= last)
) WITHOUT ROWID;
CREATE TABLE checkpoint (seq INTEGER PRIMARY KEY, frontier BLOB NOT NULL, envelope BLOB NOT NULL);
"""

_PUSHES = """
CREATE TABLE push (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, device_id TEXT NOT NULL REFERENCES unit (device_id),
  body TEXT NOT NULL, created_at TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0, reason TEXT, done_at TEXT
);
CREATE INDEX push_owed ON push (seq) WHERE done_at IS NULL;
"""

SCRIPTS: tuple[str, ...] = (_FIRST, _WHO_REWORK_LEASES_CHECKPOINTS, _PUSHES)
"""What leads from one version of the schema to the next; version n is what the first n scripts make."""
VERSION = len(SCRIPTS)


def create(path: Path, place: Mapping[str, str]) -> None:
    """Make an empty ledger that belongs to one station, readable by its owner alone; never over an existing file."""
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
        conn.executescript("BEGIN IMMEDIATE;" + "".join(SCRIPTS))
        meta = {"schema": str(VERSION), **place}
        conn.executemany("INSERT INTO meta (name, value) VALUES (?, ?)", meta.items())
        conn.execute("COMMIT")
        conn.close()


def bring_up_to_date(conn: sqlite3.Connection, path: Path) -> int:
    """Run the scripts an older ledger lacks, leaving the transaction open; return the version it had.

    Raises ConfigInvalid for what is no ledger or is newer than this program, Locked while a run is working on it.
    """
    found = version_of(conn, path)
    if found == VERSION:
        return found
    with exclusive(path):
        found = version_of(conn, path)
        if found < VERSION:
            conn.executescript("BEGIN IMMEDIATE;" + "".join(SCRIPTS[found:]))
            conn.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (str(VERSION),))
    return found


def version_of(conn: sqlite3.Connection, path: Path) -> int:
    """Return the version of a ledger's schema, when this program knows it."""
    try:
        row = conn.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    except sqlite3.DatabaseError as error:
        raise ConfigInvalid(f"{path} is not a ledger: {error}", advice="check [ledger] path") from error
    if row is None or row[0] not in map(str, range(1, VERSION + 1)):
        raise ConfigInvalid(f"{path} was written by another version", advice="use that version of devicesim")
    return int(row[0])
