"""Rework: retry, re-issue, scrap; who may, what stays, what is owed, what is announced."""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from contextlib import closing
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest

from devicesim.errors import Conflict
from devicesim.line.crew import Act, Actor, Crew, Duty, OperatorRefused, Role, Shifts
from devicesim.line.ledger import Ledger, Why
from devicesim.line.reasons import Reason
from devicesim.line.states import FailureCode, State
from devicesim.line.trace import make_trace, trace_text
from devicesim.mqtt import outbox
from devicesim.mqtt.events import verify_event
from devicesim.mqtt.topics import EventType, parse_topic
from devicesim.mqtt.verdict import problems
from tests.line_support import PaperLine, Watching

WHY = Why(Reason.COMPONENT_REPLACED, "new board")


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


def events(paper: PaperLine) -> list[dict]:
    with closing(sqlite3.connect(paper.settings.ledger.path)) as conn:
        return [json.loads(row.payload) for row in outbox.pending(conn, 1000)]


def test_a_reissued_unit_gets_a_new_key_and_keeps_its_past(paper, now):
    batch = paper.batch(2)
    paper.run(batch)
    with paper.session() as (_, ledger):
        before = ledger.unit("sn-0001")
        row = ledger.reissue("sn-0001", WHY, old="lapse")
        assert (row.state, row.generation, row.certificate, row.passed) == (State.PLANNED, 2, None, False)
        (old,) = ledger.superseded("sn-0001")
        assert (old.generation, old.certificate, old.reason) == (1, before.certificate, "component-replaced")
        assert old.recorded == before.recorded
        assert ledger.revocations_owed() == []

    watching, _ = paper.run(batch)
    assert watching.ends == [("sn-0001", "pass")]
    with paper.session() as (_, ledger):
        after = ledger.unit("sn-0001")
        assert after.generation == 2
        assert after.spki_sha256 != before.spki_sha256
        assert after.certificate != before.certificate
        guards = ledger.guards()
        assert {("spki_sha256", before.spki_sha256), ("spki_sha256", after.spki_sha256)} <= set(guards)
        ledger.verify_chain()
    assert len(paper.est.holders["sn-0001"]) == 2

    last = events(paper)[-1]
    assert last["type"] == EventType.REPROVISIONED
    assert last["data"]["supersedes"]["generation"] == 1
    assert last["data"]["supersedes"]["cert"]["sha256"] == events(paper)[0]["data"]["cert"]["sha256"]
    with closing(sqlite3.connect(paper.settings.ledger.path)) as conn:
        row = outbox.pending(conn, 1000)[-1]
    verified = verify_event(row.payload, trust=paper.pki.trust, now=now)
    assert problems(verified, parse_topic(row.topic), announcer="estserver", now=now) == ()


def test_a_reissued_unit_may_not_offer_its_old_key(paper):
    batch = paper.batch(1)
    paper.est.faults = deque(["refused"])
    paper.run(batch)
    with paper.session() as (_, ledger):
        old = ledger.reissue("sn-0001", WHY, old="lapse")
        assert old.spki_sha256 is None
        (before,) = ledger.superseded("sn-0001")
        ledger.begin_attempt("sn-0001", attempt_id="A", slot=1)
        with pytest.raises(Conflict, match="generation 1 again"):
            ledger.advance("sn-0001", State.KEYED, spki_sha256=before.spki_sha256)
    watching, _ = paper.run(batch)  # the store still holds the old draft: the line has the device drop it
    assert watching.ends == [("sn-0001", "pass")]
    with paper.session() as (_, ledger):
        assert ledger.unit("sn-0001").spki_sha256 != before.spki_sha256


def test_a_scrapped_unit_is_gone_for_ever(paper):
    batch = paper.batch(2)
    paper.run(batch)
    with paper.session() as (line, ledger):
        assert line.voice is not None
        announce = line.voice.scrapped(ledger.unit("sn-0002"), Why(Reason.DAMAGED))
        row = ledger.scrap("sn-0002", Why(Reason.DAMAGED), old="revoke", announce=announce)
        assert (row.state, row.ended, row.passed) == (State.SCRAPPED, True, False)
        for act in (
            lambda: ledger.retry("sn-0002", WHY),
            lambda: ledger.reissue("sn-0002", WHY, old="lapse"),
            lambda: ledger.scrap("sn-0002", WHY, old="lapse", announce=None),
            lambda: ledger.begin_attempt("sn-0002", attempt_id="x", slot=1),
        ):
            with pytest.raises(Conflict, match="was scrapped"):
                act()
    watching, _ = paper.run(batch)
    assert watching.to_do == 0
    with pytest.raises(Conflict, match="device_id sn-0002"):
        paper.run(paper.batch(1, batch_id="b2", first=2))
    last = events(paper)[-1]
    assert (last["type"], last["data"]["reason"]) == (EventType.SCRAPPED, "damaged")


def test_a_revocation_is_owed_until_it_is_confirmed_once(paper):
    paper.run(paper.batch(1))
    with paper.session() as (_, ledger):
        serial = ledger.unit("sn-0001").cert_serial
        ledger.reissue("sn-0001", Why(Reason.KEY_COMPROMISED), old="revoke")
        (owed,) = ledger.revocations_owed()
        assert (owed.generation, owed.cert_serial, owed.reason) == (1, serial, "keyCompromise")
        assert "revoke the certificate of generation 1" in make_trace(ledger, "sn-0001").advice
        assert ledger.confirm_revoked("sn-0001") == 1
        assert ledger.confirm_revoked("sn-0001") == 0
        assert ledger.revocations_owed() == []
        assert [event.kind for event in ledger.story("sn-0001")].count("revoked") == 1


def test_a_certificate_whose_answer_was_lost_is_accounted_for(paper):
    paper.est.faults = deque(["lost"] * 6)
    paper.run(paper.batch(1))
    with paper.session() as (_, ledger):
        spki = ledger.unit("sn-0001").spki_sha256
        ledger.scrap("sn-0001", Why(Reason.LOST), old="revoke", announce=None)
        (owed,) = ledger.revocations_owed()
        assert (owed.spki_sha256, owed.cert_serial) == (spki, None)


def test_a_retry_answers_a_failure_and_nothing_else(paper):
    batch = paper.batch(2)
    paper.est.faults = deque(["refused"])
    paper.run(batch)
    with paper.session() as (_, ledger):
        assert ledger.retry("sn-0001", Why(Reason.NETWORK_FAULT)).failure is None
        for unit in ("sn-0001", "sn-0002"):
            with pytest.raises(Conflict, match="has not failed"):
                ledger.retry(unit, WHY)
    watching, _ = paper.run(batch)
    assert watching.ends == [("sn-0001", "pass")]


def test_a_unit_on_the_line_is_left_alone_and_one_of_a_crash_is_not(paper):
    with paper.session() as (_, ledger):
        ledger.open_batch(paper.batch(1))
        ledger.begin_attempt("sn-0001", attempt_id="A", slot=1)
        with ledger.exclusive(), pytest.raises(Conflict, match="on the line now"):
            ledger.scrap("sn-0001", WHY, old="lapse", announce=None)
        ledger.scrap("sn-0001", WHY, old="lapse", announce=None)
        assert [attempt.outcome for attempt in ledger.attempts("b1")] == ["aborted"]


def test_everything_says_who_where_and_in_which_shift(paper):
    batch = paper.batch(1)
    paper.est.faults = deque(["refused"])
    shifts = Shifts(((time(6), "early"), (time(14), "late")), UTC)
    with paper.session() as (line, ledger):
        ledger.duty = Duty("op-113", shifts=shifts)
        line.run(batch, slots=1, progress=Watching())
        story = ledger.story("sn-0001")
        assert {event.by for event in story} == {Actor("s-07", "hh1", "l2", "early", "op-113", slot=1)}
        (attempt,) = ledger.attempts("b1")
        assert (attempt.operator, attempt.shift, attempt.slot) == ("op-113", "early", 1)
        text = trace_text(make_trace(ledger, "sn-0001"))
    assert "E-EST-DENY" in text
    assert "step=enrolled" in text
    assert "operator=op-113" in text
    assert f"next: {FailureCode.EST_DENY.advice}" in text
    failed = events(paper)[-1]
    assert (failed["data"]["operator"], failed["data"]["shift"], failed["data"]["slot"]) == ("op-113", "early", 1)


@pytest.mark.parametrize(
    ("at", "shift"),
    [
        ("2027-03-28T00:59", "night"),
        ("2027-03-28T04:00", "early"),
        ("2027-03-27T05:30", "early"),
        ("2027-07-01T20:00", "night"),
    ],
)
def test_shifts_go_by_the_clock_on_the_wall(at, shift):
    zone = ZoneInfo("Europe/Berlin")
    begins = ((time(6), "early"), (time(14), "late"), (time(22), "night"))
    assert Shifts(begins, zone).at(datetime.fromisoformat(at).replace(tzinfo=UTC)) == shift
    assert Shifts().at(datetime.fromisoformat(at).replace(tzinfo=UTC)) == ""


CREW = Crew(
    {
        "op-1": frozenset({Role.OPERATE, Role.REWORK}),
        "op-2": frozenset({Role.APPROVE}),
        "op-3": frozenset({Role.OPERATE}),
    }
)


@pytest.mark.parametrize("act", [Act.SCRAP, Act.REISSUE, Act.INJECT])
def test_four_eyes(act):
    CREW.admit(act, "op-1", "op-2")
    for first, second in (
        ("op-1", ""),
        ("op-1", "op-1"),
        ("op-3", "op-2"),
        ("op-1", "op-3"),
        ("", "op-2"),
        ("op-9", "op-2"),
    ):
        with pytest.raises(OperatorRefused) as caught:
            CREW.admit(act, first, second)
        assert caught.value.exit_code == FailureCode.OPERATOR.exit_code
    with pytest.raises(OperatorRefused, match="no \\[operators\\]"):
        Crew().admit(act, "op-1", "op-2")


def test_who_is_listed_may_run_and_nobody_else():
    CREW.admit(Act.RUN, "op-3")
    Crew().admit(Act.RUN, "")
    for badge in ("", "op-2", "op-9"):
        with pytest.raises(OperatorRefused):
            CREW.admit(Act.RUN, badge)


def test_every_failure_has_an_exit_code_and_advice():
    assert {code.value for code in FailureCode} == {
        *("E-SCAN", "E-DUP", "E-POLICY", "E-KEY", "E-CSR", "E-CLOCK", "E-EST-NET", "E-EST-AUTH", "E-EST-DENY"),
        *("E-CERT", "E-INSTALL", "E-VERIFY", "E-LABEL", "E-MQTT", "E-DISK", "E-OPERATOR"),
    }
    assert all(code.exit_code and code.advice for code in FailureCode)
    assert all(reason.text for reason in Reason)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("act", ["retry", "reissue", "scrap", "confirm_revoked"])
def test_killed_at_a_rework(paper, act, after):
    """It happened, whole, or it did not; done again it is done once."""

    class Killed(BaseException):
        pass

    def die(*_: object) -> bytes:
        raise Killed

    batch = paper.batch(1)
    paper.est.faults = deque(["refused"] if act == "retry" else [])
    paper.run(batch)
    acts = {
        "retry": lambda ledger: ledger.retry("sn-0001", WHY),
        "reissue": lambda ledger: ledger.reissue("sn-0001", WHY, old="revoke"),
        "scrap": lambda ledger: ledger.scrap("sn-0001", WHY, old="revoke", announce=None),
        "confirm_revoked": lambda ledger: ledger.confirm_revoked("sn-0001"),
    }
    with paper.session() as (_, ledger):
        if act == "confirm_revoked":
            ledger.reissue("sn-0001", WHY, old="revoke")
        before = ledger.verify_chain()

    with paper.session(lambda path, *, clock: Ledger(path, clock=clock, checkpoint_every=1)) as (_, ledger):
        if after:
            acts[act](ledger)
        else:
            ledger.seal = die  # called last before the commit
            with pytest.raises(Killed):
                acts[act](ledger)
    with paper.session() as (_, ledger):
        place = ledger.verify_chain()
        assert (place == before) is not after
        if not after:
            acts[act](ledger)
            place = ledger.verify_chain()
        assert place.seq == before.seq + 1
        assert len(ledger.superseded("sn-0001")) == (0 if act == "retry" else 1)
        assert len(ledger.revocations_owed()) == (1 if act in {"reissue", "scrap"} else 0)
