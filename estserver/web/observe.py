"""What the application tells of each request: one `Exchange`, when its answer begins.

Rules:
- This is a layer around Flask, so that an answer which is completed later is told when it is, with how it ended.
- A request has an id before anything is done about it; whatever is written down because of it carries that id.
- What becomes known on the way is noted in the environ; nothing of it is a secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask

from estserver.errors import EstError
from estserver.model import Grant, Issued
from estserver.observe import Exchange
from estserver.web.peer import known_peer

ID_BYTES = 8
_ID, _FACTS = "estline.id", "estline.facts"

Route: TypeAlias = tuple[str, str]
"""Operation and label."""
Tell: TypeAlias = Callable[[Exchange], None]
_ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


def tell_nobody(_exchange: Exchange) -> None:
    """Let requests go by unseen."""


def request_id(environ: Mapping[str, Any]) -> str:
    """Return the id of a request."""
    return str(environ[_ID])


def note(environ: WSGIEnvironment, **facts: str | None) -> None:
    """Note what is known by now: `reason`, `requester`, `device`, `serial`, `spki_sha256`."""
    environ[_FACTS].update(facts)


def note_grant(environ: WSGIEnvironment, grant: Grant) -> None:
    """Note what was granted."""
    note(environ, requester=grant.requester, device=grant.device, spki_sha256=grant.csr.spki_sha256)


def note_issued(environ: WSGIEnvironment, issued: Issued) -> None:
    """Note what came of it."""
    note(environ, serial=f"{issued.serial:x}")


def note_error(environ: WSGIEnvironment, error: EstError) -> None:
    """Note why nothing came of it, and what was known when it was refused."""
    note(environ, reason=error.code)
    known = error.known
    if known is not None:
        note(environ, requester=known.requester, device=known.device, spki_sha256=known.spki_sha256)


def routes(app: Flask, labels: Iterable[str]) -> dict[str, Route]:
    """Return every path that stands for an operation, with each of these labels and without one."""
    rules = [rule.rule for rule in app.url_map.iter_rules()]
    known = ("", *labels)
    return {
        rule.replace("<label>", label): (rule.rpartition("/")[2], label)
        for rule in rules
        for label in known
        if bool(label) == ("<label>" in rule)
    }


class Observed:
    """A WSGI application whose requests are told.

    Args:
        routes: path → what it stands for; every other path is told as it is.
        random: as many random bytes as asked.
    """

    def __init__(
        self, app: WSGIApplication, routes: Mapping[str, Route], tell: Tell, random: Callable[[int], bytes]
    ) -> None:
        self._app = app
        self._routes = routes
        self._tell = tell
        self._random = random

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass a request on, and tell it when its answer begins."""
        begun = time.perf_counter()
        environ[_ID], environ[_FACTS] = self._random(ID_BYTES).hex(), {}

        def start(
            status: str, headers: list[tuple[str, str]], exc_info: _ExcInfo | None = None, /
        ) -> Callable[[bytes], object]:
            self._tell(self._exchange(environ, int(status[:3]), time.perf_counter() - begun))
            return start_response(status, headers, exc_info)

        return self._app(environ, start)

    def _exchange(self, environ: WSGIEnvironment, status: int, seconds: float) -> Exchange:
        path, peer = environ["PATH_INFO"], known_peer(environ)
        operation, label = self._routes.get(path, (None, None))
        return Exchange(
            id=environ[_ID],
            peer=peer.address,
            tls=peer.tls_version,
            method=environ["REQUEST_METHOD"],
            status=status,
            seconds=seconds,
            operation=operation,
            label=label,
            path=path if operation is None else None,
            **environ[_FACTS],
        )
