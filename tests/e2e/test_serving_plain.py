"""The front without TLS, as it is behind a proxy: the same parser, deadlines and patience; no facts of a handshake."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.serving_support import Server, ask, at_end, read_answer, read_answers, until

pytestmark = pytest.mark.e2e
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Certificate and key are not there, and not missed."""
    deadlines = {"head_deadline_seconds": 0.5, "idle_deadline_seconds": 1.0}
    with Server(tmp_path_factory.mktemp("plain"), plain=True, **deadlines) as running:
        yield running


def test_the_application_sees_no_handshake_and_the_real_other_end(server: Server) -> None:
    with server.plain() as sock:
        forged = b"X-Forwarded-For: 192.0.2.1\r\nTls.Peer: x\r\nScript_Name: /x\r\nX-Forwarded-Proto: https\r\n"
        facts = ask(sock, b"GET /a HTTP/1.1\r\nHost: a\r\n" + forged + b"\r\n").facts
        assert facts["peer"] == {"chain": []}
        environ = facts["environ"]
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("127.0.0.1", str(sock.getsockname()[1]))
        assert (environ["wsgi.url_scheme"], environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("http", "", "/a")


def test_requests_follow_one_another_and_may_be_sent_at_once(server: Server) -> None:
    with server.plain() as sock:
        assert ask(sock, GET).status == 200
        sock.sendall(GET * 3)
        assert [answer.status for answer in read_answers(sock, 3)] == [200] * 3


def test_a_large_answer_waits_for_a_slow_reader(server: Server) -> None:
    with server.plain() as sock:
        sock.sendall(b"GET /big?bytes=30000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.3)
        assert len(read_answer(sock).body) == 30_000_000


def test_who_hangs_up_is_forgotten_and_who_dawdles_is_told(server: Server) -> None:
    for octets in (b"", b"GET / HT", GET[:-2]):
        with server.plain() as sock:
            sock.sendall(octets)
    with server.plain() as sock:
        sock.sendall(GET[:-2])
        assert read_answer(sock).status == 408
        assert at_end(sock)
    with server.plain() as sock:
        assert at_end(sock)  # idle


def test_tls_spoken_to_it_is_a_malformed_request(server: Server) -> None:
    with server.plain() as sock:
        sock.sendall(b"\x16\x03\x01\x00\x05hello\n\r\n\r\n")
        assert read_answer(sock).status == 400


def test_a_reload_needs_no_certificate(tmp_path: Path) -> None:
    with Server(tmp_path, plain=True) as running:
        running.signal(signal.SIGHUP)
        until(lambda: "workers replaced" in running.stderr)
        with running.plain() as sock:
            assert ask(sock, GET).status == 200
