"""What may be set about serving: one frozen value, units in the names, defaults that hold on a public address."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from estserver.serving.events import FrontEvent, Observe

WsgiApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def _no_announcement(_host: str, _port: int) -> None:
    """Tell nobody that the server is ready."""


def _unobserved(_event: FrontEvent) -> None:
    """Tell nobody what happens."""


def _nothing_to_check() -> None:
    """Let every reload happen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How to serve: where, as whom, for how long to wait, and how much to take.

    Attributes:
        host: address or name to listen on.
        port: port to listen on; 0 lets the system choose, `on_ready` tells which.
        workers: processes that accept on that port.
        certificate_path: PEM file, the server's certificate first, then its chain.
        private_key: PEM file of the key of that certificate.
        passphrase: gives the passphrase of an encrypted key; called once for each time the files are read.
        tls13_only: offer TLS 1.3 alone instead of 1.2 and 1.3.
        plain: speak HTTP without TLS, for a proxy that ends it; certificate and key are not read then, and the environ
            has no `tls.peer`.
        handshake_deadline_seconds: from accept to the end of the handshake.
        head_deadline_seconds: from the first octet of a request to the end of its head.
        body_deadline_seconds: from the end of the head to the end of the body.
        write_deadline_seconds: for every 16 KiB of an answer to be taken by the client.
        idle_deadline_seconds: between the handshake or an answer and the next request.
        head_max_bytes: largest request head; above it, 431.
        body_max_bytes: largest request body after chunks are undone; above it, 413.
        connections_max: open connections in one worker; when full, the longest idle one is closed for a new one.
        connections_per_address_max: open connections in one worker from one address; None for no limit.
        graceful_seconds: how long a stopping worker lets requests in flight finish.
        on_ready: called once, in the master, with the address and port, when every worker serves.
        before_reload: called in the master on SIGHUP; by raising CannotServe it keeps everything as it was.
        observe: called in the workers with every `FrontEvent`.
        log: where errors and lifecycle lines go.
    """

    host: str
    port: int
    certificate_path: Path
    private_key: Path
    workers: int = 1
    passphrase: Callable[[], bytes] | None = field(default=None, repr=False)
    tls13_only: bool = False
    plain: bool = False
    handshake_deadline_seconds: float = 10.0
    head_deadline_seconds: float = 10.0
    body_deadline_seconds: float = 20.0
    write_deadline_seconds: float = 20.0
    idle_deadline_seconds: float = 60.0
    head_max_bytes: int = 16 * 1024
    body_max_bytes: int = 64 * 1024
    connections_max: int = 2000
    connections_per_address_max: int | None = None
    graceful_seconds: float = 30.0
    on_ready: Callable[[str, int], None] = _no_announcement
    before_reload: Callable[[], None] = _nothing_to_check
    observe: Observe = field(default=_unobserved, repr=False)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("estserver.serving"))
