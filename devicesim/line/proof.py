"""The proof of one device: what the ledger tells of it, and a signed root that it stands under.

An auditor checks it with the trust anchor alone, without the ledger and without a network: the events make, with a few
hashes, the root that the station signed (`merkle`). It proves that this was written, where and when, and that it has
not changed since the checkpoint; that nothing else was written is what `devicesim ledger verify` shows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from devicesim.errors import UsageProblem, VerificationFailed
from devicesim.line.ledger import EventRow, Ledger
from devicesim.line.ledger import checkpoints as signed
from devicesim.line.ledger.chain import entry
from devicesim.line.merkle import HASH_BYTES, Tree, leaf_hash, root_of
from devicesim.trust import TrustAnchors

KIND = "org.estline.ledger.proof.v1"
PROOF_MAX_BYTES = 1 << 20
EVENTS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof turned out to show."""

    device_id: str
    events: tuple[EventRow, ...]
    checkpoint: signed.SignedHead


class Prover:
    """Makes proofs under a ledger's last checkpoint; the tree is built once, so that many are cheap."""

    def __init__(self, ledger: Ledger) -> None:
        points = ledger.checkpoints()
        if not points:
            raise UsageProblem("the ledger has no checkpoint yet", advice="make one: devicesim ledger checkpoint")
        self._ledger, self._point = ledger, points[-1]
        leaves = [leaf_hash(event.entry) for event in ledger.events() if event.seq <= self._point.seq]
        self._tree = Tree(leaves)

    def prove(self, device_id: str) -> dict[str, Any]:
        """Return the proof of one device, to be written as JSON."""
        self._ledger.unit(device_id)
        events = [event for event in self._ledger.story(device_id) if event.seq <= self._point.seq]
        if not events:
            raise UsageProblem(f"no checkpoint covers {device_id} yet", advice="make one: devicesim ledger checkpoint")
        hashes = self._tree.prove([event.seq - 1 for event in events])
        return {
            "type": KIND,
            "device_id": device_id,
            "checkpoint": json.loads(self._point.envelope),
            "events": [event[:-1] for event in events],
            "hashes": [each.hex() for each in hashes],
        }


def check_proof(data: bytes, trust: TrustAnchors) -> Proven:
    """Prove what a file says of a device, or raise VerificationFailed."""
    try:
        document = json.loads(data)
        kind, device_id, rows, texts = (document[name] for name in ("type", "device_id", "events", "hashes"))
        envelope = json.dumps(document["checkpoint"]).encode()
        events, hashes = _events(rows), [_hash(text) for text in texts]
        strangers = [event.seq for event in events if event.facts.get("device_id") != device_id]
    except (KeyError, TypeError, ValueError, RecursionError) as fault:
        raise VerificationFailed("this is no ledger proof") from fault
    if kind != KIND:
        raise VerificationFailed(f"this is no ledger proof but {kind!r:.80}")
    head = signed.read(envelope, trust)
    if strangers:
        raise VerificationFailed(f"the proof is of {device_id}, its event {strangers[0]} of another device")
    try:
        root = root_of(head.place.seq, {event.seq - 1: leaf_hash(event.entry) for event in events}, hashes)
    except ValueError as fault:
        raise VerificationFailed(f"the proof is incomplete: {fault}") from fault
    if root != head.root:
        raise VerificationFailed("the events are not those the checkpoint stands over: one of them was changed")
    return Proven(device_id, events, head)


def _events(rows: Sequence[Any]) -> tuple[EventRow, ...]:
    if not 1 <= len(rows) <= EVENTS_MAX:
        raise ValueError("no events, or too many")
    events = []
    for seq, at, actor, kind, body, prev_hash in rows:
        if type(seq) is not int or not all(isinstance(text, str) for text in (at, actor, kind, body, prev_hash)):
            raise TypeError("an event is a number and five texts")
        events.append(EventRow(seq, at, actor, kind, body, prev_hash, ""))
        entry(*events[-1][:-1])  # a lone surrogate has no octets
    if any(later.seq <= earlier.seq for earlier, later in pairwise(events)):
        raise ValueError("the events are not in order")
    return tuple(events)


def _hash(text: object) -> bytes:
    raw = bytes.fromhex(text) if isinstance(text, str) else b""
    if len(raw) != HASH_BYTES:
        raise ValueError("not a hash")
    return raw
