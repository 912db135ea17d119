"""The ground under a running server gives way: each fault is said, nothing is issued that is not recorded, and when the
fault is gone the same server goes on."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.e2e.serving_support import until
from tests.est_server import Est, Home, found_home
from tests.kill_support import Asked, KillableServer, enrolment, renewal, violations

pytestmark = pytest.mark.e2e

YEAR_SECONDS = 366 * 86400


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home")


@pytest.fixture
def server(home: Home, tmp_path: Path) -> Iterator[KillableServer]:
    with KillableServer(home, tmp_path / "levers") as running:
        yield running


# --- while it serves ------------------------------------------------------------------------------------------------

Fault = Callable[[KillableServer, Path], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def no_more_room(server: KillableServer, _database: Path) -> Iterator[None]:
    """Every write to a file fails, for the workers and for those that come after them."""
    pids = [server.process.pid, *server.worker_pids()]
    before = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
    for pid, (_, hard) in zip(pids, before, strict=True):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    yield
    for pid in {server.process.pid, *server.worker_pids()}:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before[0])


@contextlib.contextmanager
def locked(_server: KillableServer, database: Path) -> Iterator[None]:
    """Another process writes, and does not come to an end."""
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


@contextlib.contextmanager
def moved_away(_server: KillableServer, database: Path) -> Iterator[None]:
    """Somebody tidies up."""
    database.rename(database.with_suffix(".away"))
    yield
    database.with_suffix(".away").rename(database)


@contextlib.contextmanager
def replaced(_server: KillableServer, database: Path) -> Iterator[None]:
    """Somebody puts a copy in its place, without stopping the server."""
    database.rename(database.with_suffix(".away"))
    shutil.copy(database.with_suffix(".away"), database)
    yield
    database.with_suffix(".away").rename(database)


@contextlib.contextmanager
def damaged(_server: KillableServer, database: Path) -> Iterator[None]:
    """Everything but the first page is noise."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sound = database.read_bytes()
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (len(sound) - 4096))
    yield
    with database.open("r+b") as file:
        file.write(sound)


FAULTS: dict[str, tuple[Fault, str]] = {
    "no more room": (no_more_room, "disk"),
    "locked": (locked, "locked"),
    "moved away": (moved_away, "removed or replaced"),
    "replaced": (replaced, "removed or replaced"),
    "damaged": (damaged, "damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_answered_503_and_when_it_is_gone_the_server_goes_on(
    home: Home, server: KillableServer, fault: str
) -> None:
    est, (begin, said) = Est(server), FAULTS[fault]
    had, wanted = enrolment(home, "sn-had"), enrolment(home, "sn-wanted")
    holder = had.until_answered(est)
    again, renewed = Asked(**{**vars(had), "certificates": []}), renewal(holder)
    with begin(server, home.path / "estserver.db"):
        for asked in (wanted, again, renewed) if fault != "locked" else (wanted,):
            answer = asked.once(est)
            assert answer is not None
            assert answer.status == 503, answer
            assert said in answer.text
            assert int(answer["Retry-After"]) >= 1
        assert est.get("cacerts").status == 200
    for asked in (wanted, again, renewed):
        asked.until_answered(est)
    assert again.certificates[0] == had.certificates[0]
    assert violations(home, [had, wanted, renewed]) == []


@pytest.mark.parametrize("fault", ["no more room", "locked"])
def test_a_worker_that_dies_meanwhile_is_replaced(home: Home, server: KillableServer, fault: str) -> None:
    est, wanted = Est(server), enrolment(home, "sn-wanted")
    with FAULTS[fault][0](server, home.path / "estserver.db"):
        before = server.worker_pids()
        assert server.kill_worker(random.Random(0))
        answer = None
        deadline = time.monotonic() + 20
        while answer is None:
            assert time.monotonic() < deadline
            answer = wanted.once(est)
        assert answer.status == 503
        assert set(before).isdisjoint(server.worker_pids())
    wanted.until_answered(est)
    assert violations(home, [wanted]) == []


class TestClock:
    """A clock that jumps while the server runs."""

    BEYOND: ClassVar = {
        "into the past": (-2 * YEAR_SECONDS, 503, "clock"),
        "into the future": (100 * YEAR_SECONDS, 403, "expired"),  # or the CA's time is over: which, nobody can tell
    }

    @pytest.mark.parametrize("jump", BEYOND)
    def test_outside_the_life_of_the_ca_nothing_is_issued(self, home: Home, server: KillableServer, jump: str) -> None:
        est, had, wanted = Est(server), enrolment(home, "sn-had"), enrolment(home, "sn-wanted")
        renewed = renewal(had.until_answered(est))
        seconds, status, said = self.BEYOND[jump]
        server.set_clock(seconds)
        for asked in (wanted, renewed):
            answer = asked.once(est)
            assert answer is not None
            assert answer.status == status, answer
            assert said in answer.text
            asked.refusals.clear()
        server.set_clock(0)
        for asked in (wanted, renewed):
            asked.until_answered(est)
        assert violations(home, [had, wanted, renewed]) == []

    def test_within_it_the_same_request_keeps_its_answer(self, home: Home, server: KillableServer) -> None:
        est, had = Est(server), enrolment(home, "sn-had")
        had.until_answered(est)
        for seconds in (-3600, 3600, -60, 60, 0):
            server.set_clock(seconds)
            had.until_answered(est)
            enrolment(home, f"sn-{seconds}".lower()).until_answered(est)
        assert len(had.certificates) == 6
        assert violations(home, [had]) == []


# --- on a disk of its own -------------------------------------------------------------------------------------------


def test_a_disk_that_is_full(small_disk: Path, tmp_path: Path) -> None:
    home = found_home(small_disk / "home")
    told = [enrolment(home, f"sn-{number}") for number in range(8)]
    with KillableServer(home, tmp_path / "levers", workers=2) as server:
        est = Est(server)
        told[0].until_answered(est)
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        answers = [asked.once(est) for asked in told]  # the journal has room of its own for a few
        refused = [answer for answer in answers if answer is not None and answer.status == 503]
        assert refused
        assert all("full" in answer.text for answer in refused)
        assert None not in answers
        assert violations(home, told) == []
        filler.unlink()
        for asked in told:
            asked.until_answered(est)
        assert violations(home, told) == []


def test_a_disk_that_is_read_only_and_then_is_not(small_disk: Path, tmp_path: Path) -> None:
    """No worker may have the file open while a disk turns read-only, so they die first; others come at once."""
    home = found_home(small_disk / "home")
    had, wanted = enrolment(home, "sn-had"), enrolment(home, "sn-wanted")
    with KillableServer(home, tmp_path / "levers", workers=2) as server:
        est = Est(server)
        had.until_answered(est)
        server.process.send_signal(signal.SIGSTOP)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        until(lambda: _remounted(small_disk, "ro"))
        server.process.send_signal(signal.SIGCONT)
        answers = [est.get("cacerts"), wanted.once(est), wanted.once(est)]
        assert [answer.status for answer in answers] == [200, 503, 503]
        assert "read-only" in answers[1].text
        assert _remounted(small_disk, "rw")
        wanted.until_answered(est)
        assert violations(home, [had, wanted]) == []


def _remounted(disk: Path, mode: str) -> bool:
    done = subprocess.run(["mount", "-o", f"remount,{mode}", disk], capture_output=True, check=False)
    return done.returncode == 0
