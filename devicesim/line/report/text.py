"""The report for a terminal: the headline, the Pareto, the times, the parts, what to do about the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from devicesim.line.report.model import YieldReport
from devicesim.line.report.tally import Figures
from devicesim.line.report.times import Times
from devicesim.line.terminal import table

UNITS_SHOWN = 30
PARTS_SHOWN = 24
NOBODY = "-"
PART_HEADER = (
    *("units", "attempts", "passed", "failed", "first pass", "final", "rework"),
    *("p50", "p95", "p99", "EST", "/h"),
)


def yield_text(report: YieldReport) -> str:
    """Write a report for a person."""
    return "\n\n".join(_parts(report))


def percent(share: float | None) -> str:
    """Write a share for a person; only what is whole is 100 %."""
    if share is None:
        return NOBODY
    return f"{min(share, 0.999) if share < 1 else 1:.1%}"


def seconds(ms: float) -> str:
    """Write a time for a person, in the unit that reads best."""
    if ms < 1000:
        return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"
    for unit, size_ms, upto in (("s", 1000, 120_000), ("min", 60_000, 7_200_000)):
        if ms < upto:
            return f"{ms / size_ms:.1f} {unit}"
    return f"{ms / 3_600_000:.1f} h"


def part_row(part: Figures) -> tuple[str, ...]:
    """Write one part as the cells under `PART_HEADER`."""
    cycle = part.cycle_ms
    return (
        *(str(n) for n in (part.units, part.attempts, part.passed, part.failed)),
        *(percent(share) for share in (part.first_pass_yield, part.final_yield, part.rework_rate)),
        *((seconds(cycle.p50_ms), seconds(cycle.p95_ms), seconds(cycle.p99_ms)) if cycle else (NOBODY,) * 3),
        percent(part.est_share),
        f"{part.per_hour:.0f}" if part.per_hour else NOBODY,
    )


def _parts(report: YieldReport) -> Iterator[str]:
    total = report.total
    yield _headline(report)
    if report.failures:
        faults = (
            (f.code, f.step or NOBODY, str(f.attempts), str(f.units), percent(f.upto), f.advice)
            for f in report.failures
        )
        yield table(("failure", "on the way to", "attempts", "units", "up to", "what to do"), faults)
    if total.steps_ms:
        whole = {"unit": total.cycle_ms} if total.cycle_ms else {}
        yield table(("time", "count", "p50", "p95", "p99", "max"), _times(total.steps_ms | whole))
    for name, parts in report.by.items():
        if parts and not (len(parts) == 1 and not next(iter(parts))):
            rows = [(value or NOBODY, *part_row(part)) for value, part in [*parts.items()][-PARTS_SHOWN:]]
            more = len(parts) - len(rows)
            yield table((name, *PART_HEADER), rows) + (f"\nand {more} before them" if more else "")
    if report.units:
        yield _units(report)
    yield f"ledger {report.head.seq}:{report.head.head}, signed up to event {report.signed_up_to}"


def _headline(report: YieldReport) -> str:
    total, orders, cycle = report.total, report.orders, report.total.cycle_ms
    counts = f"{report.planned} units, {total.units} attempted, {total.passed} passed, {total.failed} failed"
    rework = f"{orders.retry} retries, {orders.reissue} re-issues, {orders.scrap} scrapped by hand"
    first, final, again = map(percent, (total.first_pass_yield, total.final_yield, total.rework_rate))
    lines = [
        f"{report.title()} ({'/'.join(report.place[name] for name in ('site', 'line', 'station'))})",
        f"{counts}, {total.scrapped} scrapped, {total.waiting} waiting",
        f"yield: first pass {first}, final {final}; rework {again} of units ({rework})",
    ]
    if cycle:
        rate = f", {total.per_hour:.0f} units/h at work" if total.per_hour else ""
        lines.append(
            f"cycle: p50 {seconds(cycle.p50_ms)}, p95 {seconds(cycle.p95_ms)}, p99 {seconds(cycle.p99_ms)}{rate};"
            f" EST's share of the steps {percent(total.est_share)}"
        )
    return "\n".join(lines)


def _times(times: Mapping[str, Times]) -> Iterator[tuple[str, ...]]:
    for name, t in times.items():
        yield name, str(t.count), *(seconds(ms) for ms in (t.p50_ms, t.p95_ms, t.p99_ms, t.max_ms))


def _units(report: YieldReport) -> str:
    rows = [(u.device_id, f"{u.outcome} {u.code}".strip(), u.reason, u.next) for u in report.units[:UNITS_SHOWN]]
    more = len(report.units) - len(rows) + report.units_left_out
    rest = f"\nand {more} more: --json, or `devicesim line trace DEVICE`" if more else ""
    return table(("did not pass", "outcome", "reason", "next"), rows) + rest
