"""One unconfigured server for all clients: curl, openssl, strongSwan; libest, globalsign, Bouncy Castle by octet."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.conftest import require_program
from tests.csr_maker import base64_lines, extension, new_key, request, spki
from tests.est_server import CERTS_ONLY, EST, TLS12, TLS13, Est, Holder, RunningServer, basic, found_home, fresh_id

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def est(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Est]:
    with RunningServer(found_home(tmp_path_factory.mktemp("foreign") / "home")) as server:
        yield Est(server)


def run(directory: Path, *command: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(command, cwd=directory, input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, (command, done.stderr.decode())
    return done.stdout


# --- curl and openssl -----------------------------------------------------------------------------------------------


class Shell:
    """What a person does by hand: openssl makes and reads, curl carries."""

    def __init__(self, est: Est, directory: Path) -> None:
        self.est, self.directory = est, directory
        self.curl, self.openssl = require_program("curl", "curl"), require_program("openssl", "openssl")
        self.root = str(est.home.path / "root.pem")

    def key_and_csr(self, stem: str, device: str) -> None:
        command = [
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            f"/CN={device}",
        ]
        run(self.directory, self.openssl, *command, "-keyout", f"{stem}.key", "-out", f"{stem}.csr")
        der = run(self.directory, self.openssl, "req", "-in", f"{stem}.csr", "-outform", "DER")
        (self.directory / f"{stem}.b64").write_bytes(run(self.directory, self.openssl, "base64", "-e", stdin=der))

    def post(self, operation: str, stem: str, *options: str) -> None:
        (self.directory / f"{stem}.p7").write_bytes(
            run(
                self.directory,
                *(self.curl, "--silent", "--show-error", "--fail", "--cacert", self.root, *options),
                *("-H", "Content-Type: application/pkcs10", "--data-binary", f"@{stem}.b64"),
                f"{self.est.server.url}/{operation}",
            )
        )
        self.read(stem)

    def read(self, stem: str) -> None:
        der = run(self.directory, self.openssl, "base64", "-d", "-A", "-in", f"{stem}.p7")
        (self.directory / f"{stem}.der").write_bytes(der)
        pem = run(self.directory, self.openssl, "pkcs7", "-inform", "DER", "-in", f"{stem}.der", "-print_certs")
        (self.directory / f"{stem}.pem").write_bytes(pem)

    def verify(self, stem: str) -> None:
        run(self.directory, self.curl, "-sSf", "--cacert", self.root, "-o", "ca.p7", f"{self.est.server.url}/cacerts")
        self.read("ca")
        command = ["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", self.root, "-untrusted", "ca.pem"]
        assert run(self.directory, self.openssl, *command, "-purpose", "sslclient", f"{stem}.pem") == (
            f"{stem}.pem: OK\n".encode()
        )


@pytest.mark.parametrize("tls", [["--tls-max", "1.2"], ["--tlsv1.3"]], ids=["1.2", "1.3"])
def test_curl_and_openssl_enrol_and_renew(est: Est, tmp_path: Path, tls: list[str]) -> None:
    shell, device = Shell(est, tmp_path), fresh_id()
    shell.key_and_csr("first", device)
    (tmp_path / "curlrc").write_text('user = "{}:{}"\n'.format(*est.home.credential(device)))
    shell.post("simpleenroll", "first", "--config", "curlrc", "--anyauth", *tls)
    shell.verify("first")
    shell.key_and_csr("second", device)
    shell.post("simplereenroll", "second", "--cert", "first.pem", "--key", "first.key", *tls)
    shell.verify("second")


def test_openssl_s_client_carries_a_whole_enrolment(est: Est, tmp_path: Path) -> None:
    openssl, device = require_program("openssl", "openssl"), fresh_id()
    body = base64_lines(request(new_key(), device))
    fields = {
        "Host": "localhost",
        "Content-Type": "application/pkcs10",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **basic(est.home.credential(device)),
    }
    head = f"POST {EST}/simpleenroll HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
    command = [openssl, "s_client", "-quiet", "-verify_return_error", "-CAfile", str(est.home.path / "root.pem")]
    command += ["-connect", f"127.0.0.1:{est.server.port}", "-servername", "localhost", "-verify_hostname", "localhost"]
    answer = run(tmp_path, *command, stdin=head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Type: {CERTS_ONLY}\r\n".encode() in answer


def test_openssl_cms_reads_the_answers(est: Est, tmp_path: Path) -> None:
    openssl = require_program("openssl", "openssl")
    for answer in (est.get("cacerts"), est.enroll(request(new_key(), fresh_id()))):
        (tmp_path / "answer.der").write_bytes(answer.der)
        shown = run(tmp_path, openssl, "cms", "-cmsout", "-print", "-noout", "-inform", "DER", "-in", "answer.der")
        assert b"pkcs7-signedData" in shown
        assert b"signerInfos:\n      <EMPTY>" in shown


# --- strongSwan -----------------------------------------------------------------------------------------------------


def test_strongswan_enrols_and_renews(est: Est, tmp_path: Path) -> None:
    """`pki --estca` and `pki --est`: PrintableString names, one line of base64, Basic sent unasked, no Accept."""
    pki = require_program("pki", "strongswan-pki libstrongswan-standard-plugins")
    device, url = fresh_id(), f"https://localhost:{est.server.port}"
    root = str(est.home.path / "root.pem")
    run(tmp_path, pki, "--estca", "--url", url, "--cacert", root, "--caout", "ca.pem", "--outform", "pem", "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca-1.pem", "ca.pem"]
    for stem in ("first", "second"):
        (tmp_path / f"{stem}.key").write_bytes(run(tmp_path, pki, "--gen", "--type", "ecdsa", "--outform", "pem"))
        csr = run(tmp_path, pki, "--req", "--in", f"{stem}.key", "--dn", f"CN={device}", "--outform", "pem")
        (tmp_path / f"{stem}.csr").write_bytes(csr)
    trust = ["--cacert", root, "--cacert", str(est.home.path / "issuing.pem"), "--outform", "pem"]
    name, secret = est.home.credential(device)
    first = ["--est", "--url", url, "--in", "first.csr", "--userpass", f"{name}:{secret}", *trust]
    (tmp_path / "first.pem").write_bytes(run(tmp_path, pki, *first))
    again = ["--est", "--url", url, "--in", "second.csr", "--cert", "first.pem", "--key", "first.key", *trust]
    second = x509.load_pem_x509_certificate(run(tmp_path, pki, *again))
    key = load_pem_private_key((tmp_path / "second.key").read_bytes(), None)
    assert spki(second.public_key()) == spki(key)
    assert second.subject.rfc4514_string() == f"CN={device}"


# --- libest ---------------------------------------------------------------------------------------------------------


def libest(method: str, path: str, body: bytes = b"", credential: tuple[str, str] | None = None) -> bytes:
    """A request as libest's client writes it, with an extra CRLF after the body."""
    head = f"{method} {path} HTTP/1.1\r\nUser-Agent: libest 3.2.0p\r\nConnection: close\r\nHost: localhost:8443\r\n"
    head += "Accept: */*\r\n"
    if credential is not None:
        head += f"Authorization: {basic(credential)['Authorization']}\r\n"
    if method == "POST":
        head += f"Content-Type: application/pkcs10\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body + b"\r\n"
    return head.encode() + b"\r\n"


def test_libest_from_cacerts_to_renewal(est: Est) -> None:
    """TLS 1.2, a connection for each request, a 401 before it shows its password, wrapped `/cacerts`."""

    def ask(octets: bytes, client: Holder | None = None):
        with est.wire(client, tls=TLS12) as wire:
            wire.send(octets)
            answer = wire.answer()
            assert wire.at_end()
        return answer

    device, key = fresh_id(), new_key()
    bag = ask(libest("GET", f"{EST}/cacerts"))
    assert max(map(len, bag.body.splitlines())) == 64
    assert any(c.issuer == c.subject for c in bag.certificates)
    wishes = ask(libest("GET", f"{EST}/csrattrs"))
    assert wishes["Content-Type"] == "application/csrattrs"
    body = base64_lines(request(key, device), 64)
    first = ask(libest("POST", f"{EST}/simpleenroll", body))
    assert (first.status, first["WWW-Authenticate"].split()[0]) == (401, "Basic")
    enrolled = ask(libest("POST", f"{EST}/simpleenroll", body, est.home.credential(device)))
    assert enrolled["Content-Type"] == CERTS_ONLY
    holder = Holder(key, enrolled.certificate, (est.home.issuing,))
    copied = [
        extension(e.oid.dotted_string, e.value.public_bytes(), critical=e.critical)
        for e in holder.certificate.extensions
    ]
    renewed = ask(
        libest("POST", f"{EST}/simplereenroll", base64_lines(request(new_key(), device, extensions=copied), 64)), holder
    )
    assert renewed.status == 200


def test_libest_binds_to_the_connection_that_carries_the_password(est: Est) -> None:
    """It answers the 401 on a new connection, with a CSR signed anew."""
    device, key = fresh_id(), new_key()
    credential = est.home.credential(device)
    for offered, status in ((None, 401), (credential, 200)):
        with est.wire(tls=TLS12) as wire:
            body = base64_lines(request(key, device, binding=wire.binding), 64)
            wire.send(libest("POST", f"{EST}/simpleenroll", body, offered))
            assert wire.answer("POST").status == status


# --- globalsign and Bouncy Castle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_globalsign_posts_chunked_without_a_length(est: Est, size: int) -> None:
    """Go's client: no Content-Length, lower-case transfer coding, Accept-Encoding gzip."""
    device = fresh_id()
    body = base64.b64encode(request(new_key(), device))
    fields = {
        "Host": "localhost",
        "User-Agent": "Go-http-client/1.1",
        "Transfer-Encoding": "chunked",
        "Accept": "application/pkcs7-mime",
        "Accept-Encoding": "gzip",
        "Content-Transfer-Encoding": "base64",
        "Content-Type": "application/pkcs10",
        **basic(est.home.credential(device)),
    }
    head = f"POST {EST}/simpleenroll HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    with est.wire() as wire:
        wire.send(head.encode())
        wire.send(b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n")
        answer = wire.answer("POST")
    assert answer.status == 200
    assert not set(answer.body.rstrip(b"\n")) & set(b" \n\r\t")
    assert len(answer.certificates) == 1
    assert answer.get("Content-Encoding") is None


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_bouncy_castle_tries_first_and_answers_the_challenge_on_the_same_connection(est: Est, tls: int) -> None:
    device, key = fresh_id(), new_key()
    credential = est.home.credential(device)
    with est.wire(tls=tls) as wire:
        body = base64_lines(request(key, device, binding=wire.binding), 76, b"\r\n")
        fields = {
            "Content-Type": "application/pkcs10",
            "Content-Transfer-Encoding": "base64",
            "Connection": "keep-alive",
        }
        first = wire.request("POST", f"{EST}/simpleenroll", body, fields)
        assert (first.status, first.body, first["Content-Length"]) == (401, b"", "0")
        second = wire.request("POST", f"{EST}/simpleenroll", body, {**fields, **basic(credential)})
    assert second.status == 200
    assert second["Content-Transfer-Encoding"] == "base64"
    assert second["Content-Length"] == str(len(second.body))
