"""HTTP over the TLS front: framing, keep-alive, the front's own answers, the application's faults, start and stop."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess

import pytest

from tests.conftest import require_program
from tests.e2e.serving_support import Server, ask, at_end, certify, make_directory, read_answer, read_answers, until

pytestmark = pytest.mark.e2e

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: localhost\r\n"
HTTP_DATE = re.compile(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serving")
    make_directory(directory)
    return directory


@pytest.fixture(scope="module")
def server(directory):
    with Server(directory) as server:
        yield server


def test_an_answer_is_plain_and_small(server):
    with server.connected() as sock:
        answer = ask(sock, GET)
    assert [name for name, _ in answer.headers] == ["Date", "Content-Type", "X-Odd-CASE", "Content-Length"]
    assert HTTP_DATE.fullmatch(answer.header("Date"))
    assert answer.header("Content-Length") == str(len(answer.body))


def test_the_environ_follows_pep_3333(server):
    with server.connected() as sock:
        local = sock.getsockname()
        head = (
            b"POST /a%20b/%C3%A9?x=1&y=%2F HTTP/1.1\r\nHost: h:1\r\nX-A: 1\r\nx-a: 2\r\nX_A: 3\r\nContent-Type: t/p\r\n"
        )
        facts = ask(sock, head + b"Content-Length: 4\r\n\r\nbody").facts
    assert facts["body"] == "body"
    environ = facts["environ"]
    expected = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/Ã©",
        "QUERY_STRING": "x=1&y=%2F",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(server.port),
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": str(local[1]),
        "CONTENT_TYPE": "t/p",
        "CONTENT_LENGTH": "4",
        "HTTP_HOST": "h:1",
        "HTTP_X_A": "1,2",
        "wsgi.url_scheme": "https",
    }
    assert {name: environ.get(name) for name in expected} == expected


def test_no_header_can_take_the_place_of_the_fronts_own_facts(server):
    forged = b"X-Forwarded-Proto: http\r\nSCRIPT_NAME: /x\r\ntls.peer: x\r\nRemote-Addr: 9\r\n\r\n"
    with server.connected() as sock:
        facts = ask(sock, b"GET / HTTP/1.1\r\nHost: h\r\n" + forged).facts
    assert facts["environ"]["wsgi.url_scheme"] == "https"
    assert facts["environ"]["SCRIPT_NAME"] == ""
    assert facts["environ"]["REMOTE_ADDR"] == "127.0.0.1"
    assert facts["peer"]["certificate"] is None
    assert "HTTP_SCRIPT_NAME" not in facts["environ"]


def test_one_connection_serves_many_requests(server):
    with server.connected() as sock:
        bodies = [ask(sock, POST + b"Content-Length: %d\r\n\r\n" % n + b"z" * n).facts["body"] for n in (0, 1, 65536)]
    assert [len(body) for body in bodies] == [0, 1, 65536]


@pytest.mark.parametrize("head", [b"Connection: close", b"Connection: TE, Close"])
def test_the_connection_ends_when_the_client_asks(server, head):
    with server.connected() as sock:
        answer = ask(sock, b"GET / HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n\r\n")
        assert answer.header("Connection") == "close"
        assert at_end(sock)


def test_http_1_0_ends_the_connection_unless_it_asks_to_keep_it(server):
    with server.connected() as sock:
        answer = ask(sock, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.header("Connection") == "keep-alive"
        answer = ask(sock, b"GET / HTTP/1.0\r\n\r\n")
        assert answer.header("Connection") == "close"
        assert at_end(sock)


def test_chunked_bodies_arrive_whole_however_they_are_cut(server):
    body = b'Transfer-Encoding: chunked\r\n\r\n4;a=b;c="d"\r\nwiki\r\n5 ; x\r\npedia\r\n00\r\nTrailer-One: 1\r\n\r\n'
    with server.connected() as sock:
        facts = ask(sock, POST + body).facts
        assert (facts["body"], facts["environ"]["CONTENT_LENGTH"]) == ("wikipedia", "9")
        for octet in POST + body:
            sock.sendall(bytes([octet]))
        assert read_answer(sock).facts["body"] == "wikipedia"


def test_continue_is_said_before_the_body_is_waited_for(server):
    with server.connected() as sock:
        sock.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert ask(sock, b"ok").facts["body"] == "ok"


def test_continue_is_not_said_for_a_body_that_is_refused(server):
    with server.connected() as sock:
        answer = ask(sock, POST + b"Expect: 100-continue\r\nContent-Length: 65537\r\n\r\n")
        assert answer.status == 413
        assert at_end(sock)


def test_pipelined_requests_are_answered_in_order(server):
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(5))
    with server.connected() as sock:
        sock.sendall(requests)
        answers = read_answers(sock, 5)
    assert [answer.facts["environ"]["PATH_INFO"] for answer in answers] == ["/0", "/1", "/2", "/3", "/4"]


def test_empty_lines_between_requests_are_ignored(server):
    with server.connected() as sock:
        ask(sock, POST + b"Content-Length: 2\r\n\r\nok\r\n")
        ask(sock, b"\r\n" + GET)


def test_head_and_empty_answers_have_no_body(server):
    with server.connected() as sock:
        answer = ask(sock, b"HEAD /big?bytes=5000 HTTP/1.1\r\nHost: h\r\n\r\n", method="HEAD")
        assert (answer.header("Content-Length"), answer.body) == ("5000", b"")
        answer = ask(sock, b"GET /empty HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (answer.status, answer.header("Content-Length")) == (204, None)
        ask(sock, GET)


def test_a_large_answer_arrives_whole(server):
    with server.connected() as sock:
        assert len(ask(sock, b"GET /big?bytes=5000000 HTTP/1.1\r\nHost: h\r\n\r\n").body) == 5_000_000


def test_curl_posts_chunked_with_expect(server, tmp_path):
    curl = require_program("curl", "curl")
    (tmp_path / "body").write_bytes(b"b" * 60_000)
    command = [curl, "-sS", "--cacert", str(server.directory / "root.pem"), "--data-binary", f"@{tmp_path / 'body'}"]
    headers = ["-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue"]
    url = f"https://localhost:{server.port}/curl"
    done = subprocess.run([*command, *headers, url, url], capture_output=True, check=True)
    assert done.stdout.count(b"b" * 60_000) == 2


# --- what the front refuses itself -----------------------------------------------------------------------------------

REFUSED = {
    "a length and chunks": (400, POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "two lengths": (400, POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "a list of lengths": (400, POST + b"Content-Length: 3, 3\r\n\r\nabc"),
    "a signed length": (400, POST + b"Content-Length: +3\r\n\r\nabc"),
    "a negative length": (400, POST + b"Content-Length: -1\r\n\r\n"),
    "a length in words": (400, POST + b"Content-Length: 0x3\r\n\r\nabc"),
    "a length without end": (400, POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"),
    "chunks in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunks twice": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunks and then gzip": (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "gzip and then chunks": (400, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "an unknown coding": (400, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "a coding and a tab": (400, POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"),
    "a space before the colon": (400, POST + b"Content-Length : 3\r\n\r\nabc"),
    "a folded header": (400, POST + b"X-A: b\r\n c\r\n\r\n"),
    "a folded first header": (400, b"GET / HTTP/1.1\r\n Host: h\r\n\r\n"),
    "a bare LF in the head": (400, b"GET / HTTP/1.1\nHost: h\n\n"),
    "a bare LF between headers": (400, b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n"),
    "a bare CR in a value": (400, b"GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n"),
    "a NUL in a value": (400, b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "no path": (400, b"GET x HTTP/1.1\r\nHost: h\r\n\r\n"),
    "a tunnel": (400, b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n"),
    "HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "an unknown expectation": (400, POST + b"Expect: 200-ok\r\n\r\n"),
    "a chunk size in words": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n"),
    "a signed chunk size": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n"),
    "an empty chunk size": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n\r\n"),
    "a chunk size after a space": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n"),
    "a chunk line ended by LF": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n"),
    "a chunk longer than said": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n"),
    "a bare CR in a chunk extension": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n1;a\rb\r\na\r\n0\r\n\r\n"),
    "a chunk line without end": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 300),
    "chunk framing without end": (
        400,
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1;" + b"a" * 200 + b"\r\nb\r\n") * 99,
    ),
    "a bad trailer": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nbad\r\n\r\n"),
    "trailers without end": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 2000),
    "a declared body above the cap": (413, POST + b"Content-Length: 65537\r\n\r\n"),
    "a chunk above the cap": (413, POST + b"Transfer-Encoding: chunked\r\n\r\n10001\r\n"),
    "a huge chunk": (413, POST + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"),
    "chunks above the cap": (
        413,
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b"x" * 32768 + b"\r\n8001\r\n",
    ),
    "a long request line": (431, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n"),
    "a long header": (431, b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 9000 + b"\r\n\r\n"),
    "many headers": (431, b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 200 + b"\r\n"),
    "a head without end": (431, b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 100_000),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_front_refuses_with_one_line_and_ends(server, name):
    status, octets = REFUSED[name]
    with server.connected() as sock:
        answer = ask(sock, octets)
        assert answer.status == status
        assert answer.header("Content-Type") == "text/plain; charset=utf-8"
        assert answer.header("Connection") == "close"
        assert answer.body.count(b"\n") == 1
        assert at_end(sock)


def test_a_client_still_sending_gets_to_read_why_it_was_refused(server):
    with server.connected() as sock:
        sock.sendall(POST + b"Content-Length: 900000\r\n\r\n")
        sock.sendall(b"x" * 900_000)
        assert read_answer(sock).status == 413


# --- the application's faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/boom", b"/split"])
def test_a_broken_application_is_a_500_and_one_traceback(directory, path):
    with Server(directory) as server:
        with server.connected() as sock:
            answer = ask(sock, b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (answer.status, answer.body) == (500, b"internal error\n")
            assert "X-More" not in dict(answer.headers)
            assert at_end(sock)
        pid = server.get()["pid"]
        assert server.get()["pid"] == pid
        log = server.stop()
    assert log.count("Traceback (most recent call last)") == 1
    assert "the application failed on GET " + path.decode() in log


# --- starting and stopping -------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_line(directory):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AssertionError) as failed:
            Server(directory, port=port)
    assert failed.value.args[0].startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in use — stop")
    assert failed.value.args[0].count("\n") == 1


def test_sigterm_finishes_half_a_body_and_takes_nothing_new(directory):
    with Server(directory, workers=2) as server:
        with server.connected() as idle, server.connected() as busy:
            ask(idle, GET)
            busy.sendall(POST + b"Content-Length: 4\r\n\r\nha")
            server.get()
            server.signal(signal.SIGTERM)
            assert at_end(idle)
            until(lambda: _refused(server))
            answer = ask(busy, b"lf")
            assert answer.facts["body"] == "half"
            assert answer.header("Connection") == "close"
        assert server.wait() == 0
    assert "Traceback" not in server.stderr


def test_a_request_that_does_not_finish_in_the_grace_period_is_told_so(directory):
    with Server(directory, graceful_seconds=0.3) as server:
        with server.connected() as busy:
            busy.sendall(POST + b"Content-Length: 4\r\n\r\nha")
            server.get()
            server.signal(signal.SIGTERM)
            assert read_answer(busy).status == 503
        assert server.wait() == 0


def test_sigint_stops_without_waiting_for_clients(directory):
    with Server(directory, workers=2, graceful_seconds=60) as server, server.connected() as busy:
        busy.sendall(POST + b"Content-Length: 4\r\n\r\nha")
        server.get()
        server.signal(signal.SIGINT)
        assert server.wait(10) == 0
    assert "Traceback" not in server.stderr


def test_several_workers_serve_one_port(directory):
    with Server(directory, workers=3) as server:
        seen = set()
        until(lambda: seen.add(server.get()["pid"]) or len(seen) == 3)


def test_a_worker_that_dies_is_replaced(directory):
    with Server(directory) as server:
        first = server.get()["pid"]
        subprocess.run(["kill", "-KILL", str(first)], check=True)
        until(lambda: _other_worker(server, first))
        assert server.process.poll() is None


def test_sighup_takes_a_new_certificate_and_refuses_a_broken_one(tmp_path):
    root = make_directory(tmp_path)
    with Server(tmp_path) as server:
        renewed = certify("localhost", root)
        renewed.write(tmp_path, "server")
        server.signal(signal.SIGHUP)
        until(lambda: _certificate(server) == renewed.der)
        (tmp_path / "server.key").write_text("not a key")
        server.signal(signal.SIGHUP)
        until(lambda: "not reloaded: cannot load the key" in server.stderr)
        assert _certificate(server) == renewed.der
        renewed.write(tmp_path, "server")
        (tmp_path / "no-reload").touch()
        server.signal(signal.SIGHUP)
        until(lambda: "not reloaded: the application's own files are wrong" in server.stderr)
        assert server.get()


def test_while_old_workers_finish_the_new_ones_are_looked_after_and_signals_are_heard(directory):
    """Found by the soak: one slow client at a reload, and a crash within the grace period stopped the server."""
    with Server(directory, graceful_seconds=60) as server, server.connected() as slow:
        slow.sendall(POST + b"Content-Length: 4\r\n\r\nha")
        old = server.get()["pid"]
        server.signal(signal.SIGHUP)
        new = until(lambda: _other_worker(server, old))
        subprocess.run(["kill", "-KILL", str(new)], check=True)
        until(lambda: _other_worker(server, old, new))
        server.signal(signal.SIGTERM)
        until(lambda: _refused(server))
        facts = ask(slow, b"lf").facts
        assert (facts["body"], facts["pid"]) == ("half", old)
        assert server.wait() == 0
    assert "Traceback" not in server.stderr


def _refused(server):
    try:
        server.plain().close()
    except ConnectionRefusedError:
        return True
    return False


def _other_worker(server, *known):
    """Give the process that answers, if it is none of these: while one takes over from another, either may answer."""
    try:
        pid = server.get()["pid"]
    except (OSError, AssertionError):
        return None
    return None if pid in known else pid


def _certificate(server):
    try:
        with server.connected() as sock:
            return sock.getpeercert(binary_form=True)
    except (OSError, ssl.SSLError):
        return None
