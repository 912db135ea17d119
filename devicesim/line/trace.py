"""The whole story of a unit: every attempt and step, who did it and when, what failed and why, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from devicesim.line.ledger import AttemptRow, EventRow, Ledger, RevocationRow, UnitRow
from devicesim.line.ledger.disk import stamp
from devicesim.line.states import PASSED, FailureCode, State

_WHO = ("operator", "second", "shift", "station", "slot")
_TOLD = ("code", "text", "reason", "note", "old_certificate", "cert_serial", "label", "generation", "attempt")


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened to a unit."""

    at: str
    what: str
    who: Mapping[str, object]
    facts: Mapping[str, Any]
    took_ms: float | None


@dataclass(frozen=True, slots=True)
class Trace:
    """A unit and everything that happened to it; `advice` is what to do next."""

    unit: UnitRow
    moments: tuple[Moment, ...]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` shows."""
        unit = self.unit
        failure = {"code": unit.failure.code, "text": unit.failure.text} if unit.failure else None
        return {
            "device_id": unit.device_id,
            "batch": unit.batch,
            "state": unit.state,
            "generation": unit.generation,
            "attempts": unit.attempts,
            "cert_serial": unit.cert_serial,
            "failure": failure,
            "birth": unit.birth,
            "next": self.advice,
            "events": [asdict(moment) for moment in self.moments],
        }


def make_trace(ledger: Ledger, device_id: str) -> Trace:
    """Read a unit's story from the chain."""
    unit = ledger.unit(device_id)
    attempts = {attempt.number: attempt for attempt in ledger.attempts_at(device_id)}
    owed = [order for order in ledger.revocations_owed() if order.device_id == device_id]
    return Trace(unit, tuple(_moments(ledger.story(device_id), attempts)), _advice(unit, owed))


def trace_text(trace: Trace) -> str:
    """Write a story for a person, one line for each thing that happened."""
    unit = trace.unit
    lines = [f"{unit.device_id} of batch {unit.batch}: {unit.state}, {unit.attempts} attempts"]
    for moment in trace.moments:
        took = f" ({moment.took_ms:.1f} ms)" if moment.took_ms is not None else ""
        facts = " ".join(f"{name}={value}" for name, value in moment.facts.items())
        who = " ".join(f"{name}={value}" for name, value in moment.who.items())
        lines.append(f"{moment.at}  {moment.what:<9}{took}  {facts}  [{who}]".replace("    ", "  "))
    if unit.failure:
        lines.append(f"failed: {unit.failure.code} {unit.failure.text}")
    return "\n".join([*lines, f"next: {trace.advice}"])


def _moments(events: list[EventRow], attempts: Mapping[int, AttemptRow]) -> Iterator[Moment]:
    number = 0
    for event in events:
        facts, by = event.facts, event.by
        number = facts.get("attempt", number)
        steps = attempts[number].timing_ms if number in attempts else {}
        took = steps.get(event.kind) if event.kind in set(State) else None
        who = {name: value for name in _WHO if (value := getattr(by, name)) not in {"", None}}
        told = {name: facts[name] for name in _TOLD if facts.get(name) is not None}
        if event.kind == "failed":
            told = {"step": facts.get("step", f"after {facts['state']}"), **told}
        yield Moment(stamp(event.when), event.kind, who, told, took)


def _advice(unit: UnitRow, owed: list[RevocationRow]) -> str:
    revoke = [f"revoke the certificate of generation {order.generation} at the CA" for order in owed]
    return "; ".join([*revoke, next_step(unit.state, unit.batch, unit.failure.code if unit.failure else None)])


def next_step(state: State, batch: str, failed: FailureCode | None) -> str:
    """Say what to do next with a unit."""
    if failed is not None:
        return failed.advice
    if state is State.SCRAPPED:
        return "nothing: it was scrapped, and its identity is not used again"
    if state not in PASSED:
        return f"run batch {batch}: the unit goes on from {state}"
    if state is State.RECORDED:
        return "nothing: it passed; its announcement is not confirmed by a broker yet"
    return "nothing: it passed, and that is announced"
