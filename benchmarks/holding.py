"""A process that holds connections open which do nothing, or almost nothing, as slow and hostile clients do.

What the server ends at a deadline is opened again, so that the numbers stand for as long as they are held.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import selectors
import socket
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Self

from clients import TLS13, connect, tls_context
from OpenSSL import SSL
from rig import Home

HELD = {"idle": 500, "half-open": 500, "slow body": 100}
"""idle: TLS is up, no request. half-open: the first octets of a ClientHello. slow body: an octet of it each second."""

_CLIENT_HELLO_START = b"\x16\x03\x01\x02"
_SLOW_HEAD = (
    b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
    b"Content-Length: 600\r\n\r\nM"
)


@dataclass(frozen=True, slots=True)
class _Held:
    kind: str
    socket: socket.socket
    tls: SSL.Connection | None


class Holding:
    """The connections, while the `with` block runs."""

    def __init__(self, home: Home, port: int, core: int) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipe, theirs = fork.Pipe()
        self._process = fork.Process(target=_hold, args=(home, port, core, theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join()

    def count(self) -> dict[str, int]:
        """Return how many of each kind are open at this moment, and how many had to be opened again."""
        self._pipe.send("count")
        counted: dict[str, int] = self._pipe.recv()
        return counted


class _Holder:
    def __init__(self, home: Home, port: int) -> None:
        self._port = port
        self._context = tls_context(home, TLS13, "X25519", identified=False)
        self._sources = (f"127.{a}.{b}.{c}" for a, b, c in itertools.product(range(1, 255), range(256), range(1, 255)))
        self._selector = selectors.DefaultSelector()
        self.reopened = 0

    def open(self, kind: str) -> None:
        sock = connect(self._port, next(self._sources))
        tls = None
        if kind == "half-open":
            sock.sendall(_CLIENT_HELLO_START)
        else:
            tls = SSL.Connection(self._context, sock)
            tls.set_connect_state()
            tls.do_handshake()
            if kind == "slow body":
                tls.sendall(_SLOW_HEAD)
        sock.settimeout(0)
        self._selector.register(sock, selectors.EVENT_READ, _Held(kind, sock, tls))

    def held(self) -> list[_Held]:
        return [key.data for key in self._selector.get_map().values()]

    def count(self) -> dict[str, int]:
        return dict(Counter(each.kind for each in self.held())) | {"reopened": self.reopened}

    def turn(self, seconds: float) -> None:
        """Replace what the server has ended."""
        for key, _ in self._selector.select(seconds):
            if self._ended(key.data):
                self._selector.unregister(key.data.socket)
                key.data.socket.close()
                self.reopened += 1
                self.open(key.data.kind)

    def drip(self) -> None:
        for each in self.held():
            if each.kind == "slow body" and each.tls is not None:
                try:
                    each.tls.send(b"A")
                except SSL.Error:
                    continue  # it ended; the next turn sees it

    def _ended(self, each: _Held) -> bool:
        """Tell whether a connection that has something to read is over; a session ticket is no end."""
        try:
            if each.tls is None:
                return not each.socket.recv(64)
            each.tls.recv(4096)
        except (SSL.WantReadError, BlockingIOError):
            return False
        except (SSL.Error, OSError):
            return True
        return True  # an answer, where no request was whole


def _hold(home: Home, port: int, core: int, pipe: Pipe) -> None:
    os.sched_setaffinity(0, {core})
    holder = _Holder(home, port)
    for kind, number in HELD.items():
        for _ in range(number):
            holder.open(kind)
    pipe.send("held")
    drip_at = time.monotonic()
    while True:
        holder.turn(0.05)
        if pipe.poll():
            if pipe.recv() is None:
                return
            pipe.send(holder.count())
        if time.monotonic() >= drip_at:
            drip_at = time.monotonic() + 1
            holder.drip()
