"""One connection: a state machine that turns octets into requests and answers into octets, and never waits.

    HANDSHAKE → IDLE → HEAD → BODY → READY → ANSWER → IDLE …
                                                  ↘ LINGER → CLOSED

`advance` moves whatever the socket gives or takes without waiting; OpenSSL itself says whether it wants to read or to
write next. The application is not called here: a connection that is READY holds a complete request, and whoever runs
the loop hands back the answer. A connection that ends on our side lingers: the sending half is closed and what still
comes in is thrown away for a moment, so that the client gets to read its answer instead of a reset.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

from gunicorn.config import Config
from OpenSSL import SSL

from estserver.serving.answer import format_refusal
from estserver.serving.errors import Refusal
from estserver.serving.events import HandshakeFailed, HandshakeProblem, Observe, Refused, handshake_failed
from estserver.serving.peer import TlsPeer, peer_of
from estserver.serving.plain import Plain
from estserver.serving.request import END_OF_HEAD, Request

RECORD_BYTES = 16384  # a TLS record's plaintext at most: one read empties one record, so OpenSSL holds nothing back
READS_PER_TURN = 4
LINGER_MAX_BYTES = 1 << 20
QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(Enum):
    """Where a connection stands."""

    HANDSHAKE = auto()
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    READY = auto()
    ANSWER = auto()
    LINGER = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a request is taken, and how its head is read."""

    head_max_bytes: int
    body_max_bytes: int
    parser: Config


class Connection:
    """One client, from accept to close."""

    def __init__(
        self,
        sock: socket.socket,
        address: tuple[str, int],
        context: SSL.Context | None,
        limits: Limits,
        observe: Observe,
    ) -> None:
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = sock.fileno()
        self.address = address
        self.phase = Phase.HANDSHAKE
        self.interest = self.watched = selectors.EVENT_READ
        self.request: Request | None = None
        self.served = False
        self.taken_bytes = 0
        self._socket = sock
        self._limits = limits
        self._observe = observe
        self._tls = Plain(sock) if context is None else SSL.Connection(context, sock)
        self._tls.set_accept_state()
        self._peer: TlsPeer | None = None
        self._in = bytearray()
        self._out = bytearray()
        self._keep_alive = False
        self._lingered_bytes = 0
        self._quick_ack()

    def advance(self) -> None:
        """Move octets until the socket would block, a request is complete, or the connection is over."""
        try:
            while self.phase in self._STEPS:
                self._step()
        except (SSL.WantReadError, BlockingIOError):
            self.interest = selectors.EVENT_READ
        except SSL.WantWriteError:
            self.interest = selectors.EVENT_WRITE
        except (SSL.ZeroReturnError, SSL.SysCallError, OSError):
            self._lose(HandshakeProblem.GONE)
        except SSL.Error as error:
            if self.phase is Phase.HANDSHAKE:
                self._observe(handshake_failed(self.address[0], error))
            self._fail()

    def _step(self) -> None:
        """Take one step; what the front must refuse becomes an answer."""
        try:
            self._STEPS[self.phase](self)
        except Refusal as refusal:
            self.refuse(refusal)

    def answer(self, octets: bytes, *, keep_alive: bool) -> None:
        """Send the answer to the request that was READY."""
        self.request, self.served = None, True
        self._keep_alive = keep_alive
        self._out += octets
        self.phase = Phase.ANSWER

    def refuse(self, refusal: Refusal) -> None:
        """Send one of the front's own answers, and end."""
        method, path = (self.request.method, self.request.path) if self.request else ("", "")
        version = self._tls.get_protocol_version_name()
        self._observe(Refused(self.address[0], version, refusal.status, refusal.text, method, path))
        self.answer(format_refusal(refusal, method=method), keep_alive=False)

    def expire(self) -> None:
        """End a phase that has taken too long, telling the client where it can still hear."""
        if self.phase in {Phase.HEAD, Phase.BODY}:
            self.refuse(Refusal(408, "the request took too long to arrive"))
        elif self.phase is Phase.IDLE:
            self._hang_up()
        else:
            self._lose(HandshakeProblem.TIMEOUT)

    def environ(self) -> dict[str, Any]:
        """Give the environ of the request that is READY."""
        assert self.request is not None
        host, port = self._socket.getsockname()[:2]
        return self.request.environ() | {
            **self._tls_facts(),
            "REMOTE_ADDR": self.address[0],
            "REMOTE_PORT": str(self.address[1]),
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
        }

    def _tls_facts(self) -> dict[str, Any]:
        """Say what the handshake proved; without one there is nothing to say."""
        if isinstance(self._tls, Plain):
            return {"wsgi.url_scheme": "http"}
        if self._peer is None:
            self._peer = peer_of(self._tls)
        return {"tls.peer": self._peer}

    def release(self) -> None:
        """Give the socket back to the system."""
        self.phase = Phase.CLOSED
        self._socket.close()

    def _handshake(self) -> None:
        self._tls.do_handshake()
        self._quick_ack()
        self.phase = Phase.IDLE

    def _receive(self) -> None:
        """Read until a request is complete; no more than a few records before others have their turn."""
        self._flush()
        for _ in range(READS_PER_TURN):
            if self._parse():
                return
            self._in += self._tls.recv(RECORD_BYTES)
        if not self._parse():
            raise BlockingIOError

    def _parse(self) -> bool:
        """Take what the buffer holds; True once a request is READY."""
        if self.request is None and not self._parse_head():
            return False
        assert self.request is not None
        if not self.request.reader.read(self._in):
            return False
        self.phase = Phase.READY
        return True

    def _parse_head(self) -> bool:
        """Take a complete head off the buffer; empty lines before it are ignored (RFC 9112 §2.2)."""
        while self._in.startswith(b"\r\n"):
            del self._in[:2]
        if b"\r".startswith(self._in):
            return False
        self.phase = Phase.HEAD
        end = self._in.find(END_OF_HEAD, 0, self._limits.head_max_bytes)
        if end < 0:
            self._doubt_head()
            return False
        head = bytes(self._in[: end + len(END_OF_HEAD)])
        del self._in[: len(head)]
        self.request = Request(head, self.address, self._limits.parser, self._limits.body_max_bytes)
        self.phase = Phase.BODY
        if self.request.wants_continue and not self._in:
            self._out += CONTINUE
            self._flush()
        return True

    def _doubt_head(self) -> None:
        """Refuse a head that can no longer become a good one."""
        if len(self._in) >= self._limits.head_max_bytes:
            raise Refusal(431, "request head too large")
        if self._in.count(b"\n") != self._in.count(b"\r\n"):
            raise Refusal(400, "bare LF in the request head")

    def _flush(self) -> None:
        while self._out:
            taken = self._tls.send(self._out)
            del self._out[:taken]
            self.taken_bytes += taken

    def _send(self) -> None:
        self._flush()
        if self._keep_alive:
            self.phase = Phase.IDLE
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        """Close our half; the client's is drained for a moment."""
        with contextlib.suppress(SSL.Error, OSError):
            self._tls.shutdown()
            self._socket.shutdown(socket.SHUT_WR)
        self.phase = Phase.LINGER

    def _lose(self, problem: HandshakeProblem) -> None:
        """End without a word a connection that nobody listens on."""
        if self.phase is Phase.HANDSHAKE:
            self._observe(HandshakeFailed(self.address[0], problem))
        self.phase = Phase.CLOSED

    def _fail(self) -> None:
        """End a connection whose TLS broke; OpenSSL has written the alert, the client shall get to read it."""
        self.phase = Phase.CLOSED
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self.phase, self.interest = Phase.LINGER, selectors.EVENT_READ

    def _linger(self) -> None:
        data = self._socket.recv(1 << 16)
        self._lingered_bytes += len(data)
        if not data or self._lingered_bytes > LINGER_MAX_BYTES:
            self.phase = Phase.CLOSED

    def _quick_ack(self) -> None:
        """Acknowledge at once: a client with Nagle's algorithm on would otherwise wait for the delayed ACK."""
        if QUICK_ACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)

    _STEPS: ClassVar[dict[Phase, Callable[[Connection], None]]] = {
        Phase.HANDSHAKE: _handshake,
        Phase.IDLE: _receive,
        Phase.HEAD: _receive,
        Phase.BODY: _receive,
        Phase.ANSWER: _send,
        Phase.LINGER: _linger,
    }
