"""TLS as the front speaks it: what is offered and refused, and the facts of the client that reach the application."""

from __future__ import annotations

import ssl
import subprocess
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa
from OpenSSL import SSL

from tests.conftest import require_program
from tests.e2e.serving_support import TLS12, TLS13, Server, ask, certify, make_directory

pytestmark = pytest.mark.e2e

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BOTH = pytest.mark.parametrize("version", [TLS12, TLS13], ids=["TLS1.2", "TLS1.3"])
NO_EXTENDED_MASTER_SECRET = 1  # SSL_OP_NO_EXTENDED_MASTER_SECRET
SELF_SIGNED, EXPIRED, NO_ISSUER = 18, 10, 20


@pytest.fixture(scope="module")
def issuing(tmp_path_factory):
    directory = tmp_path_factory.mktemp("serving-tls")
    holder = make_directory(directory)
    return directory, holder


@pytest.fixture(scope="module")
def server(issuing):
    with Server(issuing[0]) as server:
        yield server


def test_without_a_certificate_the_application_is_told_so(server):
    for version in (TLS12, TLS13):
        peer = server.get(version=version)["peer"]
        assert (peer["certificate"], peer["chain"]) == (None, [])


@BOTH
def test_certificate_and_chain_arrive_as_presented(server, issuing, version):
    device = certify("device-1", issuing[1])
    peer = server.get(version=version, client=device)["peer"]
    assert peer["certificate"] == device.der.hex()
    assert peer["chain"] == [issuing[1].der.hex()]
    assert peer["version"] == {TLS12: "TLSv1.2", TLS13: "TLSv1.3"}[version]


@BOTH
def test_a_stranger_and_the_expired_get_an_answer(server, issuing, version):
    for client in (certify("stranger"), certify("late", issuing[1], age=timedelta(days=30))):
        assert server.get(version=version, client=client)["peer"]["certificate"] == client.der.hex()


def test_every_request_of_a_connection_sees_the_same_peer(server, issuing):
    with server.connected(client=certify("device-2", issuing[1])) as sock:
        assert ask(sock, GET).facts["peer"] == ask(sock, GET).facts["peer"]


def test_a_key_that_needs_tls_1_3(server, issuing):
    """An ML-DSA certificate, which the system's OpenSSL need not know: the wheel's own on both sides."""
    device = certify("quantum", issuing[1], key=mldsa.MLDSA65PrivateKey.generate())
    with OpenSslClient(server, device.write(issuing[0], "quantum")) as client:
        assert client.get()["peer"]["certificate"] == device.der.hex()


def test_tls_unique_is_what_the_client_has(server):
    with server.connected(version=TLS12) as sock:
        peer = ask(sock, GET).facts["peer"]
        assert peer["tls_unique"] == sock.get_channel_binding("tls-unique").hex()
        assert (peer["tls_exporter"], peer["extended_master_secret"]) == (None, True)


def test_without_extended_master_secret_there_is_no_tls_unique(server):
    context = server.context(TLS12)
    context.options |= NO_EXTENDED_MASTER_SECRET
    with context.wrap_socket(server.plain(), server_hostname="localhost") as sock:
        peer = ask(sock, GET).facts["peer"]
    assert (peer["tls_unique"], peer["extended_master_secret"]) == (None, False)


def test_tls_exporter_is_what_the_client_has(server):
    with OpenSslClient(server) as client:
        peer = client.get()["peer"]
        assert peer["tls_exporter"] == client.tls.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"").hex()
        assert (peer["tls_unique"], peer["extended_master_secret"]) == (None, None)


def test_the_hybrid_group_is_chosen_and_no_ca_is_named(server):
    with OpenSslClient(server) as client:
        assert client.tls.get_group_name() == "X25519MLKEM768"
        assert client.tls.get_client_ca_list() == []
    with OpenSslClient(server, version=SSL.TLS1_2_VERSION) as client:
        assert client.tls.get_client_ca_list() == []


@BOTH
def test_no_session_is_resumed(server, version):
    context = server.context(version)
    with context.wrap_socket(server.plain(), server_hostname="localhost") as first:
        ask(first, GET)
        session = first.session
    if session is not None:
        with context.wrap_socket(server.plain(), server_hostname="localhost", session=session) as second:
            ask(second, GET)
            assert not second.session_reused


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_client_that_offers_its_session_gets_a_full_handshake(server, tmp_path, version):
    session = str(tmp_path / "session")
    certificate = [str(path) for path in certify("again").write(tmp_path, "again")]
    identity = ["-cert", certificate[0], "-key", certificate[1]]
    first = s_client(server, version, *identity, "-sess_out", session, text="Q\n")
    assert "New, TLSv1" in first
    if (tmp_path / "session").exists():
        second = s_client(server, version, *identity, "-sess_in", session, text=GET.decode(), ign_eof=True)
        assert "Reused" not in second
        assert "HTTP/1.1 200 OK" in second
    again = s_client(server, version, *identity, "-reconnect")
    assert again.count("New, TLSv1") >= 6
    assert "Reused" not in again


def test_renegotiation_is_refused(server):
    said = s_client(server, "-tls1_2", text="R\n")
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said
    assert server.get()


REFUSED_TLS = {
    "TLS 1.1": ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    "TLS 1.0": ["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
    "no forward secrecy": ["-tls1_2", "-cipher", "AES128-GCM-SHA256:AES256-SHA256"],
    "no AEAD": ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA"],
    "nobody's key": ["-tls1_2", "-cipher", "AECDH-AES128-SHA:ADH-AES128-GCM-SHA256:@SECLEVEL=0"],
    "no encryption": ["-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"],
}


@pytest.mark.parametrize("offer", REFUSED_TLS)
def test_what_is_too_weak_is_refused(server, offer):
    said = s_client(server, *REFUSED_TLS[offer], text="Q\n")
    assert "alert" in said
    assert "Cipher is (NONE)" in said


def test_tls_1_3_alone(issuing):
    with Server(issuing[0], tls13_only=True) as server:
        assert server.get(version=TLS13)
        with pytest.raises(ssl.SSLError):
            server.get(version=TLS12)


@pytest.mark.parametrize(
    "octets",
    [b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"\x00" * 64, b"\x16\x03\x01\xff\xff" + b"\xff" * 100, b"SSH-2.0-x\r\n"],
    ids=["plain HTTP", "zeros", "a broken hello", "SSH"],
)
def test_what_is_not_tls_is_closed_without_a_word(issuing, octets):
    with Server(issuing[0]) as server:
        with server.plain() as sock:
            sock.sendall(octets)
            until_end = b""
            while data := sock.recv(1000):
                until_end += data
            assert b"HTTP" not in until_end
        assert server.get()
        assert "Traceback" not in server.stop()


# --- certificate and key ---------------------------------------------------------------------------------------------


def test_an_encrypted_key(tmp_path):
    root = make_directory(tmp_path)
    certify("localhost", root).write(tmp_path, "server", b"open sesame")
    with Server(tmp_path, passphrase="open sesame") as server:
        assert server.get()


def test_an_ml_dsa_certificate(tmp_path):
    root = make_directory(tmp_path)
    certify("localhost", root, key=mldsa.MLDSA44PrivateKey.generate()).write(tmp_path, "server")
    with Server(tmp_path) as server, OpenSslClient(server) as client:
        assert client.get()


def test_an_ed25519_certificate(tmp_path):
    root = make_directory(tmp_path)
    certify("localhost", root, key=ed25519.Ed25519PrivateKey.generate()).write(tmp_path, "server")
    with Server(tmp_path) as server:
        assert server.get(version=TLS12)


class OpenSslClient:
    """A client on the wheel's own OpenSSL, for what the system's cannot do or does not show."""

    def __init__(self, server, identity=None, version=SSL.TLS1_3_VERSION):
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.load_verify_locations(str(server.directory / "root.pem"))
        context.set_verify(SSL.VERIFY_PEER, lambda *args: bool(args[-1]))
        if identity:
            context.use_certificate_chain_file(str(identity[0]))
            context.use_privatekey_file(str(identity[1]))
        self._socket = server.plain()
        self._socket.settimeout(None)
        self.tls = SSL.Connection(context, self._socket)
        self.tls.set_connect_state()
        self.tls.do_handshake()

    def get(self):
        """Ask once, with the connection ended; what the application saw."""
        import json

        self.tls.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        received = b""
        try:
            while True:
                received += self.tls.recv(16384)
        except SSL.ZeroReturnError:
            return json.loads(received.partition(b"\r\n\r\n")[2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()


def s_client(server, *arguments, text="", ign_eof=False):
    """Run the system's openssl s_client; what it said, on both channels."""
    openssl = require_program("openssl", "openssl")
    command = [openssl, "s_client", "-connect", f"localhost:{server.port}", "-servername", "localhost", *arguments]
    command += ["-ign_eof"] if ign_eof else []
    text = text.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
    done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=20, check=False)
    return (done.stdout + done.stderr).decode("latin-1")
