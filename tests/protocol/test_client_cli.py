"""`devicesim est` against an EST server that is real but for its policy."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.cli import run
from devicesim.trust import fingerprint
from tests.protocol.client_stub import Authority, EstStub, StubServer, answer

VECTORS = Path(__file__).parents[1] / "vectors"


@pytest.fixture(scope="module")
def root():
    return Authority.root()


@pytest.fixture
def stub(root):
    return EstStub(root, root.intermediate())


@pytest.fixture
def server(stub, root):
    server = StubServer(root.server(), stub)
    yield server
    server.close()


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, server, root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root.pem").write_bytes(root.certificate.public_bytes(Encoding.PEM))

    def call(operation: str, *arguments, trust=True) -> tuple[int, str, str]:
        anchor = ("--trust", "root.pem") if trust else ()
        words = ["est", operation, "--server", server.url, "--timeout", "5", *anchor, *arguments]
        code = run([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_from_nothing_to_a_renewed_identity_other_programs_can_use(command, root, stub, tmp_path):
    code, out, _ = command("cacerts", "--fingerprint", fingerprint(root.certificate), "--out", "ca.pem", trust=False)
    assert code == 0
    assert fingerprint(root.certificate) in out
    assert x509.load_pem_x509_certificates((tmp_path / "ca.pem").read_bytes()) == [root.certificate]
    enrol = ("enroll", "--subject", "sn-1", "--san", "dns:sn-1.example", "--out", "d", "--json")
    code, out, _ = command(*enrol)
    first = json.loads(out)
    assert (code, first["device_id"], first["names"]) == (0, "sn-1", ["dns:sn-1.example"])
    code, out, _ = command(*enrol)
    assert (code, json.loads(out)["serial"]) == (0, first["serial"])
    assert "already" in json.loads(out)["result"]
    code, out, _ = command("reenroll", "--out", "d", "--json")
    assert (code, json.loads(out)["serial"] != first["serial"]) == (0, True)
    verify = ["openssl", "verify", "-CAfile", "d/trust.pem", "-untrusted", "d/cert.pem", "d/cert.pem"]
    subprocess.run(verify, check=True, cwd=tmp_path, capture_output=True)
    public = ["openssl", "pkey", "-in", "d/key.pem", "-pubout"]
    assert subprocess.run(public, check=True, cwd=tmp_path, capture_output=True).stdout


def test_the_ca_certificates_go_to_standard_output(command, root, stub):
    code, out, _ = command("cacerts")
    assert (code, x509.load_pem_x509_certificates(out.encode())) == (0, [root.certificate])
    code, out, _ = command("cacerts", "--all")
    assert x509.load_pem_x509_certificates(out.encode()) == [root.certificate, stub.issuing.certificate]
    code, out, _ = command("cacerts", "--json")
    assert json.loads(out)["anchors"][0]["sha256"] == fingerprint(root.certificate)


def test_csr_attributes_are_explained(command):
    assert command("csrattrs")[1] == "the server has no wishes\n"


def test_a_request_made_elsewhere_brings_back_its_certificate(command, server, tmp_path):
    assert run(["csr", "new", "--key", "k", "--subject", "sn-9", "--out", "r.csr"]) == 0
    code, out, _ = command("enroll", "--csr", "r.csr")
    assert code == 0
    at = out.index("-----BEGIN")
    assert x509.load_pem_x509_certificate(out[at:].encode()).subject.rfc4514_string() == "CN=sn-9"
    assert server.seen[-1].challenge is None
    assert command("enroll", "--csr", "r.csr", "--subject", "x")[0] == 2
    assert command("enroll", "--csr", "nothing")[0] == 3


def test_a_password_comes_from_a_file(command, stub, server, tmp_path):
    (tmp_path / "pw").write_text("secret\n")
    stub.put(answer(401, WWW_Authenticate='Basic realm="est"'), operation="simpleenroll")
    who = ("--user", "line-1", "--password-file", "pw")
    assert command("enroll", "--subject", "sn-1", "--out", "d", *who)[0] == 0
    assert server.seen[-1].headers["authorization"] == "Basic bGluZS0xOnNlY3JldA=="
    assert server.seen[-1].body == server.seen[-2].body
    code, _, err = command("enroll", "--subject", "sn-2", "--out", "e", "--user", "line-1")
    assert (code, "--password-file" in err) == (2, True)


def test_a_lost_answer_is_repeated_with_the_same_key_by_running_it_again(command, stub, server):
    stub.put(None, operation="simpleenroll")
    enrol = ("enroll", "--subject", "sn-1", "--out", "d")
    code, _, err = command(*enrol)
    assert (code, err.count("\n")) == (6, 1)
    assert command(*enrol)[0] == 0
    lost, repeated = (seen for seen in server.seen if seen.method == "POST")
    assert lost.csr.public_key() == repeated.csr.public_key()


def test_a_pending_request_is_waited_for_when_asked_to(command, stub):
    stub.put(answer(202, Retry_After="0"), operation="simpleenroll")
    code, _, err = command("enroll", "--subject", "sn-1", "--out", "d")
    assert (code, "approval" in err) == (6, True)
    stub.put(answer(202, Retry_After="0"), operation="simpleenroll")
    code, _, err = command("enroll", "--subject", "sn-1", "--out", "d", "--wait", "5")
    assert (code, "trying again" in err) == (0, True)


def test_a_refusal_ends_with_its_own_code_and_the_servers_words(command, stub):
    stub.put(answer(403, b"sn-1 may not", Content_Type="text/plain"), operation="simpleenroll")
    code, _, err = command("enroll", "--subject", "sn-1", "--out", "d")
    assert (code, "sn-1 may not" in err, err.count("\n")) == (7, True, 1)


def test_a_server_under_another_anchor_is_a_failed_verification(command, tmp_path):
    other = Authority.root("Other").certificate
    (tmp_path / "other.pem").write_bytes(other.public_bytes(Encoding.PEM))
    code, _, err = command("cacerts", "--trust", "other.pem", trust=False)
    assert (code, "trust anchor" in err) == (10, True)


def test_a_store_is_one_devices_alone(command, server):
    assert command("enroll", "--subject", "sn-1", "--out", "d")[0] == 0
    asked = len(server.seen)
    code, _, err = command("enroll", "--subject", "sn-2", "--out", "d")
    assert (code, "CN=sn-1" in err, len(server.seen)) == (5, True, asked)
    assert command("enroll", "--subject", "SN-1", "--out", "d")[0] == 0


def test_what_has_no_certificate_cannot_be_renewed(command, tmp_path):
    code, _, err = command("reenroll", "--out", "nowhere")
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "nowhere").exists()


def test_an_explicit_kind_of_key_is_kept_against_the_servers_wish(command, stub):
    wish = (VECTORS / "rfc9908-5.5-p384-serial.csrattrs.b64").read_bytes()
    stub.csrattrs = answer(200, wish, Content_Type="application/csrattrs")
    code, _, err = command("enroll", "--subject", "sn-1", "--out", "d", "--key-type", "RSA-2048")
    assert (code, "EC-P384" in err, err.count("\n")) == (7, True, 1)
    code, out, _ = command("enroll", "--subject", "sn-1", "--out", "d", "--json")
    assert (code, json.loads(out)["key"]) == (0, "EC-P384")


# --- for scripts and other people's servers -------------------------------------------------------------------------


def test_c_t13_the_password_file_is_wiped_once_the_certificate_is_installed(command, stub, tmp_path):
    secret = tmp_path / "pw"
    secret.write_text("secret\n")
    link = tmp_path / "second-name"
    link.hardlink_to(secret)  # shows what the file held when it was removed
    challenge = answer(401, WWW_Authenticate='Basic realm="est"')
    enrol = ("enroll", "--subject", "sn-1", "--out", "d", "--user", "line-1", "--password-file", "pw", "--wipe")
    stub.put(challenge, answer(503), operation="simpleenroll")
    assert command(*enrol)[0] == 6
    assert secret.read_text() == "secret\n"  # nothing is installed yet: the next run needs it
    stub.put(challenge, operation="simpleenroll")
    assert command(*enrol)[0] == 0
    assert not secret.exists()
    assert link.read_bytes() == bytes(7)
    assert (tmp_path / "d" / "cert.pem").exists()


def test_c_t13_what_cannot_be_wiped_is_said(command, tmp_path):
    enrol = ("enroll", "--subject", "sn-1", "--out", "d", "--wipe")
    for wrong in ((), ("--user", "a", "--password-file", "-")):
        code, _, err = command(*enrol, *wrong)
        assert (code, "--wipe" in err) == (2, True)
    password = tmp_path / "pw"
    os.mkfifo(password)  # can be read once and not be written over
    writer = threading.Thread(target=password.write_text, args=("secret",))
    writer.start()
    code, _, err = command(*enrol, "--user", "a", "--password-file", "pw")
    writer.join()
    assert (code, "remove it by hand" in err) == (12, True)
    assert (tmp_path / "d" / "cert.pem").exists()


def test_a_request_made_elsewhere_is_bound_when_its_key_is_given(command, server, tmp_path):
    made = ("csr", "new", "--key", "k", "--subject", "CN=sn-9,O=Acme", "--san", "dns:sn-9.example", "--out", "r.csr")
    assert run(list(made)) == 0
    code, out, _ = command("enroll", "--csr", "r.csr", "--csr-key", "k", "--pop", "required", "--json")
    found = json.loads(out[out.index("{") :])
    assert (code, found["names"]) == (0, ["dns:sn-9.example"])
    seen = server.seen[-1]
    assert seen.challenge == seen.binding
    assert seen.csr.subject == x509.load_pem_x509_certificate(found["pem"].encode()).subject
    code, _, err = command("enroll", "--csr", "r.csr", "--pop", "required")
    assert (code, "signed elsewhere" in err) == (7, True)
    assert run(["csr", "new", "--key", "other", "--subject", "sn-9", "--out", "o.csr"]) == 0
    code, _, err = command("enroll", "--csr", "r.csr", "--csr-key", "other")
    assert (code, "not the key of" in err) == (2, True)


@pytest.mark.parametrize(("pop", "bound"), [("required", True), ("auto", True), ("off", False)])
@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_the_binding_and_the_tls_version_are_the_users_choice(command, server, pop, bound, tls):
    code, *_ = command("enroll", "--subject", "sn-1", "--out", "d", "--pop", pop, "--tls", tls)
    seen = server.seen[-1]
    assert (code, seen.challenge is not None) == (0, bound)
    assert len(seen.binding) == {"1.2": 12, "1.3": 32}[tls]


def test_switching_the_binding_off_is_no_way_around_a_server_that_wants_it(command, server, stub):
    wanted = b"MAsGCSqGSIb3DQEJBw=="  # one bare OID, challengePassword
    stub.csrattrs = answer(200, wanted, Content_Type="application/csrattrs")
    code, _, err = command("enroll", "--subject", "sn-1", "--out", "d", "--pop", "off")
    assert (code, "switched off" in err) == (7, True)
    assert "simpleenroll" not in server.paths()


def test_waiting_has_a_limit(command, stub):
    stub.put(*[answer(202, Retry_After="7200")] * 2, operation="simpleenroll")
    for wait in ((), ("--wait-seconds", "3600")):
        code, _, err = command("enroll", "--subject", "sn-1", "--out", "d", *wait)
        assert (code, "7200 s" in err, "trying again" in err) == (6, True, False)


def test_a_label_is_part_of_every_path(command, server):
    assert command("enroll", "--subject", "sn-1", "--out", "d", "--label", "line2")[0] == 0
    assert {seen.path.rpartition("/")[0] for seen in server.seen} == {"/.well-known/est/line2"}


def test_a_redirect_of_a_request_is_followed_where_the_user_said_so(command, stub, root, server):
    other = StubServer(root.server(), stub)
    moved = answer(307, Location=f"{other.url}/.well-known/est/simpleenroll")
    enrol = ("enroll", "--subject", "sn-1", "--out", "d")
    try:
        stub.put(moved, operation="simpleenroll")
        assert command(*enrol)[0] == 7
        assert other.seen == []
        stub.put(moved, operation="simpleenroll")
        assert command(*enrol, "--redirect-to", other.url)[0] == 0
        assert other.paths() == ["simpleenroll"]
    finally:
        other.close()
