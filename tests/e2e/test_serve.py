"""`estserver serve` as an operator meets it: what stops a start, what a crash left behind, reloads, a lost worker."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.csr_maker import new_key, request
from tests.est_server import Est, Home, RunningServer, found_home
from tests.makers import Maker

pytestmark = pytest.mark.e2e


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home")


def start(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "estserver", "serve", "--home", str(home), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def says(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_a_home_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    says(start(tmp_path / "nowhere"), "estserver.toml does not exist", "estserver init")


def test_a_port_in_use_is_one_line(home: Home) -> None:
    with RunningServer(home) as running:
        says(start(home.path, "--listen", f"127.0.0.1:{running.port}"), "in use")


def test_every_mistake_in_the_configuration_is_told_at_once(home: Home) -> None:
    home.configure('[server.typo]\nx = 1\n[labels.cacerts]\nprofile = "device"\nca = "nobody"\n', 'realm = "a\\"b"\n')
    done = start(home.path)
    says(done, "server.typo", "realm")
    home_two = home.path / "profiles" / "device.toml"
    home_two.write_text(home_two.read_text().replace("lifetime", "lifetyme"))
    assert "Traceback" not in start(home.path).stderr


def test_a_key_that_others_can_read_stops_the_start(home: Home) -> None:
    (home.path / "private" / "issuing.key").chmod(0o644)
    says(start(home.path), "can be read by others", "chmod 600")


def test_a_reload_of_a_broken_home_leaves_the_server_as_it_was(home: Home) -> None:
    with RunningServer(home) as running:
        est = Est(running)
        good = (home.path / "estserver.toml").read_text()
        home.configure("[typo]\n")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "typo" in running.stderr)
        assert est.get("cacerts").status == 200
        (home.path / "estserver.toml").write_text(good.replace('profile = "gateway"', 'profile = "device"'))
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "read again" in running.stderr)
        assert est.get("cacerts").status == 200


def test_who_is_trusted_counts_at_once_in_every_worker(home: Home, tmp_path: Path) -> None:
    """`trust add` and `trust remove` beside a running server: no restart, no reload, the same workers."""
    maker = Maker("Turbine Works")
    file = tmp_path / "turbine.pem"
    file.write_bytes(maker.certificate.public_bytes(Encoding.PEM))

    def enrolled(number: int) -> int:
        device = maker.idevid(f"sn-{number}")
        return est.post(request(new_key(), f"sn-{number}"), client=device).status

    with RunningServer(home, "--workers", "2") as running:
        est, workers = Est(running), worker_pids(running)
        assert {enrolled(number) for number in range(8)} == {403}
        trust(home, "add", "turbine", str(file), "--device-id", "{serial}", "--devices", "sn-*")
        assert {enrolled(number) for number in range(8)} == {200}
        trust(home, "remove", "turbine")
        assert {enrolled(number) for number in range(8, 16)} == {403}
        assert worker_pids(running) == workers


def trust(home: Home, *arguments: str) -> None:
    command = [sys.executable, "-m", "estserver", "trust", *arguments, "--home", str(home.path)]
    subprocess.run(command, check=True, capture_output=True)


def worker_pids(running: RunningServer) -> str:
    return Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text()


def test_several_workers_serve_one_inventory(home: Home) -> None:
    with RunningServer(home, "--workers", "2") as running:
        est = Est(running)
        for number in range(8):
            assert est.device(f"sn-{number}").certificate.serial_number
    assert sum(row["action"] == "issue" for row in home.audit()) == 9  # the server's own certificate is one
