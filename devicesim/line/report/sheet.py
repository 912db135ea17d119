"""The report for a spreadsheet: one row for the whole, for each part of it, and for each kind of failure."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import fields
from io import StringIO

from devicesim.line.report.model import YieldReport
from devicesim.line.report.tally import Figures
from devicesim.line.report.times import Times
from devicesim.line.states import ORDER, State

_PLAIN = tuple(field.name for field in fields(Figures) if not field.name.endswith("_ms"))
_TIMES = ("count", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms")
_STEPS = tuple(state.value for state in ORDER if state is not State.PLANNED)
HEADER = (
    *("by", "value", "step", *_PLAIN),
    *(f"cycle_{name}" for name in _TIMES),
    *(f"{step}_{name}" for step in _STEPS for name in ("p50_ms", "p95_ms", "p99_ms")),
)


def yield_csv(report: YieldReport) -> str:
    """Write a report as CSV (RFC 4180); a cell is empty where there is nothing to say."""
    text = StringIO()
    writer = csv.DictWriter(text, HEADER, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(_rows(report))
    return text.getvalue()


def _rows(report: YieldReport) -> Iterator[dict[str, object]]:
    yield {"by": "all", "value": "", **_cells(report.total)}
    for name, parts in report.by.items():
        for value, part in parts.items():
            yield {"by": name, "value": value, **_cells(part)}
    for fault in report.failures:
        yield {
            "by": "failure",
            "value": fault.code,
            "step": fault.step,
            "units": fault.units,
            "attempts": fault.attempts,
            "failures": fault.attempts,
        }


def _cells(part: Figures) -> dict[str, object]:
    cells: dict[str, object] = {name: value for name in _PLAIN if (value := getattr(part, name)) is not None}
    cells |= {f"cycle_{name}": value for name, value in _times(part.cycle_ms)}
    for step, times in part.steps_ms.items():
        cells |= {f"{step}_{name}": value for name, value in _times(times) if f"{step}_{name}" in HEADER}
    return cells


def _times(times: Times | None) -> list[tuple[str, object]]:
    return [(name, getattr(times, name)) for name in _TIMES] if times else []
