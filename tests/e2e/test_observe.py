"""What a server with two workers tells: a line for everything that happens on the wire, and numbers that add up."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.csr_maker import new_key, request
from tests.est_server import EST, Est, Home, RunningServer, basic, found_home, fresh_id

pytestmark = pytest.mark.e2e
METRICS = "\n[metrics]\nlisten = '127.0.0.1:0'\n"
FORGED = "/a%0d%0a2026-01-01T00:00:00.000Z%20INFO%20estserver.wire%20request%20status=200%00%22%7d"


@pytest.fixture(scope="module")
def est(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Est]:
    home = found_home(tmp_path_factory.mktemp("observed") / "home")
    home.configure(METRICS)
    with RunningServer(home, "--workers", "2", "--log-format", "json") as server:
        yield Est(server)


def until(found: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for something to be there, and return it."""
    deadline = time.monotonic() + seconds
    while not (it := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return it


def lines(est: Est) -> list[dict[str, Any]]:
    whole, _, _ = est.server.stderr.rpartition("\n")
    return [json.loads(line) for line in whole.split("\n")]


def line(est: Est, **wanted: Any) -> dict[str, Any]:
    """The one line that has these fields."""
    (found,) = until(lambda: [one for one in lines(est) if wanted.items() <= one.items()])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    return {name: value for name, value in found.items() if name not in {"time", "ms", "level", "logger"}}


def audited(est: Est, request_id: str) -> dict[str, Any]:
    (row,) = [row for row in est.home.audit() if row["detail"].get("request_id") == request_id]
    return row


# --- lines ----------------------------------------------------------------------------------------------------------


def test_an_enrolment_and_its_repeat_have_lines_and_audit_rows_of_one_id_each(est: Est) -> None:
    device, credential = fresh_id(), est.home.credential("*")
    body = request(new_key(), device)
    serial = f"{est.post(body, credential=credential).certificate.serial_number:x}"
    assert est.post(body, credential=credential).status == 200
    first, second = until(
        lambda: len(found := [one for one in lines(est) if one.get("device") == device]) == 2 and found
    )
    assert first["id"] != second["id"]
    for one, action in ((first, "issue"), (second, "repeat")):
        row = audited(est, one["id"])
        assert (row["action"], row["actor"]) == (action, one["requester"])
        assert (row["detail"]["serial"], row["detail"]["spki_sha256"]) == (serial, one["spki_sha256"])
        assert {name: one[name] for name in ("message", "peer", "tls", "method", "operation", "label", "status")} == {
            "message": "request",
            "peer": "127.0.0.1",
            "tls": "TLSv1.3",
            "method": "POST",
            "operation": "simpleenroll",
            "label": "",
            "status": 200,
        }
        assert (one["requester"], one["serial"]) == (f"credential:{credential[0]}", serial)
        assert 0 < one["ms"] < 60_000
        assert "reason" not in one


def test_a_refusal_by_policy_says_who_what_and_why(est: Est) -> None:
    device = fresh_id()
    answer = est.post(request(new_key(), device, san=("dns:x.example",)), credential=est.home.credential("*"))
    told = line(est, device=device)
    assert (told["status"], told["reason"], "serial" in told) == (answer.status, "not-authorized", False)
    row = audited(est, told["id"])
    assert (row["action"], row["outcome"], row["actor"]) == ("refuse", told["reason"], told["requester"])
    assert row["detail"]["spki_sha256"] == told["spki_sha256"]


def test_no_secret_is_in_any_line(est: Est) -> None:
    name, secret = est.home.credential("*")
    device, guess = fresh_id(), "geheim-und-falsch"
    body = base64.b64encode(request(new_key(), device))
    for password, status in ((guess, 401), (secret, 200)):
        headers = {"Content-Type": "application/pkcs10", **basic((name, password)), "Cookie": "k=krumm"}
        with est.wire() as wire:
            assert wire.request("POST", f"{EST}/simpleenroll?pin=4711471", body, headers).status == status
    refused = line(est, device=device, status=401)
    assert (refused["reason"], refused["requester"]) == ("bad-credentials", f"unrecognised:{name}")
    line(est, device=device, status=200)
    for word in (guess, secret, "krumm", "4711471", body.decode()[:40], "Basic", "PRIVATE"):
        assert word not in est.server.stderr
    for password in (guess, secret):
        assert basic((name, password))["Authorization"].removeprefix("Basic ") not in est.server.stderr


def test_a_path_made_to_look_like_a_line_is_a_value(est: Est) -> None:
    before = len(lines(est))
    assert est.get(FORGED).status == 404
    told = line(est, reason="no-such-operation")
    assert told["path"] == '/a\r\n2026-01-01T00:00:00.000Z INFO estserver.wire request status=200\0"}'
    assert len(lines(est)) == before + 1


def garbage(port: int, octets: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(octets)
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            continue


@pytest.mark.parametrize(
    ("octets", "reason"),
    [(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "plain-http"), (b"\0\n\xff" * 100, "not-tls"), (b"", "gone")],
)
def test_a_handshake_that_failed_is_a_line(est: Est, octets: bytes, reason: str) -> None:
    garbage(est.server.port, octets)
    assert line(est, message="handshake failed", reason=reason)["peer"] == "127.0.0.1"


def test_what_the_front_refuses_is_a_line(est: Est) -> None:
    with est.wire() as wire:
        wire.send(b"GET /\n HTTP/1.1\r\n\r\n")
        assert wire.answer().status == 400
    told = line(est, message="refused", reason="malformed-http")
    assert (told["peer"], told["tls"], told["status"]) == ("127.0.0.1", "TLSv1.3", 400)


def test_text_is_the_default_and_as_hard_to_forge(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home")
    with RunningServer(home) as server:
        assert Est(server).get(FORGED).status == 404
    found = server.stderr.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\S+Z (INFO|WARNING) estserver\.\S+ ", one) for one in found), found
    (told,) = [one for one in found if " request " in one]
    assert r' path="/a\r\n2026-01-01T00:00:00.000Z INFO estserver.wire request status=200\u0000\"}" ' in told


# --- whoever reads the lines ----------------------------------------------------------------------------------------


class Unread(RunningServer):
    """A server whose lines nobody reads for now."""

    def __init__(self, home: Home) -> None:
        self.may_read = threading.Event()
        super().__init__(home)

    def _read(self) -> None:
        self.may_read.wait()
        super()._read()


def test_nobody_waits_for_a_reader_that_stalls(tmp_path: Path) -> None:
    with Unread(found_home(tmp_path / "home")) as server:
        est = Est(server)
        with est.wire() as wire:
            for _ in range(600):
                assert wire.request("GET", f"{EST}/cacerts").status == 200
        server.may_read.set()
        until(lambda: est.get("cacerts").status == 200 and "log lines dropped" in server.stderr)
    assert 100 < server.stderr.count(" request ") < 600


class Unheard(RunningServer):
    """A server whose lines nobody will ever read."""

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.process.stderr.close()


def test_a_server_whose_log_is_gone_serves_on(tmp_path: Path) -> None:
    with Unheard(found_home(tmp_path / "home")) as server:
        assert [Est(server).get("cacerts").status for _ in range(3)] == [200] * 3


# --- numbers --------------------------------------------------------------------------------------------------------


def scraped(est: Est) -> dict[tuple[str, ...], float]:
    """Name and labels of every sample → its value."""
    (port,) = re.findall(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", est.server.stderr)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def workers(est: Est) -> set[int]:
    pid = est.server.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


CACERTS = ("estserver_requests_total", "(default)", "cacerts", "200")
ENROLLED = ("estserver_requests_total", "(default)", "simpleenroll", "200")
REFUSED = ("estserver_refusals_total", "bad-credentials")
ISSUED = ("estserver_certificates_total", "issued")
SECONDS = ("estserver_request_seconds_count", "cacerts")
PLAIN_HTTP = ("estserver_handshake_failures_total", "plain-http")
OPEN = ("estserver_connections",)


def grown(before: dict[tuple[str, ...], float], after: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    gauges = {OPEN, ("estserver_outbox_depth",), ("estserver_pending",)}
    assert [key for key in before if key not in gauges and after[key] < before[key]] == []
    return {key: after.get(key, 0) - before.get(key, 0) for key in after}


def act(est: Est) -> None:
    """Twenty requests at once, and one of everything else."""
    with ThreadPoolExecutor(8) as pool:
        assert {one.status for one in pool.map(lambda _: est.get("cacerts"), range(20))} == {200}
    est.device()
    assert est.post(request(new_key(), fresh_id()), credential=("nobody", "x")).status == 401
    garbage(est.server.port, b"GET / HTTP/1.1\r\n\r\n")


def check_growth(est: Est, before: dict[tuple[str, ...], float]) -> None:
    after = until(lambda: (now := scraped(est))[OPEN] == 0 and now)
    found = grown(before, after)
    counted = {key: found[key] for key in (CACERTS, ENROLLED, REFUSED, ISSUED, SECONDS, PLAIN_HTTP)}
    assert counted == {CACERTS: 20, ENROLLED: 1, REFUSED: 1, ISSUED: 1, SECONDS: 20, PLAIN_HTTP: 1}


def test_any_worker_tells_the_sum_of_all(est: Est) -> None:
    before = scraped(est)
    act(est)
    check_growth(est, before)
    assert len({json.dumps(sorted(scraped(est).items())) for _ in range(10)}) == 1


def test_open_connections_are_counted_and_those_of_the_dead_are_not(est: Est) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(est.wire())
        until(lambda: scraped(est)[OPEN] == 8)
        before = workers(est)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(now := workers(est)) == 2 and not now & before and scraped(est)[OPEN] == 0)


def test_nothing_is_forgotten_when_a_worker_is_killed(est: Est) -> None:
    act(est)
    before, killed = scraped(est), min(workers(est))
    os.kill(killed, signal.SIGKILL)
    until(lambda: len(now := workers(est)) == 2 and killed not in now)
    act(est)
    check_growth(est, before)


def test_nothing_is_forgotten_when_the_server_reloads(est: Est) -> None:
    act(est)
    before, old = scraped(est), workers(est)
    est.server.process.send_signal(signal.SIGHUP)
    until(lambda: len(now := workers(est)) == 2 and not now & old)
    act(est)
    check_growth(est, before)


def test_a_scraper_that_is_none_disturbs_nobody(est: Est) -> None:
    (port,) = re.findall(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", est.server.stderr)
    for octets in (b"", b"\0\n\xff\r\n\r\n", b"POST /metrics HTTP/1.1\r\n\r\n", b"GET " + b"a" * 100_000):
        garbage(int(port), octets)
    assert scraped(est)[OPEN] == 0


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464"])
def test_metrics_are_not_given_to_the_network(tmp_path: Path, listen: str) -> None:
    home = found_home(tmp_path / "home")
    home.configure(METRICS.replace("127.0.0.1:0", listen))
    command = [sys.executable, "-m", "estserver", "serve", "--home", str(home.path), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "metrics.listen: is not a loopback address" in done.stderr
    assert "Traceback" not in done.stderr
