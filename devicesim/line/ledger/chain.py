"""The chain of a ledger's events: each row's hash covers the one before it.

An edit, a gap, an insertion or another order anywhere changes every hash after it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

from devicesim.errors import VerificationFailed
from devicesim.line.crew import Actor
from devicesim.line.ledger.disk import json_text, stamp

GENESIS = "0" * 64
COLUMNS = "seq, at, actor, kind, body, prev_hash, hash"
ROWS = f"SELECT {COLUMNS} FROM event ORDER BY seq"  # noqa: S608 - a constant
SINCE = f"SELECT {COLUMNS} FROM event WHERE seq > ? ORDER BY seq"  # noqa: S608 - a constant
OF_KIND = f"SELECT {COLUMNS} FROM event WHERE kind = ? ORDER BY seq"  # noqa: S608 - a constant
OF_DEVICE = f"SELECT {COLUMNS} FROM event WHERE json_extract(body, '$.device_id') = ? ORDER BY seq"  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class ChainPlace:
    """Where in the ledger something was written: the row and its hash."""

    seq: int
    head: str


class EventRow(NamedTuple):
    """One row of the chain, as it is stored."""

    seq: int
    at: str
    actor: str
    kind: str
    body: str
    prev_hash: str
    hash: str

    @property
    def entry(self) -> bytes:
        """The octets that are hashed, and the leaf of the tree."""
        return entry(self.seq, self.at, self.actor, self.kind, self.body, self.prev_hash)

    @property
    def by(self) -> Actor:
        """Who did it."""
        return Actor.read(self.actor)

    @property
    def when(self) -> datetime:
        """When it was written."""
        return datetime.fromisoformat(self.at)

    @property
    def facts(self) -> dict[str, Any]:
        """What it tells."""
        return dict(json.loads(self.body))


def append(conn: sqlite3.Connection, at: datetime, by: Actor, kind: str, body: Mapping[str, object]) -> ChainPlace:
    """Write one event behind the last one, in the caller's transaction."""
    last = conn.execute("SELECT seq, hash FROM event ORDER BY seq DESC LIMIT 1").fetchone() or (0, GENESIS)
    fields = (last[0] + 1, stamp(at), by.text(), str(kind), json_text(body), last[1])
    head = sha256(entry(*fields)).hexdigest()
    conn.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)", (*fields, head))
    return ChainPlace(fields[0], head)


def checked(rows: Iterable[tuple[int, str, str, str, str, str, str]]) -> Iterator[EventRow]:
    """Give each row once it is proven to follow the one before it, from the beginning; or say which is wrong."""
    head = GENESIS
    for expected, row in enumerate(map(EventRow._make, rows), start=1):
        if row.seq != expected or row.prev_hash != head or row.hash != sha256(row.entry).hexdigest():
            raise VerificationFailed(
                f"the ledger was altered: event {expected} is not what was written",
                advice="keep the file as it is, and compare it with a backup",
            )
        head = row.hash
        yield row


def entry(seq: int, at: str, actor: str, kind: str, body: str, prev_hash: str) -> bytes:
    """Return the octets of one event that its hash is over."""
    return json_text([seq, at, actor, kind, body, prev_hash]).encode()
