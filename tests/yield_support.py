"""A ledger written by hand: its clock is set, its operator chosen, each step takes as long as it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from devicesim.line.crew import Duty, Shifts
from devicesim.line.ledger import Ledger, Why
from devicesim.line.reasons import Reason
from devicesim.line.report import Selection, YieldReport, count_yield
from devicesim.line.states import Failure, FailureCode, State
from tests.line_support import write_batch

BERLIN = ZoneInfo("Europe/Berlin")
SHIFTS = Shifts(((time(6), "early"), (time(14), "late"), (time(22), "night")), BERLIN)
WAY = (State.KEYED, State.DRAFTED, State.ENROLLED, State.INSTALLED, State.VERIFIED)
TOOK: Mapping[State, float] = dict.fromkeys(WAY, 10.0) | {State.ENROLLED: 50.0, State.RECORDED: 10.0}
PLACE = {"site": "hh1", "line": "l2", "station": "s-07"}


def local(text: str) -> datetime:
    """Read a time of the clock in Berlin."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=BERLIN)


@dataclass
class HandLedger:
    """A ledger, and the hand that writes it."""

    directory: Path
    at: datetime

    def __post_init__(self) -> None:
        self.ledger = Ledger.create(self.directory / "line.db", clock=lambda: self.at, place=PLACE)
        self.number = 0
        self.on_duty("op-1")

    def on_duty(self, operator: str) -> None:
        self.ledger.duty = Duty(operator, "", SHIFTS)

    def plan(self, batch_id: str, count: int, *, first: int = 1) -> None:
        rows = [f"sn-{n:04d},S{n:04d},sensor,,\n" for n in range(first, first + count)]
        self.ledger.open_batch(write_batch(self.directory / batch_id, rows, batch_id=batch_id))

    def begin(self, device: str, *, slot: int = 1, at: datetime | None = None) -> None:
        self.at = at or self.at
        self.number += 1
        self.ledger.begin_attempt(device, attempt_id=f"a{self.number:05d}", slot=slot)

    def walk(self, device: str, took: Mapping[State, float] = TOOK, *, upto: State = State.VERIFIED) -> None:
        """Take the steps that are still to be taken, up to one of them; no time passes but that of the steps."""
        while (step := self.ledger.way.after(self.ledger.unit(device).state)) in WAY:
            self._passes(took[step])
            key = f"{device}-{self.ledger.unit(device).generation}"
            learned = {State.KEYED: {"spki_sha256": key}, State.DRAFTED: {"csr": key.encode()}}.get(step, {})
            self.ledger.advance(device, step, took_ms=took[step], **learned)
            if step is upto:
                return

    def passes(
        self, device: str, *, slot: int = 1, at: datetime | None = None, took: Mapping[State, float] = TOOK
    ) -> None:
        """A whole attempt: PASS."""
        self.begin(device, slot=slot, at=at)
        self.walk(device, took)
        self.ends(device, took)

    def ends(self, device: str, took: Mapping[State, float] = TOOK) -> None:
        self._passes(took[State.RECORDED])
        self.ledger.record(device, took_ms=took[State.RECORDED], announce=None, birth=False)

    def fails(self, device: str, code: FailureCode, step: State, *, slot: int = 1, at: datetime | None = None) -> None:
        """An attempt that fails on its way to `step`, after a hundred milliseconds in it."""
        self.begin(device, slot=slot, at=at)
        before = [*State][[*State].index(step) - 1]
        if self.ledger.unit(device).state is not before:
            self.walk(device, upto=before)
        self._passes(100)
        self.ledger.fail(device, Failure(code, f"{code} of {device}"), step=step, announce=None)

    def scrap(self, device: str, reason: Reason = Reason.DAMAGED) -> None:
        self.ledger.scrap(device, Why(reason), old="lapse", announce=None)

    def count(self, *batches: str, since: datetime | None = None, until: datetime | None = None) -> YieldReport:
        return count_yield(self.ledger, Selection(batches, since, until), now=self.at, shifts=SHIFTS)

    def _passes(self, ms: float) -> None:
        self.at += timedelta(milliseconds=ms)
