"""One HTTP/1.1 request as bytes: where its head ends, what it says, where its body ends, and its WSGI environ.

The head goes through gunicorn's own strict parser (RFC 9112), which refuses folding, bare LF, bad names and values, a
second Content-Length, and Content-Length beside Transfer-Encoding. It reads from a source that blocks, so it is given a
complete head here, and the body is framed by the two small readers below, which can stop anywhere and go on.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from gunicorn.config import Config
from gunicorn.http.body import CHUNK_EXT_RE
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, NoMoreData, ParseException
from gunicorn.http.message import Request as GunicornRequest
from gunicorn.http.unreader import IterUnreader

from estserver.serving.errors import Refusal

CRLF = b"\r\n"
END_OF_HEAD = b"\r\n\r\n"
CHUNK_LINE_MAX_BYTES = 256
TRAILERS_MAX_BYTES = 4096
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class BodyReader(Protocol):
    """Takes octets off the front of a buffer until the body is complete."""

    body: bytearray

    def read(self, buffer: bytearray) -> bool:
        """Take what belongs to the body; True when it is complete."""
        ...


class LengthReader:
    """A body of a declared length (RFC 9112 §6.2)."""

    def __init__(self, length: int) -> None:
        self.body = bytearray()
        self._missing = length

    def read(self, buffer: bytearray) -> bool:
        """Take up to the missing number of octets."""
        taken = buffer[: self._missing]
        del buffer[: len(taken)]
        self.body += taken
        self._missing -= len(taken)
        return not self._missing


class ChunkedReader:
    """A body in chunks (RFC 9112 §7.1), strict, bounded, resumable at any octet; extensions and trailers are dropped.

    Framing may not outweigh what one-octet chunks need, so that a client cannot feed chunk extensions for ever.
    """

    def __init__(self, body_max_bytes: int) -> None:
        self.body = bytearray()
        self._max_bytes = body_max_bytes
        self._missing = 0
        self._framing = 0
        self._step: Callable[[bytearray], bool] = self._size_line

    def read(self, buffer: bytearray) -> bool:
        """Undo as many chunks as the buffer holds."""
        while self._step(buffer):
            if self._framing > TRAILERS_MAX_BYTES + 8 * len(self.body):
                raise Refusal(400, "more chunk framing than body")
        return self._step == self._done

    def _line(self, buffer: bytearray, max_bytes: int) -> bytes | None:
        """Take one line ended by CRLF, or None while it is incomplete."""
        end = buffer.find(b"\n", 0, max_bytes)
        if end < 0 and len(buffer) < max_bytes:
            return None
        if end < 1 or buffer[end - 1] != 0x0D:
            raise Refusal(400, "malformed chunk")
        line = bytes(buffer[: end - 1])
        del buffer[: end + 1]
        self._framing += end + 1
        return line

    def _size_line(self, buffer: bytearray) -> bool:
        line = self._line(buffer, CHUNK_LINE_MAX_BYTES)
        if line is None:
            return False
        size, semicolon, extension = line.partition(b";")
        match = _CHUNK_SIZE.fullmatch(size) if semicolon else re.fullmatch(rb"([0-9A-Fa-f]{1,8})", size)
        if match is None or not CHUNK_EXT_RE.fullmatch(semicolon + extension):
            raise Refusal(400, "malformed chunk")
        self._missing = int(match[1], 16)
        if len(self.body) + self._missing > self._max_bytes:
            raise body_too_large(self._max_bytes)
        self._step = self._data if self._missing else self._trailer
        return True

    def _data(self, buffer: bytearray) -> bool:
        taken = buffer[: self._missing]
        del buffer[: len(taken)]
        self.body += taken
        self._missing -= len(taken)
        if self._missing or len(buffer) < len(CRLF):
            return False
        if not buffer.startswith(CRLF):
            raise Refusal(400, "malformed chunk")
        del buffer[: len(CRLF)]
        self._framing += len(CRLF)
        self._step = self._size_line
        return True

    def _trailer(self, buffer: bytearray) -> bool:
        line = self._line(buffer, TRAILERS_MAX_BYTES)
        if line is None:
            return False
        if line and not _TRAILER.fullmatch(line):
            raise Refusal(400, "malformed trailer")
        if not line:
            self._step = self._done
        return True

    def _done(self, _buffer: bytearray) -> bool:
        return False


class Request:
    """A request whose head is complete; `reader` holds its body."""

    def __init__(self, head: bytes, address: tuple[str, int], cfg: Config, body_max_bytes: int) -> None:
        message = _parse(head, address, cfg)
        names = [name for name, _ in message.headers]
        if message.version >= (1, 1) and "HOST" not in names:
            raise Refusal(400, "no Host header")  # RFC 9112 §3.2
        if not message.path.startswith("/"):
            raise Refusal(400, "request target is not a path")
        self.method: str = message.method
        self.path: str = message.path
        self.http10: bool = message.version == (1, 0)
        self.keep_alive = _keep_alive(message)
        self._message = message
        self.reader = _body_reader(message, body_max_bytes)
        self.wants_continue = bool(message._expected_100_continue)  # noqa: SLF001  (gunicorn has no other name for it)

    def environ(self) -> dict[str, Any]:
        """Say the request in PEP 3333's words; the connection adds who and where."""
        message = self._message
        body = bytes(self.reader.body)
        environ: dict[str, Any] = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https",
            "wsgi.input": io.BytesIO(body),
            "wsgi.input_terminated": True,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "REQUEST_METHOD": message.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(message.path).decode("latin-1"),
            "QUERY_STRING": message.query,
            "RAW_URI": message.uri,
            "SERVER_PROTOCOL": "HTTP/1.0" if self.http10 else "HTTP/1.1",
            "CONTENT_LENGTH": str(len(body)),
        }
        for name, value in message.headers:
            if name in _FRAMING:
                continue
            key = "CONTENT_TYPE" if name == "CONTENT-TYPE" else "HTTP_" + name.replace("-", "_")
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ


_FRAMING = frozenset({"CONTENT-LENGTH", "TRANSFER-ENCODING", "TRAILER", "EXPECT"})  # settled here, not the app's


def parser_config(head_max_bytes: int) -> Config:
    """Give gunicorn's parser its strict settings: pure Python, no proxy's word believed, names with `_` dropped."""
    cfg = Config()
    for name, value in (
        ("http_parser", "python"),
        ("limit_request_line", min(head_max_bytes, 8190)),
        ("limit_request_field_size", min(head_max_bytes, 8190)),
        ("forwarded_allow_ips", ""),
        ("forwarder_headers", ""),
        ("secure_scheme_headers", {}),
        ("header_map", "drop"),
    ):
        cfg.set(name, value)
    # plain attributes: the parser asks for a dozen of them, and looking one up in a Config takes a microsecond
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})
    return cfg


def body_too_large(max_bytes: int) -> Refusal:
    """Refuse a body, declared or sent, above the limit."""
    return Refusal(413, f"request body above {max_bytes} octets")


def _parse(head: bytes, address: tuple[str, int], cfg: Config) -> GunicornRequest:
    """Run gunicorn's parser over a complete head."""
    try:
        return GunicornRequest(cfg, IterUnreader([head]), address)
    except (LimitRequestLine, LimitRequestHeaders) as error:
        raise Refusal(431, "request head too large") from error
    except (ParseException, NoMoreData, StopIteration) as error:
        raise Refusal(400, "malformed request") from error


def _keep_alive(message: GunicornRequest) -> bool:
    """Tell whether the client wants the connection to go on (RFC 9112 §9.3)."""
    options = {
        option.strip().lower() for name, value in message.headers if name == "CONNECTION" for option in value.split(",")
    }
    if "close" in options or message.method == "CONNECT":
        return False
    return message.version >= (1, 1) or "keep-alive" in options


def _body_reader(message: GunicornRequest, body_max_bytes: int) -> BodyReader:
    """Choose how the body is framed; gunicorn has refused every ambiguous combination."""
    coding = [value for name, value in message.headers if name == "TRANSFER-ENCODING"]
    if coding:
        if [value.strip().lower() for value in coding] != ["chunked"]:
            raise Refusal(400, "transfer coding is not chunked")
        return ChunkedReader(body_max_bytes)
    length = next((int(value) for name, value in message.headers if name == "CONTENT-LENGTH"), 0)
    if length > body_max_bytes:
        raise body_too_large(body_max_bytes)
    return LengthReader(length)
