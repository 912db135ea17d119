"""What the front tells about itself: small values, given to `ServeOptions.observe` as they happen.

The application never sees what these are about: connections come and go, handshakes fail, and some requests the front
answers itself. An answer of the application is the application's to tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from OpenSSL import SSL


class HandshakeProblem(StrEnum):
    """Why there was no TLS; a small fixed set, so that it can be counted by."""

    GONE = "gone"
    TIMEOUT = "timeout"
    TOO_MANY = "too-many-connections"
    NOT_TLS = "not-tls"
    HTTP = "plain-http"
    VERSION = "version"
    CIPHER = "no-shared-cipher"
    CERTIFICATE = "client-certificate"
    ALERT = "client-alert"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection was accepted; a `Closed` will follow unless the process is killed."""

    address: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A connection that was opened is no more."""

    address: str


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """A connection ended before TLS was agreed on; `detail` is OpenSSL's reason, if it had one."""

    address: str
    problem: HandshakeProblem
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A request was answered by the front itself.

    Attributes:
        tls_version: `TLSv1.2` or `TLSv1.3`.
        method, path: what its head said; empty when there was none to read.
    """

    address: str
    tls_version: str
    status: int
    text: str
    method: str = ""
    path: str = ""


FrontEvent: TypeAlias = Opened | Closed | HandshakeFailed | Refused
Observe: TypeAlias = Callable[[FrontEvent], None]
"""Called in the worker's loop: it must be quick and may not raise."""


def handshake_failed(address: str, error: SSL.Error) -> HandshakeFailed:
    """Tell which problem OpenSSL had."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    detail = str(queue[-1][-1]) if queue else ""
    problem = next((problem for words, problem in _REASONS if words in detail), HandshakeProblem.OTHER)
    return HandshakeFailed(address, problem, detail)


_REASONS = (
    ("http request", HandshakeProblem.HTTP),
    ("https proxy request", HandshakeProblem.HTTP),
    ("unsupported protocol", HandshakeProblem.VERSION),
    ("alert protocol version", HandshakeProblem.VERSION),
    ("inappropriate fallback", HandshakeProblem.VERSION),
    ("no shared", HandshakeProblem.CIPHER),
    ("no suitable", HandshakeProblem.CIPHER),
    ("alert", HandshakeProblem.ALERT),
    ("cert", HandshakeProblem.CERTIFICATE),
    ("bad signature", HandshakeProblem.CERTIFICATE),
    ("wrong version number", HandshakeProblem.NOT_TLS),
    ("record layer failure", HandshakeProblem.NOT_TLS),
    ("packet length", HandshakeProblem.NOT_TLS),
    ("length mismatch", HandshakeProblem.NOT_TLS),
    ("unexpected message", HandshakeProblem.NOT_TLS),
    ("unknown protocol", HandshakeProblem.NOT_TLS),
)
"""What OpenSSL's last reason contains → the problem; the first match counts."""
