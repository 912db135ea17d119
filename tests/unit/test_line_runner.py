"""A batch on the line: pass, fail, lost answers, duplicates, a clock that is wrong, a server that is away."""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest

from devicesim.csr import CsrDraft
from devicesim.device import Device
from devicesim.errors import ClockUntrustworthy, Conflict, StorageError, Unreachable
from devicesim.keystore import FileKeyStore
from devicesim.line.batch import ByIdevid, ByOneTimePassword
from devicesim.line.ledger import Ledger
from devicesim.line.standing import exit_code, make_report, write_report
from devicesim.line.states import FailureCode, State
from devicesim.line.terminal import report_text
from devicesim.mqtt import outbox
from devicesim.mqtt.events import verify_event
from devicesim.mqtt.topics import EventType, parse_topic
from devicesim.mqtt.verdict import problems
from tests.line_support import PaperLine, Watching, der


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


def announcements(paper: PaperLine) -> list[outbox.OutboxRow]:
    with closing(sqlite3.connect(paper.settings.ledger.path)) as conn:
        return outbox.pending(conn, 1000)


@pytest.mark.parametrize("slots", [1, 3])
def test_every_unit_gets_one_identity_of_its_own_key(paper, slots):
    batch = paper.batch(5)
    watching, stopped = paper.run(batch, slots=slots)
    assert stopped is None
    assert sorted(watching.ends) == [(unit.device_id, "pass") for unit in batch.units]
    assert {len(keys) for keys in paper.est.holders.values()} == {1}
    with paper.session() as (_, ledger):
        for row in ledger.units(batch.id):
            assert row.state is State.RECORDED
            store = FileKeyStore(paper.settings.key.devices / row.device_id)
            held = Device(row.device_id, store=store, clock=paper.clock).identity
            assert held is not None
            assert der(held.certificate) == row.certificate
        ledger.verify_chain()


def test_what_the_station_announces_is_signed_and_true(paper, now):
    paper.run(paper.batch(2))
    rows = announcements(paper)
    assert len(rows) == 2
    for row in rows:
        verified = verify_event(row.payload, trust=paper.pki.trust, now=now)
        assert problems(verified, parse_topic(row.topic), announcer="estserver", now=now) == ()
        event = verified.event
        assert event.type == EventType.PROVISIONED
        assert event.data["key"]["alg"] == "EC-P256"
        assert event.data["cert"]["serial"] in {
            f"{certificate.serial_number:x}" for certificate in paper.est.issued.values()
        }
        assert b"PRIVATE" not in row.payload
    with paper.session() as (_, ledger):
        heads = {row.event_id for row in ledger.units("b1")}
    assert heads == {row.id for row in rows}


def test_run_again_provisions_nothing_twice(paper):
    batch = paper.batch(3)
    paper.run(batch)
    asked = len(paper.est.asked)
    watching, stopped = paper.run(batch)
    assert (watching.to_do, watching.ends, stopped) == (0, [], None)
    assert len(paper.est.asked) == asked
    assert len(announcements(paper)) == 3


def test_a_lost_answer_is_asked_for_again_with_the_same_request(paper):
    paper.est.faults = deque(["lost"])
    watching, _ = paper.run(paper.batch(1))
    assert watching.ends == [("sn-0001", "pass")]
    (_, _, first), (_, _, second) = paper.est.asked
    assert first == second
    assert len(paper.est.issued) == 1
    assert len(paper.waits) == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [("refused", "E-EST-DENY"), ("other-name", "E-CERT"), ("expired", "E-CERT")],
)
def test_a_unit_that_fails_leaves_the_line_going_and_is_tried_again(paper, fault, code):
    batch = paper.batch(3)
    paper.est.faults = deque(["", fault])
    watching, stopped = paper.run(batch)
    assert stopped is None
    assert watching.ends == [("sn-0001", "pass"), ("sn-0002", code), ("sn-0003", "pass")]
    with paper.session() as (_, ledger):
        report = make_report(ledger, batch.id, now=paper.at)
        assert ledger.unit("sn-0002").state is State.DRAFTED
    assert exit_code(report, stopped) == 4
    assert report.failures == {code: 1}
    assert f"fail {code}" in report_text(report)

    watching, _ = paper.run(batch)
    assert watching.ends == [("sn-0002", "pass")]
    with paper.session() as (_, ledger):
        made = make_report(ledger, batch.id, now=paper.at).result
    assert (made.planned, made.first_pass, made.passed, made.failed) == (3, 2, 3, 0)
    kinds = [json.loads(row.payload)["type"] for row in announcements(paper)]
    assert kinds.count(EventType.FAILED) == 1
    assert kinds.count(EventType.PROVISIONED) == 3


def test_a_server_that_is_away_stops_the_line_and_loses_nothing(paper):
    batch = paper.batch(5)
    paper.est.faults = deque(["down"] * 6)
    watching, stopped = paper.run(batch)
    assert stopped is not None
    assert stopped.code is FailureCode.EST_NET
    assert watching.ends == [("sn-0001", "E-EST-NET"), ("sn-0002", "E-EST-NET")]
    with paper.session() as (_, ledger):
        report = make_report(ledger, batch.id, now=paper.at)
    assert exit_code(report, stopped) == 6
    assert report.result.waiting == 3
    watching, stopped = paper.run(batch)
    assert stopped is None
    assert len(watching.ends) == 5
    assert {len(keys) for keys in paper.est.holders.values()} == {1}


def test_units_ask_for_themselves_when_the_batch_says_so(paper):
    more = (
        '[unit."sn-0001"]\nenrol = "otp"\npassword_file = "p"\n[unit."sn-0002"]\nenrol = "idevid"\ncert="c"\nkey="k"\n'
    )
    paper.run(paper.batch(3, more=more))
    (_, otp, one), (_, idevid, two), (_, _, three) = paper.est.asked
    assert isinstance(otp, ByOneTimePassword)
    assert otp.user == "sn-0001"
    assert isinstance(idevid, ByIdevid)
    assert isinstance(one, CsrDraft)
    assert isinstance(two, CsrDraft)
    assert isinstance(three, bytes)


def test_the_same_key_on_two_devices_is_found(paper):
    batch = paper.batch(2)
    for device in ("sn-0001", "sn-0002"):
        store = FileKeyStore(paper.settings.key.devices / device)
        Device(device, store=store, clock=paper.clock).draft()
    first = paper.settings.key.devices / "sn-0001" / "pending.pem"
    (paper.settings.key.devices / "sn-0002" / "pending.pem").write_bytes(first.read_bytes())
    watching, _ = paper.run(batch)
    assert watching.ends == [("sn-0001", "pass"), ("sn-0002", "E-DUP")]
    assert set(paper.est.holders) == {"sn-0001"}


def test_a_key_exchanged_behind_the_lines_back_is_found(paper):
    batch = paper.batch(1)
    paper.est.faults = deque(["refused"])
    paper.run(batch)
    (paper.settings.key.devices / "sn-0001" / "pending.pem").unlink()
    watching, _ = paper.run(batch)
    assert watching.ends == [("sn-0001", "E-INSTALL")]
    with paper.session() as (_, ledger):
        assert not ledger.unit("sn-0001").passed


def test_a_second_batch_with_an_old_unit_is_refused_whole(paper):
    paper.run(paper.batch(3))
    with pytest.raises(Conflict, match="sn-0003"):
        paper.run(paper.batch(3, batch_id="b2", first=3))
    assert set(paper.est.holders) == {"sn-0001", "sn-0002", "sn-0003"}


@pytest.mark.parametrize(
    ("clock", "server", "says"),
    [
        (timedelta(days=-400), None, "before 2026-11-01"),
        (timedelta(0), timedelta(minutes=6), "away from the EST server's"),
        (timedelta(0), timedelta(minutes=-6), "away from the EST server's"),
    ],
)
def test_a_clock_that_cannot_be_right_stops_the_line(paper, clock, server, says):
    paper.at += clock
    paper.server_at = None if server is None else paper.at + server
    with pytest.raises(ClockUntrustworthy, match=says):
        paper.run(paper.batch(2))
    assert paper.est.asked == []


def test_a_clock_near_the_servers_is_good_enough(paper):
    paper.server_at = paper.at + timedelta(minutes=4)
    watching, _ = paper.run(paper.batch(1))
    assert watching.ends == [("sn-0001", "pass")]


def test_the_report_file_is_private_and_whole(paper, tmp_path):
    batch = paper.batch(2)
    paper.run(batch)
    with paper.session() as (_, ledger):
        report = make_report(ledger, batch.id, now=paper.at)
    path = tmp_path / "out" / "b1" / "report.json"
    write_report(report, path)
    write_report(report, path)
    assert path.stat().st_mode & 0o777 == 0o600
    read = json.loads(path.read_text())
    counts = {"planned": 2, "attempted": 2, "first_pass": 2, "passed": 2, "failed": 0, "scrapped": 0, "waiting": 0}
    assert read["yield"] == counts
    assert read["steps_ms"]["enrolled"]["count"] == 2
    assert read["announcements_owed"] == 2
    assert exit_code(report, None) == 9


def test_a_full_disk_stops_the_line_and_loses_nothing(paper):
    class Full(Ledger):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            pages = self._conn.execute("PRAGMA page_count").fetchone()[0]
            self._conn.execute(f"PRAGMA max_page_count = {pages + 2}")

    batch = paper.batch(8)
    with paper.session() as (line, ledger):
        ledger.open_batch(batch)
    with pytest.raises(StorageError) as caught, paper.session(Full) as (line, _):
        line.run(batch, slots=2, progress=Watching())
    assert caught.value.exit_code == 12
    watching, _ = paper.run(batch)
    assert {outcome for _, outcome in watching.ends} == {"pass"}
    assert {len(keys) for keys in paper.est.holders.values()} == {1}
    assert len(announcements(paper)) == 8


def test_a_server_that_is_away_from_the_start_leaves_every_unit_waiting(paper):
    def away() -> None:
        raise Unreachable("nobody answers")

    batch = paper.batch(2)
    with paper.session() as (line, ledger):
        stopped = replace(line, server_time=away).run(batch, slots=1, progress=Watching())
        assert stopped is not None
        assert stopped.code is FailureCode.EST_NET
        assert [row.attempts for row in ledger.units(batch.id)] == [0, 0]


def test_a_unit_under_way_is_left_between_two_steps(paper):
    batch = paper.batch(2)
    with paper.session() as (line, ledger):
        take = paper.est.take

        def take_and_stop(*args):
            line.stop.set()
            return take(*args)

        paper.est.take = take_and_stop
        assert line.run(batch, slots=1, progress=Watching()) is None
        assert [row.state for row in ledger.units(batch.id)] == [State.ENROLLED, State.PLANNED]
    paper.est.take = take
    watching, _ = paper.run(batch)
    assert watching.ends == [("sn-0001", "pass"), ("sn-0002", "pass")]
    assert len(paper.est.asked) == 2
