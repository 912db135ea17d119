"""The part of `fuzz.py` that goes over real TLS to `estserver serve`, and looks at the size of its worker."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from OpenSSL import SSL

from tests.est_server import Est, RunningServer, Wire, found_home
from tests.hostile_requests import Attempt, Attempts, World, populate
from tests.plain_front import answer_of, faults_of

SOAK_REQUESTS = 100_000
CLIENTS = 3
PER_CONNECTION = 20
PATIENT = 0.01
"""The part of the spoiled requests whose client waits for the deadline; the others close their half at once."""
ANSWER_SECONDS = 20
CALM = frozenset({"sound", "base64", "der", "signed", "names"})
"""Layers that leave HTTP whole, so that the connection goes on."""
ROUNDS = 10
GROWTH_MAX_MB = 4.0
"""What a worker may grow by, over the second half of a soak, before it counts as a violation."""
DEADLINES = "[server]\n" + "".join(f'{name}_deadline = "2s"\n' for name in ("handshake", "head", "body", "idle"))


def run(arguments: argparse.Namespace, requests: int, *, soak: bool) -> list[str]:
    """Send this many requests in rounds; report the answers and the worker's size after each round."""
    counts, faults, sizes = Counter[str](), list[str](), list[float]()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        home = found_home(Path(directory) / "home")
        file = home.path / "estserver.toml"
        file.write_text(file.read_text("utf-8").replace("[server]\n", DEADLINES), "utf-8")
        world = populate(home)
        pool = multiprocessing.get_context("fork").Pool(CLIENTS, _adopt, (world,))
        with pool, RunningServer(home, "--workers", "1") as server:
            worker = _children(server.process.pid)[0]
            sizes.append(_megabytes(worker))
            for place in range(ROUNDS):
                first = arguments.first + place * requests // ROUNDS
                ends = first + requests // ROUNDS
                shares = [
                    (server.port, arguments.seed, range(first + share, ends, CLIENTS)) for share in range(CLIENTS)
                ]
                for told, wrong in pool.starmap(_client, shares):
                    counts, faults = counts + told, faults + wrong
                sizes.append(_megabytes(worker))
                if sys.stderr.isatty():
                    print(f"\rround {place + 1} of {ROUNDS}, {sizes[-1]:.0f} MB ", end="", file=sys.stderr, flush=True)
            faults += _afterwards(server, worker)
    grown = sizes[-1] - sizes[ROUNDS // 2]
    if soak and grown > GROWTH_MAX_MB:
        faults.append(f"the worker grew by {grown:.1f} MB over the second half")
    print(f"\n{requests:,} requests over TLS in {(time.monotonic() - begun) / 60:.1f} min, {CLIENTS} clients")
    print(", ".join(f"{name}: {number:,}" for name, number in sorted(counts.items())))
    print("worker's MB, loaded and after each tenth: " + " ".join(f"{size:.1f}" for size in sizes))
    return faults


def _afterwards(server: RunningServer, worker: int) -> Iterator[str]:
    """Say what is wrong: the same worker must still be there and serve."""
    if Est(server).get("cacerts").status != 200:
        yield "no answer after the run"
    if _children(server.process.pid) != [worker]:
        yield "the worker was replaced"
    if "Traceback" in server.stderr:
        yield f"a traceback: {server.stderr[:2000]}"


_world: World


def _adopt(world: World) -> None:
    global _world  # noqa: PLW0603  (keys reach a pool's process only this way)
    _world = world


def _client(port: int, seed: int, numbers: range) -> tuple[Counter[str], list[str]]:
    """Send the requests of these numbers, several on a connection while it lasts."""
    world, counts, faults = _world, Counter[str](), list[str]()
    attempts = Attempts(world, seed)
    contexts = {name: _context(world, port, name) for name in ("nobody", *world.holders)}
    line: _Line | None = None
    for attempt in sorted(map(attempts.attempt, numbers), key=lambda one: (one.client, one.layer not in CALM)):
        client = attempt.client if attempt.client in contexts else "nobody"
        if line is None or line.client != client or line.used == PER_CONNECTION:
            if line is not None:
                line.close()
            line = _Line(contexts[client], port, client)
        goes_on, answers = line.exchange(attempt)
        counts["requests"] += 1
        counts["connections"] += line.used == 1
        for octets, method in answers:
            answer = answer_of(octets, method)
            counts[str(answer.status)] += 1
            faults += [f"{attempt.number} ({attempt.layer}, TLS): {fault}" for fault in faults_of(answer)]
        counts["ended without an answer"] += not answers
        if not goes_on:
            line.close()
            line = None
    return counts, faults


class _Line:
    """One TLS connection that hostile octets go over."""

    def __init__(self, context: SSL.Context, port: int, client: str) -> None:
        self.client, self.used = client, 0
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ANSWER_SECONDS, 0))
        self._tls = SSL.Connection(context, self._socket)
        self._tls.set_connect_state()
        self._tls.do_handshake()
        self._in, self._ended = b"", False

    def exchange(self, attempt: Attempt) -> tuple[bool, list[tuple[bytes, str]]]:
        """Send one request and read what comes; say whether the connection goes on."""
        self.used += 1
        calm = attempt.layer in CALM
        with contextlib.suppress(SSL.Error, OSError):  # an answer may come, and the end, before all is said
            for piece in attempt.pieces:
                self._tls.sendall(piece)
            if not calm and attempt.number % 1000 >= PATIENT * 1000:
                self._tls.shutdown()
        answers = []
        method = "HEAD" if b"".join(attempt.pieces).lstrip().startswith(b"HEAD ") else "GET"
        while octets := self._answer(method):
            answers.append((octets, method))
            if calm and b"\r\nConnection: close\r\n" not in octets:
                return True, answers
            method = "GET"  # what was hidden behind it
        return False, answers

    def _answer(self, method: str) -> bytes | None:
        """Read one answer by its length, or None at the end."""
        while b"\r\n\r\n" not in self._in:
            if not self._more():
                return None
        head, _, self._in = self._in.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100"):
            return self._answer(method)
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        length = 0 if method == "HEAD" else length
        while len(self._in) < length and self._more():
            pass
        body, self._in = self._in[:length], self._in[length:]
        return head + b"\r\n\r\n" + body

    def _more(self) -> bool:
        if self._ended:
            return False
        try:
            self._in += self._tls.recv(65_536)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            self._ended = True
        return not self._ended

    def close(self) -> None:
        with contextlib.suppress(SSL.Error, OSError):
            self._tls.shutdown()
        self._socket.close()


def _context(world: World, port: int, name: str) -> SSL.Context:
    with Wire(port, world.home.root, client=world.holders.get(name)) as wire:
        return wire.context


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
