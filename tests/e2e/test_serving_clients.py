"""Clients of odd manners: half-closed, hasty, gone before they are answered; and what one answer is on the wire."""

from __future__ import annotations

import re
import socket
import ssl
import struct
from pathlib import Path

import pytest
from OpenSSL import SSL

from tests.e2e.serving_support import TLS12, TLS13, Server, ask, at_end, make_directory, until

pytestmark = pytest.mark.e2e

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"
BIG = b"GET /big?bytes=5000000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
VERSIONS = {"TLS1.2": (SSL.TLS1_2_VERSION, TLS12), "TLS1.3": (SSL.TLS1_3_VERSION, TLS13)}
BOTH = pytest.mark.parametrize("version", VERSIONS)
APPLICATION_DATA = 23


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serving-clients")
    make_directory(directory)
    with Server(directory) as server:
        yield server
        assert "Traceback" not in server.stop()


# --- half-closed -----------------------------------------------------------------------------------------------------


class HalfClosing:
    """A client on pyOpenSSL, which lets one half of a connection end before the other."""

    def __init__(self, server, version):
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(VERSIONS[version][0])
        context.set_max_proto_version(VERSIONS[version][0])
        self.socket = server.plain()
        self.socket.settimeout(None)
        self.tls = SSL.Connection(context, self.socket)
        self.tls.set_connect_state()
        self.tls.do_handshake()

    def all(self):
        """Read until the server ends its half; a FIN that no close_notify came before is an error it answers in TLS."""
        received = b""
        try:
            while True:
                received += self.tls.recv(16384)
        except SSL.Error:
            return received

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


HALVES = {
    "close_notify": lambda client: client.tls.shutdown(),
    "FIN": lambda client: client.socket.shutdown(socket.SHUT_WR),
    "both": lambda client: (client.tls.shutdown(), client.socket.shutdown(socket.SHUT_WR)),
}


@BOTH
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("octets", "answers", "length"), [(POST, 1, 0), (GET * 3, 3, 0), (BIG, 1, 5_000_000)])
def test_a_client_that_has_ended_its_half_gets_all_its_answers(server, version, half, octets, answers, length):
    with HalfClosing(server, version) as client:
        client.tls.sendall(octets)
        HALVES[half](client)
        received = client.all()
    assert len(re.findall(rb"HTTP/1\.1 200 OK\r\n", received)) == answers
    assert len(received) > length


@BOTH
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("octets", [b"", POST[:-1], GET[:-5]], ids=["nothing", "half a body", "half a head"])
def test_a_client_that_ends_its_half_too_soon_is_ended(server, version, half, octets):
    with HalfClosing(server, version) as client:
        if octets:
            client.tls.sendall(octets)
        HALVES[half](client)
        assert b"HTTP/1.1 200" not in client.all()
    assert server.get()


# --- one answer on the wire ------------------------------------------------------------------------------------------


@BOTH
def test_an_answer_is_one_record_head_and_body(server, version):
    """Written at once: no head that waits in front of its body for the client's acknowledgement."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = server.context(VERSIONS[version][1]).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with server.plain() as sock:
        _move(tls.do_handshake, sock, incoming, outgoing)
        tls.write(GET)
        _move(lambda: tls.read(16384), sock, incoming, outgoing)  # OpenSSL's session tickets came with it
        tls.write(GET)
        octets = []
        answer = _move(lambda: tls.read(16384), sock, incoming, outgoing, octets)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"}")
    assert _record_types(b"".join(octets)) == [APPLICATION_DATA]


def _move(step, sock, incoming, outgoing, octets=None):
    """Carry octets between TLS and socket until a step is done; note those that came."""
    while True:
        try:
            done = step()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            received = sock.recv(65536)
            assert received
            incoming.write(received)
            if octets is not None:
                octets.append(received)
        else:
            sock.sendall(outgoing.read())
            return done


def _record_types(octets):
    types = []
    while octets:
        kind, _, length = struct.unpack("!BHH", octets[:5])
        types.append(kind)
        octets = octets[5 + length :]
    return types


# --- an extra line end -----------------------------------------------------------------------------------------------


def test_a_line_end_after_a_body_is_no_request(tmp_path):
    """libest sends one: it is answered by nothing, and the connection is as idle as without it."""
    make_directory(tmp_path)
    with Server(tmp_path, idle_deadline_seconds=0.5) as server, server.connected() as sock:
        assert ask(sock, POST + b"\r\n").facts["body"] == "body"
        assert ask(sock, POST).facts["body"] == "body"
        sock.sendall(b"\r\n")
        assert at_end(sock)


def test_a_line_end_after_the_last_body_does_not_cost_the_answer(server):
    closing = POST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"\r\n"
    for _ in range(20):
        with server.connected() as sock:
            assert ask(sock, closing).facts["body"] == "body"
            assert at_end(sock)


# --- gone ------------------------------------------------------------------------------------------------------------


def _reset(sock):
    """End without a FIN, as a port scanner does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("octets", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 3000])
def test_a_port_scan_leaves_no_trace(tmp_path, octets):
    make_directory(tmp_path)
    with Server(tmp_path) as server:
        worker = server.get()["pid"]
        for _ in range(200):
            sock = server.plain()
            sock.sendall(octets)
            _reset(sock)
        assert server.get()["pid"] == worker
        until(lambda: _sockets(worker) <= 2)
        assert _said(server.stop()) == []


@BOTH
@pytest.mark.parametrize("octets", [GET, BIG, POST[:-1], GET * 50], ids=["a request", "a big answer", "half", "many"])
def test_clients_that_are_gone_before_their_answer_leave_no_trace(tmp_path, version, octets):
    make_directory(tmp_path)
    with Server(tmp_path) as server:
        worker = server.get()["pid"]
        for _ in range(20):
            with HalfClosing(server, version) as client:
                client.tls.sendall(octets)
                _reset(client.socket)
        assert server.get()["pid"] == worker
        until(lambda: _sockets(worker) <= 2)
        assert _said(server.stop()) == []


def _sockets(pid):
    """Count the connections that a worker holds, its listener included."""
    links = (path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink())
    return sum(str(link).startswith("socket:") for link in links)


def _said(log):
    return [line for line in log.splitlines() if not line.startswith("INFO ")]
