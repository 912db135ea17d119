"""The label of a unit in its ledger: written down when it was printed, before it is scanned.

Rules:
- What a label says belongs to one unit for ever, from the moment it was printed.
- Printed again, it is a row of the chain with who, why and what it said before.
- A label that was scanned back says the same as long as its identity lives; before that, the last one printed counts.
"""

from __future__ import annotations

from devicesim.errors import Conflict
from devicesim.line.ledger import guards
from devicesim.line.ledger.rework import Why
from devicesim.line.ledger.writing import Writing
from devicesim.line.states import ORDER, State

PRINTED = "printed"
REPRINTED = "reprinted"
_ATTACHED = frozenset(ORDER[ORDER.index(State.LABELLED) :])


def printed(writing: Writing, device_id: str, label: str, why: Why | None) -> None:
    """Record that a label was printed; without a reason it is the first one of the unit's identity."""
    unit = writing.unit(device_id)
    if ORDER.index(State.VERIFIED) > _place(unit.state):
        raise Conflict(f"{device_id} has no label: it is {unit.state}", advice=f"run its batch {unit.batch} first")
    if unit.label is not None and why is None:
        raise Conflict(
            f"the label of {device_id} was printed already", advice="print it again with --reprint and a --reason"
        )
    if unit.label is None and why is not None:
        raise Conflict(f"no label of {device_id} was printed yet", advice="print it without --reprint")
    if unit.label not in {None, label} and unit.state in _ATTACHED:
        raise Conflict(
            f"the label of {device_id} was scanned as {unit.label!r} and would now say {label!r}",
            advice="print it with the template it was made with, or re-issue the unit",
        )
    guards.claim(writing, "label", label, device_id)
    writing.conn.execute("UPDATE unit SET label = ? WHERE device_id = ?", (label, device_id))
    was = {"was": unit.label} if unit.label not in {None, label} else {}
    body = why.body(unit) if why else {"device_id": device_id, "generation": unit.generation}
    writing.on_slot_of(unit.attempt_id).tell(REPRINTED if why else PRINTED, {**body, "label": label, **was})


def _place(state: State) -> int:
    return -1 if state is State.SCRAPPED else ORDER.index(state)
