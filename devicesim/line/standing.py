"""How a batch stands at the end of a run: every unit, the yield, the times of each step.

Everything is counted from the ledger, so the report of a batch is the same whenever it is asked for, whichever run did
the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from devicesim.durable import write_whole
from devicesim.line.ledger import AttemptRow, ChainPlace, Ledger, UnitRow
from devicesim.line.ledger.disk import json_text, stamp
from devicesim.line.report.times import percentile
from devicesim.line.states import ORDER, Failure, FailureCode, State


@dataclass(frozen=True, slots=True)
class UnitLine:
    """One unit of the report; `seconds` is the whole attempt that ended it."""

    device_id: str
    serial: str
    product: str
    outcome: str
    state: str
    attempts: int
    cert_serial: str
    failure_code: str
    failure_text: str
    birth: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Yield:
    """How many units were planned, attempted, passed at the first attempt, passed in the end, failed, scrapped."""

    planned: int
    attempted: int
    first_pass: int
    passed: int
    failed: int
    scrapped: int

    @property
    def waiting(self) -> int:
        """Units that have neither passed nor failed nor been scrapped: the next run goes on with them."""
        return self.planned - self.passed - self.failed - self.scrapped


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How long a step took, in milliseconds: half of the units were faster than p50, 95 % faster than p95."""

    count: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    """A batch as it stands."""

    batch: str
    place: Mapping[str, str]
    made_at: datetime
    units: tuple[UnitLine, ...]
    result: Yield
    failures: Mapping[str, int]
    steps: Mapping[str, StepTimes]
    announcements_owed: int
    births_pending: int
    ledger: Path
    head: ChainPlace

    def to_dict(self) -> dict[str, object]:
        """Return what `--json` and the report file hold."""
        return {
            "batch": self.batch,
            "station": dict(self.place),
            "made_at": stamp(self.made_at),
            "yield": {**asdict(self.result), "waiting": self.result.waiting},
            "failures": dict(self.failures),
            "steps_ms": {name: asdict(times) for name, times in self.steps.items()},
            "announcements_owed": self.announcements_owed,
            "births_pending": self.births_pending,
            "ledger": {"path": str(self.ledger), **asdict(self.head)},
            "units": [asdict(unit) for unit in self.units],
        }


def make_report(ledger: Ledger, batch_id: str, *, now: datetime) -> Report:
    """Count a batch's units and times; the ledger's chain is verified on the way."""
    rows, attempts = ledger.units(batch_id), ledger.attempts(batch_id)
    last = {attempt.device_id: attempt for attempt in attempts}
    units = tuple(_unit_line(row, last.get(row.device_id)) for row in rows)
    return Report(
        batch=batch_id,
        place=ledger.place(),
        made_at=now,
        units=units,
        result=_count(rows, attempts),
        failures=dict(Counter(row.failure.code.value for row in rows if row.failure).most_common()),
        steps=_step_times(attempts),
        announcements_owed=ledger.owed(),
        births_pending=sum(row.birth == "pending" for row in rows),
        ledger=ledger.path,
        head=ledger.verify_chain(),
    )


def exit_code(report: Report, stopped_by: Failure | None) -> int:
    """Return what a run ends with: the truth about the batch and about what is owed, the gravest first."""
    if stopped_by is not None:
        return stopped_by.code.exit_code
    if report.result.failed:
        unreachable = set(report.failures) == {FailureCode.EST_NET.value}
        return FailureCode.EST_NET.exit_code if unreachable else 4
    return 9 if report.announcements_owed or report.births_pending else 0


def write_report(report: Report, path: Path) -> None:
    """Write the report as JSON, readable by its owner alone, whole or not at all."""
    write_whole(path, json_text(report.to_dict()).encode() + b"\n")


def _count(rows: list[UnitRow], attempts: list[AttemptRow]) -> Yield:
    passed = [row for row in rows if row.passed]
    return Yield(
        planned=len(rows),
        attempted=sum(row.attempts > 0 for row in rows),
        first_pass=sum(attempt.number == 1 and attempt.outcome == "pass" for attempt in attempts),
        passed=len(passed),
        failed=sum(row.failure is not None for row in rows),
        scrapped=sum(row.state is State.SCRAPPED for row in rows),
    )


def _step_times(attempts: list[AttemptRow]) -> dict[str, StepTimes]:
    by_step: dict[str, list[float]] = {}
    for attempt in attempts:
        for step, took in attempt.timing_ms.items():
            by_step.setdefault(step, []).append(took)
        if attempt.outcome == "pass":
            by_step.setdefault("whole", []).append(sum(attempt.timing_ms.values()))
    order = [*(str(state) for state in ORDER), "whole"]
    return {
        step: StepTimes(len(took), round(percentile(took, 0.5), 1), round(percentile(took, 0.95), 1))
        for step, took in sorted(by_step.items(), key=lambda item: order.index(item[0]))
    }


def _unit_line(row: UnitRow, attempt: AttemptRow | None) -> UnitLine:
    serial = ""
    if row.certificate is not None:
        serial = f"{x509.load_der_x509_certificate(row.certificate).serial_number:x}"
    ended = attempt.ended_at - attempt.started_at if attempt and attempt.ended_at else None
    return UnitLine(
        device_id=row.device_id,
        serial=row.facts["serial"],
        product=row.facts["product"],
        outcome=_outcome(row),
        state=row.state.value,
        attempts=row.attempts,
        cert_serial=serial,
        failure_code=row.failure.code.value if row.failure else "",
        failure_text=row.failure.text if row.failure else "",
        birth=row.birth,
        seconds=ended.total_seconds() if ended else None,
    )


def _outcome(row: UnitRow) -> str:
    if row.state is State.SCRAPPED:
        return "scrapped"
    return "pass" if row.passed else "fail" if row.failure else "waiting" if row.attempts else "planned"
