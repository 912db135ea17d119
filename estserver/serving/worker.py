"""The event loop: accepts, moves octets, runs the application on complete requests, ends what takes too long.

A turn is: wait for sockets; move octets; call the application for every request that became complete; expire. The
application runs in this thread, one request at a time, and only on requests that are whole, so that no client can hold
it up; it should be quick, or be one of several workers.
"""

from __future__ import annotations

import gc
import os
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable

from gunicorn.workers.base import Worker

from estserver.serving.answer import format_answer, run_app
from estserver.serving.connection import Connection, Limits, Phase
from estserver.serving.deadlines import Deadlines
from estserver.serving.errors import Refusal
from estserver.serving.options import ServeOptions
from estserver.serving.request import parser_config

ACCEPTS_PER_TURN = 16
TURN_MAX_SECONDS = 1.0
LINGER_SECONDS = 2.0
ACCEPT_PAUSE_SECONDS = 0.1


class FrontWorker(Worker):
    """One process of the front; gunicorn's master starts it, listens to its heartbeat and tells it when to stop."""

    def run(self) -> None:
        """Serve until told to stop, then finish what is in flight."""
        self._prepare()
        self.app.announce_worker()
        while self._connections or not self._draining:
            self._turn()
            if self._draining and time.monotonic() >= self._drain_until:
                self._abandon()

    def handle_quit(self, sig: int, frame: object) -> None:
        """Stop without waiting for clients, but never in the middle of the application's work."""
        self._graceful_seconds = 0.0
        self.alive = False

    def _prepare(self) -> None:
        options: ServeOptions = self.app.options
        self._options = options
        self._context = self.app.context
        self._limits = Limits(options.head_max_bytes, options.body_max_bytes, parser_config(options.head_max_bytes))
        self._connections: set[Connection] = set()
        self._per_address: Counter[str] = Counter()
        self._ready: deque[Connection] = deque()
        self._deadlines: Deadlines[Phase, Connection] = Deadlines(
            {
                Phase.HANDSHAKE: options.handshake_deadline_seconds,
                Phase.HEAD: options.head_deadline_seconds,
                Phase.BODY: options.body_deadline_seconds,
                Phase.ANSWER: options.write_deadline_seconds,
                Phase.IDLE: options.idle_deadline_seconds,
                Phase.LINGER: LINGER_SECONDS,
            }
        )
        self._draining = False
        self._drain_until = float("inf")
        self._accept_again = float("inf")
        self._beat_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.PIPE[0], selectors.EVENT_READ, self._woken)
        self._listen()
        gc.freeze()

    _graceful_seconds: float | None = None

    def _turn(self) -> None:
        now = time.monotonic()
        self._beat(now)
        wait = 0.0 if self._ready else self._deadlines.wait_seconds(now, self._turn_seconds(now))
        for key, _ in self._selector.select(wait):
            if isinstance(key.data, Connection):
                self._advance(key.data)
            else:
                key.data()
        for _ in range(len(self._ready)):
            self._serve(self._ready.popleft())
        now = time.monotonic()
        for connection in self._deadlines.expired(now):
            connection.expire()
            self._settle(connection)
        if now >= self._accept_again:
            self._listen()
        if not self.alive and not self._draining:
            self._drain(now)

    def _turn_seconds(self, now: float) -> float:
        """Say how long a turn may wait when no connection needs attention."""
        return max(0.0, min(TURN_MAX_SECONDS, self._accept_again - now, self._drain_until - now))

    def _beat(self, now: float) -> None:
        """Tell the master, once a second, that the loop turns; stop when the master is gone."""
        if now >= self._beat_at:
            self._beat_at = now + 1.0
            self.notify()
            if self.ppid != os.getppid():
                self.alive = False

    def _woken(self) -> None:
        """Empty the pipe through which signals end the wait."""
        os.read(self.PIPE[0], 4096)

    # --- connections -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Take new connections (again)."""
        self._accept_again = float("inf")
        for listener in self.sockets:
            self._selector.register(listener, selectors.EVENT_READ, self._acceptor(listener))

    def _stop_listening(self) -> None:
        if self._accept_again == float("inf"):
            for listener in self.sockets:
                self._selector.unregister(listener)

    def _acceptor(self, listener: socket.socket) -> Callable[[], None]:
        def accept() -> None:
            for _ in range(ACCEPTS_PER_TURN):
                if len(self._connections) >= self._options.connections_max and not self._make_room():
                    return self._pause()
                try:
                    sock, address = listener.accept()
                except (BlockingIOError, ConnectionError):
                    return None
                except OSError as error:  # out of descriptors or memory: the backlog waits, the loop does not spin
                    self.log.warning("not accepting for a moment: %s", error.strerror)
                    self._make_room()
                    return self._pause()
                self._admit(sock, address)
            return None

        return accept

    def _pause(self) -> None:
        """Leave new connections in the system's backlog for a moment."""
        self._stop_listening()
        self._accept_again = time.monotonic() + ACCEPT_PAUSE_SECONDS

    def _make_room(self) -> bool:
        """Close the connection that has been idle the longest, if any is."""
        idle = self._deadlines.first(Phase.IDLE)
        if idle is not None:
            self._drop(idle)
        return idle is not None

    def _admit(self, sock: socket.socket, address: tuple[str, int]) -> None:
        limit = self._options.connections_per_address_max
        if limit is not None and self._per_address[address[0]] >= limit:
            sock.close()
            return
        connection = Connection(sock, address[:2], self._context, self._limits)
        self._connections.add(connection)
        self._per_address[address[0]] += 1
        self._selector.register(connection.fd, connection.interest, connection)
        self._advance(connection)

    def _advance(self, connection: Connection) -> None:
        connection.advance()
        self._settle(connection)

    def _settle(self, connection: Connection) -> None:
        """Bring queues and selector into line with where the connection now stands."""
        if connection not in self._connections:
            return
        phase = connection.phase
        if phase is Phase.CLOSED or (phase is Phase.IDLE and self._draining and connection.served):
            self._drop(connection)
            return
        if phase is Phase.READY and not self._deadlines.is_in(connection, Phase.READY):
            self._ready.append(connection)
        self._deadlines.file(connection, phase, time.monotonic())
        if self._selector.get_key(connection.fd).events != connection.interest:
            self._selector.modify(connection.fd, connection.interest, connection)

    def _drop(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._deadlines.remove(connection)
        self._selector.unregister(connection.fd)
        connection.release()
        host = connection.address[0]
        self._per_address[host] -= 1
        if not self._per_address[host]:
            del self._per_address[host]

    # --- requests ----------------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection) -> None:
        """Run the application on a complete request and send its answer."""
        request = connection.request
        if request is None or connection.phase is not Phase.READY:
            return
        keep_alive = request.keep_alive and not self._draining
        try:
            status, headers, body = run_app(self.wsgi, connection.environ())
        except Exception:
            self.log.exception("the application failed on %s %s", request.method, request.path)
            connection.refuse(Refusal(500, "internal error"))
        else:
            octets = format_answer(
                status, headers, body, method=request.method, http10=request.http10, keep_alive=keep_alive
            )
            connection.answer(octets, keep_alive=keep_alive)
        self._advance(connection)

    # --- stopping ----------------------------------------------------------------------------------------------------

    def _drain(self, now: float) -> None:
        """Accept no more, hang up on idle clients, let the others finish."""
        self._draining = True
        grace = self._options.graceful_seconds if self._graceful_seconds is None else self._graceful_seconds
        self._drain_until = now + grace
        self._stop_listening()
        self._accept_again = float("inf")
        for listener in self.sockets:
            listener.close()
        for connection in [c for c in self._connections if c.phase is Phase.IDLE]:
            self._drop(connection)

    def _abandon(self) -> None:
        """End what did not finish in time; a request on its way in is told to come back."""
        for connection in list(self._connections):
            if connection.phase in {Phase.HEAD, Phase.BODY}:
                connection.refuse(Refusal(503, "the server is stopping, try again"))
                connection.advance()
            self._drop(connection)
