"""A start after anything: it says what it found and what it did about it, or in one line why it does not serve."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from tests.conftest import require_program
from tests.e2e.serving_support import until
from tests.est_server import Est, Home, RunningServer, found_home, today
from tests.kill_support import KillableServer, enrolment, open_serials, renewal, told_void, violations

pytestmark = pytest.mark.e2e

PAGE = 4096
CRASHED = "did not close the inventory; every page was read, and it is sound"
BEHIND = "the inventory was last written at"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home")


def _start(home: Home) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "estserver", "serve", "--home", home.path, "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _one_line(done: subprocess.CompletedProcess[str], status: int, said: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    first, *advice = [line for line in done.stderr.splitlines() if " WARNING estserver " not in line]
    assert first.startswith("error: ")
    assert said in first
    assert len(advice) <= 1
    assert "Traceback" not in done.stderr


@contextlib.contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """Not one octet is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * PAGE):
            pass
    yield
    filler.unlink()


def _crash(home: Home, levers: Path) -> set[str]:
    """Serve, and die with master and workers between a signature and its record; return what that left reserved."""
    with KillableServer(home, levers) as server:
        server.plan([(server.requests + 2, "after-sign")])
        enrolment(home, "sn-had").until_answered(Est(server))
        assert enrolment(home, "sn-lost").once(Est(server)) is None
        server.kill()
    return open_serials(home)


# --- it serves, and says what it found -------------------------------------------------------------------------------


def test_after_an_orderly_end_there_is_nothing_to_say_and_one_file(home: Home) -> None:
    for _ in range(2):
        with RunningServer(home, "--workers", "2") as server:
            Est(server).device()
        assert "WARNING" not in server.stderr
        assert [path.name for path in home.path.glob("estserver.db*")] == ["estserver.db"]


def test_after_a_crash_it_says_what_it_checked_and_what_is_void(home: Home, tmp_path: Path) -> None:
    left = _crash(home, tmp_path / "levers")
    assert left
    with RunningServer(home) as server:
        assert CRASHED in server.stderr
        assert told_void(server.stderr) == left
        assert Est(server).get("cacerts").status == 200
    with RunningServer(home) as again:
        pass
    assert "WARNING" not in again.stderr
    assert violations(home, []) == []


def test_after_a_full_disk_it_says_what_is_void(small_disk: Path, tmp_path: Path) -> None:
    home = found_home(small_disk / "home")
    left = _crash(home, tmp_path / "levers")
    with _filled(small_disk):
        _one_line(_start(home), 12, "disk is full")
        assert open_serials(home) == left
    with RunningServer(home) as server:
        assert told_void(server.stderr) == left
        Est(server).device()
    assert violations(home, []) == []


def test_a_full_disk_stops_the_start_though_nothing_is_to_be_settled(small_disk: Path) -> None:
    home = found_home(small_disk / "home")
    with _filled(small_disk):  # there is not even room for what SQLite's processes share
        _one_line(_start(home), 12, "the inventory's disk")
    with RunningServer(home) as server:
        Est(server).device()


def test_after_a_clock_that_ran_ahead_it_says_so_and_serves(home: Home, tmp_path: Path) -> None:
    with KillableServer(home, tmp_path / "levers") as server:
        server.set_clock(int(timedelta(days=2).total_seconds()))
        ahead = enrolment(home, "sn-ahead")
        holder = ahead.until_answered(Est(server))
    with RunningServer(home) as server:
        (line,) = [line for line in server.stderr.splitlines() if BEHIND in line]
        assert f"{today() + timedelta(days=2):%Y-%m-%d}" in line
        renewed = renewal(holder)
        answer = renewed.once(Est(server))
        assert answer is not None
        assert answer.status == 403, answer  # by this clock its certificate is not valid yet
        assert "not valid before" in answer.text
        Est(server).device()
    assert violations(home, [ahead]) == []


# --- it does not serve, and says why ---------------------------------------------------------------------------------


def test_a_clock_outside_the_life_of_the_ca_stops_the_start(home: Home) -> None:
    faketime = require_program("faketime", "faketime")
    command = [faketime, "2001-01-01 00:00:00", sys.executable, "-m", "estserver", "serve", "--home", str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    _one_line(done, 3, "clock says 2001-01-01")


def test_a_database_that_is_noise_stops_the_start(home: Home) -> None:
    path = home.path / "estserver.db"
    path.write_bytes(b"\xa5" * path.stat().st_size)
    _one_line(_start(home), 3, "is damaged or is not a database")


def test_a_database_that_is_cut_short_stops_the_start(home: Home) -> None:
    path = home.path / "estserver.db"
    with path.open("r+b") as file:
        file.truncate(6000)
    _one_line(_start(home), 3, "is damaged or is not a database")


def test_pages_that_a_crash_damaged_stop_the_start_wherever_they_are(home: Home, tmp_path: Path) -> None:
    """The start itself needs few pages; after a crash it reads all, so that no device is the first to find out."""
    _crash(home, tmp_path / "levers")
    path, log = home.path / "estserver.db", home.path / "estserver.db-wal"
    left = log.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as connection:  # brings everything into the one file
        pages = connection.execute("SELECT max(rootpage) FROM sqlite_master").fetchone()[0]
    sound = path.read_bytes()
    for page in (pages - 1, pages // 2):
        path.write_bytes(sound[: page * PAGE] + b"\xa5" * PAGE + sound[(page + 1) * PAGE :])
        log.write_bytes(left[:32])  # its head alone: nothing in it is valid, but it is there
        _one_line(_start(home), 3, "is damaged or is not a database")
    path.write_bytes(sound)
    with RunningServer(home):
        pass


def test_a_database_of_a_newer_server_stops_the_start(home: Home) -> None:
    _of_a_newer_server(home)
    _one_line(_start(home), 3, "was written by a newer version")


def _of_a_newer_server(home: Home) -> None:
    with contextlib.closing(sqlite3.connect(home.path / "estserver.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def test_a_database_that_becomes_newer_keeps_a_reload_out_and_ends_the_server_at_a_crash(home: Home) -> None:
    """A worker that cannot start is the end: another attempt would find the same, and the reason would be lost."""
    server = RunningServer(home)
    try:
        _of_a_newer_server(home)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded: " in server.stderr)
        assert "was written by a newer version" in server.stderr
        assert Est(server).get("cacerts").status == 200
        (worker,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)
        assert server.process.wait(30) == 3
    finally:
        server._end()
    assert server.stderr.count("was written by a newer version") == 2
    assert "ConfigError" not in server.stderr  # a line, no traceback


def test_a_locked_database_stops_the_start(home: Home) -> None:
    with contextlib.closing(sqlite3.connect(home.path / "estserver.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        _one_line(_start(home), 12, "locked by another process")


def test_a_read_only_disk_stops_the_start(small_disk: Path) -> None:
    home = found_home(small_disk / "home")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    _one_line(_start(home), 12, "read-only")
