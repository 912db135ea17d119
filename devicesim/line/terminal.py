"""What a person at the line sees: progress while it runs, then the table, the yield and the times.

Progress goes to standard error: a bar on a terminal, one plain line a unit elsewhere. The report is plain text of
fixed columns, so that it reads the same in a log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Self

from devicesim.line.ledger import UnitRow
from devicesim.line.standing import Report, Yield
from devicesim.line.states import Failure, State

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_HEADER = ("device", "serial", "product", "outcome", "state", "tries", "certificate", "seconds")


class PlainProgress:
    """One line a unit, for logs and pipes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._mutex = threading.Lock()
        self._done = self._to_do = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def begin(self, total: int, to_do: int) -> None:
        """Say how much there is to do."""
        self._to_do = to_do
        self._say(f"{total} units, {to_do} to do" if to_do else f"{total} units, nothing to do")

    def step(self, slot: int, device_id: str, state: State) -> None:
        """Keep quiet about single steps."""

    def ended(self, unit: UnitRow, failure: Failure | None) -> None:
        """Say what became of a unit."""
        with self._mutex:
            self._done += 1
            word = f"FAIL {failure.code} {failure.text}" if failure else "PASS"
            self._say(f"[{self._done}/{self._to_do}] {unit.device_id} {word}")

    def notice(self, text: str) -> None:
        """Say what concerns all slots."""
        self._say(f"-- {text}")


class BarProgress:
    """A bar with what each slot is doing; failures stay on the screen."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - rich is loaded when somebody looks
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - so

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar: Bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("")
        self._mutex = threading.Lock()
        self._slots: dict[int, str] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, total: int, to_do: int) -> None:
        """Set the bar to what is done already."""
        self._bar.update(self._task, total=total, completed=total - to_do)

    def step(self, slot: int, device_id: str, state: State) -> None:
        """Show where each slot is."""
        with self._mutex:
            self._slots[slot] = f"{device_id} {state}"
            text = "  ".join(self._slots[number] for number in sorted(self._slots))
        self._bar.update(self._task, description=text)

    def ended(self, unit: UnitRow, failure: Failure | None) -> None:
        """Move on, leaving a failure to be read."""
        self._bar.advance(self._task)
        if failure:
            self._bar.console.print(f"FAIL {unit.device_id} {failure.code} {failure.text}", markup=False)

    def notice(self, text: str) -> None:
        """Leave what concerns all slots to be read."""
        self._bar.console.print(f"-- {text}", markup=False)


def report_text(report: Report) -> str:
    """Write a report for a person."""
    made, rate = report.result, f"{report.result.passed / max(report.result.planned, 1):.1%}"
    first = f"{made.first_pass / made.attempted:.1%}" if made.attempted else "-"
    parts = [
        table(_HEADER, (_cells(report, number) for number in range(len(report.units)))),
        f"batch {report.batch}: {_counts(made)}\nyield: first pass {first}, final {rate}",
    ]
    if report.failures:
        parts.append("failures: " + ", ".join(f"{code} {count}" for code, count in report.failures.items()))
    if report.steps:
        rows = ((name, str(t.count), f"{t.p50_ms:.1f}", f"{t.p95_ms:.1f}") for name, t in report.steps.items())
        parts.append(table(("step", "units", "p50 ms", "p95 ms"), rows))
    for count, what in ((report.announcements_owed, "announcements"), (report.births_pending, "births")):
        if count:
            parts.append(f"{count} {what} are still owed: run the batch again when the broker is back")
    return "\n\n".join(parts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write rows in columns as wide as what stands in them."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _counts(made: Yield) -> str:
    names = ("planned", "attempted", "passed", "failed", "scrapped", "waiting")
    return ", ".join(f"{getattr(made, name)} {name}" for name in names)


def _cells(report: Report, number: int) -> tuple[str, ...]:
    unit = report.units[number]
    outcome = f"{unit.outcome} {unit.failure_code}".strip()
    seconds = "" if unit.seconds is None else f"{unit.seconds:.2f}"
    return (
        unit.device_id,
        unit.serial,
        unit.product,
        outcome,
        unit.state,
        str(unit.attempts),
        unit.cert_serial,
        seconds,
    )
