"""The event loop: accepts, moves octets, runs the application on complete requests, ends what takes too long.

A turn is: wait for sockets; move octets; call the application for every request that became complete; collect its
answers; expire. The application runs in this thread, one request at a time, and only on requests that are whole, so
that no client can hold it up; it should be quick, or be one of several workers. What it puts off until its first answer
is collected, it can do for all requests of the turn at once.
"""

from __future__ import annotations

import gc
import os
import selectors
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from estserver.serving.answer import Call, Headers, format_answer
from estserver.serving.connection import RECORD_BYTES, Connection, Limits, Phase
from estserver.serving.deadlines import Deadlines
from estserver.serving.descriptors import raise_descriptor_limit
from estserver.serving.errors import CannotServe, Refusal
from estserver.serving.events import Closed, HandshakeFailed, HandshakeProblem, Opened
from estserver.serving.options import ServeOptions
from estserver.serving.request import parser_config

ACCEPTS_PER_TURN = 4
CALLS_PER_TURN = 32
TURN_MAX_SECONDS = 1.0
LINGER_SECONDS = 2.0
ACCEPT_PAUSE_SECONDS = 0.1
NEVER = float("inf")


class FrontWorker(Worker):
    """One process of the front; gunicorn's master starts it, listens to its heartbeat and tells it when to stop."""

    _hurry = False

    def load_wsgi(self) -> None:
        """Load the application; what it says the operator must mend is one line and ends the start."""
        try:
            self.wsgi = self.app.wsgi()
        except CannotServe as error:
            self.log.error("%s", error)  # noqa: TRY400  (a line for the operator, not a fault of ours)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def handle_quit(self, sig: int, frame: object) -> None:
        """Stop without waiting for clients, but never in the middle of the application's work."""
        self._hurry = True
        self.alive = False

    def run(self) -> None:
        """Serve until told to stop, then finish what is in flight."""
        self._prepare()
        self.app.announce_worker()
        while self.alive:
            self._turn()
        self._stop_accepting_for_good()
        self._stop_at = time.monotonic() + self._options.graceful_seconds
        while self._connections and time.monotonic() < self._stop_at and not self._hurry:
            self._turn()
        self._abandon()

    def _prepare(self) -> None:
        options: ServeOptions = self.app.options
        self._options = options
        self._context = self.app.context
        self._limits = Limits(options.head_max_bytes, options.body_max_bytes, parser_config(options.head_max_bytes))
        self._connections_max = raise_descriptor_limit(options.connections_max)
        self._connections: set[Connection] = set()
        self._per_address: Counter[str] = Counter()
        self._ready: deque[Connection] = deque()
        self._deadlines: Deadlines[Phase, Connection] = Deadlines(
            {phase: getattr(options, name) for phase, name in self._LIMITED.items()} | {Phase.LINGER: LINGER_SECONDS}
        )
        self._accept_again_at = self._stop_at = NEVER
        self._beat_at = 0.0
        self._listener = self.sockets[0]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.PIPE[0], selectors.EVENT_READ, self._woken)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        gc.freeze()  # the application is loaded: the collector need not look at it again

    _LIMITED: ClassVar[dict[Phase, str]] = {
        Phase.HANDSHAKE: "handshake_deadline_seconds",
        Phase.IDLE: "idle_deadline_seconds",
        Phase.HEAD: "head_deadline_seconds",
        Phase.BODY: "body_deadline_seconds",
        Phase.ANSWER: "write_deadline_seconds",
    }

    def _turn(self) -> None:
        """Move what can be moved, answer what can be answered, end what has taken too long."""
        for key, _ in self._selector.select(self._wait_seconds()):
            if isinstance(key.data, Connection):
                self._advance(key.data)
            else:
                key.data()
        self._serve([self._ready.popleft() for _ in range(min(len(self._ready), CALLS_PER_TURN))])
        now = time.monotonic()
        for connection in self._deadlines.expired(now):
            connection.expire()
            self._advance(connection)
        if now >= self._accept_again_at:
            self._accept_again_at = NEVER
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._beat(now)

    def _wait_seconds(self) -> float:
        """Say how long a turn may wait for sockets."""
        if self._ready:
            return 0.0
        now = time.monotonic()
        longest = min(TURN_MAX_SECONDS, self._accept_again_at - now, self._stop_at - now)
        return self._deadlines.wait_seconds(now, max(0.0, longest))

    def _beat(self, now: float) -> None:
        """Tell the master, once a second, that the loop turns; stop when the master is gone."""
        if now >= self._beat_at:
            self._beat_at = now + TURN_MAX_SECONDS
            self.notify()
            if self.ppid != os.getppid():
                self.alive = False

    def _woken(self) -> None:
        """Empty the pipe through which signals end the wait."""
        os.read(self.PIPE[0], 4096)

    # --- connections -------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Take a few new connections; when there is no room, leave them in the system's backlog for a moment."""
        for _ in range(ACCEPTS_PER_TURN):
            full = len(self._connections) >= self._connections_max
            if full and self._spare() is None:
                return self._pause()
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return None
            except OSError as error:  # out of descriptors or memory
                self.log.warning("no new connections for a moment: %s", error.strerror)
                self._make_room()
                return self._pause()
            if full:
                self._make_room()
            self._admit(sock, address[:2])
        return None

    def _pause(self) -> None:
        self._selector.unregister(self._listener)
        self._accept_again_at = time.monotonic() + ACCEPT_PAUSE_SECONDS

    def _make_room(self) -> None:
        """Close the connection that is missed the least, if any can be."""
        spare = self._spare()
        if spare is not None:
            self._drop(spare)

    def _spare(self) -> Connection | None:
        """Find the connection that has been idle the longest, or else lingering the longest."""
        return self._deadlines.first(Phase.IDLE) or self._deadlines.first(Phase.LINGER)

    def _admit(self, sock: socket.socket, address: tuple[str, int]) -> None:
        """Begin the handshake, unless this address has connections enough."""
        limit = self._options.connections_per_address_max
        if limit is not None and self._per_address[address[0]] >= limit:
            sock.close()
            self._options.observe(HandshakeFailed(address[0], HandshakeProblem.TOO_MANY))
            return
        try:
            connection = Connection(sock, address, self._context, self._limits, self._options.observe)
        except OSError:  # gone already
            sock.close()
            return
        self._options.observe(Opened(address[0]))
        self._connections.add(connection)
        self._per_address[address[0]] += 1
        self._selector.register(connection.fd, connection.interest, connection)
        self._advance(connection)

    def _advance(self, connection: Connection) -> None:
        """Let a connection move octets, then bring queues and selector into line with where it stands."""
        if connection not in self._connections:
            return
        try:
            connection.advance()
        except Exception:
            self.log.exception("connection from %s given up", connection.address[0])
            connection.phase = Phase.CLOSED
        phase = connection.phase
        if phase is Phase.CLOSED or (phase is Phase.IDLE and connection.served and not self.alive):
            self._drop(connection)
            return
        if phase is Phase.READY and not self._deadlines.is_in(connection, Phase.READY):
            self._ready.append(connection)
        self._deadlines.file(connection, phase, time.monotonic(), connection.taken_bytes // RECORD_BYTES)
        if connection.watched != connection.interest:
            self._selector.modify(connection.fd, connection.interest, connection)
            connection.watched = connection.interest

    def _drop(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._deadlines.remove(connection)
        self._selector.unregister(connection.fd)
        connection.release()
        address = connection.address[0]
        self._options.observe(Closed(address))
        self._per_address[address] -= 1
        if not self._per_address[address]:
            del self._per_address[address]

    # --- requests ----------------------------------------------------------------------------------------------------

    def _serve(self, ready: Sequence[Connection]) -> None:
        """Run the application on complete requests, then send its answers."""
        begun = []
        for connection in ready:
            if connection in self._connections:
                # it may be READY again, with a pipelined request, before it is filed again
                self._deadlines.remove(connection)
                with self._application(connection):
                    begun.append((connection, Call(self.wsgi, connection.environ())))
        for connection, call in begun:
            with self._application(connection):
                self._answer(connection, *call.collect())

    @contextmanager
    def _application(self, connection: Connection) -> Iterator[None]:
        """Let the application work for a connection; if it fails, that is said once and answered."""
        try:
            yield
        except Exception:
            request = connection.request
            assert request is not None
            self.log.exception("the application failed on %s %s", request.method, request.path)
            connection.refuse(Refusal(500, "internal error"))
            self._advance(connection)

    def _answer(self, connection: Connection, status: str, headers: Headers, body: bytes) -> None:
        request = connection.request
        assert request is not None
        keep_alive = request.keep_alive and self.alive
        octets = format_answer(
            status, headers, body, method=request.method, http10=request.http10, keep_alive=keep_alive
        )
        connection.answer(octets, keep_alive=keep_alive)
        self._advance(connection)

    # --- stopping ----------------------------------------------------------------------------------------------------

    def _stop_accepting_for_good(self) -> None:
        """Leave new connections to others, hang up on idle clients."""
        if self._accept_again_at == NEVER:
            self._selector.unregister(self._listener)
        self._accept_again_at = NEVER
        self._listener.close()
        for connection in [c for c in self._connections if c.phase is Phase.IDLE]:
            self._drop(connection)

    def _abandon(self) -> None:
        """End what did not finish in time; a request on its way in is told to come back."""
        for connection in list(self._connections):
            if connection.phase in {Phase.HEAD, Phase.BODY}:
                connection.refuse(Refusal(503, "the server is stopping, try again"))
                self._advance(connection)
        for connection in list(self._connections):
            self._drop(connection)
