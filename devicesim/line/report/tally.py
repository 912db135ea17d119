"""One heap of attempts, counted: of everything, or of one operator, hour, slot.

Rules:
- First-pass yield: of the units whose first attempt was made here and has ended, those that it passed. A unit that is
  re-issued or scrapped later did pass: that is rework, and counted there.
- Final yield: of the units that are settled (passed, failed, scrapped), those that stand as passed. A unit belongs to
  whoever made the last attempt at it, so the parts add up to the whole.
- Rework rate: of the units worked on here, those on which this was not the first attempt.
- Cycle time: what all attempts that led to one PASS took, not the waits between them. An attempt that a crash left open
  counts with its steps alone, for nobody was working while it lay.
- EST's share: the step that enrols, against all steps.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field

from devicesim.line.ledger import AttemptRow
from devicesim.line.report.times import AtWork, Times, times_of
from devicesim.line.states import ORDER, State

_HOUR_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Figures:
    """What a heap came to.

    Attributes:
        units: that were worked on.
        attempts: of them `passes` ended with PASS, `failures` with a code, `aborted` by a person; others are under way.
        first_tried, first_pass: units whose first attempt was made here and has ended; those it passed.
        passed, failed, scrapped, waiting: how units stand now, by where the last attempt at them was made.
        reworked: units of which one attempt made here was not the first.
        per_hour: PASSes in an hour at work; None when there was no PASS.
    """

    units: int
    attempts: int
    passes: int
    failures: int
    aborted: int
    first_tried: int
    first_pass: int
    first_pass_yield: float | None
    passed: int
    failed: int
    scrapped: int
    waiting: int
    final_yield: float | None
    reworked: int
    rework_rate: float | None
    at_work_seconds: float
    per_hour: float | None
    est_share: float | None
    cycle_ms: Times | None
    steps_ms: dict[str, Times]


@dataclass
class Tally:
    """A heap while it is counted; a few numbers for each attempt are kept, for the percentiles."""

    units: int = 0
    first_tried: int = 0
    first_pass: int = 0
    reworked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    standing: Counter[str] = field(default_factory=Counter)
    cycles: array[float] = field(default_factory=lambda: array("d"))
    steps: dict[str, array[float]] = field(default_factory=dict)
    at_work: AtWork = field(default_factory=AtWork)

    def worked_on(self, *, again: bool) -> None:
        """Count a unit, once, with whether one of the attempts here was not its first."""
        self.units += 1
        self.reworked += again

    def attempt(self, attempt: AttemptRow, *, resumed: bool) -> None:
        """Count one attempt and its steps."""
        self.outcomes[attempt.outcome or "under way"] += 1
        if attempt.number == 1 and attempt.outcome is not None:
            self.first_tried += 1
            self.first_pass += attempt.outcome == "pass"
        for step, took in attempt.timing_ms.items():
            self.steps.setdefault(step, array("d")).append(took)
        if attempt.outcome in {"pass", "fail"} and attempt.ended_at is not None:
            end = attempt.ended_at
            self.at_work.add(end if resumed else attempt.started_at, end)

    def figures(self) -> Figures:
        """Return what it came to."""
        steps = sorted(self.steps.items(), key=lambda item: ORDER.index(State(item[0])))
        whole = math.fsum(took for _, each in steps for took in each)
        enrolled = math.fsum(self.steps.get(State.ENROLLED, ()))
        settled = sum(self.standing[name] for name in ("pass", "fail", "scrapped"))
        seconds, passes = self.at_work.seconds(), self.outcomes["pass"]
        return Figures(
            units=self.units,
            attempts=self.outcomes.total(),
            passes=passes,
            failures=self.outcomes["fail"],
            aborted=self.outcomes["aborted"],
            first_tried=self.first_tried,
            first_pass=self.first_pass,
            first_pass_yield=_share(self.first_pass, self.first_tried),
            passed=self.standing["pass"],
            failed=self.standing["fail"],
            scrapped=self.standing["scrapped"],
            waiting=self.standing["waiting"],
            final_yield=_share(self.standing["pass"], settled),
            reworked=self.reworked,
            rework_rate=_share(self.reworked, self.units),
            at_work_seconds=seconds,
            per_hour=round(passes * _HOUR_SECONDS / seconds, 1) if passes and seconds else None,
            est_share=_share(enrolled, whole),
            cycle_ms=times_of(self.cycles),
            steps_ms={step: found for step, took in steps if (found := times_of(took))},
        )


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
