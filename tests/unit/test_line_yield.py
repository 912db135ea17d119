"""The yield, against a ledger whose figures were worked out by hand."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest

from devicesim.cli import run
from devicesim.cli.line_report import moment
from devicesim.errors import UsageProblem, VerificationFailed
from devicesim.line.ledger import Why
from devicesim.line.reasons import Reason
from devicesim.line.report.sheet import HEADER, yield_csv
from devicesim.line.report.text import percent, seconds, yield_text
from devicesim.line.report.times import AtWork, hour_of, shift_of, spread, times_of
from devicesim.line.states import FailureCode, State
from tests.yield_support import SHIFTS, TOOK, HandLedger, local

SLOW = {**TOOK, State.ENROLLED: 150.0}


@pytest.fixture
def hand(tmp_path) -> HandLedger:
    return HandLedger(tmp_path, local("2026-11-24T13:00"))


def shift_of_ten(hand: HandLedger) -> None:
    """Eight of ten units tried: 1 to 4 pass, 5 fails and passes, 6 fails, 7 is scrapped, 8 is under way.

    An attempt that passes takes 100 ms, a slow one 200 ms; one that fails at enrolment 120 ms.
    """
    hand.plan("b1", 10)
    for device in ("sn-0001", "sn-0002", "sn-0003"):
        hand.passes(device, at=local("2026-11-24T13:10"))
    hand.passes("sn-0004", slot=2, took=SLOW, at=local("2026-11-24T13:50"))
    hand.fails("sn-0005", FailureCode.EST_DENY, State.ENROLLED, slot=2, at=local("2026-11-24T13:55"))
    hand.on_duty("op-2")
    hand.passes("sn-0005", slot=2, at=local("2026-11-24T14:05"))
    hand.fails("sn-0006", FailureCode.EST_DENY, State.ENROLLED, at=local("2026-11-24T14:06"))
    hand.fails("sn-0007", FailureCode.VERIFY, State.VERIFIED, at=local("2026-11-24T14:10"))
    hand.scrap("sn-0007")
    hand.begin("sn-0008", at=local("2026-11-24T14:12"))


def test_the_whole_is_counted_as_by_hand(hand):
    shift_of_ten(hand)
    report = hand.count("b1")
    total = report.total
    assert (report.planned, total.units, total.attempts) == (10, 8, 9)
    assert (total.passes, total.failures, total.aborted) == (5, 3, 0)
    assert (total.first_tried, total.first_pass, total.first_pass_yield) == (7, 4, round(4 / 7, 4))
    assert (total.passed, total.failed, total.scrapped, total.waiting) == (5, 1, 1, 3)
    assert total.final_yield == round(5 / 7, 4)
    assert (total.reworked, total.rework_rate) == (1, 1 / 8)
    # 100, 100, 100, 200 and, of the unit that failed first, 120 and then the steps that were left: 50 10 10 10
    assert total.cycle_ms is not None
    cycle = total.cycle_ms
    assert (cycle.count, cycle.mean_ms, cycle.p50_ms, cycle.p95_ms, cycle.max_ms) == (5, 140, 100, 200, 200)
    assert total.steps_ms["enrolled"].count == 6
    assert total.steps_ms["enrolled"].mean_ms == round((4 * 50 + 150 + 50) / 6, 1)
    # enrolled 400 of: keyed 70, drafted 70, enrolled 400, installed 60, verified 50, recorded 50
    assert total.est_share == round(400 / 700, 4)


def test_the_pareto_names_the_step_and_adds_up(hand):
    shift_of_ten(hand)
    report = hand.count("b1")
    found = [(fault.code, fault.step, fault.attempts, fault.units, fault.upto) for fault in report.failures]
    assert found == [("E-EST-DENY", "enrolled", 2, 2, 0.6667), ("E-VERIFY", "verified", 1, 1, 1.0)]
    assert report.failures[0].advice == FailureCode.EST_DENY.advice


def test_parts_belong_to_who_made_them_and_add_up_to_the_whole(hand):
    shift_of_ten(hand)
    report = hand.count("b1")
    one, two = report.by["operator"]["op-1"], report.by["operator"]["op-2"]
    assert (one.attempts, one.first_tried, one.first_pass, one.passed, one.reworked) == (5, 5, 4, 4, 0)
    assert (two.attempts, two.first_tried, two.first_pass, two.passed, two.reworked) == (4, 2, 0, 1, 1)
    assert (two.failed, two.scrapped, two.waiting, two.final_yield) == (1, 1, 1, 0.3333)
    assert [*report.by["shift"]] == ["2026-11-24 early", "2026-11-24 late"]
    assert [*report.by["hour"]] == ["2026-11-24 13:00+01:00", "2026-11-24 14:00+01:00"]
    assert [*report.by["slot"]] == ["1", "2"]
    assert report.by["slot"]["2"].attempts == 3
    assert {*report.by["station"]} == {"s-07"}
    assert {*report.by["product"]} == {"sensor"}
    for parts in report.by.values():
        for name in ("attempts", "passes", "failures", "first_tried", "first_pass", "passed", "failed", "scrapped"):
            assert sum(getattr(part, name) for part in parts.values()) == getattr(report.total, name)


def test_what_did_not_pass_is_listed_with_what_to_do(hand):
    shift_of_ten(hand)
    six, seven, eight = hand.count("b1").units
    assert (six.device_id, six.outcome, six.code, six.step) == ("sn-0006", "fail", "E-EST-DENY", "enrolled")
    assert (six.reason, six.next, six.operator) == ("E-EST-DENY of sn-0006", FailureCode.EST_DENY.advice, "op-2")
    assert (seven.outcome, seven.reason) == ("scrapped", "damaged")
    assert (eight.outcome, eight.next) == ("waiting", "run batch b1: the unit goes on from planned")


def test_a_unit_reissued_after_its_pass_passed_first_and_is_rework(hand):
    hand.plan("b1", 2)
    hand.passes("sn-0001")
    hand.passes("sn-0002")
    hand.ledger.reissue("sn-0001", Why(Reason.COMPONENT_REPLACED), old="lapse")
    between = hand.count("b1")
    assert (between.total.first_pass, between.total.passed, between.total.waiting) == (2, 1, 1)
    assert (between.total.final_yield, between.total.reworked) == (1.0, 0)

    hand.passes("sn-0001", at=hand.at + timedelta(days=3))
    after = hand.count("b1")
    assert (after.total.first_pass_yield, after.total.final_yield) == (1.0, 1.0)
    assert (after.total.passes, after.total.passed, after.total.rework_rate) == (3, 2, 0.5)
    assert (after.orders.reissue, after.orders.reasons) == (1, {"component-replaced": 1})
    # each PASS is a cycle of its own, and the days between them are none
    assert after.total.cycle_ms is not None
    assert (after.total.cycle_ms.count, after.total.cycle_ms.max_ms) == (3, 100)


def test_a_retry_by_hand_is_counted_and_its_failure_answered(hand):
    hand.plan("b1", 1)
    hand.fails("sn-0001", FailureCode.KEY, State.DRAFTED)
    hand.ledger.retry("sn-0001", Why(Reason.STATION_FAULT))
    report = hand.count("b1")
    assert (report.orders.retry, report.total.failed, report.total.waiting) == (1, 0, 1)
    assert report.total.final_yield is None


def test_an_attempt_that_a_crash_left_open_counts_its_steps_and_goes_to_who_went_on(hand):
    hand.plan("b1", 2)
    hand.begin("sn-0001", at=local("2026-11-24T13:59"))
    hand.walk("sn-0001", upto=State.ENROLLED)
    hand.on_duty("op-2")
    hand.begin("sn-0001", at=local("2026-11-25T07:00"))  # the power came back
    hand.walk("sn-0001")
    hand.ends("sn-0001")
    hand.begin("sn-0002")
    hand.walk("sn-0002", upto=State.KEYED)
    hand.at += timedelta(days=1)
    hand.scrap("sn-0002")
    report = hand.count("b1")
    total = report.total
    assert (total.attempts, total.passes, total.aborted, total.first_tried, total.first_pass) == (2, 1, 1, 2, 1)
    assert total.cycle_ms is not None
    assert total.cycle_ms.max_ms == 100
    assert [*report.by["shift"]] == ["2026-11-25 early"]
    assert [*report.by["hour"]] == ["2026-11-25 07:00+01:00"]
    assert [*report.by["operator"]] == ["op-2"]
    assert (total.scrapped, total.failed, total.reworked) == (1, 0, 0)


def test_a_night_shift_is_one_shift_though_midnight_is_in_it(hand):
    hand.plan("b1", 3)
    for device, at in (
        ("sn-0001", "2026-11-24T22:30"),
        ("sn-0002", "2026-11-25T03:00"),
        ("sn-0003", "2026-11-25T22:00"),
    ):
        hand.passes(device, at=local(at))
    shifts = hand.count("b1").by["shift"]
    assert {name: part.passed for name, part in shifts.items()} == {"2026-11-24 night": 2, "2026-11-25 night": 1}


def test_the_hour_that_the_end_of_summer_time_repeats_is_two_hours(tmp_path):
    hand = HandLedger(tmp_path, datetime(2026, 10, 24, 20, tzinfo=UTC))
    hand.plan("b1", 4)
    for n, at in enumerate(("2026-10-24T23:30", "2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30"), start=1):
        hand.passes(f"sn-000{n}", at=datetime.fromisoformat(f"{at}+00:00"))
    report = hand.count("b1")
    assert [*report.by["hour"]] == [
        *("2026-10-25 01:00+02:00", "2026-10-25 02:00+02:00", "2026-10-25 02:00+01:00", "2026-10-25 03:00+01:00")
    ]
    assert {name: part.passed for name, part in report.by["shift"].items()} == {"2026-10-24 night": 4}


def test_the_hour_that_summer_time_skips_is_not_there():
    before, after = (datetime(2027, 3, 28, hour, 59, 59, tzinfo=UTC) for hour in (0, 1))
    assert [hour_of(at, SHIFTS) for at in (before, after)] == ["2027-03-28 01:00+01:00", "2027-03-28 03:00+02:00"]
    assert shift_of("night", after, SHIFTS) == "2027-03-27 night"
    assert shift_of("", after, SHIFTS) == ""
    assert shift_of("renamed-since", after, SHIFTS) == "2027-03-28 renamed-since"


def test_a_span_has_the_attempts_that_began_in_it_over_all_batches(hand):
    shift_of_ten(hand)
    hand.plan("b2", 1, first=11)
    hand.passes("sn-0011", at=local("2026-11-24T14:30"))
    late = hand.count(since=local("2026-11-24T14:00"), until=local("2026-11-24T14:30"))
    assert (late.total.attempts, late.total.passes, late.total.first_tried) == (4, 1, 2)
    assert (late.planned, late.total.passed, late.total.reworked) == (4, 1, 1)
    assert [unit.device_id for unit in late.units] == ["sn-0006", "sn-0007", "sn-0008"]
    assert late.orders.scrap == 1
    assert hand.count("b2", since=local("2026-11-24T14:00")).total.passes == 1
    assert hand.count("b1", "b2").total.passes == 6
    assert hand.count().planned == 11
    nothing = hand.count(since=local("2026-11-25T00:00"))
    assert (nothing.planned, nothing.total.attempts, nothing.total.first_pass_yield) == (0, 0, None)
    assert "first pass -" in yield_text(nothing)


def test_throughput_is_of_the_time_at_work(hand):
    at, work = local("2026-11-24T06:00"), AtWork()
    for begin, end in ((30, 31), (0, 10), (5, 12), (60, 61), (2, 3)):  # minutes, in any order
        work.add(at + timedelta(minutes=begin), at + timedelta(minutes=end))
    # 0 to 12, a pause of 18 minutes that is none of it, 30 to 31, a longer one, 60 to 61
    assert work.seconds() == (12 + 1 + 1) * 60
    hand.plan("b1", 3)
    hand.passes("sn-0001", at=at)
    hand.passes("sn-0002", at=at + timedelta(minutes=10))
    hand.passes("sn-0003", at=at + timedelta(minutes=20))
    total = hand.count("b1").total
    assert total.at_work_seconds == 20 * 60 + 0.1
    assert total.per_hour == round(3 * 3600 / 1200.1, 1)


def test_times_are_values_that_were_measured_and_bars_hold_all_of_them():
    values = [float(n) for n in range(1, 201)]
    times = times_of(values)
    assert times is not None
    assert (times.p50_ms, times.p95_ms, times.p99_ms, times.max_ms, times.mean_ms) == (100, 190, 198, 200, 100.5)
    assert times_of([]) is None
    bars = spread([*values, 10_000.0])
    assert sum(bar.count for bar in bars) == 201
    assert (bars[0].up_to_ms, bars[0].count, bars[-1].up_to_ms) == (10, 10, None)
    assert spread([]) == ()
    assert sum(bar.count for bar in spread([0.0])) == 1


def test_figures_are_rounded_for_a_person_but_never_up_to_perfect():
    assert (percent(0.99999), percent(1.0), percent(0.0), percent(None)) == ("99.9%", "100.0%", "0.0%", "-")
    assert [seconds(ms) for ms in (0.44, 44, 4400, 440_000, 44_000_000)] == [
        "0.4 ms",
        "44 ms",
        "4.4 s",
        "7.3 min",
        "12.2 h",
    ]


def test_a_ledger_that_was_altered_has_no_yield(hand):
    shift_of_ten(hand)
    with closing(sqlite3.connect(hand.ledger.path)) as conn:
        conn.execute("UPDATE event SET body = replace(body, 'E-VERIFY', 'E-LABEL') WHERE kind = 'failed'")
        conn.commit()
    with pytest.raises(VerificationFailed, match="altered"):
        hand.count("b1")


def test_a_batch_that_is_not_there_is_named(hand):
    with pytest.raises(UsageProblem, match="no batch 'b9'"):
        hand.count("b9")


def test_the_sheet_has_the_figures_of_the_report(hand):
    shift_of_ten(hand)
    report = hand.count("b1")
    rows = list(csv.DictReader(StringIO(yield_csv(report)), strict=True))
    assert tuple(rows[0]) == HEADER
    whole = rows[0]
    assert (whole["by"], whole["units"], whole["final_yield"]) == ("all", "8", str(report.total.final_yield))
    assert (whole["cycle_p50_ms"], whole["enrolled_p50_ms"]) == ("100.0", "50.0")
    assert [(r["value"], r["passed"]) for r in rows if r["by"] == "operator"] == [("op-1", "4"), ("op-2", "1")]
    assert [(r["value"], r["step"], r["units"]) for r in rows if r["by"] == "failure"] == [
        *(("E-EST-DENY", "enrolled", "2"), ("E-VERIFY", "verified", "1"))
    ]


def test_the_text_says_what_a_person_needs_first(hand):
    shift_of_ten(hand)
    text = yield_text(hand.count("b1"))
    assert text.startswith("batch b1 (hh1/l2/s-07)\n10 units, 8 attempted, 5 passed, 1 failed, 1 scrapped, 3 waiting")
    assert "yield: first pass 57.1%, final 71.4%; rework 12.5% of units" in text
    assert "EST's share of the steps 57.1%" in text


def test_the_json_is_json_and_names_the_ledgers_head(hand):
    shift_of_ten(hand)
    report = hand.count("b1")
    told = json.loads(json.dumps(report.to_dict()))
    assert told["yield"]["passed"] == 5
    assert told["ledger"] == {"seq": report.head.seq, "head": report.head.head, "signed_up_to": 0}
    assert report.head == hand.ledger.verify_chain()
    assert [part["value"] for part in told["by"]["operator"]] == ["op-1", "op-2"]
    assert told["timezone"] == "Europe/Berlin"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--config", "none.toml"), "name batches"),
        (("b1", "--all"), "name batches"),
        (("b1", "--csv", "--json"), "two forms"),
        (("b1", "--config", "none.toml"), "cannot be read"),
    ],
)
def test_a_report_of_nothing_or_of_two_things_is_not_made(capsys, arguments, text):
    assert run(["line", "report", *arguments]) in {2, 3}
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "0001-01-01T00:00+14:00"])
def test_what_is_no_time_is_said_to_be_none(text):
    with pytest.raises(UsageProblem, match="--since"):
        moment("--since", text, SHIFTS.zone)


def test_a_time_is_of_the_sites_clock_unless_it_says_otherwise():
    assert moment("--since", "2026-11-24T06:00", SHIFTS.zone) == datetime(2026, 11, 24, 5, tzinfo=UTC)
    assert moment("--since", "2026-11-24", SHIFTS.zone) == datetime(2026, 11, 23, 23, tzinfo=UTC)
    assert moment("--since", "2026-11-24T06:00Z", SHIFTS.zone) == datetime(2026, 11, 24, 6, tzinfo=UTC)
    assert moment("--since", None, SHIFTS.zone) is None
