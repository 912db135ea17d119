"""How a ledger's file is opened, locked and written: durable, or an error that stops the line."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from devicesim.errors import Locked, StorageError

BUSY_SECONDS = 10.0


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


def json_text(value: object) -> str:
    """Write JSON in the one form that is hashed and compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def stamp(at: datetime) -> str:
    """Write a time as the ledger has it: UTC, milliseconds, sortable."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")
