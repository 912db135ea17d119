"""Clients that are slow, silent or many: each is ended in its time, and none keeps others waiting."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

import pytest

from tests.e2e.serving_support import TLS12, Server, ask, at_end, make_directory, until

pytestmark = pytest.mark.e2e

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_HEAD = b"GET / HTTP/1.1\r\nHost"
HALF_BODY = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nha"
LONG_BODY = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 400\r\n\r\nha"
HELLO = b"\x16\x03\x01\x04\x00\x01\x00\x03\xfc\x03\x03"  # of 1024 octets, most of which are to come
HALF_CHUNK = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serving-load")
    make_directory(directory)
    return directory


@pytest.fixture(scope="module")
def hasty(directory):
    """A server with every deadline short."""
    names = ("handshake", "head", "body", "idle", "write")
    with Server(directory, **{f"{name}_deadline_seconds": 0.3 for name in names}) as server:
        yield server


@pytest.mark.parametrize("octets", [HALF_HEAD, HALF_BODY, HALF_CHUNK], ids=["head", "body", "chunk"])
def test_what_arrives_too_slowly_is_told_so(hasty, octets):
    with hasty.connected() as sock:
        answer = ask(sock, octets)
        assert (answer.status, answer.header("Connection")) == (408, "close")
        assert at_end(sock)


def test_a_trickle_does_not_restart_the_clock(hasty):
    with hasty.connected() as sock:
        sock.settimeout(0.05)
        sock.sendall(HALF_HEAD)
        for _ in range(200):
            sock.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                assert sock.recv(12) == b"HTTP/1.1 408"
                return
    pytest.fail("the head went on for ever")


@pytest.mark.parametrize("octets", [HELLO, LONG_BODY], ids=["handshake", "body"])
def test_a_trickle_of_a_handshake_or_a_body_ends_in_its_time_too(hasty, octets):
    """An octet now and then is no progress: the deadline is that of the whole."""
    with hasty.plain() if octets is HELLO else hasty.connect() as sock:
        sock.settimeout(0.05)
        sock.sendall(octets)
        for _ in range(200):
            with contextlib.suppress(TimeoutError):
                assert sock.recv(12) == (b"" if octets is HELLO else b"HTTP/1.1 408")
                return
            sock.sendall(b"x")
    pytest.fail("it went on for ever")


def test_silence_is_ended(hasty):
    with hasty.plain() as half_open:
        assert at_end(half_open)
    with hasty.connected() as idle:
        ask(idle, GET)
        assert at_end(idle)
    with hasty.connected(version=TLS12) as idle:
        assert at_end(idle)


def test_a_client_that_does_not_read_is_ended(hasty):
    with hasty.connected() as sock:
        sock.sendall(b"GET /big?bytes=100000000 HTTP/1.1\r\nHost: h\r\n\r\n")
        until(lambda: _connections(hasty) == 0)
        assert hasty.get()


def test_a_client_that_reads_slowly_is_not(hasty):
    """Reading for longer than the deadline in all, never pausing for as long."""
    with hasty.connected() as sock:
        sock.sendall(b"GET /big?bytes=20000000 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        received = 0
        while data := sock.recv(16384):
            received += len(data)
            if received % 400_000 < len(data):
                time.sleep(0.02)
    assert received > 20_000_000


def test_many_silent_connections_do_not_stop_others(directory):
    """Idle, half-open and half-said connections together; a request passes all the same."""
    _need_descriptors(1000)
    with Server(directory, connections_max=1000) as server, contextlib.ExitStack() as held:
        context = server.context()
        for number in range(300):
            sock = held.enter_context(context.wrap_socket(server.plain(), server_hostname="localhost"))
            if number % 3 == 1:
                sock.sendall(HALF_HEAD)
            if number % 3 == 2:
                sock.sendall(HALF_BODY)
        for _ in range(100):
            held.enter_context(server.plain())
        for _ in range(20):
            assert server.get()
        until(lambda: _connections(server) >= 400)


def test_when_full_the_longest_idle_gives_way(directory):
    with Server(directory, connections_max=3) as server, contextlib.ExitStack() as held:
        first, second, third = (held.enter_context(server.connect()) for _ in range(3))
        for sock in (first, second, third, first):
            ask(sock, GET)
        assert server.get()
        assert at_end(second)
        ask(third, GET)
        ask(first, GET)


def test_when_full_and_busy_new_clients_wait_their_turn(directory):
    with Server(directory, connections_max=2, body_deadline_seconds=0.5) as server, contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(server.connect()).sendall(HALF_BODY)
        assert server.get()


def test_a_cap_for_each_address(directory):
    with Server(directory, connections_per_address_max=2) as server, contextlib.ExitStack() as held:
        first, _ = (held.enter_context(server.connect()) for _ in range(2))
        with pytest.raises(OSError, match=r"."):
            server.get()
        first.close()
        until(lambda: _connections(server) == 1)
        assert server.get()


def test_out_of_descriptors_the_server_waits_and_goes_on(directory):
    """Half-open connections up to the limit of open files; it neither dies nor spins, and serves when they are gone."""
    with Server(directory, handshake_deadline_seconds=60, idle_deadline_seconds=60) as server:
        worker = server.get()["pid"]
        used = _open_files(worker)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 10, used + 10))
        with contextlib.ExitStack() as held:
            for _ in range(30):
                held.enter_context(server.plain())
            until(lambda: "no new connections for a moment: Too many open files" in server.stderr)
            before = _processor_ticks(worker)
            until(lambda: server.stderr.count("Too many open files") >= 5)
            assert _processor_ticks(worker) - before < 20
        assert server.get()["pid"] == worker
        assert "Traceback" not in server.stop()


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _connections(server) -> int:
    """Count the established connections on the server's side, from the kernel's table."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(1 for line in lines if line.split()[1] == f"0100007F:{server.port:04X}" and line.split()[3] == "01")


def _need_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            pytest.skip(f"needs {count} open files: raise ulimit -n")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
