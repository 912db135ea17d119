"""Refusals: counted, audited, and told where somebody has to look at them."""

from __future__ import annotations

from collections.abc import Sequence

from estserver.inventory import audit, counters, outbox
from estserver.inventory.transaction import Transaction
from estserver.model import Event, Refusal


def refuse(tx: Transaction, refusal: Refusal, events: Sequence[Event]) -> None:
    """Write one refusal down, or as many alike as it counts."""
    detail: dict[str, object] = {
        "reasons": refusal.reasons,
        "device": refusal.device,
        "operation": refusal.operation,
        "label": refusal.label,
        "spki_sha256": refusal.spki_sha256,
        "peer_address": refusal.peer_address,
        "request_id": refusal.request_id,
    }
    if refusal.count != 1:
        detail["count"] = refusal.count
    counters.add(tx, "refused", refusal.count)
    audit.append(tx, audit.Fact(refusal.requester, "refuse", refusal.code, detail))
    outbox.add(tx, events)
