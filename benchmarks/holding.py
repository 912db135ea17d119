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
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import NamedTuple, Self

from clients import TLS13, connect, tls_context
from OpenSSL import SSL
from rig import Home

HELD = {"idle": 500, "half-open": 500, "slow body": 100}
ESTABLISHED = 1


class _Kind(NamedTuple):
    """What a client says at first, and then each second; `reads` is false for one that takes no answer."""

    tls: bool
    first: bytes = b""
    then: bytes = b""
    reads: bool = True


_POST = b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
_GET = b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n"
_KINDS = {
    "idle": _Kind(tls=True),
    "half-open": _Kind(tls=False, first=b"\x16\x03\x01\x02"),  # the first octets of a ClientHello
    "slow head": _Kind(tls=True, first=_POST + b"X-Slow: ", then=b"x"),
    "slow body": _Kind(tls=True, first=_POST + b"Content-Length: 600\r\n\r\nM", then=b"A"),
    "not reading": _Kind(tls=True, first=_GET * 500, reads=False),
}


@dataclass(frozen=True, slots=True)
class _Held:
    kind: str
    socket: socket.socket
    tls: SSL.Connection | None


class Holding:
    """The connections, while the `with` block runs."""

    def __init__(self, home: Home, port: int, core: int | None, numbers: Mapping[str, int] = HELD) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipe, theirs = fork.Pipe()
        self._process = fork.Process(target=_hold, args=(home, port, core, dict(numbers), theirs), daemon=True)

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
        self._context = tls_context(home, TLS13, "X25519")
        self._sources = (f"127.{a}.{b}.{c}" for a, b, c in itertools.product(range(1, 255), range(256), range(1, 255)))
        self._selector = selectors.DefaultSelector()
        self._held: set[_Held] = set()
        self._missing: list[str] = []
        self.reopened = 0

    def open(self, name: str) -> None:
        """Open one; what a server that is just being killed cuts is opened at the next turn."""
        try:
            held = self._opened(name, _KINDS[name])
        except (SSL.Error, OSError):
            self._missing.append(name)
            return
        self._held.add(held)
        if _KINDS[name].reads:
            self._selector.register(held.socket, selectors.EVENT_READ, held)

    def _opened(self, name: str, kind: _Kind) -> _Held:
        sock = connect(self._port, next(self._sources), window_bytes=None if kind.reads else 4096)
        try:
            tls = SSL.Connection(self._context, sock) if kind.tls else None
            if tls is not None:
                tls.set_connect_state()
                tls.do_handshake()
            if kind.first:
                (tls or sock).sendall(kind.first)
        except (SSL.Error, OSError):
            sock.close()
            raise
        sock.settimeout(0)
        return _Held(name, sock, tls)

    def count(self) -> dict[str, int]:
        return dict(Counter(each.kind for each in self._held)) | {"reopened": self.reopened}

    def turn(self, seconds: float) -> None:
        """Replace what the server has ended."""
        for key, _ in self._selector.select(seconds):
            if _ended(key.data):
                self._selector.unregister(key.data.socket)
                self._replace(key.data)
        again, self._missing = self._missing, []
        for name in again:
            self.open(name)

    def _replace(self, each: _Held) -> None:
        self._held.remove(each)
        each.socket.close()
        self.reopened += 1
        self.open(each.kind)

    def drip(self) -> None:
        """Say the next octet where there is one; what ended is seen by the next turn, or here by who does not read."""
        for each in list(self._held):
            kind = _KINDS[each.kind]
            if not kind.reads and each.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED:
                self._replace(each)
            elif kind.then and each.tls is not None:
                try:
                    each.tls.send(kind.then)
                except SSL.Error:
                    continue


def _ended(each: _Held) -> bool:
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


def _hold(home: Home, port: int, core: int | None, numbers: Mapping[str, int], pipe: Pipe) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    holder = _Holder(home, port)
    for kind, number in numbers.items():
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
