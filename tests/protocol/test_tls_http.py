"""The TLS and HTTP rows of the conformance table: S-T and S-H; refused attacks that peers fell for."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from estserver.config import RESERVED_LABELS, load_settings
from estserver.errors import ConfigError
from estserver.serving.binding import session_reused
from tests.csr_maker import base64_lines, extension, new_key, request, sequence, tlv, usage
from tests.est_server import (
    EST,
    TLS12,
    TLS13,
    Est,
    Holder,
    RunningServer,
    basic,
    found_home,
    fresh_id,
    today,
)
from tests.makers import SERVER, Maker

pytestmark = pytest.mark.e2e
PKCS10 = {"Content-Type": "application/pkcs10"}


def hello(version: int, suites: list[int]) -> bytes:
    """A ClientHello of an old or odd client, octet by octet: no library offers these any more."""
    groups = struct.pack("!HHHHH", 10, 6, 4, 23, 24)
    algorithms = struct.pack("!HHHHHHH", 13, 10, 8, 0x0401, 0x0403, 0x0201, 0x0203)
    extensions = groups + struct.pack("!HHBB", 11, 2, 1, 0) + algorithms
    offered = b"".join(struct.pack("!H", suite) for suite in suites)
    body = struct.pack("!H", version) + os.urandom(32) + b"\0" + struct.pack("!H", len(offered)) + offered + b"\1\0"
    body += struct.pack("!H", len(extensions)) + extensions
    message = b"\1" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


def first_record(est: Est, octets: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", est.server.port), timeout=20) as sock:
        sock.sendall(octets)
        return sock.recv(100)


# --- TLS ------------------------------------------------------------------------------------------------------------


def test_s_t01_s_a04_nothing_is_answered_without_tls(est: Est) -> None:
    head = f"GET {EST}/cacerts HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic eDp5\r\n\r\n"
    assert not first_record(est, head.encode()).startswith(b"HTTP")


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302])
def test_s_t02_ssl3_tls_1_0_and_1_1_fail(est: Est, version: int) -> None:
    alert = first_record(est, hello(version, [0xC013, 0xC014, 0x002F, 0x00FF]))
    assert alert[0] == 21
    assert alert[6] == 70  # protocol_version


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_t02_tls_1_2_and_1_3_work(est: Est, tls: int) -> None:
    assert est.over(tls).get("cacerts").status == 200


@pytest.mark.parametrize(
    "suites",
    [[0x003B, 0x0002], [0xC019, 0x0034], [0x0008, 0x0003], [0x0009, 0x000A], [0x002F, 0x0035], [0xC013, 0xC014]],
    ids=["NULL", "anonymous", "export", "DES", "no forward secrecy", "CBC"],
)
def test_s_t03_weak_suites_fail(est: Est, suites: list[int]) -> None:
    alert = first_record(est, hello(0x0303, [*suites, 0x00FF]))
    assert alert[0] == 21
    assert alert[6] == 40  # handshake_failure


def test_s_t03_the_same_hello_with_a_strong_suite_is_answered(est: Est) -> None:
    assert first_record(est, hello(0x0303, [0xC02B, 0xC02F, 0x00FF]))[0] == 22


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_t04_s_p05_an_offered_session_gets_a_full_handshake_and_binding_works(est: Est, tls: int) -> None:
    """Published deviation: sessions are never resumed."""
    with est.wire(tls=tls) as first:
        first.request("GET", f"{EST}/cacerts")
    key, device = new_key(), fresh_id()
    with est.wire(tls=tls, resume=first) as wire:
        assert not session_reused(wire.tls)
        csr = request(key, device, binding=wire.binding)
        headers = {**PKCS10, **basic(est.home.credential(device))}
        assert wire.request("POST", f"{EST}/simpleenroll", base64.b64encode(csr), headers).status == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_s_t05_the_server_shows_a_certificate_with_its_names_in_the_san(est: Est, host: str) -> None:
    context = ssl.create_default_context(cafile=str(est.home.path / "root.pem"))
    with (
        socket.create_connection(("127.0.0.1", est.server.port), timeout=20) as sock,
        context.wrap_socket(sock, server_hostname=host) as tls,
    ):
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    certificate = x509.load_der_x509_certificate(der)
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["localhost"]


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_t06_a_certificate_is_asked_for_and_a_good_one_taken(est: Est, tls: int) -> None:
    device = est.device()
    answer = est.over(tls).reenroll(request(new_key(), device.device), device)
    assert answer.status == 200


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_t07_without_a_certificate_reading_works_and_enrolment_is_challenged(est: Est, tls: int) -> None:
    with est.wire(tls=tls) as wire:
        assert wire.request("GET", f"{EST}/cacerts").status == 200
        assert wire.request("GET", f"{EST}/csrattrs").status == 200
        body = base64.b64encode(request(new_key(), fresh_id()))
        assert wire.request("POST", f"{EST}/simpleenroll", body, PKCS10).status == 401


@pytest.fixture(scope="module")
def maker(est: Est) -> Maker:
    """A manufacturer whose IDevIDs may bootstrap."""
    maker = Maker("Turbine Works")
    est.home.anchor("turbine", maker.certificate, "tw-{serial}", "tw-*")
    return maker


def test_s_t08_an_idevid_enrols_and_is_written_down_as_implicit(est: Est, maker: Maker) -> None:
    serial = fresh_id("T")
    device = f"tw-{serial.lower()}"
    answer = est.post(request(new_key(), device), client=maker.idevid(serial))
    assert answer.status == 200
    (row,) = [row for row in est.home.audit() if row["action"] == "issue" and row["detail"]["device"] == device]
    assert row["actor"] == f"idevid:turbine/{device}"


def test_s_t08_s_n10_an_idevid_does_not_renew(est: Est, maker: Maker) -> None:
    serial = fresh_id("T")
    answer = est.reenroll(request(new_key(), f"tw-{serial.lower()}"), maker.idevid(serial))
    assert answer.status == 403
    assert "use simpleenroll" in answer.text


def test_s_t08_an_idevid_may_not_name_another_device_nor_a_manufacturer_what_is_not_his(est: Est, maker: Maker) -> None:
    serial = fresh_id("T")
    assert est.post(request(new_key(), "tw-other"), client=maker.idevid(serial)).status == 403
    other = Maker("Pump Works")
    est.home.anchor("pumps", other.certificate, "{serial}", "pump-*")
    stolen = est.post(request(new_key(), "tw-9"), client=other.idevid("tw-9"))
    assert stolen.status == 403
    assert "may not vouch for" in stolen.text


def test_s_t08_an_idevid_below_a_sub_ca_brings_its_chain(est: Est, maker: Maker) -> None:
    below = Maker("Turbine Works Line 7", above=maker)
    serial = fresh_id("T")
    assert est.post(request(new_key(), f"tw-{serial.lower()}"), client=below.idevid(serial)).status == 200


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Est]:
    """A server of another configuration: no implicit trust, and a TLS certificate from a CA that is not its own."""
    home = found_home(tmp_path_factory.mktemp("other") / "home", key_kind="P-384")
    web = Maker("Public Web CA")
    shown = web.idevid("est", purposes=[SERVER])
    Holder(shown.key, shown.certificate).write(home.path, "web")
    home.configure('[tls]\ncertificate = "web.pem"\nkey = "web.key"\n', top="implicit_trust = false\n")
    with RunningServer(home) as server:
        yield Est(server, trust=web.certificate)


def test_s_t09_implicit_trust_can_be_switched_off(other: Est) -> None:
    maker = Maker("Turbine Works")
    other.home.anchor("turbine", maker.certificate)
    answer = other.post(request(new_key(), "sn-1"), client=maker.idevid("sn-1"))
    assert answer.status == 403
    assert "does not lead to a trust anchor" in answer.text


def test_s_c06_the_bag_is_the_est_cas_and_not_that_of_the_tls_certificate(other: Est) -> None:
    bag = other.get("cacerts").certificates
    assert {c.subject.rfc4514_string() for c in bag} == {"CN=Acme Root CA", "CN=Acme Issuing CA"}


@pytest.mark.parametrize("tls", [TLS12, TLS13])
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"not_after": today() - timedelta(hours=1)}, "expired on"),
        ({"not_before": today() + timedelta(hours=1)}, "not valid before"),
        ({"purposes": [SERVER]}, "extended key usage"),
        ({"key_usage": usage("key_encipherment")}, "key usage"),
        ({"ca": True}, "CA certificate"),
    ],
    ids=["expired", "not yet valid", "serverAuth only", "cannot sign", "CA"],
)
def test_s_t10_a_bad_certificate_is_refused_in_words(est: Est, maker: Maker, tls: int, fault: dict, text: str) -> None:
    serial = fresh_id("T")
    answer = est.over(tls).post(request(new_key(), f"tw-{serial.lower()}"), client=maker.idevid(serial, **fault))
    assert answer.status == 403
    assert text in answer.text


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_t10_strangers_and_impostors_are_refused_in_words(est: Est, maker: Maker, tls: int) -> None:
    serial = fresh_id("T")
    csr = request(new_key(), f"tw-{serial.lower()}")
    impostor = Maker(maker.name).idevid(serial)
    self_signed = Maker("sn-1")
    for client in (
        impostor,
        Holder(impostor.key, impostor.certificate, (maker.certificate,)),
        Holder(self_signed.key, self_signed.certificate),
        maker.idevid(serial, critical_unknown=True),
    ):
        answer = est.over(tls).post(csr, client=client)
        assert answer.status == 403
        assert "trust anchor" in answer.text


@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
@pytest.mark.parametrize("label", ["", "device", "bound"])
def test_s_t10_s_n07_a_revoked_certificate_counts_nowhere(est: Est, operation: str, label: str) -> None:
    device = est.device()
    est.home.revoke(device.certificate)
    answer = est.post(request(new_key(), device.device), operation=operation, label=label, client=device)
    assert answer.status == 403
    assert "was revoked" in answer.text


def test_s_t11_renegotiation_is_refused(est: Est) -> None:
    with est.wire(tls=TLS12) as wire:
        assert wire.request("GET", f"{EST}/cacerts").status == 200
        before = wire.tls.get_finished()
        wire.tls.renegotiate()
        with pytest.raises(SSL.Error):
            wire.request("GET", f"{EST}/cacerts")
        assert wire.tls.get_finished() == before


@pytest.mark.parametrize("suite", [0xC01D, 0xC020, 0x008C, 0xC035], ids=["SRP", "SRP-256", "PSK", "ECDHE-PSK"])
def test_s_t12_certificate_less_tls_is_not_offered(est: Est, suite: int) -> None:
    alert = first_record(est, hello(0x0303, [suite, 0x00FF]))
    assert (alert[0], alert[6]) == (21, 40)


# --- HTTP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["cacerts", "csrattrs", "device/cacerts", "station/csrattrs"])
def test_s_h01_s_h02_with_and_without_a_label(est: Est, path: str) -> None:
    assert est.get(path).status == 200


@pytest.mark.parametrize("label", sorted(RESERVED_LABELS))
def test_s_h03_no_label_is_called_like_an_operation(tmp_path, est: Est, label: str) -> None:
    text = (est.home.path / "estserver.toml").read_text("utf-8")
    (tmp_path / "estserver.toml").write_text(f'{text}\n[labels."{label}"]\nprofile = "device"\nca = "acme"\n', "utf-8")
    with pytest.raises(ConfigError, match=label):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        f"{EST}/nowhere/cacerts",
        f"{EST}/a/b/cacerts",
        f"{EST}/nothing",
        f"{EST}/",
        EST,
        f"{EST}/cacerts/",
        f"{EST}//cacerts",
        f"{EST}/device/",
        "/",
        "/.well-known/",
        "/favicon.ico",
        f"{EST}/%2e%2e/cacerts",
        f"{EST}/device/../cacerts",
        f"{EST}/%ff/cacerts",
        f"{EST}/Device/cacerts",
    ],
)
def test_s_h04_what_is_not_there_is_a_404_and_never_a_default(est: Est, path: str) -> None:
    """Lessons 7 and 8: an unknown label is never the default CA, nothing falls through to a page for people."""
    with est.wire() as wire:
        assert wire.request("GET", path).status == 404


def test_s_h04_an_unknown_label_is_told_before_anything_else(est: Est) -> None:
    credential = est.home.credential("*")
    for operation in ("simpleenroll", "simplereenroll", "serverkeygen", "fullcmc"):
        answer = est.post(b"", operation=operation, label="nowhere", credential=credential)
        assert answer.status == 404


@pytest.mark.parametrize(
    ("method", "operation"),
    [
        ("POST", "cacerts"),
        ("PUT", "cacerts"),
        ("POST", "csrattrs"),
        ("GET", "simpleenroll"),
        ("GET", "device/simplereenroll"),
        ("DELETE", "simpleenroll"),
        ("GET", "serverkeygen"),
    ],
)
def test_s_h05_a_wrong_method_is_405_with_allow(est: Est, method: str, operation: str) -> None:
    with est.wire() as wire:
        answer = wire.request(method, f"{EST}/{operation}", b"" if method in ("POST", "PUT") else None)
    assert answer.status == 405
    assert method not in answer["Allow"]


@pytest.mark.parametrize("operation", ["fullcmc", "serverkeygen", "device/serverkeygen"])
def test_optional_operations_are_501(est: Est, operation: str) -> None:
    """S-M01, S-K01."""
    with est.wire() as wire:
        assert wire.request("POST", f"{EST}/{operation}", b"").status == 501


@pytest.mark.parametrize("sent", ["text/plain", "", "application/pkcs7-mime", "application/x-www-form-urlencoded", "x"])
def test_s_h06_another_content_type_is_415(est: Est, sent: str) -> None:
    answer = est.enroll(request(new_key(), fresh_id()), headers={"Content-Type": sent})
    assert answer.status == 415


@pytest.mark.parametrize(
    "sent", ["application/pkcs10; charset=utf-8", "Application/PKCS10", "application/pkcs10 ;name=x"]
)
def test_s_h06_parameters_and_case_do_not_matter(est: Est, sent: str) -> None:
    assert est.enroll(request(new_key(), fresh_id()), headers={"Content-Type": sent}).status == 200


@pytest.mark.parametrize("sent", ["base64", "binary", "8bit", "x-uuencode", ""])
def test_s_h07_content_transfer_encoding_is_never_read(est: Est, sent: str) -> None:
    assert est.enroll(request(new_key(), fresh_id()), headers={"Content-Transfer-Encoding": sent}).status == 200


def _spaced(der: bytes) -> bytes:
    return b"\t " + base64_lines(der, 60, b" \t\r\n ") + b"\r\n\r\n"


@pytest.mark.parametrize(
    "write",
    [
        base64.b64encode,
        base64_lines,
        lambda der: base64_lines(der, 64),
        lambda der: base64_lines(der, 76),
        lambda der: base64_lines(der, 64, b"\r\n"),
        lambda der: base64_lines(der, 1),
        _spaced,
    ],
    ids=["one line", "newline", "64", "76", "CRLF", "1", "spaces and tabs"],
)
def test_s_h08_any_white_space_in_base64(est: Est, write) -> None:
    device = fresh_id()
    body = write(request(new_key(), device))
    assert est.enroll(b"", body=body, credential=est.home.credential(device)).status == 200


@pytest.mark.parametrize("words", ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"])
def test_s_h09_pem_is_taken(est: Est, words: str) -> None:
    body = (
        f"-----BEGIN {words}-----\n{base64_lines(request(new_key(), fresh_id()), 64).decode()}-----END {words}-----\n"
    )
    assert est.enroll(b"", body=body.encode()).status == 200


def _urlsafe() -> bytes:
    while True:
        encoded = base64.urlsafe_b64encode(request(new_key(), fresh_id()))
        if b"-" in encoded or b"_" in encoded:
            return encoded


@pytest.mark.parametrize(
    "write",
    [
        lambda: request(new_key(), fresh_id()),
        _urlsafe,
        lambda: base64.b64encode(request(new_key(), fresh_id())).rstrip(b"=")[:-1],
        lambda: b"====",
        lambda: b"",
        lambda: b"\x00" * 100,
        lambda: b"-----BEGIN CERTIFICATE REQUEST-----\n!\n-----END CERTIFICATE REQUEST-----\n",
        "ünïcode".encode,
    ],
    ids=["raw DER", "base64url", "cut", "only padding", "empty", "zeros", "bad PEM", "not ASCII"],
)
def test_s_h09_what_is_not_base64_is_400(est: Est, write) -> None:
    answer = est.enroll(b"", body=write())
    assert answer.status == 400
    assert "base64" in answer.text


def _deep(levels: int) -> bytes:
    der = b""
    for _ in range(levels):
        der = tlv(0x30, der)
    return der


@pytest.mark.parametrize(
    "der",
    [
        b"\x30\x80\x00\x00",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x89" + b"\xff" * 9,
        b"\x30\x81\x01\x00",
        b"\x30",
        b"\x1f\xff\xff\xff\x7f\x00",
        b"\x00" * 2000,
        _deep(9000),
        tlv(0x30, _deep(2000), _deep(2000), _deep(2000)),
        sequence(*[sequence()] * 20000),
        os.urandom(3000),
    ],
)
def test_s_h10_malformed_der_is_400(est: Est, der: bytes) -> None:
    assert est.enroll(der).status == 400


def test_s_h10_nothing_may_follow_the_request(est: Est) -> None:
    answer = est.enroll(request(new_key(), fresh_id()) + b"\x00")
    assert answer.status == 400
    assert "follow" in answer.text


def test_s_h10_ten_megabytes_are_413(est: Est) -> None:
    """Globalsign answers 500; a refused client still gets to read why."""
    with est.wire() as wire:
        wire.send(f"POST {EST}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n".encode())
        assert wire.answer("POST").status == 413


def test_s_h10_lesson_5_chunks_do_not_get_past_the_cap(est: Est) -> None:
    with est.wire() as wire:
        head = f"POST {EST}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        wire.send(head.encode() + b"Content-Type: application/pkcs10\r\n\r\n")
        chunk = b"8000\r\n" + b"A" * 0x8000 + b"\r\n"
        wire.send(chunk * 3)
        assert wire.answer("POST").status == 413


def test_s_h10_the_largest_sound_request_passes(est: Est) -> None:
    """ML-DSA-87 with what an attestation would add."""
    key = mldsa.MLDSA87PrivateKey.generate()
    ballast = extension("1.3.6.1.4.1.55555.2", tlv(0x04, bytes(20000)))
    csr = request(key, fresh_id(), extensions=[ballast])
    assert len(base64.b64encode(csr)) > 35_000
    assert est.enroll(csr).status == 200


@pytest.mark.parametrize("accept", ["", "*/*", "application/pkcs7-mime", "text/html", "q;;,=", "application/json"])
def test_s_h11_accept_is_not_needed_and_never_in_the_way(est: Est, accept: str) -> None:
    assert est.enroll(request(new_key(), fresh_id()), headers={"Accept": accept}).status == 200
    assert est.get("cacerts", {"Accept": accept} if accept else {}).status == 200


def test_s_h12_s_h13_every_answer_has_a_length_and_few_headers_in_canonical_case(est: Est) -> None:
    """`Answer.check` looks at every answer of every test; here is what the good ones carry."""
    answer = est.enroll(request(new_key(), fresh_id()))
    assert {name for name, _ in answer.headers} >= {"Content-Length", "Content-Type", "Content-Transfer-Encoding"}
    assert int(answer["Content-Length"]) == len(answer.body)
    assert answer.body.count(b"\n") == 1
    with est.wire() as wire:
        assert wire.request("HEAD", f"{EST}/cacerts").status == 200
        assert wire.request("GET", f"{EST}/cacerts").status == 200


def test_s_h14_one_connection_carries_several_operations_and_closes_when_asked(est: Est) -> None:
    device = fresh_id()
    with est.wire() as wire:
        assert wire.request("GET", f"{EST}/cacerts").status == 200
        headers = {**PKCS10, **basic(est.home.credential(device)), "Connection": "close"}
        body = base64.b64encode(request(new_key(), device))
        answer = wire.request("POST", f"{EST}/simpleenroll", body, headers)
        assert (answer.status, answer["Connection"]) == (200, "close")
        assert wire.at_end()


def test_s_h14_a_refusal_does_not_end_the_connection(est: Est) -> None:
    with est.wire() as wire:
        assert wire.request("POST", f"{EST}/simpleenroll", b"junk", PKCS10).status in (400, 401)
        assert wire.request("GET", f"{EST}/nothing").status == 404
        assert wire.request("GET", f"{EST}/cacerts").status == 200


def test_s_h15_expect_100_continue_is_answered(est: Est) -> None:
    device = fresh_id()
    body = base64.b64encode(request(new_key(), device))
    fields = {**PKCS10, **basic(est.home.credential(device)), "Expect": "100-continue"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with est.wire() as wire:
        wire.send(
            f"POST {EST}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode()
        )
        assert wire.head() == (100, ())
        wire.send(body)
        assert wire.answer("POST").status == 200


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PATCH", "BREW"])
@pytest.mark.parametrize("path", ["cacerts", "simpleenroll", "nothing"])
def test_other_methods_get_no_page_for_people(est: Est, method: str, path: str) -> None:
    with est.wire() as wire:
        answer = wire.request(method, f"{EST}/{path}")
    assert "html" not in (answer.get("Content-Type") or "")


# --- what others were taken in by -----------------------------------------------------------------------------------

FORGED = [
    "X-SSL-Client-Cert",
    "X-Client-Cert",
    "Client-Cert",
    "SSL_CLIENT_CERT",
    "X-Forwarded-Client-Cert",
    "X-SSL-Client-Verify",
    "X-Forwarded-For",
    "Tls.Peer",
]


def test_peers_a_certificate_in_a_header_is_nothing(est: Est) -> None:
    """UCM believes it from loopback, Trustpoint from anyone (S-A10 while there is no proxy; lessons 1 and 2)."""
    device = est.device()
    pem = device.certificate.public_bytes(Encoding.PEM).decode().replace("\n", "%0A")
    headers = {**dict.fromkeys(FORGED, pem), "X-SSL-Client-Verify": "SUCCESS", "X-Forwarded-For": "127.0.0.1"}
    for operation in ("simpleenroll", "simplereenroll"):
        answer = est.post(request(new_key(), device.device), operation=operation, headers=headers)
        assert answer.status == 401


def test_peers_half_bodies_and_silence_do_not_stop_the_others(est: Est) -> None:
    """UCM hangs at twenty authenticated half-bodies, libest at five idle connections."""
    wires = [est.wire() for _ in range(25)]
    silent = [socket.create_connection(("127.0.0.1", est.server.port)) for _ in range(25)]
    try:
        fields = "".join(f"{k}: {v}\r\n" for k, v in {**PKCS10, **basic(est.home.credential("*", uses=99))}.items())
        for wire in wires:
            head = f"POST {EST}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n{fields}\r\n"
            wire.send(head.encode() + b"MII")
        assert est.enroll(request(new_key(), fresh_id())).status == 200
    finally:
        for wire in wires:
            wire.close()
        for sock in silent:
            sock.close()


def test_peers_a_bare_path_does_not_kill_the_server(est: Est) -> None:
    """An unauthenticated `GET /.well-known/est` ends libest's server."""
    assert est.get(EST).status == 404
    assert est.get("cacerts").status == 200
