"""Lists, CA certificates and OCSP answers at the paths that certificates name (RFC 5280 §4.2.1.13, RFC 6960 A)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

from flask import Blueprint, Response, current_app, request

from estserver.errors import NotFound
from estserver.status import Directory, Reply
from estserver.web.errors import WrongMediaType

KEEP_SECONDS = 60
"""For how long a cache may give an answer without asking again: so much later may a revocation be seen behind it."""

status = Blueprint("status", __name__)


def directory() -> Directory:
    """Return what `create_app` was given to tell."""
    found = current_app.extensions["estline.directory"]
    assert isinstance(found, Directory)
    return found


@status.get("/crl/<name>.crl")
def crl(name: str) -> Response:
    """Give the newest list of a CA; who has it already is told so."""
    found = directory().crl(_key_id(name))
    if found is None:
        raise NotFound("no list of this CA is published yet")
    record, octets = found
    response = Response(octets, content_type="application/pkix-crl")
    response.set_etag(f"{record.issuer}-{record.number}")
    response.last_modified = record.this_update
    response.headers["Cache-Control"] = "no-cache"  # kept, and asked for again: a revocation is published at once
    response.make_conditional(request)
    return response


@status.get("/ca/<name>.cer")
def ca_certificate(name: str) -> Response:
    """Give the certificate of a CA (RFC 5280 §4.2.2.1)."""
    return Response(directory().certificate(_key_id(name)), content_type="application/pkix-cert")


@status.post("/ocsp")
def ocsp_posted() -> Response:
    """Answer an OCSP request that is the body (RFC 6960 A.1)."""
    if request.mimetype != "application/ocsp-request":
        raise WrongMediaType(f"Content-Type {request.mimetype or 'none'!r} sent; application/ocsp-request is wanted")
    return _answer(respond()(request.get_data(cache=False)))


@status.get("/ocsp/<path:text>")
def ocsp_got(text: str) -> Response:
    """Answer an OCSP request that is the path, in base64 (RFC 6960 A.1); caches may keep the answer (RFC 9919 §6)."""
    try:
        asked = base64.b64decode(text, validate=True)
    except ValueError:
        asked = b""
    reply = respond()(asked)
    response = _answer(reply)
    if reply.this_update is not None and reply.next_update is not None:
        response.set_etag(hashlib.sha256(reply.octets).hexdigest())
        response.last_modified, response.expires = reply.this_update, reply.next_update
        response.headers["Cache-Control"] = f"max-age={KEEP_SECONDS}, public, no-transform, must-revalidate"
        response.make_conditional(request)
    return response


def _answer(reply: Reply) -> Response:
    return Response(reply.octets, content_type="application/ocsp-response")


def respond() -> Callable[[bytes], Reply]:
    """Return what answers OCSP requests."""
    found: Callable[[bytes], Reply] = current_app.extensions["estline.respond"]
    return found


def _key_id(name: str) -> str:
    key_id = directory().key_id(name)
    if key_id is None:
        raise NotFound("no CA of this server has this name or key")
    return key_id
