"""Behind HAProxy and nginx, as docs/proxy.md sets them up: the same answers as with TLS of our own, and nothing forged.

The rows of the conformance list that a proxy could break are here again: S-A10, S-N07, S-N08, S-P02, S-P03, S-P14,
S-T01, S-T02, S-T04, S-T07, S-T10.
"""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.enroll import Request
from estserver.model import BasicCredentials, Operation, Peer
from estserver.serving.binding import session_reused
from tests.conftest import require_program
from tests.csr_maker import base64_lines, new_key, request
from tests.e2e.proxy_support import (
    ENROLL,
    PAGE,
    Proxied,
    ask_plain,
    free_port,
    line_with,
    proxied,
    running,
    tls_version_refused,
)
from tests.est_server import EST, TLS12, TLS13, Est, Holder, Home, RunningServer, basic, found_home, fresh_id, today
from tests.makers import Maker

pytestmark = pytest.mark.e2e
BOUND = '[labels.bound]\nprofile = "device"\nca = "acme"\nchannel_binding = "required"\n\n'
MADE = '[labels.made]\nprofile = "device"\nca = "acme"\nserverkeygen = "on"\n\n'
NO_EXTENDED_MASTER_SECRET = 1  # SSL_OP_NO_EXTENDED_MASTER_SECRET
PKCS10 = {"Content-Type": "application/pkcs10"}
ELSEWHERE = "127.0.0.9"
"""An address of this machine that is no proxy's."""

each_tls = pytest.mark.parametrize("tls", [TLS12, TLS13], ids=["1.2", "1.3"])


@pytest.fixture(scope="module")
def haproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied("haproxy", tmp_path_factory.mktemp("haproxy"), BOUND + MADE) as running_:
        yield running_


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied("nginx", tmp_path_factory.mktemp("nginx"), MADE) as running_:
        yield running_


@pytest.fixture(params=["haproxy", "nginx"])
def proxy(request: pytest.FixtureRequest) -> Proxied:
    found: Proxied = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def est(proxy: Proxied) -> Est:
    return Est(proxy)  # type: ignore[arg-type]  # it has the port and the home of one


def pem_header(certificate: x509.Certificate) -> str:
    return quote(certificate.public_bytes(Encoding.PEM).decode(), safe="-")


def der_header(*certificates: x509.Certificate) -> str:
    return base64.b64encode(b"".join(c.public_bytes(Encoding.DER) for c in certificates)).decode()


def said_of(certificate: x509.Certificate | None, **changes: str) -> dict[str, str]:
    """What a proxy would say of a client."""
    said = {"X-SSL-Protocol": "TLSv1.2", "X-SSL-Client-Address": "203.0.113.9"}
    if certificate is not None:
        said["X-SSL-Client-Cert"] = der_header(certificate)
    return {**said, **{f"X-SSL-{name.replace('_', '-')}": value for name, value in changes.items()}}


# --- the same answers -----------------------------------------------------------------------------------------------


@each_tls
def test_a_device_enrols_and_renews_by_its_certificate(est: Est, tls: int) -> None:
    device = est.over(tls).device()
    answer = est.reenroll(request(new_key(), device.device), device, tls=tls)
    assert answer.status == 200, answer.text
    again = Holder(device.key, device.certificate)  # without the chain: the server knows its own
    assert est.reenroll(request(new_key(), device.device), again, tls=tls).status == 200


@each_tls
def test_s_t07_who_shows_no_certificate_reads_the_public_answers_and_is_challenged(est: Est, tls: int) -> None:
    assert est.over(tls).get("cacerts").status == 200
    assert est.over(tls).get("csrattrs").status == 200
    answer = est.post(request(new_key(), fresh_id()), tls=tls)
    assert answer.status == 401


@each_tls
def test_s_t10_strangers_are_refused_in_words(est: Est, tls: int) -> None:
    stranger = Maker("Stranger")
    for client in (stranger.idevid("1"), Holder(stranger.key, stranger.certificate)):
        answer = est.post(request(new_key(), fresh_id()), client=client, tls=tls)
        assert (answer.status, "trust anchor" in answer.text) == (403, True)


@each_tls
def test_s_n07_a_revoked_certificate_is_refused_in_words(est: Est, tls: int) -> None:
    device = est.over(tls).device()
    est.home.revoke(device.certificate)
    answer = est.reenroll(request(new_key(), device.device), device, tls=tls)
    assert (answer.status, "was revoked on" in answer.text) == (403, True)


@each_tls
def test_s_n08_an_expired_certificate_is_refused_in_words(est: Est, tls: int) -> None:
    """A proxy that judges it would refuse it without a word that a device could read."""
    device = issued_earlier(est, timedelta(hours=20), "workload")  # that profile's certificates live for 8 hours
    answer = est.reenroll(request(new_key(), device.device), device, label="workload", tls=tls)
    assert (answer.status, "expired on" in answer.text) == (403, True)
    bare = Holder(device.key, device.certificate)
    answer = est.reenroll(request(new_key(), device.device), bare, label="workload", tls=tls)
    assert (answer.status, "expired on" in answer.text) == (403, True)


def issued_earlier(est: Est, ago: timedelta, label: str) -> Holder:
    device, key = fresh_id(), new_key()
    name, secret = est.home.credential(device, label=label)
    asked = base64_lines(request(key, device))
    credentials = BasicCredentials(name, secret.encode())
    with est.home.enrollment(lambda: today() - ago) as enrollment:
        issued = enrollment.enroll(Request(Operation.SIMPLEENROLL, label, asked, Peer("192.0.2.1"), credentials))
    return Holder(key, x509.load_der_x509_certificate(issued.certificate), (est.home.issuing,))


@each_tls
def test_idevids_enrol_and_only_haproxy_passes_on_what_is_above_them(proxy: Proxied, est: Est, tls: int) -> None:
    maker = Maker(f"Maker of {proxy.name} {tls}")
    sub, serial = Maker(f"Factory of {proxy.name} {tls}", above=maker), fresh_id("unit")
    est.home.anchor(fresh_id("maker"), maker.certificate)
    assert est.post(request(new_key(), serial), client=maker.idevid(serial), tls=tls).status == 200
    late = maker.idevid(serial, not_after=today() - timedelta(hours=1))
    assert "expired on" in est.post(request(new_key(), serial), client=late, tls=tls).text
    below = fresh_id("unit")
    answer = est.post(request(new_key(), below), client=sub.idevid(below), tls=tls)
    assert answer.status == (200 if proxy.name == "haproxy" else 403)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_s_t02_old_tls_gets_no_handshake(proxy: Proxied, version: ssl.TLSVersion) -> None:
    assert tls_version_refused(proxy.port, version)


@each_tls
def test_the_request_for_a_certificate_names_no_cas(est: Est, tls: int) -> None:
    """A Go client whose chain leads to none of the named ones would send nothing."""
    with est.wire(tls=tls) as wire:
        wire.request("GET", f"{EST}/cacerts")
        assert wire.tls.get_client_ca_list() == []


@each_tls
def test_s_t04_no_session_is_resumed(est: Est, tls: int) -> None:
    device = est.device()
    with est.wire(device, tls=tls) as first:
        first.request("GET", f"{EST}/cacerts")
        with est.wire(device, tls=tls, resume=first) as second:
            answer = second.request(
                "POST", f"{EST}/simplereenroll", base64.b64encode(request(new_key(), device.device)), PKCS10
            )
            assert not session_reused(second.tls)
    assert answer.status == 200


# --- the channel binding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["", "bound"])
def test_s_p02_s_p03_tls_unique_is_enforced_through_haproxy(haproxy: Proxied, label: str) -> None:
    est, device = Est(haproxy, TLS12), fresh_id()  # type: ignore[arg-type]
    drawn = list[bytes]()

    def draft(binding: bytes) -> bytes:
        drawn.append(binding)
        return request(new_key(), device, binding=binding)

    answer = est.enroll(draft, label=label)
    assert answer.status == 200, answer.text
    issued = [row for row in est.home.audit() if row["action"] == "issue" and row["detail"]["device"] == device]
    assert [row["detail"]["binding"] for row in issued] == ["verified"]
    replayed = est.enroll(request(new_key(), fresh_id(), binding=drawn[0]), label=label)
    assert (replayed.status, "not the tls-unique of this connection" in replayed.text) == (403, True)


def test_s_p10_a_full_handshake_needs_no_extended_master_secret_and_haproxy_says_nothing_of_it(
    haproxy: Proxied,
) -> None:
    est, device = Est(haproxy, TLS12), fresh_id()  # type: ignore[arg-type]
    with est.wire(options=NO_EXTENDED_MASTER_SECRET) as wire:
        body = base64.b64encode(request(new_key(), device, binding=wire.binding))
        headers = {**PKCS10, **basic(est.home.credential(device, label="bound"))}
        assert wire.request("POST", f"{EST}/bound/simpleenroll", body, headers).status == 200


def test_s_p04_where_it_is_required_its_absence_is_refused(haproxy: Proxied) -> None:
    answer = Est(haproxy, TLS12).enroll(request(new_key(), fresh_id()), label="bound")  # type: ignore[arg-type]
    assert (answer.status, "is required" in answer.text) == (403, True)


@pytest.mark.parametrize(("name", "tls"), [("haproxy", TLS13), ("nginx", TLS12), ("nginx", TLS13)])
def test_s_p14_where_the_proxy_gives_no_binding_a_csr_that_carries_one_is_refused(
    name: str, tls: int, request: pytest.FixtureRequest
) -> None:
    from tests.csr_maker import request as csr

    est = Est(request.getfixturevalue(name), tls)
    answer = est.enroll(lambda binding: csr(new_key(), fresh_id(), binding=binding))
    assert (answer.status, "offers none" in answer.text) == (403, True)


# --- forged through the proxy ---------------------------------------------------------------------------------------


SPELLINGS = ("X-SSL-Client-Cert", "x-ssl-client-cert", "X_SSL_Client_Cert", "X-SSL_Client-Cert", "X-Ssl-Client-Cert")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("write", [der_header, pem_header])
def test_s_a10_a_forged_certificate_never_arrives(est: Est, spelling: str, write) -> None:
    victim = est.device()
    forged = {spelling: write(victim.certificate), "X-SSL-Client-Chain": der_header(est.home.issuing)}
    csr = request(new_key(), victim.device)
    assert est.post(csr, operation="simplereenroll", headers=forged).status == 401
    thief = est.device()
    answer = est.post(csr, operation="simplereenroll", client=thief, headers=forged)
    assert answer.status in (400, 403)
    assert est.reenroll(request(new_key(), thief.device), thief, headers=forged).status == 200


def test_a_header_forged_twice_never_arrives(proxy: Proxied, est: Est) -> None:
    value = der_header(est.device().certificate)
    with est.wire() as wire:
        lines = f"X-SSL-Client-Cert: {value}\r\n" * 2 + "X-SSL-Protocol: SSLv3\r\n" * 2
        wire.send(f"GET {EST}/cacerts HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        assert wire.answer().status == 200


@each_tls
def test_a_forged_binding_never_arrives(est: Est, tls: int) -> None:
    value = os.urandom(12)
    forged = {"X-SSL-Unique": base64.b64encode(value).decode(), "X_SSL_Unique": base64.b64encode(value).decode()}
    answer = est.enroll(request(new_key(), fresh_id(), binding=value), headers=forged, tls=tls)
    assert answer.status == 403


def test_a_forged_address_and_version_never_arrive(proxy: Proxied, est: Est) -> None:
    forged = {"X-SSL-Client-Address": "203.0.113.66", "X-SSL-Protocol": "SSLv3", "X-Forwarded-For": "203.0.113.67"}
    device = fresh_id()
    assert est.enroll(request(new_key(), device), headers=forged, tls=TLS12).status == 200
    assert "peer=127.0.0.1 tls=TLSv1.2 " in proxy.line_with(f"device={device} ")


@each_tls
def test_s_k02_the_cipher_suite_is_the_clients_own(est: Est, tls: int) -> None:
    """RFC 7030 §4.4: what the proxy says of it is believed, what a client says never arrives."""
    device, suites = fresh_id(), {TLS12: "ECDHE+AES128", TLS13: "TLS_AES_128_GCM_SHA256"}[tls]
    headers = {"Content-Type": "application/pkcs10", **basic(est.home.credential(device, label="made"))}
    body = base64.b64encode(request(ec.generate_private_key(ec.SECP384R1()), device))
    with est.wire(tls=tls, suites=suites) as wire:
        forged = {**headers, "X-SSL-Cipher": "TLS_AES_256_GCM_SHA384"}
        answer = wire.request("POST", f"{EST}/made/serverkeygen", body, forged)
        assert (answer.status, "AES128" in answer.text.replace("_", "")) == (400, True), answer.text
    with est.wire(tls=tls) as wire:
        assert wire.request("POST", f"{EST}/made/serverkeygen", body, headers).status == 200


def test_the_clients_own_address_is_what_is_written_down(proxy: Proxied) -> None:
    context = ssl.create_default_context(cafile=str(proxy.home.path / "root.pem"))
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=20, source_address=("127.0.0.77", 0))
    with context.wrap_socket(raw, server_hostname="localhost") as sock:
        sock.sendall(f"GET {EST}/csrattrs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    assert proxy.line_with("peer=127.0.0.77 tls=TLSv1.3 method=GET operation=csrattrs")


# --- past the proxy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["cacerts", "csrattrs", "simpleenroll", "gateway/simplereenroll", "nothing"])
def test_s_a10_s_t01_who_is_not_the_proxy_gets_nothing_whatever_it_sends(proxy: Proxied, est: Est, path: str) -> None:
    victim = est.device()
    body = base64.b64encode(request(new_key(), victim.device))
    method, sent = ("POST", body) if "enroll" in path else ("GET", None)
    claims = (
        {},
        said_of(victim.certificate),
        {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1;proto=https"},
    )
    for claim in claims:
        answer = proxy.direct(method, f"{EST}/{path}", {**PKCS10, **claim}, body=sent, source=ELSEWHERE)
        assert (answer.status, "over TLS only" in answer.text) == (403, True)
    assert "reason=no-tls" in proxy.line_with(f"peer={ELSEWHERE} ")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"Client_Cert": "junk!"}, 400, "neither base64 of DER nor URL-encoded PEM"),
        ({"Client_Cert": "MAA"}, 400, "neither base64"),
        ({"Client_Cert": "-----BEGIN%20CERTIFICATE-----"}, 400, "neither base64"),
        ({"Client_Address": "nowhere"}, 400, "is no IP address"),
        ({"Protocol": "TLSv1.1"}, 403, "TLS 1.2 is the least"),
        ({"Protocol": ""}, 403, "does not say which version"),
        ({"Protocol": "HTTPS"}, 400, "names no version"),
    ],
)
def test_what_the_proxy_says_is_read_strictly(proxy: Proxied, change: dict[str, str], status: int, words: str) -> None:
    answer = proxy.direct("POST", ENROLL, {**PKCS10, **said_of(None, **change)}, body=b"MAA=")
    assert answer.status == status
    assert words in answer.text


@pytest.mark.parametrize("value", ["eA==", "dHV0dXR1dHV0dXR1", "dHV0dXR1dHV0dXR1,"])
def test_b_06_a_binding_that_cannot_be_one_is_refused(haproxy: Proxied, value: str) -> None:
    version = "TLSv1.3" if len(value) == 16 else "TLSv1.2"
    answer = haproxy.direct("POST", ENROLL, {**PKCS10, **said_of(None, Protocol=version, Unique=value)}, body=b"MAA=")
    assert (answer.status, "X-SSL-Unique" in answer.text) == (400, True)


def test_a_header_that_comes_twice_is_refused(proxy: Proxied, est: Est) -> None:
    once = said_of(est.device().certificate)
    for name, value in once.items():
        answer = proxy.direct("GET", f"{EST}/cacerts", [*once.items(), (name.lower(), value)])
        assert (answer.status, f"{name} came twice" in answer.text) == (400, True)
    assert proxy.direct("GET", f"{EST}/cacerts", once).status == 200


def test_s_a10_this_machine_is_not_believed_unless_it_is_named(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home")
    home.configure('[proxy]\naddresses = ["192.0.2.10"]\n')
    with RunningServer(home, "--behind-proxy") as app:
        for headers in ({}, said_of(home.issuing)):
            answer = ask_plain(app.port, "POST", ENROLL, {**PKCS10, **headers}, body=b"MAA=")
            assert (answer.status, "over TLS only" in answer.text) == (403, True)


def test_b_07_over_our_own_tls_no_header_is_believed(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home")
    home.configure('[proxy]\naddresses = ["127.0.0.1"]\n')
    with RunningServer(home) as running_:
        est = Est(running_)
        victim = est.device()
        csr = request(new_key(), victim.device)
        assert est.post(csr, operation="simplereenroll", headers=said_of(victim.certificate)).status == 401


# --- what goes wrong, and how it is started -------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_413_in_text(est: Est) -> None:
    answer = est.post(b"", body=b"A" * 66_000)
    assert (answer.status, answer.text.strip() != "") == (413, True)


def test_s_r08_what_nginx_answers_itself_is_text(nginx: Proxied) -> None:
    """HAProxy's own page for what is no HTTP cannot be changed."""
    with Est(nginx).wire() as wire:  # type: ignore[arg-type]
        wire.send(b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.answer().status == 400


@pytest.mark.parametrize("name", ["haproxy", "nginx"])
def test_a_server_that_is_gone_is_a_503_with_retry_after(name: str, tmp_path: Path) -> None:
    with proxied(name, tmp_path) as proxy:
        est = Est(proxy)  # type: ignore[arg-type]
        assert est.get("cacerts").status == 200
        proxy.app.process.send_signal(signal.SIGTERM)
        proxy.app.process.wait(20)
        answer = est.get("cacerts")
        assert (answer.status, answer["Retry-After"]) == (503, "5")


def started(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "estserver", "serve", "--home", str(home.path), "--listen", "127.0.0.1:0"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_s_t01_without_a_proxy_nothing_is_served_in_clear(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home")
    done = started(home, "--behind-proxy")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no proxy to be behind" in done.stderr


def test_b_04_a_binding_that_the_proxy_cannot_give_is_not_promised(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home")
    home.configure(BOUND + '[proxy]\naddresses = ["127.0.0.1"]\ntls_unique_header = ""\n')
    done = started(home, "--behind-proxy")
    assert (done.returncode, done.stdout) == (3, "")
    assert "required by bound" in done.stderr


def test_a_reload_that_takes_the_proxy_away_leaves_the_server_as_it_was(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home")
    before = (home.path / "estserver.toml").read_text("utf-8")
    home.configure('[proxy]\naddresses = ["127.0.0.1"]\n')
    with RunningServer(home, "--behind-proxy") as app:
        (home.path / "estserver.toml").write_text(before, "utf-8")
        app.process.send_signal(signal.SIGHUP)
        assert line_with(app, "not reloaded: [proxy] addresses is empty")
        assert ask_plain(app.port, "GET", f"{EST}/cacerts", said_of(None)).status == 200


def test_the_application_runs_under_plain_gunicorn_too(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home")
    home.configure('[proxy]\naddresses = ["127.0.0.1"]\n')
    code = re.search(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    command = re.search(r"^`gunicorn (.*?)`", PAGE, re.MULTILINE)
    assert code
    assert command
    (tmp_path / "estline.py").write_text(code[1].replace("/etc/estline", str(home.path)), "utf-8")
    port = free_port()
    arguments = command[1].replace("8080", str(port)).replace('""', "").split(" ")
    gunicorn = require_program(str(Path(sys.executable).with_name("gunicorn")), "gunicorn")
    with running([gunicorn, "--chdir", str(tmp_path), *arguments], port):
        said = said_of(None)
        assert ask_plain(port, "GET", f"{EST}/cacerts", said).status == 200
        twice = ask_plain(port, "GET", f"{EST}/cacerts", [*said.items(), ("X-SSL-Protocol", "TLSv1.2")])
        assert twice.status == 400
        assert ask_plain(port, "GET", f"{EST}/cacerts", said, source=ELSEWHERE).status == 403
        assert ask_plain(port, "GET", f"{EST}/cacerts").status == 403
        body = base64.b64encode(request(new_key(), "sn-1"))
        headers = {**said, **basic(home.credential("*")), **PKCS10}
        assert ask_plain(port, "POST", ENROLL, headers, body=body).status == 200
