"""Numbers that processes share: right while they count, after they are killed, and when their rows are full."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estserver.observe import tally as module
from estserver.observe.tally import Key, Tally

FORK = multiprocessing.get_context("fork")
LEVELS = frozenset({"open"})
KEYS = st.lists(st.text(st.characters()), min_size=1, max_size=3).map(tuple)


def _count(tally: Tally, orders: Connection) -> None:
    """Do as told until killed."""
    orders.send(tally.claim())
    while True:
        key, amount = orders.recv()
        tally.add(key, amount)
        orders.send(None)


def _count_for_ever(tally: Tally, orders: Connection) -> None:
    """Count old keys and new ones as fast as possible."""
    orders.send(tally.claim())
    number = 0
    while True:
        tally.add(("open",))
        tally.add(("requests", str(number % 3000)))
        tally.add(("all",))
        number += 1


class Worker:
    """A forked process that counts."""

    def __init__(self, tally: Tally, target: Callable[[Tally, Connection], None] = _count) -> None:
        self._orders, theirs = FORK.Pipe()
        self._process = FORK.Process(target=target, args=(tally, theirs))
        self._process.start()
        self.has_a_row = self._orders.recv()

    def add(self, *key: str, amount: float = 1.0) -> None:
        self._orders.send((key, amount))
        self._orders.recv()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


Start = Callable[..., Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    workers = []

    def begin(tally: Tally, *how: Callable[[Tally, Connection], None]) -> Worker:
        workers.append(Worker(tally, *how))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()


@given(st.lists(st.tuples(KEYS, st.integers(-5, 1000))))
def test_what_was_added_is_read(added: list[tuple[Key, int]]) -> None:
    tally, sums = Tally(1), Counter[Key]()
    assert tally.claim()
    for key, amount in added:
        tally.add(key, amount)
        sums[key] += amount
    assert dict(tally.read()) == dict(sums)
    os.close(tally._file)


def test_who_has_no_row_counts_nothing() -> None:
    tally = Tally(1)
    tally.add(("requests",))
    assert tally.read() == {}


def test_all_processes_are_added_up(start: Start) -> None:
    tally = Tally(4, LEVELS)
    workers = [start(tally) for _ in range(3)]
    for number, worker in enumerate(workers):
        worker.add("requests", "GET", amount=number + 1)
        worker.add("open", amount=2)
        worker.add("only", str(number))
    assert tally.read() == {
        ("requests", "GET"): 6,
        ("open",): 6,
        ("only", "0"): 1,
        ("only", "1"): 1,
        ("only", "2"): 1,
    }


def test_the_next_goes_on_where_the_dead_left_off(start: Start) -> None:
    tally = Tally(2, LEVELS)
    one, other = start(tally), start(tally)
    one.add("requests", amount=5)
    one.add("open", amount=3)
    other.add("requests", amount=7)
    other.add("open", amount=4)
    one.kill()
    assert (tally.read()["requests",], tally.read()["open",]) == (12, 4)
    next_one = start(tally)
    next_one.add("requests")
    next_one.add("open")
    assert (tally.read()["requests",], tally.read()["open",]) == (13, 5)


def test_a_worker_too_many_counts_nothing_until_there_is_room(start: Start) -> None:
    tally = Tally(1)
    one, other = start(tally), start(tally)
    assert (one.has_a_row, other.has_a_row) == (True, False)
    other.add("requests")
    one.add("requests")
    assert tally.read()["requests",] == 1
    one.kill()
    assert start(tally).has_a_row


def test_no_sum_falls_however_often_workers_are_killed(start: Start) -> None:
    rng, tally = random.Random(9464), Tally(3, LEVELS)
    workers = [start(tally, _count_for_ever) for _ in range(2)]
    last, until, kills = tally.read(), time.monotonic() + 1.5, len(workers)
    while time.monotonic() < until:
        if rng.random() < 0.2:
            workers.pop(rng.randrange(2)).kill()
            workers.append(start(tally, _count_for_ever))
            kills += 1
        now = tally.read()
        assert [key for key in last if key != ("open",) and now[key] < last[key]] == []
        last = now
    for worker in workers:
        worker.kill()
    end = tally.read()
    assert end["open",] == 0
    assert end["all",] > 1000
    requests = sum(count for key, count in end.items() if key[0] == "requests")
    assert 0 <= requests - end["all",] <= kills, "more than what was between the two when it was killed"


def test_a_full_row_goes_on_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_BYTES", 512)
    monkeypatch.setattr(module, "_ROW_CELLS", 64)
    tally = Tally(2)
    assert tally.claim()
    for number in range(100):
        tally.add(("requests", str(number)))
        tally.add(("requests", "0"))
    found = tally.read()
    assert found["requests", "0"] == 101
    assert 5 < len(found) < 100
    with suppress(KeyError):
        del found["requests", "0"]
    assert set(found.values()) == {1}
