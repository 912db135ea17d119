"""The EST operations over HTTP (RFC 7030 §3.2.2, RFC 8951): read, call, encode; nothing is decided here.

Every path exists with and without a label. One server serves every client unconfigured; what a client needs that the
standard does not ask for is a row of `CLIENT_QUIRKS`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import partial
from wsgiref.types import WSGIEnvironment

from flask import Blueprint, Response, current_app, request

from estserver import asn1
from estserver.attempt import Request
from estserver.enroll import Enrollment
from estserver.errors import EstError, NotFound, NotOffered
from estserver.keygen import DeliveredKey
from estserver.model import BasicCredentials, Der, Operation
from estserver.web.errors import WrongMediaType, answer_to
from estserver.web.observe import note_grant, note_issued, request_id
from estserver.web.peer import peer_of
from estserver.web.status import directory
from estserver.web.turn import Later, Ticket

PREFIX = "/.well-known/est"
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
SERVER_GENERATED_KEY = "application/pkcs7-mime; smime-type=server-generated-key"
BOUNDARY = "estline-key-and-certificate"  # base64 has no hyphen, so that no part can hold it
SECRET_MAX_BYTES = 4096

est = Blueprint("est", __name__)


@dataclass(frozen=True, slots=True)
class ClientQuirk:
    """What one client needs beyond the standard; `agent` is the start of its User-Agent.

    Attributes:
        cacerts_columns: it reads `/cacerts` only when wrapped at this width.
    """

    agent: str
    cacerts_columns: int | None = None


CLIENT_QUIRKS = (ClientQuirk("libest", cacerts_columns=64),)
_NO_QUIRK = ClientQuirk("")


def enrollment() -> Enrollment:
    """Return the enrolment path that `create_app` was given."""
    found = current_app.extensions["estline.enrollment"]
    assert isinstance(found, Enrollment)
    return found


@est.get(f"{PREFIX}/cacerts")
@est.get(f"{PREFIX}/<label>/cacerts")
def cacerts(label: str = "") -> Response:
    """Distribute the CA's certificates (RFC 7030 §4.1); no authentication."""
    bag = asn1.certs_only(enrollment().ca_certificates(label))
    enrollment().note_fetch(label, peer_of(request.environ))
    return _answer(bag, CERTS_ONLY, columns=_quirk().cacerts_columns)


@est.get(f"{PREFIX}/csrattrs")
@est.get(f"{PREFIX}/<label>/csrattrs")
def csrattrs(label: str = "") -> Response:
    """Say what a CSR should look like (RFC 7030 §4.5); no authentication is needed, and it makes the answer fuller."""
    return _answer(enrollment().csr_attributes(_asked(Operation.CSRATTRS, label, b"")), "application/csrattrs")


@est.get(f"{PREFIX}/crls")
@est.get(f"{PREFIX}/<label>/crls")
def crls(label: str = "") -> Response:
    """Distribute the lists of the CAs behind a label (RFC 8295 §4); no authentication."""
    found = directory().crls(enrollment().ca_certificates(label))
    if not found:
        raise NotFound("no revocation list is published yet")
    return _answer(asn1.certs_only(found, tag=asn1.LISTS), "application/pkcs7-mime")


@est.post(f"{PREFIX}/simpleenroll")
@est.post(f"{PREFIX}/<label>/simpleenroll")
def simpleenroll(label: str = "") -> Response:
    """Issue a first certificate (RFC 7030 §4.2.1)."""
    return _enroll(Operation.SIMPLEENROLL, label)


@est.post(f"{PREFIX}/simplereenroll")
@est.post(f"{PREFIX}/<label>/simplereenroll")
def simplereenroll(label: str = "") -> Response:
    """Renew or rekey a certificate (RFC 7030 §4.2.2)."""
    return _enroll(Operation.SIMPLEREENROLL, label)


@est.post(f"{PREFIX}/serverkeygen")
@est.post(f"{PREFIX}/<label>/serverkeygen")
def serverkeygen(label: str = "") -> Response:
    """Make a key and issue a certificate for it (RFC 7030 §4.4)."""
    return _enroll(Operation.SERVERKEYGEN, label)


@est.post(f"{PREFIX}/fullcmc")
@est.post(f"{PREFIX}/<label>/fullcmc")
def optional_operation(label: str = "") -> Response:
    """Say that an optional operation is not here (RFC 7030 §4.3.2)."""
    enrollment().ca_certificates(label)  # an unknown label is still a 404
    raise NotOffered("this server does not offer this optional operation: use simpleenroll")


def _enroll(operation: Operation, label: str) -> Response:
    enrollment().check_offered(operation, label)
    if request.mimetype != "application/pkcs10":
        raise WrongMediaType(f"Content-Type {request.mimetype or 'none'!r} sent; application/pkcs10 is wanted")
    environ = request.environ
    admission = enrollment().admit(_asked(operation, label, request.get_data(cache=False)))
    note_grant(environ, admission.grant)
    ticket = current_app.extensions["estline.turn"].join(admission)
    return Later(partial(_issued, ticket, environ, current_app.config["ESTLINE_REALM"]))


def _asked(operation: Operation, label: str, body: bytes) -> Request:
    environ = request.environ
    return Request(operation, label, body, peer_of(environ), _credentials(), request_id(environ))


def _issued(ticket: Ticket, environ: WSGIEnvironment, realm: str) -> Response:
    try:
        issued = ticket.result()
    except EstError as error:
        return answer_to(error, environ, realm)
    note_issued(environ, issued)
    bag, key = asn1.certs_only([issued.certificate]), ticket.admission.key
    return _answer(bag, CERTS_ONLY) if key is None else _key_and_certificate(key, bag)


def _key_and_certificate(key: DeliveredKey, bag: Der) -> Response:
    """Send a key and its certificate in two parts (RFC 7030 §4.4.2); no cache keeps them (RFC 9111 §5.2.2.5)."""
    kind = SERVER_GENERATED_KEY if key.encrypted else "application/pkcs8"
    parts = b"".join(
        # libest's client passes over a part without the second header
        f"--{BOUNDARY}\r\nContent-Type: {media_type}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode()
        + asn1.encode_body(der).replace(b"\n", b"\r\n")
        for media_type, der in ((kind, key.der), (CERTS_ONLY, bag))
    )
    headers = [("Content-Type", f"multipart/mixed; boundary={BOUNDARY}"), ("Cache-Control", "no-store")]
    return Response(parts + f"--{BOUNDARY}--\r\n".encode(), headers=headers)


def _credentials() -> BasicCredentials | None:
    """Read HTTP Basic (RFC 7617), the secret as octets; another scheme counts as nothing and is challenged again.

    What claims to be Basic and cannot be read is a credential of nobody: it is refused and written down like any other.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, secret = base64.b64decode(token.strip(), validate=True).partition(b":")
    except ValueError:
        return BasicCredentials("", b"")
    return BasicCredentials(name.decode("utf-8", "replace")[:256], secret[: SECRET_MAX_BYTES + 1])


def _quirk() -> ClientQuirk:
    agent = request.user_agent.string
    return next((quirk for quirk in CLIENT_QUIRKS if agent.startswith(quirk.agent)), _NO_QUIRK)


def _answer(der: Der, media_type: str, *, columns: int | None = None) -> Response:
    """Send base64 on one line with a final newline (strongSwan reads no other form), or wrapped for who needs it."""
    # the second header is deprecated by RFC 8951 §3; Bouncy Castle 1.72 needs it
    headers = [("Content-Type", media_type), ("Content-Transfer-Encoding", "base64")]
    return Response(asn1.encode_body(der, columns=columns), headers=headers)
