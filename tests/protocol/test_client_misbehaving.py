"""The EST server that answers late, wrong, truncated, 202, 401, 503, elsewhere or twice (C-C, C-E, C-W, C-R)."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from devicesim import Credentials, Device, DeviceState, EstClient, FileKeyStore, TrustAnchors
from devicesim.codec import CsrAttrs
from devicesim.csr import KEY_TYPES, CsrDraft
from devicesim.errors import (
    BadAnswer,
    DeviceSimError,
    EstRefused,
    Pending,
    Unreachable,
    UsageProblem,
    VerificationFailed,
)
from devicesim.replies import RETRY_AFTER_DEFAULT_SECONDS, RETRY_AFTER_MAX_SECONDS
from devicesim.retry import Patience, retrying
from tests.protocol.client_stub import Authority, certs_only, write_pem

BASE = "/.well-known/est"
PKCS7 = "application/pkcs7-mime; smime-type=certs-only"
BASIC = {"WWW_Authenticate": 'Basic realm="est"'}


@pytest.fixture(scope="module")
def root():
    return Authority.root()


@pytest.fixture(scope="module")
def issuing(root):
    return root.intermediate()


@pytest.fixture(scope="module")
def start_server(root, tmp_path_factory):
    """Start pytest-httpserver with mTLS: a client certificate is asked for and need not be shown."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = root.server()
    chain = write_pem(directory / "cert.pem", certificate)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "key.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, directory / "key.pem")
    context.load_verify_locations(cadata=root.certificate.public_bytes(Encoding.PEM).decode())
    context.verify_mode = ssl.CERT_OPTIONAL
    servers: list[HTTPServer] = []

    def start() -> HTTPServer:
        server = HTTPServer(host="127.0.0.1", port=0, ssl_context=context, threaded=True)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def shared(start_server):
    return start_server()


@pytest.fixture(scope="module")
def shared_elsewhere(start_server):
    return start_server()


@pytest.fixture
def server(shared):
    shared.clear()
    return shared


@pytest.fixture
def elsewhere(shared_elsewhere):
    shared_elsewhere.clear()
    return shared_elsewhere


@pytest.fixture
def trust(root):
    return TrustAnchors((root.certificate,))


@pytest.fixture
def client(server, trust):
    with EstClient(f"https://127.0.0.1:{server.port}", trust=trust, timeout_seconds=5) as client:
        yield client


@pytest.fixture
def draft():
    return CsrDraft.of(KEY_TYPES["EC-P256"].generate(), "sn-1")


def issue(issuing, *others: x509.Certificate):
    """A handler that signs what it is asked for."""

    def handler(request: Request) -> Response:
        csr = x509.load_der_x509_csr(base64.b64decode(request.data))
        return Response(certs_only(issuing.from_csr(csr), *others), content_type=PKCS7)

    return handler


def says(status: int, body: bytes | str = b"", content_type: str | None = "text/plain", **headers: str) -> Response:
    response = Response(body, status, {key.replace("_", "-"): value for key, value in headers.items()})
    if content_type is None:
        del response.headers["Content-Type"]
    else:
        response.headers["Content-Type"] = content_type
    return response


def on(server: HTTPServer, operation: str, *responses, method: str | None = None) -> None:
    """Answer an operation with these, in turn, the last one for ever."""
    pending = list(responses)

    def handler(request: Request) -> Response:
        found = pending.pop(0) if len(pending) > 1 else pending[0]
        return found(request) if not isinstance(found, Response) else found

    method = method or ("GET" if operation in {"cacerts", "csrattrs"} else "POST")
    server.expect_request(f"{BASE}/{operation}", method=method).respond_with_handler(handler)


# --- content --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        "application/pkcs7-mime",
        "application/pkcs7-mime; smime-type=certs-only",
        "Application/PKCS7-MIME;SMIME-TYPE=Certs-Only; name=x",
        'application/pkcs7-mime; charset=x; smime-type="certs-only"',
    ],
)
def test_the_content_type_is_read_as_mime_is(server, client, root, content_type):
    on(server, "cacerts", says(200, certs_only(root.certificate), content_type))
    assert client.cacerts().certificates == (root.certificate,)


@pytest.mark.parametrize(
    "content_type",
    ["text/html", "application/pkcs7-mime; smime-type=CMC-response", "application/x-x509-ca-cert", None, "", ";"],
)
def test_another_content_type_is_not_an_est_answer(server, client, root, content_type):
    on(server, "cacerts", says(200, certs_only(root.certificate), content_type))
    with pytest.raises(BadAnswer, match="should be application/pkcs7-mime"):
        client.cacerts()


@pytest.mark.parametrize("width", [64, 76, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \t\r\n"])
def test_base64_is_read_however_it_is_wrapped(server, client, root, width, end):
    text = certs_only(root.certificate).decode()
    lines = "".join(text[i : i + width] + end for i in range(0, len(text), width))
    on(server, "cacerts", says(200, lines, PKCS7))
    assert client.cacerts().certificates == (root.certificate,)


def test_a_truncated_answer_is_not_used(server, client, root, draft, issuing):
    body = certs_only(root.certificate)
    on(server, "cacerts", says(200, body[:-41], PKCS7))
    with pytest.raises(BadAnswer):
        client.cacerts()
    on(server, "simpleenroll", says(200, body[: len(body) // 2 // 4 * 4], PKCS7))
    with pytest.raises(BadAnswer):
        client.simpleenroll(draft)


@pytest.mark.parametrize("body", [b"", b"AAAA", b"MAA=", b"not base64!", b"\x30\x03\x02\x01\x00"])
def test_a_body_that_is_no_certs_only_message_is_not_used(server, client, body):
    on(server, "cacerts", says(200, body, PKCS7))
    with pytest.raises(BadAnswer):
        client.cacerts()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_larger_than_any_is_cut_off(server, client, chunked):
    def flood(_: Request) -> Response:
        body = b"A" * 2_000_000
        return Response(iter([body]) if chunked else body, content_type=PKCS7)

    on(server, "cacerts", flood)
    with pytest.raises(BadAnswer, match="larger"):
        client.cacerts()


@pytest.mark.parametrize("status", [200, 204, 404, 501])
def test_no_csr_attributes_are_no_wishes(server, client, status):
    on(server, "csrattrs", says(status, b"", "application/csrattrs" if status == 200 else "text/plain"))
    assert client.csrattrs() == CsrAttrs()


def test_an_empty_sequence_is_no_wishes(server, client):
    on(server, "csrattrs", says(200, b"MAA=\n", "application/csrattrs"))
    assert client.csrattrs() == CsrAttrs()


@pytest.mark.parametrize("status", [204, 206, 301, 418])
def test_only_200_is_a_success_of_cacerts(server, client, status):
    on(server, "cacerts", says(status, b""))
    with pytest.raises(DeviceSimError):
        client.cacerts()


def test_a_late_answer_is_given_up_and_nothing_is_lost(server, trust, draft, issuing):
    release = threading.Event()

    def late(request: Request) -> Response:
        release.wait(5)
        return issue(issuing)(request)

    on(server, "simpleenroll", late)
    with EstClient(f"https://127.0.0.1:{server.port}", trust=trust, timeout_seconds=0.2) as client:
        started = time.monotonic()
        with pytest.raises(Unreachable, match="took too long"):
            client.simpleenroll(draft)
        assert time.monotonic() - started < 4
    release.set()


# --- who and what came back -----------------------------------------------------------------------------------------


def test_the_certificate_is_picked_by_its_key_not_by_its_place(server, client, draft, issuing, root):
    on(server, "simpleenroll", issue(issuing, issuing.certificate, root.certificate))
    assert client.simpleenroll(draft).subject == draft.subject


def test_a_certificate_for_another_key_is_not_used(server, client, draft, root):
    on(server, "simpleenroll", says(200, certs_only(root.certificate), PKCS7))
    with pytest.raises(VerificationFailed, match="another key"):
        client.simpleenroll(draft)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 415, 422, 501])
def test_a_refusal_brings_the_servers_words_and_is_not_repeated(server, client, draft, status):
    on(server, "simpleenroll", says(status, "the key is weak\n"))
    with pytest.raises(EstRefused) as caught:
        retrying(lambda: client.simpleenroll(draft), sleep=lambda _: None, random=lambda: 0.5)
    assert caught.value.status == status
    assert caught.value.body_text == "the key is weak"
    assert "the key is weak" in caught.value.line
    assert caught.value.exit_code == 7
    assert len(server.log) == 1


def test_what_a_server_writes_is_made_fit_to_be_shown(server, client, draft):
    page = "<html><head><style>b{}</style><title>403</title></head><body>No\x1b[31m &amp; never\r\n" + "x" * 9000
    on(server, "simpleenroll", says(403, page, "text/html"))
    with pytest.raises(EstRefused) as caught:
        client.simpleenroll(draft)
    text = caught.value.body_text
    assert text.startswith("403 No")
    assert "<" not in text
    assert text.isprintable()
    assert len(text) <= 400


# --- not now --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("99999999999", RETRY_AFTER_MAX_SECONDS),
        ("soon", RETRY_AFTER_DEFAULT_SECONDS),
        ("-5", RETRY_AFTER_DEFAULT_SECONDS),
        (None, RETRY_AFTER_DEFAULT_SECONDS),
        (email.utils.format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0),
        (email.utils.format_datetime(datetime.now(UTC) + timedelta(days=900), usegmt=True), RETRY_AFTER_MAX_SECONDS),
    ],
    ids=["seconds", "now", "too long", "not a time", "negative", "missing", "a date gone by", "a date far off"],
)
def test_pending_says_when_to_come_back(server, client, draft, value, seconds):
    on(server, "simpleenroll", says(202, b"", **({} if value is None else {"Retry_After": value})))
    with pytest.raises(Pending) as caught:
        client.simpleenroll(draft)
    assert caught.value.retry_after_seconds == seconds
    assert caught.value.exit_code == 6
    assert "approval" in caught.value.line
    assert ("RFC 7030" in caught.value.line) is (seconds == RETRY_AFTER_DEFAULT_SECONDS)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_not_now_is_not_a_refusal(server, client, draft, status):
    when = datetime.now(UTC) + timedelta(seconds=90)
    on(server, "simpleenroll", says(status, "busy", Retry_After=email.utils.format_datetime(when, usegmt=True)))
    with pytest.raises(Unreachable, match="busy") as caught:
        client.simpleenroll(draft)
    assert 80 <= caught.value.retry_after_seconds <= 91


def test_pending_then_granted_enrols_the_same_key_with_a_request_made_anew(server, client, draft, issuing):
    on(server, "simpleenroll", says(202, b"", Retry_After="7"), says(503, b""), issue(issuing))
    waits: list[float] = []
    told: list[str] = []
    certificate = retrying(
        lambda: client.simpleenroll(draft),
        sleep=waits.append,
        random=lambda: 0.0,
        tell=lambda error, _: told.append(str(error)),
    )
    assert certificate.subject == draft.subject
    assert waits == [7.0, 0.5]
    assert "approval" in told[0]
    bodies = [x509.load_der_x509_csr(base64.b64decode(request.data)) for request, _ in server.log]
    assert len({csr.public_key().public_bytes(Encoding.DER, _spki()) for csr in bodies}) == 1
    assert len({request.data for request, _ in server.log}) == 3  # this server closes every connection


def _spki():
    from cryptography.hazmat.primitives.serialization import PublicFormat

    return PublicFormat.SubjectPublicKeyInfo


def test_patience_ends():
    calls: list[int] = []

    def never():
        calls.append(1)
        raise Unreachable("no")

    waits: list[float] = []
    with pytest.raises(Unreachable):
        retrying(never, sleep=waits.append, random=lambda: 0.999, patience=Patience(attempts=4))
    assert len(calls) == 4
    assert [round(wait) for wait in waits] == [1, 2, 4]
    with pytest.raises(Unreachable):
        retrying(never, sleep=waits.append, random=lambda: 0.5, patience=Patience(total_seconds=0))
    assert len(calls) == 5


# --- passwords ------------------------------------------------------------------------------------------------------


def with_password(server, trust, **kwargs):
    credentials = Credentials("line-1", "pässword".encode())
    return EstClient(f"https://127.0.0.1:{server.port}", trust=trust, credentials=credentials, **kwargs)


def test_a_password_is_sent_as_the_answer_to_a_challenge_and_once(server, trust, draft, issuing):
    on(server, "simpleenroll", says(401, b"", WWW_Authenticate='Basic realm="est"'), issue(issuing))
    with with_password(server, trust) as client:
        client.simpleenroll(draft)
    first, second = (request.headers.get("Authorization") for request, _ in server.log)
    assert first is None
    assert base64.b64decode(second.removeprefix("Basic ")).decode() == "line-1:pässword"
    assert "ssword" not in repr(Credentials("a", b"password"))


def test_a_wrong_password_is_tried_once(server, trust, draft):
    on(server, "simpleenroll", says(401, b"", WWW_Authenticate='Basic realm="est"'))
    with with_password(server, trust) as client, pytest.raises(EstRefused) as caught:
        client.simpleenroll(draft)
    assert caught.value.status == 401
    assert len(server.log) == 2


@pytest.mark.parametrize("challenge", ['Digest realm="a, basic one", nonce="x"', "Negotiate", ""])
def test_a_challenge_that_cannot_be_answered_ends_it(server, trust, draft, challenge):
    on(server, "simpleenroll", says(401, b"", WWW_Authenticate=challenge))
    with with_password(server, trust) as client, pytest.raises(EstRefused, match="other than Digest and Basic"):
        client.simpleenroll(draft)
    assert len(server.log) == 1


@pytest.mark.parametrize("turn", [1, -1])
def test_basic_is_found_beside_other_challenges(server, trust, draft, issuing, turn):
    def both(_: Request) -> Response:
        response = says(401)
        for challenge in ['Digest realm="est", nonce="x"', 'Basic realm="est"'][::turn]:
            response.headers.add("WWW-Authenticate", challenge)
        return response

    on(server, "simpleenroll", both, issue(issuing))
    with with_password(server, trust) as client:
        client.simpleenroll(draft)


@pytest.mark.parametrize("algorithm", ["SHA-256", "MD5"])
def test_c_t12_a_digest_challenge_is_answered_without_the_password(server, trust, draft, issuing, algorithm):
    nonce, digest = "dcd98b7102dd2f0e", {"SHA-256": hashlib.sha256, "MD5": hashlib.md5}[algorithm]
    challenge = f'Digest realm="est", qop="auth", algorithm={algorithm}, nonce="{nonce}", opaque="op"'
    on(server, "simpleenroll", says(401, b"", WWW_Authenticate=challenge), issue(issuing))
    with with_password(server, trust) as client:
        client.simpleenroll(draft)
    said = server.log[1][0].authorization  # werkzeug's reading of it
    assert (said.type, said.username, said.nonce, said.opaque) == ("digest", "line-1", nonce, "op")
    uri = f"{BASE}/simpleenroll"
    secret = digest("line-1:est:pässword".encode()).hexdigest()
    asked = digest(f"POST:{uri}".encode()).hexdigest()
    expected = digest(f"{secret}:{nonce}:{said.nc}:{said.cnonce}:{said.qop}:{asked}".encode()).hexdigest()
    assert (said.uri, said.response) == (uri, expected)
    assert len(server.log) == 2


def test_c_t12_a_digest_that_is_refused_is_not_repeated_even_when_it_is_called_stale(server, trust, draft):
    challenge = 'Digest realm="est", qop="auth", algorithm=SHA-256, nonce="x", stale=true'
    on(server, "simpleenroll", says(401, b"", WWW_Authenticate=challenge))
    with with_password(server, trust) as client, pytest.raises(EstRefused) as caught:
        client.simpleenroll(draft)
    assert (caught.value.status, len(server.log)) == (401, 2)


def test_c_t13_a_forgotten_password_answers_no_challenge(server, trust, draft, issuing):
    challenge = says(401, b"", WWW_Authenticate='Basic realm="est"')
    on(server, "simpleenroll", challenge, issue(issuing), challenge)
    with with_password(server, trust) as client:
        client.simpleenroll(draft)
        client.forget_password()
        with pytest.raises(EstRefused):
            client.simpleenroll(draft)
    assert [("Authorization" in request.headers) for request, _ in server.log] == [False, True, False]


def test_a_password_never_goes_where_there_is_no_tls(trust):
    with pytest.raises(UsageProblem):
        EstClient("http://127.0.0.1:1", trust=trust, credentials=Credentials("a", b"b"))


# --- redirects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_within_the_origin_is_followed_even_for_a_post(server, client, draft, issuing, status):
    on(server, "simpleenroll", says(status, Location=f"{BASE}/a/simpleenroll"))
    server.expect_request(f"{BASE}/a/simpleenroll", method="POST").respond_with_handler(issue(issuing))
    assert client.simpleenroll(draft).subject == draft.subject


def test_a_post_is_redirected_to_another_origin_only_where_that_was_allowed(server, elsewhere, trust, draft, issuing):
    target = f"https://127.0.0.1:{elsewhere.port}"
    on(server, "simpleenroll", says(307, Location=f"{target}{BASE}/simpleenroll"))
    on(elsewhere, "simpleenroll", issue(issuing))
    url = f"https://127.0.0.1:{server.port}"
    with EstClient(url, trust=trust) as client, pytest.raises(EstRefused, match="redirects the request to"):
        client.simpleenroll(draft)
    assert elsewhere.log == []
    with EstClient(url, trust=trust, redirect_origins=[target]) as client:
        assert client.simpleenroll(draft).subject == draft.subject


def test_a_get_goes_to_one_other_origin_and_no_password_goes_with_it(server, elsewhere, trust, root):
    on(server, "cacerts", says(302, Location=f"https://127.0.0.1:{elsewhere.port}{BASE}/cacerts"))
    on(elsewhere, "cacerts", says(200, certs_only(root.certificate), PKCS7))
    with with_password(server, trust) as client:
        assert client.cacerts().certificates == (root.certificate,)
    elsewhere.clear()
    on(elsewhere, "cacerts", says(401, b"", WWW_Authenticate='Basic realm="est"'))
    with with_password(server, trust) as client, pytest.raises(EstRefused):
        client.cacerts()
    assert len(elsewhere.log) == 1
    assert "Authorization" not in elsewhere.log[0][0].headers


def test_a_second_other_origin_is_not_gone_to(server, elsewhere, client):
    on(server, "cacerts", says(302, Location=f"https://127.0.0.1:{elsewhere.port}{BASE}/cacerts"))
    on(elsewhere, "cacerts", says(302, Location=f"https://localhost:{elsewhere.port}{BASE}/cacerts"))
    with pytest.raises(EstRefused, match="a second time"):
        client.cacerts()


@pytest.mark.parametrize("location", ["http://127.0.0.1/x", "ftp://x/y", "https://u:p@127.0.0.1/x", "https://:1/"])
def test_a_redirect_to_what_is_no_place_for_est_is_not_followed(server, client, location):
    on(server, "cacerts", says(302, Location=location))
    with pytest.raises(EstRefused, match="none for EST"):
        client.cacerts()


def test_a_circle_of_redirects_ends(server, client):
    on(server, "cacerts", says(302, Location=f"{BASE}/cacerts"))
    with pytest.raises(EstRefused, match="circles"):
        client.cacerts()
    assert len(server.log) == 4


# --- a device through all of it -------------------------------------------------------------------------------------


def test_a_device_keeps_its_key_through_a_bad_day(server, client, tmp_path, issuing, root):
    on(server, "cacerts", says(200, certs_only(root.certificate, issuing.certificate), "application/pkcs7-mime"))
    on(server, "csrattrs", says(404))
    keys: list[bytes] = []

    def noting(response):
        def handler(request: Request) -> Response:
            csr = x509.load_der_x509_csr(base64.b64decode(request.data))
            keys.append(csr.public_key().public_bytes(Encoding.DER, _spki()))
            return response(request) if callable(response) and not isinstance(response, Response) else response

        return handler

    def wrong_subject(request: Request) -> Response:
        csr = x509.load_der_x509_csr(base64.b64decode(request.data))
        from tests.protocol.client_stub import name

        return Response(certs_only(issuing.from_csr(csr, subject=name("sn-2"))), content_type=PKCS7)

    bad = [says(503), says(202, Retry_After="1"), says(200, b"AAA", PKCS7), says(403, "no"), wrong_subject]
    on(server, "simpleenroll", *map(noting, bad), noting(issue(issuing)))
    device = Device("sn-1", store=FileKeyStore(tmp_path / "d"), clock=lambda: datetime.now(UTC))
    for _ in bad:
        with pytest.raises(DeviceSimError):
            device.enroll(client)
        assert device.state is DeviceState.DRAFTED
    assert device.enroll(client).certificate.subject.rfc4514_string() == "CN=sn-1"
    assert device.state is DeviceState.ENROLLED
    assert len(keys) == len(bad) + 1
    assert len(set(keys)) == 1


def test_a_failed_renewal_leaves_the_old_identity_in_use(server, client, tmp_path, issuing, root):
    on(server, "cacerts", says(200, certs_only(root.certificate, issuing.certificate), "application/pkcs7-mime"))
    on(server, "csrattrs", says(204))
    on(server, "simpleenroll", issue(issuing))
    on(server, "simplereenroll", says(500), says(200, certs_only(root.certificate), PKCS7), issue(issuing))
    device = Device("sn-1", store=FileKeyStore(tmp_path / "d"), clock=lambda: datetime.now(UTC))
    first = device.enroll(client)
    for _ in range(2):
        with pytest.raises(DeviceSimError):
            device.renew(client)
        assert device.identity.certificate == first.certificate
    assert device.renew(client).certificate != first.certificate
