"""What other people's EST servers send, imitated octet by octet: as lenient as the rows demand, and no more.

C-C09 (media type), C-E10 (base64, BER), RFC 8951 §3 (Content-Transfer-Encoding says nothing), RFC 9112 (framing).
"""

from __future__ import annotations

import base64
import gzip
import textwrap

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from devicesim import CsrAttrs, EstClient, TrustAnchors
from devicesim.csr import KEY_TYPES, CsrDraft
from devicesim.errors import BadAnswer, DeviceSimError
from tests.protocol.client_stub import Authority, EstStub, Seen, StubServer, certs_only

PLAIN = "Content-Type: application/pkcs7-mime"
TO_THE_LETTER = f"{PLAIN}; smime-type=certs-only"
BASE64 = "Content-Transfer-Encoding: base64"


def lines(body: bytes, width: int, end: str = "\n") -> bytes:
    return "".join(line + end for line in textwrap.wrap(body.decode(), width)).encode()


def sized(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    return _head(f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}") + body


def chunked(body: bytes, *headers: str, size: int = 100) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts)
    return _head("HTTP/1.1 200 OK", *headers, "Transfer-Encoding: chunked") + framed + b"0\r\nX-Trailer: 1\r\n\r\n"


def until_closed(body: bytes, *headers: str) -> bytes:
    return _head("HTTP/1.0 200 OK", *headers, "Connection: close") + body


def _head(*said: str) -> bytes:
    return "\r\n".join([*said, "", ""]).encode()


def indefinite(body: bytes) -> bytes:
    """The same message in BER, as streaming encoders write it: every level down to the certificates without length."""
    inner = base64.b64decode(body)
    content_type, signed_data = _values(_values(inner)[0][1])
    fields = _values(_values(signed_data[1])[0][1])
    streamed = b"\x30\x80" + b"".join(whole for whole, _ in fields) + b"\x00\x00"
    return base64.b64encode(b"\x30\x80" + content_type[0] + b"\xa0\x80" + streamed + b"\x00\x00\x00\x00")


def _values(der: bytes) -> list[tuple[bytes, bytes]]:
    """Each value in some DER: whole, and its contents."""
    found, at = [], 0
    while at < len(der):
        length, start = der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start])
        found.append((der[at : start + length], der[start : start + length]))
        at = start + length
    return found


HABITS = {
    "libest: 64 columns, the media type to the letter": lambda b: sized(lines(b, 64), TO_THE_LETTER, BASE64),
    "globalsign: one line, no line end": lambda b: sized(b, TO_THE_LETTER, BASE64),
    "a servlet: CRLF, 76 columns, a charset": lambda b: sized(lines(b, 76, "\r\n"), f"{PLAIN};charset=UTF-8"),
    "no smime-type and no transfer encoding": lambda b: sized(b + b"\n", PLAIN),
    "a transfer encoding that is not true": lambda b: sized(b, PLAIN, "Content-Transfer-Encoding: binary"),
    "capitals and quotes": lambda b: sized(b, 'CONTENT-TYPE:Application/PKCS7-Mime ; SMIME-Type="Certs-Only"'),
    "lower case, as HTTP/2 gateways write": lambda b: sized(b, "content-type: application/pkcs7-mime", "server: x"),
    "a name": lambda b: sized(b, f'{PLAIN}; name="smime.p7c"', 'Content-Disposition: attachment; filename="smime.p7c"'),
    "chunks": lambda b: chunked(lines(b, 64), TO_THE_LETTER),
    "chunks of one octet": lambda b: chunked(b, TO_THE_LETTER, size=1),
    "HTTP/1.0, ended by closing": lambda b: until_closed(b, PLAIN),
    "white space everywhere": lambda b: sized(b"\r\n\t " + lines(b, 7, " \t\r\n\v\f") + b"\n\n", PLAIN),
    "BER of indefinite length": lambda b: sized(indefinite(b), TO_THE_LETTER),
    "forty headers": lambda b: sized(b, PLAIN, *(f"X-Header-{number}: {number}" for number in range(40))),
}


@pytest.fixture(scope="module")
def root():
    return Authority.root()


@pytest.fixture
def stub(root):
    return EstStub(root, root.intermediate())


@pytest.fixture
def client(stub, root):
    server = StubServer(root.server(), stub)
    with EstClient(server.url, trust=TrustAnchors((root.certificate,)), timeout_seconds=5) as client:
        yield client
    server.close()


@pytest.fixture
def draft():
    return CsrDraft.of(KEY_TYPES["EC-P256"].generate(), "sn-1")


@pytest.mark.parametrize("habit", HABITS)
def test_c_c09_c_e10_the_answers_of_other_servers_are_read(client, stub, root, draft, habit):
    said = HABITS[habit]
    stub.put(lambda _: said(certs_only(root.certificate, stub.issuing.certificate)), operation="cacerts")
    assert set(client.cacerts().certificates) == {root.certificate, stub.issuing.certificate}
    stub.put(lambda seen: said(certs_only(stub.issuing.from_csr(seen.csr))), operation="simpleenroll")
    assert client.simpleenroll(draft).subject == draft.subject


def pem(certificates: tuple[x509.Certificate, ...]) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def url_safe(body: bytes) -> bytes:
    """The other alphabet; where none of its two letters occurs it is the same text, so one is made to."""
    return base64.urlsafe_b64encode(base64.b64decode(body)).replace(b"=", b"") + b"-_"


TOO_MUCH = {
    "PEM": lambda bag, _: sized(pem(bag), PLAIN),
    "PEM of the message": lambda bag, _: sized(pkcs7.serialize_certificates(list(bag), Encoding.PEM), PLAIN),
    "DER as it is": lambda _, b: sized(base64.b64decode(b), PLAIN, "Content-Transfer-Encoding: binary"),
    "a certificate alone": lambda bag, _: sized(base64.b64encode(bag[0].public_bytes(Encoding.DER)), PLAIN),
    "the alphabet of URLs": lambda _, b: sized(url_safe(b), PLAIN),
    "base64 of base64": lambda _, b: sized(base64.b64encode(b), PLAIN),
    "a JSON object": lambda _, b: sized(b'{"cacerts":"' + b + b'"}', "Content-Type: application/json"),
    "a login page": lambda _b, _: sized(b"<html>Log in</html>", "Content-Type: text/html"),
    "no media type": lambda _, b: sized(b),
    "a media type of another message": lambda _, b: sized(b, f"{PLAIN}; smime-type=signed-data"),
    "the older name of the media type": lambda _, b: sized(b, "Content-Type: application/x-pkcs7-mime"),
    "compressed": lambda _, b: sized(gzip.compress(b), PLAIN, "Content-Encoding: gzip"),
    "201": lambda _, b: sized(b, PLAIN, status="201 Created"),
    "203": lambda _, b: sized(b, PLAIN, status="203 Non-Authoritative Information"),
    "garbage behind the message": lambda _, b: sized(base64.b64encode(base64.b64decode(b) + b"\x00"), PLAIN),
    "a chunk that is none": lambda _, b: _head("HTTP/1.1 200 OK", PLAIN, "Transfer-Encoding: chunked") + b"xyz\r\n" + b,
    "shorter than it says": lambda _, b: (
        _head("HTTP/1.1 200 OK", PLAIN, "Content-Length: 99999", "Connection: close") + b
    ),
}


@pytest.mark.parametrize("habit", TOO_MUCH)
def test_c_e10_what_is_no_answer_of_est_is_not_read(client, stub, root, draft, habit):
    said = TOO_MUCH[habit]

    def instead(seen: Seen) -> bytes:
        bag = (stub.issuing.from_csr(seen.csr),) if seen.body else (root.certificate,)
        return said(bag, certs_only(*bag))

    for operation in ("cacerts", "simpleenroll"):
        stub.put(instead, operation=operation)
        with pytest.raises(DeviceSimError):
            client.cacerts() if operation == "cacerts" else client.simpleenroll(draft)
    stub.instead.clear()
    assert client.simpleenroll(draft).subject == draft.subject  # nothing of it lingers


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (sized(b"", status="204 No Content"), True),
        (sized(b"no such thing", "Content-Type: text/html", status="404 Not Found"), True),
        (sized(b"MAA=\r\n", "Content-Type: application/csrattrs; charset=x"), True),
        (chunked(b"MAA=", "content-type: Application/CsrAttrs"), True),
        (sized(b"", "Content-Type: application/csrattrs"), True),
        (sized(b"MAA=", "Content-Type: application/pkcs10"), False),
        (sized(b"\x30\x00", "Content-Type: application/csrattrs"), False),
    ],
)
def test_c_x03_no_wishes_are_said_in_many_ways(client, stub, said, read):
    stub.put(said, operation="csrattrs")
    if read:
        assert client.csrattrs() == CsrAttrs()
    else:
        with pytest.raises(BadAnswer):
            client.csrattrs()
