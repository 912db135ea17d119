"""The edges of a unit's way: each of them one transaction, walked once however often it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TypedDict

from devicesim.errors import Conflict, StorageError
from devicesim.line.ledger import guards, pushes
from devicesim.line.ledger.disk import json_text, stamp
from devicesim.line.ledger.pushes import MakePush
from devicesim.line.ledger.rows import UnitRow
from devicesim.line.ledger.writing import Announce, Writing
from devicesim.line.states import Failure, State, Way
from devicesim.mqtt import outbox

TEXT_MAX = 500


class Learned(TypedDict, total=False):
    """What is learned about a unit on an edge."""

    spki_sha256: str
    csr: bytes
    certificate: bytes
    cert_serial: str
    label: str


@dataclass(frozen=True, slots=True)
class BirthFacts:
    """What a device's birth is told under: fixed at the first try, but for the number of the session."""

    id: str
    time: datetime
    sequence: int
    session: int


def begin(writing: Writing, device_id: str, attempt_id: str) -> None:
    """Begin an attempt at a unit on the writer's slot, or go on with the one that a crash left open."""
    unit, conn, by = writing.unit(device_id), writing.conn, writing.by
    if unit.state is State.SCRAPPED:
        raise Conflict(f"{device_id} was scrapped", advice="take it off the line: its identity is not used again")
    if unit.attempt_id is not None:
        conn.execute(
            "UPDATE attempt SET slot = ?, shift = ?, operator = ? WHERE id = ?",
            (by.slot, by.shift, by.operator, unit.attempt_id),
        )
        writing.tell("resumed", {"device_id": device_id, "attempt": unit.attempts, "attempt_id": unit.attempt_id})
        return
    number = unit.attempts + 1
    conn.execute(
        "INSERT INTO attempt (id, device_id, number, site, line, station, slot, shift, operator, started_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(attempt_id, device_id, number, by.site, by.line, by.station),
            *(by.slot, by.shift, by.operator, stamp(writing.at)),
        ),
    )
    conn.execute(
        "UPDATE unit SET attempts = ?, attempt_id = ?, failure_code = NULL, failure_text = NULL WHERE device_id = ?",
        (number, attempt_id, device_id),
    )
    writing.tell("attempt", {"device_id": device_id, "attempt": number, "attempt_id": attempt_id})


def advance(writing: Writing, way: Way, device_id: str, to: State, took_ms: float, learned: Learned) -> None:
    """Move a unit along one edge, keeping what was learned on it; walked already, it changes nothing."""
    unit = writing.unit(device_id)
    if unit.state == to:
        return
    writing = _step(writing, way, unit, to, took_ms)
    values: dict[str, str | bytes] = {name: value for name, value in learned.items() if isinstance(value, str | bytes)}
    for kind in guards.LEARNED:
        if kind in values:
            guards.claim(writing, kind, str(values[kind]), device_id)
    _refuse_an_old_key(writing, device_id, learned)
    if values:
        columns = ", ".join(f"{name} = ?" for name in values)
        writing.conn.execute(f"UPDATE unit SET {columns} WHERE device_id = ?", (*values.values(), device_id))  # noqa: S608 - our names
    writing.tell(to, {"device_id": device_id, **told(values)})


def record(
    writing: Writing,
    way: Way,
    device_id: str,
    took_ms: float,
    announce: Announce | None,
    birth: bool,
    push: MakePush | None,
) -> None:
    """PASS: write the unit down as recorded and owe its announcement, and the telling of it to whoever is told."""
    unit = writing.unit(device_id)
    if unit.passed:
        return
    writing = _step(writing, way, unit, State.RECORDED, took_ms)
    end_attempt(writing, unit, "pass", None)
    body = {"device_id": device_id, "attempt": unit.attempts, "generation": unit.generation}
    place = writing.tell(State.RECORDED, body)
    writing.conn.execute(
        "UPDATE unit SET event_id = ?, birth = ?, recorded_seq = ? WHERE device_id = ?",
        (writing.owe(announce, place), "pending" if birth else "none", place.seq, device_id),
    )
    if push is not None:
        pushes.owe(writing, push(place))


def fail(writing: Writing, device_id: str, failure: Failure, step: State, announce: Announce | None) -> None:
    """End a unit's attempt with a failure on its way to `step`; the unit keeps its state."""
    unit = writing.unit(device_id)
    writing = writing.on_slot_of(unit.attempt_id)
    text = failure.text[:TEXT_MAX]
    writing.conn.execute(
        "UPDATE unit SET failure_code = ?, failure_text = ? WHERE device_id = ?", (failure.code, text, device_id)
    )
    end_attempt(writing, unit, "fail", failure.code)
    body = {"device_id": device_id, "code": failure.code, "text": text, "state": unit.state, "step": step}
    writing.owe(announce, writing.tell("failed", {**body, "attempt": unit.attempts}))


def end_attempt(writing: Writing, unit: UnitRow, outcome: str, failure_code: str | None) -> None:
    """Close the attempt that a unit is in, if it is in one."""
    writing.conn.execute(
        "UPDATE attempt SET ended_at = ?, outcome = ?, failure_code = ? WHERE id = ?",
        (stamp(writing.at), outcome, failure_code, unit.attempt_id),
    )
    writing.conn.execute("UPDATE unit SET attempt_id = NULL WHERE device_id = ?", (unit.device_id,))


def birth_event(writing: Writing, device_id: str, event_id: str, source: str) -> BirthFacts:
    """Return id, time and number of a device's birth: the same ones, however often it is tried."""
    conn = writing.conn
    row = conn.execute("SELECT birth_event FROM unit WHERE device_id = ?", (device_id,)).fetchone()
    text = row[0]
    if text is None:
        number = outbox.next_sequence(conn, source)
        text = json_text([event_id, stamp(writing.at.replace(microsecond=0)), number])
        conn.execute("UPDATE unit SET birth_event = ? WHERE device_id = ?", (text, device_id))
    session = outbox.next_sequence(conn, f"{source}#session")
    id_, at, number = json.loads(text)
    return BirthFacts(id_, datetime.fromisoformat(at), number, session)


def mark_birth(writing: Writing, device_id: str) -> None:
    """Record that the device itself has announced its birth."""
    update = "UPDATE unit SET birth = 'done' WHERE device_id = ? AND birth = 'pending'"
    if writing.conn.execute(update, (device_id,)).rowcount:
        writing.tell("birth", {"device_id": device_id})


def settle_announced(writing: Writing) -> list[str]:
    """Move every recorded unit whose announcement the broker has confirmed to `announced`."""
    rows = writing.conn.execute(
        "SELECT u.device_id FROM unit u JOIN outbox o ON o.id = u.event_id"
        " WHERE u.state = 'recorded' AND o.done_at IS NOT NULL ORDER BY o.seq"
    ).fetchall()
    for (device_id,) in rows:
        writing.conn.execute("UPDATE unit SET state = ? WHERE device_id = ?", (State.ANNOUNCED, device_id))
        writing.tell(State.ANNOUNCED, {"device_id": device_id})
    return [row[0] for row in rows]


def told(values: Mapping[str, str | bytes | None]) -> dict[str, str]:
    """Return what the chain says of what was learned: octets by their hash."""
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    octets = {name: value for name, value in values.items() if isinstance(value, bytes)}
    return texts | {f"{name}_sha256": sha256(value).hexdigest() for name, value in octets.items()}


def _step(writing: Writing, way: Way, unit: UnitRow, to: State, took_ms: float) -> Writing:
    if unit.state is State.SCRAPPED or way.after(unit.state) != to:
        raise StorageError(f"{unit.device_id} cannot go from {unit.state} to {to}", advice="report this as a bug")
    writing.conn.execute("UPDATE unit SET state = ? WHERE device_id = ?", (to, unit.device_id))
    writing.conn.execute(
        "UPDATE attempt SET timing_ms = json_set(timing_ms, '$.' || ?, round(?, 3)) WHERE id = ?",
        (to, took_ms, unit.attempt_id),
    )
    return writing.on_slot_of(unit.attempt_id)


def _refuse_an_old_key(writing: Writing, device_id: str, learned: Learned) -> None:
    """Hold a re-issued unit to making a new key: the one it had stays taken, for itself too."""
    found = writing.conn.execute(
        "SELECT generation FROM superseded WHERE device_id = ? AND spki_sha256 = ?",
        (device_id, learned.get("spki_sha256")),
    ).fetchone()
    if found is not None:
        raise Conflict(
            f"{device_id} offers the key of its generation {found[0]} again", advice="have the device make a new key"
        )
