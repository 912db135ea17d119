"""The pace towards the CA: places in time, a breaker that lets one try for all, a clock that is looked at each time.

Time is the test's own: waiting moves it, and nothing else does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from devicesim.errors import ClockUntrustworthy, EstRefused, Pending, Unreachable
from devicesim.line.clock import ClockCheck
from devicesim.line.pacing import LOOK_AGAIN_SECONDS, WAIT_MAX_SECONDS, Breaker, Bucket, Gate
from devicesim.line.settings import Clock, Est
from devicesim.line.world import Stopped, World
from devicesim.retry import Patience

START = datetime(2027, 3, 1, 8, 0, tzinfo=UTC)


@dataclass
class Time:
    """A time that passes by waiting; `error_seconds` is what the wall clock is wrong by."""

    seconds: float = 0.0
    error_seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    stop: bool = False

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.seconds += seconds
        return self.stop

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds + self.error_seconds)

    def world(self) -> World:
        return World(self.now, lambda: self.seconds, self.wait, lambda: 0.0, bytes)


def est(**more: object) -> Est:
    fixed = {"url": "https://est.example", "trust": "t", "cert": "c", "key": "k", "backoff": "1s", "backoff_max": "8s"}
    return Est.model_validate({**fixed, **more})


def answering(*outcomes: BaseException | str) -> Callable[[], str]:
    left = list(outcomes)

    def ask() -> str:
        found = left.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    return ask


DOWN = Unreachable("nobody answers")


# --- the bucket -------------------------------------------------------------------------------------------------------


def test_a_bucket_gives_out_places_one_after_the_other():
    bucket = Bucket(every_seconds=2.0, burst=1)
    assert [bucket.take(100.0) for _ in range(3)] == [0.0, 2.0, 4.0]
    assert bucket.take(200.0) == 0.0


def test_a_bucket_saves_no_more_than_its_burst():
    bucket = Bucket(every_seconds=2.0, burst=3)
    assert [bucket.take(100.0) for _ in range(5)] == [0.0, 0.0, 0.0, 2.0, 4.0]
    assert [bucket.take(1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]


def test_enrolments_keep_the_rate_and_other_questions_cost_nothing():
    time = Time()
    gate = Gate(est(rate="30/m"), time.world())
    for _ in range(3):
        assert gate.patiently(answering("attrs")) == "attrs"
        assert gate.patiently(answering("cert"), enrols=True) == "cert"
    assert time.waits == [2.0, 2.0]


def test_many_slots_share_one_rate():
    time = Time()
    gate = Gate(est(rate="10/s"), World(time.now, lambda: 0.0, lambda s: time.waits.append(s) or False, float, bytes))

    def slot() -> None:
        for _ in range(5):
            gate.patiently(str, enrols=True)

    threads = [threading.Thread(target=slot) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(round(wait, 6) for wait in time.waits) == [round(n / 10, 6) for n in range(1, 20)]


# --- the breaker ------------------------------------------------------------------------------------------------------


def test_a_breaker_opens_after_failures_in_a_row_and_longer_each_time():
    breaker = Breaker(3, Patience(first_seconds=1.0, longest_seconds=60.0))
    assert [breaker.failed(0.0, None, 0.0) for _ in range(2)] == [None, None]
    assert breaker.failed(0.0, None, 0.0) == 0.5
    breaker.probing = True
    assert breaker.failed(1.0, None, 0.0) == 1.0
    assert (breaker.opened, breaker.probing) == (2, False)
    assert breaker.succeeded()
    assert breaker.until is None
    assert breaker.failed(2.0, None, 0.0) is None


def test_a_late_failure_does_not_make_the_pause_longer():
    breaker = Breaker(2, Patience(first_seconds=1.0))
    breaker.failed(0.0, None, 0.0)
    assert breaker.failed(0.0, None, 0.0) is not None
    until = breaker.until
    assert breaker.failed(0.4, None, 0.0) is None
    assert breaker.until == until


def test_one_slot_tries_while_the_others_wait_for_what_becomes_of_it():
    time, told = Time(), list[str]()
    gate = Gate(est(breaker=2, retries=5), time.world(), told.append)
    asked, order = threading.Event(), list[str]()
    assert gate.patiently(answering(DOWN, DOWN, "back")) == "back"
    assert [text.split(" (")[0][:30] for text in told] == [
        "all slots wait 0.5 s for the E",
        "the EST server answers again: ",
    ]

    gate = Gate(est(breaker=1, retries=5), time.world())
    release = threading.Event()

    def probe() -> str:
        if not order:
            order.append("fails")
            raise DOWN
        order.append("probe")
        asked.set()
        release.wait(10)
        return "there"

    first = threading.Thread(target=lambda: gate.patiently(probe))
    first.start()
    assert asked.wait(10)
    looked = threading.Event()
    gate_wait = time.wait

    def waiting(seconds: float) -> bool:
        if seconds == LOOK_AGAIN_SECONDS:
            looked.set()
            release.wait(10)
        return gate_wait(seconds)

    object.__setattr__(gate._world, "wait", waiting)
    second = threading.Thread(target=lambda: gate.patiently(lambda: order.append("second")))
    second.start()
    assert looked.wait(10)
    assert order == ["fails", "probe"]
    release.set()
    first.join(10)
    second.join(10)
    assert order == ["fails", "probe", "second"]


def test_retry_after_holds_for_everybody():
    time, told = Time(), list[str]()
    gate = Gate(est(retries=0), time.world(), told.append)
    busy = Unreachable("not now", retry_after_seconds=30.0)
    with pytest.raises(Unreachable):
        gate.patiently(answering(busy))
    assert gate.patiently(answering("another slot's")) == "another slot's"
    assert time.waits == [30.0]
    assert "all slots wait 30.0 s" in told[0]


def test_a_server_that_asks_for_too_much_patience_fails_the_unit_and_not_the_night():
    time = Time()
    gate = Gate(est(retries=1), time.world())
    with pytest.raises(Unreachable):
        gate.patiently(answering(Unreachable("closed", retry_after_seconds=24 * 3600.0)))
    with pytest.raises(Unreachable, match="left alone"):
        gate.patiently(answering("never asked"))
    assert max(time.waits, default=0.0) < WAIT_MAX_SECONDS


def test_a_refusal_or_a_pending_answer_is_an_answer():
    time = Time()
    gate = Gate(est(breaker=2, retries=0), time.world())
    for error in (DOWN, EstRefused("no", status=403), DOWN, Pending(1.0), DOWN):
        with pytest.raises((Unreachable, EstRefused)):
            gate.patiently(answering(error, error, *[EstRefused("ends it", status=403)] * 3))
    assert gate._breaker.until is None


def test_a_probe_that_is_stopped_leaves_its_place_to_another():
    time = Time()
    gate = Gate(est(breaker=1, retries=0), time.world())
    with pytest.raises(Unreachable):
        gate.patiently(answering(DOWN))
    with pytest.raises(KeyboardInterrupt):
        gate.patiently(answering(KeyboardInterrupt()))
    assert gate.patiently(answering("next")) == "next"
    time.stop = True
    with pytest.raises(Stopped):
        Gate(est(rate="1/h"), time.world())._pause(1.0)


# --- the clock --------------------------------------------------------------------------------------------------------


def clock(time: Time, told: list[str], **limits: str) -> ClockCheck:
    return ClockCheck(Clock.model_validate(limits), time.world(), told.append)


def test_a_skew_is_measured_anew_with_every_answer():
    time, told = Time(), list[str]()
    check = clock(time, told)
    check.hear(time.now() + timedelta(seconds=10))
    check.check()
    assert told == []
    time.seconds = 5000.0
    check.check()  # the server's clock goes on as ours does
    check.hear(time.now() - timedelta(seconds=40))
    check.check()
    check.check()
    assert told == ["the clock is 40 s away from the EST server's: have it set after this run"]
    check.hear(time.now() - timedelta(seconds=400))
    with pytest.raises(ClockUntrustworthy, match="400 s away"):
        check.check()


@pytest.mark.parametrize(("by", "where"), [(31.0, "31 s forward"), (-31.0, "31 s back")])
def test_a_jump_during_a_run_stops_it(by, where):
    time, told = Time(), list[str]()
    check = clock(time, told)
    check.check()
    time.seconds += 3600
    check.check()
    time.error_seconds = by
    with pytest.raises(ClockUntrustworthy, match=where):
        check.check()


def test_what_stops_is_never_told_later_than_it_stops():
    time, told = Time(), list[str]()
    check = clock(time, told, max_skew="10s", warn_skew="1h")
    check.check()
    time.error_seconds = 11.0
    with pytest.raises(ClockUntrustworthy):
        check.check()
