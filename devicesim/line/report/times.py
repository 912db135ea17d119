"""Times: nearest-rank percentiles, how they are spread, how long a line was at work, whose hour and shift it was.

Rules:
- A percentile is a value that was measured, never one between two.
- A line is at work from its first attempt to its last one, but for pauses longer than `PAUSE`.
- An hour is one of the clock on the site's wall, with its offset: the hour that the end of summer time repeats is two.
- A shift bears the day on which it began, also after midnight.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from devicesim.line.crew import Shifts

PAUSE = timedelta(minutes=15)
_BARS = 20


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, in milliseconds: 95 % of it took no longer than `p95_ms`."""

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Bar:
    """How many took longer than the bar before, up to `up_to_ms`; the last one has no end."""

    up_to_ms: float | None
    count: int


def percentile(values: Iterable[float], fraction: float) -> float:
    """Return the smallest value that at least this fraction of the values does not exceed (nearest rank)."""
    return _rank(sorted(values), fraction)


def times_of(values: Sequence[float]) -> Times | None:
    """Sum up how long something took; None when it never happened."""
    if not values:
        return None
    ordered = sorted(values)
    found = (math.fsum(ordered) / len(ordered), *(_rank(ordered, f) for f in (0.5, 0.95, 0.99)), ordered[-1])
    return Times(len(ordered), *(round(value, 1) for value in found))


def spread(values: Sequence[float]) -> tuple[Bar, ...]:
    """Count values in about twenty bars of equal, round width up to the 99th percentile, and the rest in one more."""
    if not values:
        return ()
    width = _round_up(max(percentile(values, 0.99), 1.0) / _BARS)
    bars = max(math.ceil(percentile(values, 0.99) / width), 1)
    counts = [0] * (bars + 1)
    for value in values:
        counts[min(max(math.ceil(value / width) - 1, 0), bars)] += 1
    last = (Bar(None, counts[-1]),) if counts[-1] else ()
    return (*(Bar(round(width * (n + 1), 3), count) for n, count in enumerate(counts[:-1])), *last)


class AtWork:
    """The time that work was going on, from the beginnings and ends of attempts, in whatever order they come."""

    def __init__(self) -> None:
        self._begins, self._ends = array("d"), array("d")

    def add(self, begin: datetime, end: datetime) -> None:
        """Count from `begin` to `end`."""
        self._begins.append(begin.timestamp())
        self._ends.append(end.timestamp())

    def seconds(self) -> float:
        """Return how long it was, pauses of up to `PAUSE` included."""
        total, until = 0.0, -math.inf
        for begin, end in sorted(zip(self._begins, self._ends, strict=True)):
            since = until if begin - until <= PAUSE.total_seconds() else begin
            total += max(end - since, 0.0)
            until = max(until, end)
        return round(total, 3)


def hour_of(when: datetime, shifts: Shifts) -> str:
    """Return the hour of the site's clock that a moment is in, as 2026-10-25 02:00+01:00."""
    local = when.astimezone(shifts.zone)
    return local.replace(minute=0, second=0, microsecond=0).isoformat(" ", "minutes")


def shift_of(name: str, when: datetime, shifts: Shifts) -> str:
    """Return a shift with the day on which it began, as 2026-11-24 night; empty when there is none."""
    if not name:
        return ""
    local = when.astimezone(shifts.zone)
    begins = next((start for start, known in shifts.begins if known == name), None)
    of_yesterday = begins is not None and local.time() < begins
    return f"{local.date() - timedelta(days=of_yesterday)} {name}"


def _rank(ordered: Sequence[float], fraction: float) -> float:
    return ordered[max(math.ceil(fraction * len(ordered)) - 1, 0)]


def _round_up(value: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * times for times in (1, 2, 5, 10) if unit * times >= value * (1 - 1e-9))
