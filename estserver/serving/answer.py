"""One HTTP/1.1 answer as bytes: the application's, joined and given a Content-Length, or one of the front's own.

Clients in the field need Content-Length on every answer and header names in the case they were written, and some keep
no more than 16 headers, so the front adds only Date, Content-Length and Connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Any, TypeAlias

from estserver.serving.errors import Refusal
from estserver.serving.options import WsgiApp

_STATUS = re.compile(r"[2-5][0-9]{2} [\t\x20-\x7e]*")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# Framing and the connection are the front's; the rest are hop by hop (PEP 3333, RFC 9110 §7.6.1).
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "date", "trailer", "upgrade"})
_NO_BODY = ("204", "304")

Headers: TypeAlias = list[tuple[str, str]]
ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class _Started:
    """What the application said through `start_response` and, the old way, through `write`."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: Headers = []
        self.written: list[bytes] = []

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None) -> Callable[[bytes], None]:
        """PEP 3333's callable; nothing has been sent yet, so an error may still replace the answer."""
        if self.status and exc_info is None:
            raise RuntimeError("start_response called twice")
        if not _STATUS.fullmatch(status):
            raise ValueError(f"not a status line: {status!r}")
        for name, value in headers:
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise ValueError(f"not a header: {name!r}")  # never the value: it may be a secret
        self.status, self.headers = status, list(headers)
        return self.written.append


class Call:
    """One call of the application: made at once, its answer collected when the caller is ready for it.

    An application may put work off until its answer is collected (PEP 3333), and then do it for several calls at once.
    """

    def __init__(self, app: WsgiApp, environ: dict[str, Any]) -> None:
        self._started = _Started()
        self._parts: Iterable[bytes] = app(environ, self._started.start_response)

    def collect(self) -> tuple[str, Headers, bytes]:
        """Return the whole answer: status, headers, body."""
        try:
            body = b"".join(self._parts)
        finally:
            close = getattr(self._parts, "close", None)
            if close is not None:
                close()
        started = self._started
        if not started.status:
            raise RuntimeError("the application did not call start_response")
        return started.status, started.headers, b"".join(started.written) + body


def format_answer(status: str, headers: Headers, body: bytes, *, method: str, http10: bool, keep_alive: bool) -> bytes:
    """Write head and body as they go out."""
    lines = [f"HTTP/1.1 {status}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in headers if name.lower() not in _OURS]
    if not status.startswith(_NO_BODY):
        lines.append(f"Content-Length: {_length(headers, body, method)}")
    if not keep_alive:
        lines.append("Connection: close")
    elif http10:
        lines.append("Connection: keep-alive")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if method == "HEAD" or status.startswith(_NO_BODY) else head + body


def format_refusal(refusal: Refusal, *, method: str = "GET") -> bytes:
    """Write one of the front's own answers: one line of text, and the connection ends."""
    status = f"{refusal.status} {HTTPStatus(refusal.status).phrase}"
    headers = [("Content-Type", "text/plain; charset=utf-8")]
    return format_answer(status, headers, f"{refusal}\n".encode(), method=method, http10=False, keep_alive=False)


def _length(headers: Headers, body: bytes, method: str) -> int:
    """Give the length of the body, or of the one a HEAD request would have got (RFC 9110 §8.6)."""
    if method == "HEAD" and not body:
        declared = next((value for name, value in headers if name.lower() == "content-length"), "")
        return int(declared) if declared.isdecimal() else 0
    return len(body)
