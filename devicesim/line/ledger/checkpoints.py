"""Checkpoints: the root over all events so far, and the head of the chain, signed by the station.

A checkpoint kept elsewhere binds everything before it: with it an auditor finds any edit, and a ledger cut short. The
tree is that of Certificate Transparency (`merkle`); a leaf is an event as it is hashed for the chain.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime

from devicesim.errors import VerificationFailed
from devicesim.line.ledger import chain
from devicesim.line.ledger.chain import ChainPlace, EventRow
from devicesim.line.ledger.writing import Writing
from devicesim.line.merkle import Frontier, leaf_hash
from devicesim.line.statements import CHECKPOINT, Seal, Statement, unseal
from devicesim.trust import TrustAnchors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it is stored."""

    seq: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class SignedHead:
    """What a proven checkpoint states: `root` is over the events 1 to `place.seq`."""

    place: ChainPlace
    root: bytes
    at: datetime
    station: dict[str, str]


def write(writing: Writing, seal: Seal, *, behind: int = 1) -> Checkpoint | None:
    """Sign the ledger as it stands, in the caller's transaction, when at least `behind` events are new since the last.

    What is hashed is what came since; the tree before that is kept with the last checkpoint.
    """
    conn = writing.conn
    last = conn.execute("SELECT seq, frontier FROM checkpoint ORDER BY seq DESC LIMIT 1").fetchone() or (0, b"")
    newest = conn.execute("SELECT max(seq) FROM event").fetchone()[0] or 0
    if newest - last[0] < behind:
        return None
    tree, head = Frontier(*last), chain.GENESIS
    for row in conn.execute(chain.SINCE, (last[0],)):
        event = EventRow._make(row)
        tree.push(leaf_hash(event.entry))
        head = event.hash
    made = Checkpoint(tree.size, seal(CHECKPOINT, {"seq": newest, "head": head, "root": tree.root().hex()}, writing.at))
    conn.execute("INSERT INTO checkpoint VALUES (?, ?, ?)", (made.seq, tree.subtrees(), made.envelope))
    return made


def stored(conn: sqlite3.Connection) -> list[Checkpoint]:
    """Return every checkpoint, oldest first."""
    return [Checkpoint(*row) for row in conn.execute("SELECT seq, envelope FROM checkpoint ORDER BY seq")]


def read(envelope: bytes, trust: TrustAnchors) -> SignedHead:
    """Prove a checkpoint's signature and return what it states."""
    statement: Statement = unseal(envelope, CHECKPOINT, trust)
    fields = statement.fields
    try:
        place, root = ChainPlace(int(fields["seq"]), str(fields["head"])), bytes.fromhex(fields["root"])
    except (KeyError, TypeError, ValueError) as fault:
        raise VerificationFailed("the checkpoint is malformed") from fault
    return SignedHead(place, root, statement.at, statement.place)
