"""SIGKILL at every stage between reserve and answer, and at any moment: nothing is lost, nothing is doubled."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.est_server import Est, Home, found_home
from tests.kill_server import STAGES
from tests.kill_support import Asked, KillableServer, enrolment, live, open_serials, renewal, told_void, violations

pytestmark = pytest.mark.e2e

LEAVES_A_RESERVATION = frozenset(STAGES[STAGES.index("after-reserve") : STAGES.index("after-record")])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home")


@pytest.fixture
def server(home: Home, tmp_path: Path) -> Iterator[KillableServer]:
    with KillableServer(home, tmp_path / "levers") as running:
        yield running


def _die_at(server: KillableServer, stage: str, asked: Asked) -> None:
    server.plan([(server.requests + 1, stage)])
    assert asked.once(Est(server)) is None
    assert not asked.certificates


def test_a_worker_killed_at_any_stage_loses_and_doubles_nothing(home: Home, server: KillableServer) -> None:
    told, devices = [], {}
    for stage in STAGES:
        told.append(enrolment(home, f"sn-{stage}"))
        _die_at(server, stage, told[-1])
        devices[stage] = told[-1].until_answered(Est(server))
        told[-1].until_answered(Est(server))
    for stage in STAGES:
        told.append(renewal(devices[stage]))
        _die_at(server, stage, told[-1])
        told[-1].until_answered(Est(server))
        told[-1].until_answered(Est(server))
    assert server.kills == 2 * len(STAGES)

    left = open_serials(home)
    assert len(left) == 2 * len(LEAVES_A_RESERVATION)
    server.kill()
    with server:
        assert told_void(server.said) == left
        assert not open_serials(home)
        assert violations(home, told) == []


@pytest.mark.parametrize("stage", ["after-reserve", "after-sign", "after-record"])
def test_a_password_is_spent_by_a_certificate_and_by_nothing_else(
    home: Home, server: KillableServer, stage: str
) -> None:
    asked = enrolment(home, "sn-1")
    _die_at(server, stage, asked)
    server.kill()
    with server:
        other = Asked("simpleenroll", "sn-1", credential=asked.credential)  # the device made a new key meanwhile
        answer = other.once(Est(server))
        assert answer is not None
        assert answer.status == (401 if stage == "after-record" else 200)
        assert asked.once(Est(server)).status == (200 if stage == "after-record" else 401)
        assert violations(home, []) == []


def test_kills_at_random_moments_under_load_lose_and_double_nothing(home: Home, tmp_path: Path) -> None:
    rng, told = random.Random(7030), list[Asked]()
    with KillableServer(home, tmp_path / "levers", workers=2) as server:
        server.plan((number, rng.choice(STAGES)) for number in range(3, 60, 5))
        firsts = [enrolment(home, f"sn-{number}") for number in range(4)]
        with ThreadPoolExecutor(len(firsts)) as pool:
            lives = [
                pool.submit(live, Est(server), first, renewals=5, rng=random.Random(first.device), told=told)
                for first in firsts
            ]
            killed = 0
            while not all(one.done() for one in lives):
                time.sleep(rng.uniform(0.05, 0.5))
                killed += server.kill_worker(rng)
        for one in lives:
            one.result()
        left = open_serials(home)
        assert killed + server.kills > 5
        assert sum(len(set(asked.certificates)) for asked in told) == 6 * len(firsts)
        server.kill()
        with server:
            assert told_void(server.said) == left
            assert violations(home, told) == []
