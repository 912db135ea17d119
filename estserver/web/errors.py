"""The one table that turns errors into HTTP.

Rules:
- An error on an EST path is text/plain, one line a reason, never HTML (RFC 7030 §4.2.3, RFC 8951 §5).
- A 401 carries a challenge and an empty body; Bouncy Castle and libest want it so.
- Retry-After is always in seconds: strongSwan and libest read no date.
"""

from __future__ import annotations

import logging
import re
from wsgiref.types import WSGIEnvironment

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from estserver.errors import (
    AuthenticationError,
    AwaitingApproval,
    CapacityError,
    EstError,
    InternalError,
    KeyReused,
    NotFound,
    NotOffered,
    PolicyRefused,
    RateLimited,
    Refused,
    RequestError,
    UnknownLabel,
)
from estserver.observe import fields
from estserver.web.observe import note, note_error, request_id

_log = logging.getLogger(__name__)


class WrongMediaType(RequestError):
    """The body is labelled as something else than the operation takes (RFC 7030 §3.2.4)."""

    code = "wrong-media-type"


STATUS: tuple[tuple[type[EstError], int], ...] = (
    (AwaitingApproval, 202),
    (WrongMediaType, 415),
    (NotOffered, 501),
    (RequestError, 400),
    (AuthenticationError, 401),
    (PolicyRefused, 400),
    (Refused, 403),
    (KeyReused, 403),
    (UnknownLabel, 404),
    (NotFound, 404),
    (RateLimited, 429),
    (CapacityError, 503),
    (InternalError, 500),
)
"""First match wins; what is not here is ours to blame: 500."""

RETRY_SECONDS = 5

HTTP_ERRORS = {
    404: ("no-such-operation", "there is no such EST operation or label here"),
    405: ("method-not-allowed", "this operation does not take that method"),
    413: ("body-too-large", "the body is larger than this server takes"),
}
"""Status of an error that is Flask's → reason code, and what the client is told."""


def install(app: Flask) -> None:
    """Register the handlers for everything that can end a request."""
    app.register_error_handler(EstError, _est_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def status_of(error: EstError) -> int:
    """Return the HTTP status of an error."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def _est_error(error: EstError) -> Response:
    return answer_to(error, request.environ, current_app.config["ESTLINE_REALM"])


def answer_to(error: EstError, environ: WSGIEnvironment, realm: str) -> Response:
    """Write an error as the answer to the request that caused it."""
    status = status_of(error)
    note_error(environ, error)
    if status == 401:
        response = Response(status=401)
        response.headers["WWW-Authenticate"] = f'Basic realm="{realm}", charset="UTF-8"'
        del response.headers["Content-Type"]
        return response
    if status == 500:
        _log.error("internal error: %s", error, extra=_which(environ))
        return _text("the server failed to do this; nothing was issued", 500)
    lines = [*error.reasons, *([error.advice] if error.advice else [])]
    response = _text("\n".join(lines), status)
    if error.retry_after is not None or status in (202, 503):  # RFC 7030 §4.2.3: a 202 always says when
        seconds = RETRY_SECONDS if error.retry_after is None else max(1, round(error.retry_after.total_seconds()))
        response.headers["Retry-After"] = str(seconds)
    return response


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    reason, text = HTTP_ERRORS.get(status, ("other", error.name.lower()))
    note(request.environ, reason=reason)
    response = _text(text, status)
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    if isinstance(error, RequestEntityTooLarge):
        response.headers["Connection"] = "close"
    return response


def _unexpected(error: Exception) -> Response:
    note(request.environ, reason=InternalError.code)
    _log.error("unexpected error", exc_info=error, extra=_which(request.environ))
    return _text("the server failed to do this; nothing was issued", 500)


def _which(environ: WSGIEnvironment) -> dict[str, dict[str, object]]:
    return fields({"id": request_id(environ)})


def _text(text: str, status: int) -> Response:
    clean = re.sub(r"[^\n -~\u00a0-\ud7ff]", "?", text)
    return Response(clean + "\n", status=status, content_type="text/plain; charset=utf-8")
