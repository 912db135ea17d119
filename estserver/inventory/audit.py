"""The audit chain: every row's hash covers the row and the hash before it.

Rules:
- A row is written in the transaction of what it tells, never after it.
- hash = SHA-256(previous hash, 32 octets ‖ canonical JSON of server_id, seq, at, actor, action, outcome, detail), where
  canonical JSON has sorted keys, no white space and only ASCII, and `at` is `YYYY-MM-DDThh:mm:ssZ`.
- The head is kept apart, so that rows missing at the end are seen too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, bindparam, insert, select, update

from estserver.events import time_text
from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import audit, audit_head, canonical_json
from estserver.inventory.transaction import Transaction
from estserver.records import AuditRow

GENESIS = "0" * 64
"""What stands before the first row."""

_TEXT_MAX = 500
_BATCH = 500

_HEAD = select(audit_head.c.seq, audit_head.c.hash).where(audit_head.c.server_id == bindparam("server"))
_LOCKED_HEAD = Prepared(_HEAD.with_for_update())
_ADVANCE = Prepared(
    update(audit_head)
    .where(audit_head.c.server_id == bindparam("server"))
    .values(seq=bindparam("last"), hash=bindparam("link"))
)
_BEGIN = Prepared(insert(audit_head), ("server_id", "seq", "hash"))
_INSERT = Prepared(
    insert(audit), ("server_id", "seq", "at", "actor", "action", "outcome", "detail", "previous_hash", "hash")
)


@dataclass(frozen=True, slots=True)
class Fact:
    """What happened, before it has a place in the chain.

    Attributes:
        actor: who made it happen: `kind:name` of a requester, or `operator:name`.
        action: `issue`, `repeat`, `refuse`, `revoke`, `void`, `credential-add`, …
        outcome: `ok`, or the stable code of the refusal.
    """

    actor: str
    action: str
    outcome: str
    detail: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What walking the whole chain found.

    Attributes:
        first_bad: sequence number of the first row that does not fit; None when all do.
        head: hash of the last row; note it down elsewhere, and nobody can rewrite what came before it unseen.
    """

    ok: bool
    rows: int
    head: str
    first_bad: int | None = None
    reason: str = ""


def append(tx: Transaction, fact: Fact) -> None:
    """Add one row at the end of this server's chain."""
    seq, previous = tx.totals.head or _head(tx)
    row = AuditRow(
        seq=seq + 1,
        at=tx.now,
        actor=fact.actor[:_TEXT_MAX],
        action=fact.action,
        outcome=fact.outcome,
        detail={name: _bounded(value) for name, value in fact.detail.items()},
        previous_hash=previous,
        hash="",
    )
    link = _link(row, tx.server_id)
    values = {**signed_values(row, tx.server_id), "at": row.at, "previous_hash": previous, "hash": link}
    _INSERT.run(tx.connection, **values)
    tx.totals = replace(tx.totals, head=(row.seq, link))


def settle(tx: Transaction) -> None:
    """Write down where the chain ends now."""
    if tx.totals.head is None:
        return
    seq, link = tx.totals.head
    if not _ADVANCE.run(tx.connection, server=tx.server_id, last=seq, link=link):
        _BEGIN.run(tx.connection, server_id=tx.server_id, seq=seq, hash=link)


def _head(tx: Transaction) -> tuple[int, str]:
    row = _LOCKED_HEAD.one(tx.connection, server=tx.server_id)
    return (0, GENESIS) if row is None else (row.seq, row.hash)


def rows(connection: Connection, server_id: str, *, after: int = 0) -> Iterator[AuditRow]:
    """Read the chain in order, a batch at a time."""
    query = select(audit).where(audit.c.server_id == server_id, audit.c.seq > after).order_by(audit.c.seq)
    for row in connection.execution_options(yield_per=_BATCH).execute(query):
        yield AuditRow(row.seq, row.at, row.actor, row.action, row.outcome, row.detail, row.previous_hash, row.hash)


def written_at(connection: Connection, server_id: str) -> datetime | None:
    """Return when the last row was written."""
    query = select(audit.c.at).where(audit.c.server_id == server_id).order_by(audit.c.seq.desc()).limit(1)
    return connection.execute(query).scalar()


def verify(connection: Connection, server_id: str) -> AuditReport:
    """Walk the chain from its first row to the head that was noted; needs one snapshot."""
    seq, previous = 0, GENESIS
    for row in rows(connection, server_id):
        seq += 1
        reason = _break(row, seq, previous, server_id)
        if reason:
            return AuditReport(ok=False, rows=seq, head=previous, first_bad=seq, reason=reason)
        previous = row.hash
    head = connection.execute(_HEAD, {"server": server_id}).one_or_none()
    if (seq, previous) != ((0, GENESIS) if head is None else (head.seq, head.hash)):
        return AuditReport(ok=False, rows=seq, head=previous, first_bad=seq + 1, reason="rows are missing at the end")
    return AuditReport(ok=True, rows=seq, head=previous)


def line(row: AuditRow, server_id: str) -> str:
    """Write a row as one line of JSON, with the hashes that tie it to its neighbours."""
    return canonical_json({**signed_values(row, server_id), "previous_hash": row.previous_hash, "hash": row.hash})


def signed_values(row: AuditRow, server_id: str) -> dict[str, object]:
    """Return what a row's hash covers besides the hash before it."""
    return {
        "server_id": server_id,
        "seq": row.seq,
        "at": time_text(row.at),
        "actor": row.actor,
        "action": row.action,
        "outcome": row.outcome,
        "detail": row.detail,
    }


def _break(row: AuditRow, seq: int, previous: str, server_id: str) -> str:
    if row.seq != seq:
        return f"row {seq} is missing"
    if row.previous_hash != previous:
        return f"row {seq} does not follow the row before it"
    return "" if _link(row, server_id) == row.hash else f"row {seq} was changed after it was written"


def _link(row: AuditRow, server_id: str) -> str:
    body = canonical_json(signed_values(row, server_id))
    return hashlib.sha256(bytes.fromhex(row.previous_hash) + body.encode()).hexdigest()


def _bounded(value: object) -> object:
    """Cut what a stranger could make long."""
    if isinstance(value, str):
        return value[:_TEXT_MAX]
    if isinstance(value, (list, tuple)):
        return [_bounded(item) for item in value[:50]]
    return value
