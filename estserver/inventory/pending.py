"""Requests that wait for an operator: queued where they would be reserved, decided on, and issued once.

Rules:
- A request has one entry, found by its fingerprint, so that a repeat signed anew on another connection is found too,
  and nobody else's request is (RFC 7030 §4.2.3, §3.5).
- A use of a credential is paid when the request is queued, and not again; as long as the entry is there, the credential
  authenticates its repeats (`registry.authenticable`), spent or expired.
- A decision may be changed until a certificate is recorded, which ends the entry: what is approved is issued once.
- An entry ends with its time, whatever was decided; a decision has a time of its own. Only so many may wait.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, literal_column, select, update

from estserver.errors import AwaitingApproval, NotAuthorized, NotFound, QueueFull, StateError
from estserver.inventory import audit, outbox, uses
from estserver.inventory.prepared import Prepared
from estserver.inventory.room import Room
from estserver.inventory.schema import PendingState, pending
from estserver.inventory.transaction import Transaction
from estserver.limits import Queue
from estserver.model import Der, DeviceId, Event, Grant, SpkiHash
from estserver.records import PendingRecord

_same = pending.c.fingerprint == bindparam("same")
_in_time = pending.c.expires_at > bindparam("now")
_FOUND = Prepared(select(pending.c.state, pending.c.reason).where(_same, _in_time))
_PRUNE = Prepared(delete(pending).where(pending.c.expires_at <= bindparam("now")))
_SIZE = Prepared(
    select(
        select(func.count()).select_from(pending).scalar_subquery().label("all"),
        select(func.count())
        .select_from(pending)
        .where(pending.c.device == bindparam("whose"))
        .scalar_subquery()
        .label("of_device"),
    )
)
_ADD = Prepared(
    insert(pending),
    (
        *("fingerprint", "state", "requester", "credential", "device", "operation", "label", "profile"),
        *("spki_sha256", "key_name", "subject", "san", "predecessor", "csr_der", "peer_address"),
        *("asked_at", "expires_at"),
    ),
)
_TAKE = Prepared(delete(pending).where(_same, pending.c.state == literal_column(f"'{PendingState.APPROVED}'")))


# --- the request ----------------------------------------------------------------------------------------------------


def state(tx: Transaction, same: str) -> PendingState | None:
    """Find out what was said to a request; None when it is not queued.

    Raises:
        NotAuthorized: it was denied, with the operator's reason.
    """
    row = _FOUND.one(tx.connection, same=same, now=tx.now)
    if row is None:
        return None
    if row.state == PendingState.DENIED:
        said = f": {row.reason}" if row.reason else ""
        raise NotAuthorized(f"an operator denied this request{said}", code="denied")
    return PendingState(row.state)


def add(tx: Transaction, grant: Grant, same: str, queue: Queue, events: Sequence[Event]) -> None:
    """Queue a request.

    Raises:
        QueueFull: too many wait already, altogether or for this device.
    """
    _PRUNE.run(tx.connection, now=tx.now)
    size = _SIZE.one(tx.connection, whose=grant.device)
    if size.all >= queue.size_max or size.of_device >= queue.device_max:
        whose = "" if size.all >= queue.size_max else f" for {grant.device}"
        raise QueueFull(f"too many requests{whose} wait for approval", retry_after=queue.retry_after)
    _ADD.run(
        tx.connection,
        fingerprint=same,
        state=PendingState.WAITING,
        requester=grant.requester,
        credential=grant.credential,
        device=grant.device,
        operation=grant.operation,
        label=grant.label,
        profile=grant.profile,
        spki_sha256=grant.csr.spki_sha256,
        key_name=grant.csr.key.name,
        subject=grant.subject,
        san=grant.san,
        predecessor=grant.predecessor,
        csr_der=grant.csr.der,
        peer_address=grant.peer_address,
        asked_at=tx.now,
        expires_at=tx.now + queue.lifetime,
    )
    outbox.add(tx, events)


def waits(queue: Queue) -> AwaitingApproval:
    """Make the answer to a request that waits."""
    return AwaitingApproval("the request waits for an operator to approve it", retry_after=queue.retry_after)


def take(tx: Transaction, same: str, spender: str | None) -> None:
    """End an approved entry, since what it asked for is being recorded.

    Raises:
        NotAuthorized: it is not approved any more.
    """
    if _TAKE.run(tx.connection, same=same) != 1:
        raise NotAuthorized("the approval of this request was withdrawn meanwhile", code="denied")
    if spender is not None:
        uses.renew(tx, spender)


# --- the operator ---------------------------------------------------------------------------------------------------


class PendingRequests(Room):
    """What an operator sees and decides; every method is one transaction."""

    def page(
        self, now: datetime, *, state: str | None = None, device: str | None = None, after: int = 0, limit: int = 100
    ) -> list[PendingRecord]:
        """Return the next entries, oldest first."""
        query = select(pending).where(pending.c.expires_at > now, pending.c.id > after)
        if state is not None:
            query = query.where(pending.c.state == state)
        if device is not None:
            query = query.where(pending.c.device == device)
        with self._read() as connection:
            return [_record(row) for row in connection.execute(query.order_by(pending.c.id).limit(limit))]

    def waiting(self, now: datetime) -> int:
        """Return how many wait for an operator; the table is bounded, so they are counted."""
        query = select(func.count()).where(pending.c.state == PendingState.WAITING, pending.c.expires_at > now)
        with self._read() as connection:
            return int(connection.execute(query).scalar_one())

    def find(self, number: int, now: datetime) -> PendingRecord:
        """Return one entry.

        Raises:
            NotFound: there is none, or none any more.
        """
        with self._read() as connection:
            return _find(connection, number, now)

    def approve(self, numbers: Sequence[int], actor: str, now: datetime, lifetime: timedelta) -> list[PendingRecord]:
        """Let these be issued when they are asked for again within `lifetime`: all of them, or none.

        Raises:
            NotFound: one is not there any more.
            StateError: one is approved already.
        """
        return self._decide(numbers, PendingState.APPROVED, None, actor, now, lifetime)

    def deny(
        self, numbers: Sequence[int], reason: str | None, actor: str, now: datetime, lifetime: timedelta
    ) -> list[PendingRecord]:
        """Refuse these, for a reason that their requesters are told, for `lifetime`: all of them, or none.

        Raises:
            NotFound: one is not there any more.
            StateError: one is denied already.
        """
        return self._decide(numbers, PendingState.DENIED, reason, actor, now, lifetime)

    def _decide(
        self,
        numbers: Sequence[int],
        decision: PendingState,
        reason: str | None,
        actor: str,
        now: datetime,
        lifetime: timedelta,
    ) -> list[PendingRecord]:
        values = {
            "state": decision,
            "reason": reason,
            "decided_at": now,
            "decided_by": actor,
            "expires_at": now + lifetime,
        }
        with self._write(now) as tx:
            for number in dict.fromkeys(numbers):
                before = _find(tx.connection, number, now)
                if before.state == decision:
                    raise StateError(f"the request {number} is {decision} already, by {before.decided_by}")
                tx.connection.execute(update(pending).where(pending.c.id == number).values(values))
                _tell(tx, actor, _VERBS[decision], before, reason)
            return [_find(tx.connection, number, now) for number in dict.fromkeys(numbers)]


_VERBS = {PendingState.APPROVED: "approve", PendingState.DENIED: "deny"}


def _tell(tx: Transaction, actor: str, action: str, entry: PendingRecord, reason: str | None) -> None:
    """Append the audit row of a decision: who decided what, and on whose request."""
    detail = {
        "pending": entry.id,
        "requester": entry.requester,
        "device": entry.device,
        "operation": entry.operation,
        "label": entry.label,
        "profile": entry.profile,
        "spki_sha256": entry.spki_sha256,
        "csr_sha256": hashlib.sha256(entry.csr).hexdigest(),
        "reason": reason,
    }
    audit.append(tx, audit.Fact(actor, action, "ok", detail))


def _find(connection: Connection, number: int, now: datetime) -> PendingRecord:
    row = connection.execute(select(pending).where(pending.c.id == number, pending.c.expires_at > now)).one_or_none()
    if row is None:
        raise NotFound(
            f"there is no pending request {number}",
            advice="it may have been issued (estserver inventory list), or its time was over",
        )
    return _record(row)


def _record(row: Any) -> PendingRecord:  # noqa: ANN401 - a row of SQLAlchemy's
    return PendingRecord(
        id=row.id,
        state=row.state,
        requester=row.requester,
        device=DeviceId(row.device),
        operation=row.operation,
        label=row.label,
        profile=row.profile,
        spki_sha256=SpkiHash(row.spki_sha256),
        key_name=row.key_name,
        subject=row.subject,
        san=row.san,
        predecessor=row.predecessor,
        csr=Der(row.csr_der),
        peer_address=row.peer_address,
        asked_at=row.asked_at,
        expires_at=row.expires_at,
        decided_at=row.decided_at,
        decided_by=row.decided_by,
        reason=row.reason,
    )
