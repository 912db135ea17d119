"""The yield of a selection: batches, or a span of time, counted from a ledger in one pass.

Rules:
- Everything is counted from one snapshot of the ledger, whose chain is verified on the way; the report names its head.
- An attempt is in the span in which it began, and belongs to the operator, slot, shift and hour of its beginning; one
  that a crash left open began for this when somebody went on with it.
- How a unit stands (passed, failed, scrapped, waiting) is how it stands when the report is made.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import TypeVar

from devicesim.errors import UsageProblem
from devicesim.line.crew import Shifts
from devicesim.line.ledger import AttemptRow, ChainPlace, EventRow, Ledger
from devicesim.line.ledger.chain import GENESIS
from devicesim.line.ledger.history import History, UnitHistory, history
from devicesim.line.report.model import Fault, OpenUnit, Orders, Selection, YieldReport
from devicesim.line.report.tally import Figures, Tally
from devicesim.line.report.times import hour_of, shift_of, spread
from devicesim.line.states import PASSED, FailureCode, State
from devicesim.line.trace import next_step

Key = TypeVar("Key")
UNITS_LISTED_MAX = 1000
_ORDERS = {"retry": "retry", "reissue": "reissue", State.SCRAPPED.value: "scrap"}


def count_yield(ledger: Ledger, selection: Selection, *, now: datetime, shifts: Shifts) -> YieldReport:
    """Count what a selection came to.

    Args:
        shifts: the shifts of the site, and its time zone.

    Raises:
        UsageProblem: there is no such batch.
        VerificationFailed: the ledger was altered.
    """
    with history(ledger) as held:
        known = held.batches()
        if missing := [batch for batch in selection.batches if batch not in known]:
            raise UsageProblem(f"there is no batch {missing[0]!r} in this ledger", advice="see `devicesim line status`")
        told = _Told.read(held.events())
        counting = _Counting(selection, shifts, told)
        for batch in known:
            if not selection.batches or batch in selection.batches:
                for unit in held.units(batch):
                    counting.unit(unit)
        return counting.report(ledger, held, now)


@dataclass
class _Told:
    """What the chain tells beside the tables: which step failed, what went on after a crash, what people ordered."""

    head: ChainPlace = field(default_factory=lambda: ChainPlace(0, GENESIS))
    steps: dict[tuple[str, int], str] = field(default_factory=dict)
    resumed: dict[str, datetime] = field(default_factory=dict)
    orders: dict[str, list[tuple[datetime, str, str]]] = field(default_factory=dict)

    @classmethod
    def read(cls, events: Iterable[EventRow]) -> _Told:
        told, last = cls(), None
        for last in events:
            told._hear(last)
        if last is not None:
            told.head = ChainPlace(last.seq, last.hash)
        return told

    def began(self, attempt: AttemptRow) -> datetime:
        """Return when somebody took an attempt up: after a crash, that is who went on with it."""
        return self.resumed.get(attempt.id, attempt.started_at)

    def _hear(self, event: EventRow) -> None:
        if event.kind == "failed":
            facts = event.facts
            self.steps[facts["device_id"], facts["attempt"]] = facts.get("step") or f"after {facts['state']}"
        elif event.kind == "resumed":
            self.resumed[event.facts["attempt_id"]] = event.when
        elif event.kind in _ORDERS:
            facts = event.facts
            order = event.when, _ORDERS[event.kind], facts.get("reason", "")
            self.orders.setdefault(facts["device_id"], []).append(order)


class _Counting:
    """A selection while it is counted."""

    def __init__(self, selection: Selection, shifts: Shifts, told: _Told) -> None:
        self.selection, self.shifts, self.told = selection, shifts, told
        self.planned = self.left_out = 0
        self.total = Tally()
        self.parts: dict[str, dict[str, Tally]] = {name: {} for name in ("station", *_BY, "product")}
        self.first: dict[tuple[str, str], datetime] = {}
        self.faults: Counter[tuple[str, str]] = Counter()
        self.fault_units: Counter[tuple[str, str]] = Counter()
        self.orders: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.open_units: list[OpenUnit] = []

    def unit(self, unit: UnitHistory) -> None:
        """Count one unit, if it is in the selection."""
        tried = [a for a in unit.attempts if self.selection.covers(self.told.began(a))]
        orders = [order for order in self.told.orders.get(unit.device_id, ()) if self.selection.covers(order[0])]
        if self.selection.in_time and not tried and not orders:
            return
        self.planned += 1
        self.orders.update(kind for _, kind, _ in orders)
        self.reasons.update(reason for _, _, reason in orders if reason)
        standing = _standing(unit)
        self.total.standing[standing] += 1
        self._attempts(unit, tried)
        if tried:
            for tally in self._parts_of(unit, tried[-1]):
                tally.standing[standing] += 1
        if standing in {"fail", "scrapped"} or (standing == "waiting" and unit.attempts):
            self._list(unit, standing)

    def _attempts(self, unit: UnitHistory, tried: list[AttemptRow]) -> None:
        touched: dict[int, tuple[Tally, bool]] = {}
        failed: set[tuple[str, str]] = set()
        took = 0.0
        for attempt in tried:
            resumed = attempt.id in self.told.resumed
            took += _took_ms(attempt, resumed=resumed)
            for tally in (self.total, *self._parts_of(unit, attempt)):
                tally.attempt(attempt, resumed=resumed)
                again = touched.get(id(tally), (tally, False))[1] or attempt.number > 1
                touched[id(tally)] = tally, again
                if attempt.outcome == "pass":
                    tally.cycles.append(took)
            if attempt.outcome == "pass":
                took = 0.0
            if attempt.failure_code:
                fault = attempt.failure_code, self.told.steps.get((unit.device_id, attempt.number), "")
                self.faults[fault] += 1
                failed.add(fault)
        self.fault_units.update(failed)
        for tally, again in touched.values():
            tally.worked_on(again=again)

    def _parts_of(self, unit: UnitHistory, attempt: AttemptRow) -> Iterator[Tally]:
        at = self.told.began(attempt)
        keys = {name: key(attempt, at, self.shifts) for name, key in _BY.items()}
        for name, key in (("station", attempt.station), *keys.items(), ("product", unit.facts["product"])):
            self.first[name, key] = min(at, self.first.get((name, key), at))
            yield self.parts[name].setdefault(key, Tally())

    def _list(self, unit: UnitHistory, standing: str) -> None:
        if len(self.open_units) >= UNITS_LISTED_MAX:
            self.left_out += 1
            return
        last = unit.attempts[-1] if unit.attempts else None
        orders = self.told.orders.get(unit.device_id)
        code = unit.failure.code if unit.failure else None
        text = unit.failure.text if unit.failure else orders[-1][2] if orders and standing == "scrapped" else ""
        self.open_units.append(
            OpenUnit(
                device_id=unit.device_id,
                serial=unit.facts["serial"],
                batch=unit.batch,
                product=unit.facts["product"],
                outcome=standing,
                code=code.value if code else "",
                step=self.told.steps.get((unit.device_id, last.number), "") if last and code else "",
                reason=text,
                attempts=len(unit.attempts),
                operator=last.operator if last else "",
                slot=last.slot if last else None,
                next=next_step(unit.state, unit.batch, code),
            )
        )

    def report(self, ledger: Ledger, held: History, now: datetime) -> YieldReport:
        """Return what was counted."""
        point = held.newest_checkpoint()
        return YieldReport(
            selection=self.selection,
            made_at=now,
            zone=self.shifts.zone,
            place=ledger.place(),
            head=self.told.head,
            signed_up_to=point.seq if point else 0,
            checkpoint=json.loads(point.envelope) if point else None,
            planned=self.planned,
            total=self.total.figures(),
            spread=spread(self.total.cycles),
            failures=self._pareto(),
            orders=Orders(
                retry=self.orders["retry"],
                reissue=self.orders["reissue"],
                scrap=self.orders["scrap"],
                reasons=dict(sorted(self.reasons.items(), key=_most)),
            ),
            by={name: self._figures(name, part) for name, part in self.parts.items()},
            units=tuple(self.open_units),
            units_left_out=self.left_out,
        )

    def _pareto(self) -> tuple[Fault, ...]:
        found = sorted(self.faults.items(), key=_most)
        total = sum(count for _, count in found)
        return tuple(
            Fault(*fault, FailureCode(fault[0]).advice, count, self.fault_units[fault], round(upto / total, 4))
            for (fault, count), upto in zip(found, accumulate(count for _, count in found), strict=True)
        )

    def _figures(self, name: str, part: Mapping[str, Tally]) -> dict[str, Figures]:
        if name in {"hour", "shift"}:
            keys = sorted(part, key=lambda key: (self.first[name, key], key))
        else:
            keys = sorted(part, key=lambda key: (len(key) if name == "slot" else 0, key))
        return {key: part[key].figures() for key in keys}


_BY: dict[str, Callable[[AttemptRow, datetime, Shifts], str]] = {
    "operator": lambda attempt, _at, _shifts: attempt.operator,
    "shift": lambda attempt, at, shifts: shift_of(attempt.shift, at, shifts),
    "slot": lambda attempt, _at, _shifts: str(attempt.slot),
    "hour": lambda _attempt, at, shifts: hour_of(at, shifts),
}
"""What attempts are parted by, beside the station and the product."""


def _took_ms(attempt: AttemptRow, *, resumed: bool) -> float:
    """Return how long somebody was at it."""
    if attempt.ended_at is None or attempt.outcome == "aborted" or resumed:
        return math.fsum(attempt.timing_ms.values())
    return (attempt.ended_at - attempt.started_at).total_seconds() * 1000


def _standing(unit: UnitHistory) -> str:
    if unit.state is State.SCRAPPED:
        return "scrapped"
    return "pass" if unit.state in PASSED else "fail" if unit.failure else "waiting"


def _most(item: tuple[Key, int]) -> tuple[int, Key]:
    """Put what happened most often first."""
    return -item[1], item[0]
