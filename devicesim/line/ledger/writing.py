"""One transaction of a ledger: what is changed, the event that tells of it, and the announcement it causes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from devicesim.errors import Backlog, UsageProblem
from devicesim.line.crew import Actor
from devicesim.line.ledger import chain
from devicesim.line.ledger.chain import ChainPlace
from devicesim.line.ledger.rows import UNIT, UnitRow, unit_row
from devicesim.mqtt import outbox


@dataclass(frozen=True, slots=True)
class Announcement:
    """A signed event, ready for the outbox."""

    id: str
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Told:
    """What an announcement says of the ledger.

    Attributes:
        sequence: the number of the event within its source.
        place: the row of the chain that is being announced.
        by: who did it.
    """

    sequence: int
    place: ChainPlace
    by: Actor


@dataclass(frozen=True, slots=True)
class Announce:
    """How something is announced while it is written: the CloudEvents source that is counted, and what makes it."""

    source: str
    make: Callable[[Told], Announcement]


class Guarding(Protocol):
    """What other lines have used up."""

    def holder(self, kind: str, value: str) -> str | None:
        """Return the station that has it, or None."""


@dataclass(frozen=True, slots=True)
class Writing:
    """A transaction that is open.

    Attributes:
        at: the one time of everything written in it.
        by: who writes; `slot` is that of the attempt a unit is in.
        others: what other lines have used up.
        spool_max: how many announcements may be owed at the end of it, or None.
    """

    conn: sqlite3.Connection
    at: datetime
    by: Actor
    others: Guarding
    spool_max: int | None = None

    def unit(self, device_id: str) -> UnitRow:
        """Return one unit as it stands in this transaction."""
        return read_unit(self.conn, device_id)

    def on_slot_of(self, attempt_id: str | None) -> Writing:
        """Return this transaction with the slot that an attempt is on."""
        row = self.conn.execute("SELECT slot FROM attempt WHERE id = ?", (attempt_id,)).fetchone()
        return replace(self, by=replace(self.by, slot=row[0])) if row else self

    def tell(self, kind: str, body: Mapping[str, object]) -> ChainPlace:
        """Append one event to the chain."""
        return chain.append(self.conn, self.at, self.by, kind, body)

    def check_spool(self) -> None:
        """Raise Backlog when no further announcement may be owed."""
        if self.spool_max is not None and outbox.owes_as_many_as(self.conn, self.spool_max):
            raise Backlog(
                f"{self.spool_max} announcements are owed, which is [mqtt] spool_max",
                advice="bring the broker back, or see `devicesim announce status`",
            )

    def owe(self, announce: Announce | None, place: ChainPlace) -> str | None:
        """Owe the announcement of an event of the chain; return its id, or None when nobody announces.

        Raises Backlog when as much is owed as may be: then nothing of the transaction is written.
        """
        if announce is None:
            return None
        self.check_spool()
        made = announce.make(Told(outbox.next_sequence(self.conn, announce.source), place, self.by))
        outbox.add(self.conn, id=made.id, topic=made.topic, payload=made.payload, retain=False, at=self.at)
        return made.id


def read_unit(conn: sqlite3.Connection, device_id: str) -> UnitRow:
    """Return one unit, or raise UsageProblem when the ledger does not know it."""
    row = conn.execute(f"{UNIT} WHERE u.device_id = ?", (device_id,)).fetchone()
    if row is None:
        raise UsageProblem(f"{device_id!r} is not in the ledger")
    return unit_row(row)
