"""The ledger held against itself, and against what was seen of it elsewhere.

Rules, all of them checked:
- every event follows the one before it, from the first (the chain);
- every checkpoint is signed by this station and stands over exactly these events (the tree);
- a checkpoint or head that was seen elsewhere stands over these events too: nothing was cut off or told otherwise;
- batches and units are what the events say of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from devicesim.errors import UsageProblem, VerificationFailed
from devicesim.line.batch import content_sha256
from devicesim.line.findings import read_bounded
from devicesim.line.ledger import ChainPlace, EventRow, Ledger, UnitRow
from devicesim.line.ledger import checkpoints as signed
from devicesim.line.ledger.chain import GENESIS
from devicesim.line.ledger.edges import told
from devicesim.line.ledger.labels import PRINTED, REPRINTED
from devicesim.line.merkle import Frontier, leaf_hash
from devicesim.line.states import State
from devicesim.trust import TrustAnchors

SEEN_MAX_BYTES = 1 << 20
_KEEP = "keep the file as it is, and compare it with a backup"
_LEARNED = ("spki_sha256", "csr_sha256", "certificate_sha256", "cert_serial", "label")


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody has seen of this ledger: the head at an event, and perhaps the root of the tree."""

    name: str
    place: ChainPlace
    root: bytes | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found to be sound."""

    head: ChainPlace
    checkpoints: int
    signed_up_to: int
    units: int


def audit(ledger: Ledger, trust: TrustAnchors, seen: Iterable[Seen] = ()) -> Audit:
    """Check the whole ledger, in one pass over its events; VerificationFailed names what is wrong."""
    own = [_proven(ledger, point, trust) for point in ledger.checkpoints()]
    marks: dict[int, list[Seen]] = {}
    for mark in (*own, *seen):
        marks.setdefault(mark.place.seq, []).append(mark)
    tree, said, head = Frontier(), _Said(), ChainPlace(0, GENESIS)
    for event in ledger.events():
        tree.push(leaf_hash(event.entry))
        said.hear(event)
        head = ChainPlace(event.seq, event.hash)
        for mark in marks.pop(event.seq, ()):
            _hold(mark, head, tree)
    for mark in (each for at_once in marks.values() for each in at_once):
        text = f"the ledger was cut short: {mark.name} stands over {mark.place.seq} events, and there are {head.seq}"
        raise VerificationFailed(text, advice=_KEEP)
    units = said.compare(ledger)
    return Audit(head, len(own), max((mark.place.seq for mark in own), default=0), units)


def read_seen(text: str, ledger: Ledger, trust: TrustAnchors) -> Seen:
    """Read what was seen elsewhere: `SEQ:HASH`, as announcements and reports have it, or a file with a checkpoint."""
    seq, colon, head = text.partition(":")
    if colon and seq.isdecimal() and len(head) == len(GENESIS):
        return Seen(text, ChainPlace(int(seq), head.lower()))
    if not Path(text).is_file():
        raise UsageProblem(f"{text!r} is neither SEQ:HASH nor a file")
    data = read_bounded(Path(text), SEEN_MAX_BYTES)
    try:
        document = json.loads(data)
        envelope = json.dumps(document.get("checkpoint", document)).encode()
    except (AttributeError, ValueError, RecursionError) as fault:
        raise VerificationFailed(f"{text} holds no checkpoint") from fault
    return _of_station(ledger, text, signed.read(envelope, trust))


def _proven(ledger: Ledger, point: signed.Checkpoint, trust: TrustAnchors) -> Seen:
    try:
        mark = _of_station(ledger, f"checkpoint {point.seq}", signed.read(point.envelope, trust))
    except VerificationFailed as error:
        raise VerificationFailed(f"checkpoint {point.seq}: {error}", advice=_KEEP) from error
    if mark.place.seq != point.seq:
        raise VerificationFailed(f"checkpoint {point.seq} is signed for {mark.place.seq} events", advice=_KEEP)
    return mark


def _of_station(ledger: Ledger, name: str, head: signed.SignedHead) -> Seen:
    if head.station != ledger.place():
        raise VerificationFailed(f"{name} is of another station: {'/'.join(head.station.values())}")
    return Seen(name, head.place, head.root)


def _hold(mark: Seen, head: ChainPlace, tree: Frontier) -> None:
    if mark.place.head != head.head or (mark.root is not None and mark.root != tree.root()):
        raise VerificationFailed(
            f"the ledger was rewritten: {mark.name} does not stand over these events", advice=_KEEP
        )


@dataclass
class _Said:
    """What the events say of batches and units: what the tables must hold."""

    parts: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)
    units: dict[str, dict[str, str]] = field(default_factory=dict)

    def hear(self, event: EventRow) -> None:
        facts = event.facts
        if event.kind == "batch-opened":
            part = facts.get("first", 1), facts["quantity"], facts.get("units_sha256", facts["content_sha256"])
            self.parts.setdefault(facts["batch"], []).append(part)
        elif event.kind == "reissue":
            self.units[facts["device_id"]] = {"generation": str(facts["generation"] + 1)}
        elif event.kind in {*State, PRINTED, REPRINTED}:
            known: Mapping[str, Any] = {name: facts[name] for name in _LEARNED if facts.get(name)}
            state = {"state": event.kind} if event.kind in set(State) else {}
            self.units.setdefault(facts["device_id"], {}).update({**known, **state})

    def compare(self, ledger: Ledger) -> int:
        """Return how many units there are, all of them as they were told."""
        count = 0
        for batch_id, _ in ledger.batches():
            rows = ledger.units(batch_id)
            rest = iter(rows)
            for _, quantity, digest in sorted(self.parts.pop(batch_id, [])):
                if content_sha256(batch_id, [row.facts for row in islice(rest, quantity)]) != digest:
                    raise _altered(f"batch {batch_id} is not what was opened")
            if next(rest, None) is not None:
                raise _altered(f"batch {batch_id} has units that were never opened")
            for row in rows:
                if _as_told(row) != {"generation": "1", "state": State.PLANNED, **self.units.pop(row.device_id, {})}:
                    raise _altered(f"unit {row.device_id} is not what its events say")
            count += len(rows)
        for missing in (*self.parts, *self.units):
            raise _altered(f"{missing} is gone from its tables")
        return count


def _altered(what: str) -> VerificationFailed:
    return VerificationFailed(f"the ledger was altered: {what}", advice=_KEEP)


def _as_told(row: UnitRow) -> dict[str, str]:
    learned = {"spki_sha256": row.spki_sha256, "csr": row.csr, "certificate": row.certificate}
    known = told({**learned, "cert_serial": row.cert_serial, "label": row.label})
    return {**known, "generation": str(row.generation), "state": row.state.value}
