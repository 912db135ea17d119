"""Lists and CA certificates as plain DER at the paths that certificates name (RFC 5280 §4.2.1.13, RFC 2585)."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, request

from estserver.errors import NotFound
from estserver.status import Directory

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


def _key_id(name: str) -> str:
    key_id = directory().key_id(name)
    if key_id is None:
        raise NotFound("no CA of this server has this name or key")
    return key_id
