"""GnuTLS as a foreign TLS stack: gnutls-cli reads, enrols with a credential and renews with a client certificate."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization.pkcs7 import load_der_pkcs7_certificates

from tests.conftest import require_program
from tests.csr_maker import new_key, request, spki
from tests.e2e.proxy_support import line_with
from tests.est_server import EST, Est, Holder, RunningServer, basic, found_home, fresh_id

pytestmark = pytest.mark.e2e
EITHER = pytest.mark.parametrize("version", ["VERS-TLS1.2", "VERS-TLS1.3"])


@pytest.fixture(scope="module")
def est(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Est]:
    with RunningServer(found_home(tmp_path_factory.mktemp("gnutls") / "home")) as server:
        yield Est(server)


class GnuTls:
    """gnutls-cli against one server: the octets of a request in, those of the answer out."""

    def __init__(self, est: Est, directory: Path, version: str) -> None:
        self.est, self.directory = est, directory
        self.log = directory / "gnutls.log"
        self.command = [
            *(require_program("gnutls-cli", "gnutls-bin"), "--logfile", str(self.log)),
            *("--x509cafile", str(est.home.path / "root.pem"), "--verify-hostname", "localhost"),
            *("--priority", f"NORMAL:-VERS-ALL:+{version}", "--port", str(est.server.port), "127.0.0.1"),
        ]

    def ask(
        self, method: str, path: str, fields: dict[str, str], body: bytes = b"", who: Holder | None = None
    ) -> bytes:
        """Send one request on a connection of its own, and return the body of a 200."""
        fields = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body)), **fields}
        head = f"{method} {EST}/{path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        certificate, key = who.write(self.directory) if who else (None, None)
        shown = ["--x509certfile", str(certificate), "--x509keyfile", str(key)] if who else []
        with subprocess.Popen(
            [*self.command, *shown], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(head.encode() + body)
            client.stdin.flush()
            answer = client.stdout.read()  # it hangs up when the server does, and not when its own input ends
        status, _, rest = answer.partition(b"\r\n")
        assert status == b"HTTP/1.1 200 OK", (answer, self.log.read_text("utf-8"))
        fields_, _, content = rest.partition(b"\r\n\r\n")
        assert len(content) == int(BytesParser().parsebytes(fields_ + b"\r\n\r\n")["Content-Length"])
        return base64.b64decode(content)


@EITHER
def test_gnutls_reads_enrols_and_renews_with_a_client_certificate(est: Est, tmp_path: Path, version: str) -> None:
    gnutls, device = GnuTls(est, tmp_path, version), fresh_id()
    hierarchy = load_der_pkcs7_certificates(gnutls.ask("GET", "cacerts", {}))
    assert est.home.root in hierarchy
    sent, key = {"Content-Type": "application/pkcs10"}, new_key()
    body = base64.b64encode(request(key, device))
    (first,) = load_der_pkcs7_certificates(
        gnutls.ask("POST", "simpleenroll", {**sent, **basic(est.home.credential(device))}, body)
    )
    assert f"tls={version.removeprefix('VERS-').replace('S', 'Sv')} " in line_with(est.server, f"device={device} ")
    holder, new = Holder(key, first, (est.home.issuing,)), new_key()
    (second,) = load_der_pkcs7_certificates(
        gnutls.ask("POST", "simplereenroll", sent, base64.b64encode(request(new, device)), holder)
    )
    assert (second.subject, spki(second.public_key())) == (first.subject, spki(new))


@pytest.mark.parametrize("version", ["VERS-TLS1.1", "VERS-TLS1.0", "VERS-SSL3.0"])
def test_gnutls_gets_no_handshake_of_a_legacy_protocol(est: Est, tmp_path: Path, version: str) -> None:
    """RFC 8996. LEGACY lets GnuTLS offer what it does not by default."""
    gnutls = GnuTls(est, tmp_path, version)
    command = [word.replace("NORMAL", "LEGACY") for word in gnutls.command]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    told = done.stdout.decode() + done.stderr.decode() + gnutls.log.read_text("utf-8")
    assert "Handshake was completed" not in told
