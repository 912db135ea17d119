"""The chain of a ledger's events: each row's hash covers the one before it.

An edit, a gap, an insertion or another order anywhere changes every hash after it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from devicesim.errors import VerificationFailed
from devicesim.line.records import json_text, stamp

GENESIS = "0" * 64
ROWS = "SELECT seq, at, actor, kind, body, prev_hash, hash FROM event ORDER BY seq"


@dataclass(frozen=True, slots=True)
class ChainPlace:
    """Where in the ledger something was written: the row and its hash."""

    seq: int
    head: str


def append(conn: sqlite3.Connection, kind: str, body: Mapping[str, object], at: datetime) -> ChainPlace:
    """Write one event behind the last one, in the caller's transaction."""
    last = conn.execute("SELECT seq, hash FROM event ORDER BY seq DESC LIMIT 1").fetchone() or (0, GENESIS)
    actor = conn.execute("SELECT value FROM meta WHERE name = 'station'").fetchone()[0]
    fields = (last[0] + 1, stamp(at), actor, str(kind), json_text(body), last[1])
    head = row_hash(*fields)
    conn.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)", (*fields, head))
    return ChainPlace(fields[0], head)


def verify(rows: Iterable[tuple[int, str, str, str, str, str, str]]) -> ChainPlace:
    """Recompute the chain from its beginning and return its head, or say which row is wrong."""
    head, expected = GENESIS, 0
    for seq, at, actor, kind, body, prev, stored in rows:
        expected += 1
        if seq != expected or prev != head or stored != row_hash(seq, at, actor, kind, body, prev):
            raise VerificationFailed(
                f"the ledger was altered: event {expected} is not what was written",
                advice="keep the file as it is, and compare it with a backup",
            )
        head = stored
    return ChainPlace(expected, head)


def row_hash(seq: int, at: str, actor: str, kind: str, body: str, prev_hash: str) -> str:
    """Hash one event together with the hash of the one before it."""
    return sha256(json_text([seq, at, actor, kind, body, prev_hash]).encode()).hexdigest()
