"""Killed at every transition: run again, and every unit has one identity, every event one id, nothing is lost."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from devicesim.line.assembly import place
from devicesim.line.audit import audit
from devicesim.line.ledger import Ledger, Why
from devicesim.line.reasons import Reason
from devicesim.line.statements import sealing
from devicesim.line.states import PASSED, State
from devicesim.mqtt import outbox
from devicesim.mqtt.topics import EventType
from devicesim.transport import ClientIdentity
from tests.line_support import PaperLine, Watching

WRITES = ("open_batch", "begin_attempt", "advance", "record")
AGAIN = ("reissue", *WRITES)
UNITS = 2
FIRST_UNIT = 1 + 7
"""The batch taken in, then for a unit its attempt, five states and PASS."""
LAST = FIRST_UNIT + 7 * (UNITS - 1)


class Killed(BaseException):
    """The process is gone: no handler of the line's may tell it from SIGKILL."""


def dying(at: int, *, after: bool, writes_at: tuple[str, ...] = WRITES) -> type[Ledger]:
    """A ledger whose process dies at its n-th write: just before it is durable, or just after."""
    writes = Counter[str]()

    class Dying(Ledger):
        pass

    def wrap(name: str) -> Any:
        def write(self: Ledger, *args: Any, **kwargs: Any) -> Any:
            writes["all"] += 1
            if writes["all"] == at and not after:
                raise Killed
            result = getattr(Ledger, name)(self, *args, **kwargs)
            if writes["all"] == at:
                raise Killed
            return result

        return write

    for name in writes_at:
        setattr(Dying, name, wrap(name))
    return Dying


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, FIRST_UNIT + 1))
def test_killed_at_any_transition(tmp_path, now, at, after):
    paper = PaperLine(tmp_path, now)
    batch = paper.batch(UNITS)
    with pytest.raises(Killed), paper.session(dying(at, after=after)) as (line, _):
        line.run(batch, slots=1, progress=Watching())

    watching, stopped = paper.run(batch)

    assert stopped is None
    assert all(outcome == "pass" for _, outcome in watching.ends)
    with paper.session() as (_, ledger):
        rows = ledger.units(batch.id)
        assert all(row.state in PASSED for row in rows)
        assert [row.attempts for row in rows] == [1] * UNITS
        assert {row.certificate for row in rows} == {
            certificate.public_bytes(encoding()) for certificate in paper.est.issued.values()
        }
        ledger.verify_chain()
    assert {name: len(keys) for name, keys in paper.est.holders.items()} == {row.device_id: 1 for row in rows}
    with closing(sqlite3.connect(paper.settings.ledger.path)) as conn:
        events = [json.loads(row.payload) for row in outbox.pending(conn, 100)]
    assert [event["type"] for event in events] == [EventType.PROVISIONED] * UNITS
    assert {event["id"] for event in events} == {row.event_id for row in rows}
    assert [event["sequence"] for event in events] == [f"{number:020d}" for number in range(1, UNITS + 1)]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 1 + FIRST_UNIT + 1))
def test_killed_at_any_transition_of_a_reissue(tmp_path, now, at, after):
    """The re-issue, the batch found again, an attempt, five states, PASS: each identity once, the old one kept."""
    paper = PaperLine(tmp_path, now)
    batch = paper.batch(1)
    paper.run(batch)
    why = Why(Reason.COMPONENT_REPLACED)

    def work(ledger_type: type[Ledger]) -> None:
        with paper.session(ledger_type) as (line, ledger):
            if ledger.unit("sn-0001").generation == 1:
                ledger.reissue("sn-0001", why, old="revoke")
            line.run(batch, slots=1, progress=Watching())

    with pytest.raises(Killed):
        work(dying(at, after=after, writes_at=AGAIN))
    work(Ledger)

    with paper.session() as (_, ledger):
        row, (old,) = ledger.unit("sn-0001"), ledger.superseded("sn-0001")
        assert (row.state, row.generation, old.generation) == (State.RECORDED, 2, 1)
        assert {row.certificate, old.certificate} == {
            certificate.public_bytes(encoding()) for certificate in paper.est.issued.values()
        }
        assert len(ledger.revocations_owed()) == 1
        ledger.verify_chain()
    with closing(sqlite3.connect(paper.settings.ledger.path)) as conn:
        events = [json.loads(row.payload) for row in outbox.pending(conn, 100)]
    assert [event["type"] for event in events] == [EventType.PROVISIONED, EventType.REPROVISIONED]
    assert [event["id"] for event in events] == [old.event_id, row.event_id]


@pytest.mark.parametrize("at", range(1, FIRST_UNIT + 1))
def test_killed_while_a_checkpoint_is_signed(tmp_path, now, at):
    """It is signed last before the commit: what it was signed for is not there either, and is done again."""
    paper = PaperLine(tmp_path, now)
    batch = paper.batch(1)
    seal = sealing(ClientIdentity((paper.station.certificate,), paper.station.key), place(paper.settings))
    left = [at]

    def dies(*statement: Any) -> bytes:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return seal(*statement)

    def every_event(path: Path, *, clock: Any) -> Ledger:
        ledger = Ledger(path, clock=clock, checkpoint_every=1)
        ledger.seal = dies
        return ledger

    with pytest.raises(Killed), paper.session(every_event) as (line, _):
        line.run(batch, slots=1, progress=Watching())
    with paper.session(every_event) as (line, ledger):
        line.run(batch, slots=1, progress=Watching())
        found = audit(ledger, paper.pki.trust)
        assert found.signed_up_to == found.head.seq
        assert ledger.unit("sn-0001").state is State.RECORDED
    assert len(paper.est.holders["sn-0001"]) == 1


def test_the_table_of_transitions_is_complete(tmp_path, now):
    """One write later than the last one there is: nothing dies."""
    paper = PaperLine(tmp_path, now)
    with paper.session(dying(LAST + 1, after=False)) as (line, _):
        assert line.run(paper.batch(UNITS), slots=1, progress=Watching()) is None


def encoding() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.DER
