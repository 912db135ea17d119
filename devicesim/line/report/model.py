"""A yield report, as one value: what it is of, what was counted, where in the ledger that was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

from devicesim.line.ledger import ChainPlace
from devicesim.line.ledger.disk import stamp
from devicesim.line.report.tally import Figures
from devicesim.line.report.times import Bar

KIND = "org.estline.line.yield.v1"


@dataclass(frozen=True, slots=True)
class Selection:
    """What a report is of: batches, or all of them; attempts that began in [since, until), or at any time."""

    batches: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    @property
    def in_time(self) -> bool:
        """Whether only a span of time is asked for."""
        return self.since is not None or self.until is not None

    def covers(self, at: datetime) -> bool:
        """Tell whether a moment is in the span."""
        return (self.since is None or self.since <= at) and (self.until is None or at < self.until)


@dataclass(frozen=True, slots=True)
class Fault:
    """One bar of the Pareto: a failure code and the step on which it came; `upto` is the share of it and all before."""

    code: str
    step: str
    advice: str
    attempts: int
    units: int
    upto: float


@dataclass(frozen=True, slots=True)
class Orders:
    """What people ordered by hand, and for which reasons."""

    retry: int
    reissue: int
    scrap: int
    reasons: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class OpenUnit:
    """A unit that did not pass, and what to do about it."""

    device_id: str
    serial: str
    batch: str
    product: str
    outcome: str
    code: str
    step: str
    reason: str
    attempts: int
    operator: str
    slot: int | None
    next: str


@dataclass(frozen=True, slots=True)
class YieldReport:
    """What a selection came to.

    Attributes:
        zone: the site's, for what a person reads.
        head, signed_up_to, checkpoint: where the ledger was, and the last checkpoint, an envelope, with its event.
        planned: units of the selection; over a span of time, those that something happened to.
        spread: the cycle times, as the bars of a histogram.
        by: station, operator, shift, slot, hour, product → each of them → its part.
        units: those that did not pass, in the order of their batches; `units_left_out` more are not listed.
    """

    selection: Selection
    made_at: datetime
    zone: tzinfo
    place: Mapping[str, str]
    head: ChainPlace
    signed_up_to: int
    checkpoint: Mapping[str, Any] | None
    planned: int
    total: Figures
    spread: tuple[Bar, ...]
    failures: tuple[Fault, ...]
    orders: Orders
    by: Mapping[str, Mapping[str, Figures]]
    units: tuple[OpenUnit, ...]
    units_left_out: int

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints and the station signs."""
        span = {"since": self.selection.since, "until": self.selection.until}
        return {
            "type": KIND,
            "selection": {
                "batches": list(self.selection.batches),
                **{name: stamp(at) if at else None for name, at in span.items()},
            },
            "made_at": stamp(self.made_at),
            "timezone": zone_name(self.zone),
            "station": dict(self.place),
            "ledger": {**asdict(self.head), "signed_up_to": self.signed_up_to},
            "checkpoint": self.checkpoint,
            "yield": {"planned": self.planned, **asdict(self.total)},
            "cycle_ms_spread": [asdict(bar) for bar in self.spread],
            "failures": [asdict(fault) for fault in self.failures],
            "rework": asdict(self.orders),
            "by": {
                name: [{"value": value, **asdict(part)} for value, part in parts.items()]
                for name, parts in self.by.items()
            },
            "units": [asdict(unit) for unit in self.units],
            "units_left_out": self.units_left_out,
        }

    def title(self) -> str:
        """Say in a few words what it is of."""
        batches = self.selection.batches
        what = f"batch {batches[0]}" if len(batches) == 1 else f"{len(batches)} batches" if batches else "all batches"
        span = ((word, at) for word, at in (("since", self.selection.since), ("until", self.selection.until)) if at)
        return " ".join([what, *(f"{word} {self.local(at)}" for word, at in span)])

    def local(self, at: datetime) -> str:
        """Write a time as the clock at the site shows it."""
        return at.astimezone(self.zone).isoformat(" ", "minutes")


def zone_name(zone: tzinfo) -> str:
    """Return the name of a time zone."""
    return "UTC" if zone is UTC else str(zone)
