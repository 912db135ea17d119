"""A broker that stays away: the line goes on until the spool is full, stops with 9, and has lost nothing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest

from devicesim.errors import Backlog
from devicesim.line.ledger import Ledger, Why
from devicesim.line.reasons import Reason
from devicesim.line.standing import exit_code, make_report
from devicesim.line.states import FailureCode, State
from devicesim.mqtt import outbox
from tests.line_support import PaperLine, Watching


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


def holding(limit: int) -> type[Ledger]:
    class Holding(Ledger):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.spool_max = limit

    return Holding


@pytest.mark.parametrize("slots", [1, 3])
def test_the_line_stops_when_the_spool_is_full(paper, slots):
    batch = paper.batch(6)
    watching = Watching()
    with paper.session(holding(2)) as (line, ledger):
        stopped = line.run(batch, slots=slots, progress=watching)
        assert stopped is not None
        assert stopped.code is FailureCode.MQTT
        assert "spool_max" in stopped.text
        assert ledger.owed() == 2
        assert sum(row.passed for row in ledger.units(batch.id)) == 2
        assert exit_code(make_report(ledger, batch.id, now=paper.at), stopped) == 9
    if slots == 1:
        assert set(paper.est.holders) == {"sn-0001", "sn-0002"}  # no certificate for a unit that could not pass

    with closing(sqlite3.connect(paper.settings.ledger.path)) as conn:
        outbox.mark_done(conn, [row.id for row in outbox.pending(conn, 10)], paper.at)
        conn.commit()
    watching, stopped = paper.run(batch)
    assert stopped is None
    with paper.session() as (_, ledger):
        assert all(row.passed for row in ledger.units(batch.id))
        assert [row.attempts for row in ledger.units(batch.id)] == [1] * 6
        assert ledger.owed() == 4


def test_nothing_passes_without_its_announcement(paper):
    """The check is in the transaction of the PASS, so that slots cannot overtake it."""
    batch = paper.batch(1)
    with paper.session(holding(1)) as (line, ledger):
        ledger.open_batch(batch)
        with ledger.spool() as conn:
            outbox.add(conn, id="old", topic="t", payload=b"{}", retain=False, at=paper.at)
            conn.commit()
        with pytest.raises(Backlog):
            ledger.check_spool()
        ledger.spool_max = None
        ledger.begin_attempt("sn-0001", attempt_id="a", slot=1)
        for state in (State.KEYED, State.DRAFTED, State.ENROLLED, State.INSTALLED, State.VERIFIED):
            ledger.advance("sn-0001", state)
        ledger.spool_max = 1
        assert line.voice is not None
        row = ledger.unit("sn-0001")
        announce = line.voice.scrapped(row, Why(Reason.LOST))
        with pytest.raises(Backlog):
            ledger.record("sn-0001", took_ms=1, announce=announce, birth=False)
        assert ledger.unit("sn-0001").state is State.VERIFIED


def test_dead_letters_are_kept_shown_and_offered_again(tmp_path, now):
    with closing(sqlite3.connect(tmp_path / "line.db")) as conn:
        conn.executescript(outbox.SCHEMA)
        for id_ in ("a", "b"):
            outbox.add(conn, id=id_, topic="t", payload=json.dumps(id_).encode(), retain=False, at=now)
        for _ in range(outbox.DEAD_AFTER):
            assert [row.id for row in outbox.pending(conn, 10, at=now)] == ["a", "b"]
            outbox.mark_failed(conn, "a", "not authorised", now)
        assert [row.id for row in outbox.pending(conn, 10, at=now + timedelta(days=300))] == ["b"]
        assert outbox.pending_count(conn) == 2
        assert [(row.id, row.reason) for row in outbox.dead(conn, 10)] == [("a", "not authorised")]
        assert outbox.dead_count(conn) == 1
        assert outbox.owes_as_many_as(conn, 2)
        assert not outbox.owes_as_many_as(conn, 3)
        outbox.mark_failed(conn, "b", "later", now + timedelta(hours=1))
        assert outbox.pending(conn, 10, at=now) == []
        outbox.hasten(conn)
        assert [row.id for row in outbox.pending(conn, 10, at=now)] == ["b"]
        assert outbox.revive(conn, ["a", "zzz"]) == 1
        assert [row.id for row in outbox.pending(conn, 10, at=now)] == ["a", "b"]
        assert outbox.revive(conn) == 0
