"""Ways to spoil a sound HTTP request: method, target, version, headers, framing."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.mutations import name, octets


@dataclass
class Message:
    """One request in the pieces that are spoiled one by one; `framing` writes the body and says how long it is."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    version: str = "HTTP/1.1"
    chunks: bytes | None = None
    end: bytes = b"\r\n"
    behind: bytes = b""

    def write(self) -> bytes:
        """Write head and body, in chunks where there are some, and what follows."""
        framing = []
        if self.chunks is not None:
            framing = [("Transfer-Encoding", "chunked")]
        elif self.body:
            framing = [("Content-Length", str(len(self.body)))]
        fields = (f"{key}: {value}" for key, value in (*self.headers, *framing))
        lines = [f"{self.method} {self.target} {self.version}", *fields, ""]
        head = b"".join(line.encode("latin-1", "replace") + self.end for line in lines)
        return head + (self.body if self.chunks is None else self.chunks) + self.behind


def chunked(body: bytes, size: int) -> bytes:
    """Write a body in chunks."""
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def spoiled(rng: random.Random, message: Message) -> bytes:
    """Spoil a request as HTTP: method, target, version, headers, framing."""
    for _ in range(rng.randint(1, 2)):
        rng.choice(_HTTP)(rng, message)
    written = message.write()
    if rng.random() < 0.25:
        head, blank, body = written.partition(b"\r\n\r\n")
        written = octets(rng, head, times=2) + blank + body
    return written


def _method(rng: random.Random, message: Message) -> None:
    message.method = rng.choice(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "post", "PRI",
                                 "", "PO ST", "A" * 30, "G\0T", "BREW", "POST"))  # fmt: skip


def _target(rng: random.Random, message: Message) -> None:
    path = message.target
    message.target = rng.choice((
        path + "/", path + "?x=1", path.upper(), "/" + path, path.replace("/", "//"), path + "%00", path + "%2f..",
        path.replace("est", "%65st"), "*", "http://localhost" + path, "//localhost" + path, path + "#x", "/", "",
        path.replace("est/", "est/nowhere/"), path.replace("est/", "est/device/"), path.replace("est/", "est/station/"),
        path.replace("est/", "est/../est/"), "/" + "a" * 8190, path + "/" + "b/" * 900, path + "%ff%fe", path + "\xff",
        path.replace("est/", "est/" + "L" * 300 + "/"), path + " ", path + "\tx", "/%0d%0aX: y", path + ";x=y",
        path.replace("est/", f"est/{name(rng)}/"), path + "?" + "&".join("a=b" for _ in range(1200)),
    ))  # fmt: skip


def _version(rng: random.Random, message: Message) -> None:
    message.version = rng.choice(("HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "HTTP/1.10", "http/1.1", "", "HTTP/1",
                                  "HTTP/1.1 ", "HTTP/1.1\0", "HTTP/ 1.1", "SHTTP/1.1"))  # fmt: skip


def _media_type(rng: random.Random, message: Message) -> None:
    _replace(message, "Content-Type", rng.choice((
        "application/pkcs10; x=y", "application/pkcs10;", "Application/PKCS10", "application/pkcs-10", "text/plain",
        "application/pkcs10x", "application/pkcs10, text/plain", "application/pkcs10\t", "", "application/ pkcs10",
        "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "multipart/form-data", "a" * 5000,
        'application/pkcs10; charset="utf-8', "application/pkcs10;;;=", "\xff/\xff",
        "application/pkcs10; a*=utf-8''%00",
    )))  # fmt: skip


def _authorization(rng: random.Random, message: Message) -> None:
    token = rng.choice((b"", b":", b"a", b"\xff:\xff", b"a" * 6000, b"fuzz:wrong", b"\0:\0", b"name\r\nx:y", b"::::"))
    scheme = rng.choice(("Basic", "basic", "Basic  ", "Bearer", "Digest", "", "Basic\t", "Negotiate"))
    value = rng.choice((f"{scheme} {base64.b64encode(token).decode()}", scheme, f"{scheme} !!!", "\xe9" * 50))
    _replace(message, "Authorization", value)


def _replace(message: Message, key: str, value: str) -> None:
    message.headers = [(old, kept) for old, kept in message.headers if old != key] + [(key, value)]


def _header(rng: random.Random, message: Message) -> None:
    """One header too many, of a kind that means something to somebody."""
    extra = rng.choice((
        ("Content-Length", str(len(message.body))), ("Content-Length", str(len(message.body) + 1)),
        ("Content-Length", "-1"), ("Content-Length", "1, 1"), ("Content-Length", "9" * 400), ("Content-Length", ""),
        ("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "gzip"), ("Transfer-Encoding", "chunked, identity"),
        ("Transfer-Encoding", "\x0bchunked"), ("transfer-encoding ", "chunked"), ("Content-Length ", "3"),
        ("Expect", "100-continue"), ("Expect", "x"), ("Connection", "close"), ("Connection", "keep-alive, close"),
        ("Connection", "content-length"), ("Host", "other"), ("Host", ""), ("X-Folded", "a\r\n b"), ("X_Under", "1"),
        (" X", "1"), ("X", "a\0b"), ("X", "a\rb"), ("X", "a\nb"), ("X\n", "y"), ("", "empty"), ("X" * 9000, "1"),
        ("X", "y" * 9000), ("Upgrade", "h2c"), ("Trailer", "X"), ("Content-Encoding", "gzip"), ("Range", "bytes=0-"),
        ("Content-Transfer-Encoding", "binary"), ("User-Agent", "libest 3.2"), ("X-Forwarded-For", "127.0.0.1"),
        ("X-SSL-Client-Cert", "x"), ("Cookie", "a=" + "b" * 4000), ("Accept", "q;;,="), ("If-None-Match", "*"),
        ("X-HTTP-Method-Override", "DELETE"), ("Proxy", "http://evil"), ("Tls.Peer", "x"), ("Wsgi.Input", "x"),
    ))  # fmt: skip
    message.headers.insert(rng.randrange(len(message.headers) + 1), extra)


def _flood(rng: random.Random, message: Message) -> None:
    message.headers += [(f"X-{number}", "y" * rng.choice((0, 1, 100))) for number in range(rng.choice((90, 101, 2000)))]


def _lose_header(rng: random.Random, message: Message) -> None:
    if message.headers:
        message.headers.pop(rng.randrange(len(message.headers)))


def _framing(rng: random.Random, message: Message) -> None:
    """Chunks, sound or not, or line ends that are none."""
    message.chunks = chunked(message.body, rng.choice((1, 3, 100, 4096)))
    if rng.random() < 0.7:
        message.chunks = octets(rng, message.chunks)
    if rng.random() < 0.1:
        message.end = b"\n"


def _pipeline(rng: random.Random, message: Message) -> None:
    second = rng.choice((b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"\r\n\r\n", b"GARBAGE", b"\x16\x03\x01\x00\x05", b"\0"))
    message.behind += second * rng.choice((1, 1, 3))


_HTTP: tuple[Callable[[random.Random, Message], None], ...] = (
    *(_method, _target, _version, _media_type, _authorization, _header, _header, _flood, _lose_header, _framing),
    _pipeline,
)
