"""A process that misuses the port: octets that are no TLS, plain HTTP, port scans, connections opened and dropped."""

from __future__ import annotations

import multiprocessing
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Self

from clients import TLS13, Wire, connect, tls_context
from OpenSSL import SSL
from rig import Home

PER_SECOND = 30
_POST = b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 600\r\n\r\nMII"
_GET = b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Nuisance:
    """The misuse, while the `with` block runs; `did` says afterwards how often what."""

    def __init__(self, home: Home, port: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.did = Counter[str]()
        self._pipe, theirs = fork.Pipe()
        self._process = fork.Process(target=_misuse, args=(home, port, theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self.did = self._pipe.recv()
        self._process.join()


class _Misuser:
    def __init__(self, home: Home, port: int) -> None:
        self._context, self._port = tls_context(home, TLS13, "X25519"), port
        self.rng = random.Random(port)

    def garbage(self) -> None:
        self._say(self.rng.randbytes(self.rng.randrange(1, 4000)))

    def plain_http(self) -> None:
        self._say(_GET)

    def broken_hello(self) -> None:
        self._say(b"\x16\x03\x01\x00\xff" + self.rng.randbytes(255))

    def port_scan(self) -> None:
        _reset(self._tcp())

    def dropped_before_tls(self) -> None:
        self._tcp().close()

    def dropped_after_tls(self) -> None:
        self._wire().socket.close()

    def dropped_in_a_request(self) -> None:
        wire = self._wire()
        wire.tls.sendall(_POST)
        _reset(wire.socket)

    def dropped_before_the_answer(self) -> None:
        wire = self._wire()
        wire.tls.sendall(_GET * self.rng.randrange(1, 20))
        _reset(wire.socket)

    def junk_for_a_request(self) -> None:
        wire = self._wire()
        wire.tls.sendall(self.rng.randbytes(200) + b"\r\n\r\n")
        wire.tls.recv(100)
        wire.close()

    def _tcp(self) -> socket.socket:
        return connect(self._port, "127.9.9.9")

    def _wire(self) -> Wire:
        return Wire(self._context, self._port, "127.9.9.9")

    def _say(self, octets: bytes) -> None:
        """Speak, and listen until the server ends it."""
        with self._tcp() as sock:
            sock.sendall(octets)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


MISUSES: tuple[Callable[[_Misuser], None], ...] = (
    *(_Misuser.garbage, _Misuser.plain_http, _Misuser.broken_hello, _Misuser.port_scan, _Misuser.dropped_before_tls),
    *(_Misuser.dropped_after_tls, _Misuser.dropped_in_a_request, _Misuser.dropped_before_the_answer),
    _Misuser.junk_for_a_request,
)


def _misuse(home: Home, port: int, pipe: Pipe) -> None:
    misuser, did = _Misuser(home, port), Counter[str]()
    while not pipe.poll(1 / PER_SECOND):
        misuse = misuser.rng.choice(MISUSES)
        try:
            misuse(misuser)
        except (SSL.Error, OSError):
            did["cut or reset"] += 1  # by the server, which may do so, or with it
        did[misuse.__name__.replace("_", " ")] += 1
    pipe.send(did)
