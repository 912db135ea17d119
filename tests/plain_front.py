"""The front without TLS: its real connection, HTTP parser and application, fed from memory, one client at a time.

Octets go in as `recv` would give them, whole or in pieces; what the front answers comes out, with whatever went wrong
on the way. A client that has nothing more to say is waited for as long as the deadlines allow, which takes no time.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from OpenSSL import SSL

from estserver.errors import EstError
from estserver.serving.answer import Call, format_answer
from estserver.serving.connection import Connection, Limits, Phase
from estserver.serving.options import WsgiApp
from estserver.serving.peer import TlsPeer
from estserver.serving.request import parser_config
from tests.est_server import Answer

ADDRESS = ("192.0.2.7", 4711)
STEPS_MAX = 10_000
EXPORTER = bytes(range(32))


def tls_peer(certificate: bytes | None = None, chain: tuple[bytes, ...] = ()) -> TlsPeer:
    """The facts of a TLS 1.3 handshake that showed this certificate."""
    return TlsPeer("TLSv1.3", "TLS_AES_128_GCM_SHA256", certificate, chain, None, EXPORTER, None)


class _Socket:
    """What is left of a socket when the octets come from memory; the descriptor is only there to be named."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 8443

    def settimeout(self, _seconds: float) -> None: ...
    def setsockopt(self, *_option: int) -> None: ...
    def shutdown(self, _how: int) -> None: ...
    def close(self) -> None: ...
    def recv(self, _size: int) -> bytes:
        return b""


class _Tls:
    """The octets of a client, given piece by piece; then nothing, or the end."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.gone = False
        self.sent = bytearray()

    @property
    def silent(self) -> bool:
        return not self._pieces

    def do_handshake(self) -> None: ...
    def shutdown(self) -> None: ...
    def get_protocol_version_name(self) -> str:
        return "TLSv1.3"

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            raise SSL.ZeroReturnError if self.gone else SSL.WantReadError
        piece, rest = self._pieces[0][:size], self._pieces[0][size:]
        self._pieces[:1] = [rest] if rest else []
        return piece

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)


class _PlainConnection(Connection):
    """A connection whose TLS is already there; it keeps each answer as it was given."""

    def __init__(self, plain: _Tls, peer: TlsPeer, **how: Any) -> None:
        super().__init__(**how)
        self._tls = cast("SSL.Connection", plain)
        self._peer = peer
        self.answers: list[tuple[str, bytes]] = []

    def answer(self, octets: bytes, *, keep_alive: bool) -> None:
        self.answers.append((self.request.method if self.request else "GET", octets))
        super().answer(octets, keep_alive=keep_alive)


@dataclass
class Outcome:
    """What one client saw, and what it was not to see."""

    answers: list[Answer] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class PlainFront:
    """One worker's worth of server around an application, without sockets.

    Args:
        app: a Flask application, so that what is raised in its views is seen before it becomes an answer.
    """

    def __init__(self, app: Any, *, head_max_bytes: int = 16_384, body_max_bytes: int = 65_536) -> None:
        self._app: WsgiApp = app
        self._limits = Limits(head_max_bytes, body_max_bytes, parser_config(head_max_bytes))
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._ends = socket.socketpair()
        self._outcome = Outcome()
        handle = app.handle_user_exception
        app.handle_user_exception = lambda error: (self._seen(error), handle(error))[1]
        self._log = _Faults(self)
        logging.getLogger().addHandler(self._log)

    def close(self) -> None:
        logging.getLogger().removeHandler(self._log)
        for end in self._ends:
            end.close()

    def exchange(self, pieces: Sequence[bytes], peer: TlsPeer) -> Outcome:
        """Let one client say all it has to say, and hear everything."""
        self._outcome = outcome = Outcome()
        tls = _Tls(pieces)
        try:
            connection = self._connection(tls, peer)
            self._run(connection, tls)
            outcome.answers = [answer_of(octets, method) for method, octets in connection.answers]
        except Exception as error:  # noqa: BLE001  (whatever it is, it is what this is looking for)
            outcome.faults.append(f"raised {error!r}")
        for answer in outcome.answers:
            outcome.faults += faults_of(answer)
        return outcome

    def _connection(self, tls: _Tls, peer: TlsPeer) -> _PlainConnection:
        return _PlainConnection(
            tls,
            peer,
            sock=cast("socket.socket", _Socket(self._ends[0].fileno())),
            address=ADDRESS,
            context=self._context,
            limits=self._limits,
            observe=lambda event: self._outcome.codes.append(f"front: {getattr(event, 'text', event)}"),
        )

    def _run(self, connection: _PlainConnection, tls: _Tls) -> None:
        for _ in range(STEPS_MAX):
            connection.advance()
            if connection.phase is Phase.CLOSED:
                return
            if connection.phase is Phase.READY:
                self._serve(connection)
            elif tls.silent and connection.phase in (Phase.HEAD, Phase.BODY):
                connection.expire()
            elif tls.silent:
                tls.gone = True
        raise AssertionError(f"still in {connection.phase} after {STEPS_MAX} steps")

    def _serve(self, connection: _PlainConnection) -> None:
        """What the worker does with a request that is complete."""
        request = connection.request
        assert request is not None
        status, headers, body = Call(self._app, connection.environ()).collect()
        octets = format_answer(
            status, headers, body, method=request.method, http10=request.http10, keep_alive=request.keep_alive
        )
        connection.answer(octets, keep_alive=request.keep_alive)

    def _seen(self, error: Exception) -> None:
        code = error.code if isinstance(error, EstError) else f"http {getattr(error, 'code', None)}"
        self._outcome.codes.append(str(code))
        if code == "http None":
            self.fault(f"{error!r} was raised, which is none of ours")

    def fault(self, text: str) -> None:
        self._outcome.faults.append(text)


class _Faults(logging.Handler):
    """Errors and tracebacks in the log count as faults of the request that caused them."""

    def __init__(self, front: PlainFront) -> None:
        super().__init__()
        self._front = front

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self._front.fault(f"logged: {record.getMessage()[:300]} {record.exc_info and record.exc_info[1]!r}")


def answer_of(octets: bytes, method: str) -> Answer:
    """Read an answer as a client does, whole."""
    head, blank, body = octets.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    version, status, _phrase = line.split(" ", 2)
    assert version == "HTTP/1.1", line
    assert blank
    headers = tuple((name, value) for name, _, value in (one.partition(": ") for one in fields))
    return Answer(int(status), headers, body, method)


NOT_OFFERED = 501
"""What RFC 7030 §4.3.2 and §4.4.2 want for the optional operations; no fault."""


def faults_of(answer: Answer) -> Iterator[str]:
    """Whatever is wrong with an answer to a hostile request."""
    if not (200 <= answer.status < 300 or 400 <= answer.status < 500 or answer.status == NOT_OFFERED):
        yield f"status {answer.status}: {answer.body[:200]!r}"
    length = answer.get("Content-Length")
    if answer.method != "HEAD" and length is not None and int(length) != len(answer.body):
        yield f"{len(answer.body)} octets where {length} were promised"
    try:
        answer.check()
    except AssertionError as error:
        yield f"not a clean answer: {str(error)[:300]}"
