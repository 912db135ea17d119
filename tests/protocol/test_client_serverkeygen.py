"""The client's side of /serverkeygen (C-K, RFC 7030 §4.4): against this server, and against one that misbehaves."""

from __future__ import annotations

import base64
import ipaddress
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim import CsrDraft, EstClient, OwnCertificate, SharedKey, TrustAnchors, codec
from devicesim.envelope import key_and_certificate, load_decryption_key, load_pkcs8, unseal
from devicesim.errors import BadAnswer, EstRefused, KeyStoreError, VerificationFailed
from estserver import sealing
from estserver.keys import FileSigner, GeneratedKey
from estserver.sealing import Capability, Generator
from tests.csr_maker import oid as encoded_oid
from tests.csr_maker import spki
from tests.protocol.client_stub import Authority, EstStub, StubServer, answer, certs_only, name

VECTORS = Path(__file__).parents[1] / "vectors"
VECTOR_KEK = SharedKey(bytes.fromhex("c0ffee01"), bytes(range(32)))
MULTIPART = (VECTORS / "rfc7030-A.4-serverkeygen-response.multipart.txt").read_bytes()


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


# --- reading ---------------------------------------------------------------------------------------------------------


def rfc_body() -> tuple[str, bytes]:
    """The RFC's own answer: its header (with a space before the semicolon) and its body."""
    head, _, body = MULTIPART.partition(b"\r\n\r\n")
    if not head.lower().startswith(b"content-type: multipart"):
        return "multipart/mixed ; boundary=estServerExampleBoundary", MULTIPART
    return head.partition(b":")[2].strip().decode(), body


@pytest.mark.parametrize("change", ["as it is", "LF", "no CTE", "quoted", "swapped", "noise"])
def test_c_k03_the_rfcs_answer_is_read_in_every_spelling(change: str) -> None:
    kind, body = rfc_body()
    if change == "LF":
        body = body.replace(b"\r\n", b"\n")
    elif change == "no CTE":
        body = b"\r\n".join(line for line in body.split(b"\r\n") if not line.lower().startswith(b"content-transfer"))
    elif change == "quoted":
        kind = 'multipart/mixed; charset=x; boundary="estServerExampleBoundary"'
    elif change == "swapped":
        _, one, two, _ = body.split(b"--estServerExampleBoundary")
        body = b"--estServerExampleBoundary".join([b"", two, one, b"--\r\n"])
    elif change == "noise":
        body = b"This is a preamble\r\n" + body + b"and an epilogue\r\n"
    found = key_and_certificate(kind, body)
    assert not found.sealed
    assert found.key == vector("rfc7030-A.4-serverkeygen-response-part1.pkcs8.der")
    assert found.certificates == vector("rfc7030-A.4-serverkeygen-response-part2.p7.der")


def test_c_k04_the_rfcs_key_is_the_one_of_the_rfcs_certificate() -> None:
    found = key_and_certificate(*rfc_body())
    (certificate,) = codec.certs_only(found.certificates)
    assert spki(load_pkcs8(found.key)) == spki(certificate.public_key())


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>"),
        ("multipart/mixed", MULTIPART),
        ("multipart/mixed; boundary=x", b""),
        ("multipart/mixed; boundary=x", b"--x\r\nContent-Type: application/pkcs8\r\n\r\nAAAA\r\n--x--\r\n"),
        ("multipart/mixed; boundary=x", b"--x\r\nContent-Type: text/plain\r\n\r\nhello\r\n--x--\r\n"),
        ("multipart/mixed; boundary=x", b"--x\r\nContent-Type: application/pkcs8\r\n\r\n????\r\n--x--\r\n"),
        ("multipart/mixed; boundary=x", b"--x\r\nContent-Type: application/pkcs8\r\n\r\nAAAA\r\n" * 2 + b"--x--"),
        ("", b"\xff\xfe"),
    ],
)
def test_c_k03_anything_else_is_a_bad_answer(kind: str, body: bytes) -> None:
    with pytest.raises(BadAnswer):
        key_and_certificate(kind, body)


@pytest.mark.parametrize("form", ["kek", "kek-bareSignedData"])
def test_c_k04_a_sealed_key_is_read_in_both_forms(form: str) -> None:
    opened = unseal(vector(f"derived-serverkeygen-encrypted-{form}.p7m.der"), VECTOR_KEK)
    assert opened.signer.public_bytes(Encoding.DER) in {
        vector("derived-serverkeygen-keygen-signer.crt"),
        x509.load_pem_x509_certificate(vector("derived-serverkeygen-keygen-signer.crt")).public_bytes(Encoding.DER)
        if b"BEGIN" in vector("derived-serverkeygen-keygen-signer.crt")
        else b"",
    }
    assert opened.key.key_size in (256, 2048)


def test_c_k04_a_sealed_key_with_one_bit_flipped_is_the_same_key_or_none() -> None:
    """Nothing but `BadAnswer` leaves, and it never says where it failed: that would be an oracle."""
    der = vector("derived-serverkeygen-encrypted-kek.p7m.der")
    right, texts = spki(unseal(der, VECTOR_KEK).key), set()
    for place in range(0, len(der), 3):
        changed = bytearray(der)
        changed[place] ^= 0x10
        try:
            assert spki(unseal(bytes(changed), VECTOR_KEK).key) == right
        except BadAnswer as error:
            texts.add(str(error))
    assert texts == {"the answer is not a sealed key that this device can open"}


def test_c_k04_it_is_opened_by_its_own_key_only() -> None:
    der = vector("derived-serverkeygen-encrypted-kek.p7m.der")
    for other in (SharedKey(b"other", VECTOR_KEK.key), SharedKey(VECTOR_KEK.key_id, bytes(32))):
        with pytest.raises(BadAnswer):
            unseal(der, other)
    with pytest.raises(BadAnswer):
        load_pkcs8(b"\x30\x00")


# --- a server that misbehaves ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority.root()


@pytest.fixture
def stub(root: Authority) -> EstStub:
    return EstStub(root, root.intermediate())


@pytest.fixture
def server(stub: EstStub, root: Authority):
    server = StubServer(root.server(), stub)
    yield server
    server.close()


@pytest.fixture
def client(server: StubServer, root: Authority):
    with EstClient(server.url, trust=TrustAnchors((root.certificate,)), timeout_seconds=5) as client:
        yield client


def draft(key: Any = None) -> CsrDraft:
    return CsrDraft.of(key or ec.generate_private_key(ec.SECP256R1()), "sn-1")


def two_parts(key: bytes, certificate: x509.Certificate, kind: str = "application/pkcs8") -> bytes:
    rows = ((kind, base64.b64encode(key)), ("application/pkcs7-mime; smime-type=certs-only", certs_only(certificate)))
    body = b"".join(f"--b\r\nContent-Type: {kind}\r\n\r\n".encode() + text + b"\r\n" for kind, text in rows)
    return answer(200, body + b"--b--\r\n", Content_Type="multipart/mixed; boundary=b")


def pkcs8(key: Any) -> bytes:
    return key.private_bytes(Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def issued(stub: EstStub, key: Any) -> x509.Certificate:
    return stub.issuing.from_csr(x509.load_der_x509_csr(draft(key).sign()))


def test_c_k05_a_key_in_clear_is_compromised_when_a_sealed_one_was_asked_for(client, stub, server) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    stub.put(two_parts(pkcs8(key), issued(stub, key)), operation="serverkeygen")
    with pytest.raises(VerificationFailed) as error:
        client.serverkeygen(draft(), VECTOR_KEK)
    assert "compromised" in error.value.advice
    assert server.seen[-1].path.endswith("/serverkeygen")


def test_c_k02_a_sealed_key_is_asked_for_with_both_attributes(client, stub, server) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = stub.issuing.issue(draft().subject, key.public_key())
    for decryptor, oid in (
        (VECTOR_KEK, "1.2.840.113549.1.9.16.2.37"),
        (OwnCertificate(certificate, key), "1.2.840.113549.1.9.16.2.54"),
    ):
        stub.put(answer(501), operation="serverkeygen")
        with pytest.raises(EstRefused):
            client.serverkeygen(draft(), decryptor)
        csr = server.seen[-1].csr
        assert csr.is_signature_valid
        sent = csr.public_bytes(Encoding.DER)
        for dotted in (oid, "1.2.840.113549.1.9.15", "1.2.840.113549.1.9.7"):
            assert encoded_oid(dotted) in sent


def test_c_k04_key_and_certificate_must_belong_together(client, stub) -> None:
    one, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    stub.put(two_parts(pkcs8(one), issued(stub, other)), operation="serverkeygen")
    with pytest.raises(VerificationFailed, match="another key"):
        client.serverkeygen(draft())


def test_c_k04_the_key_is_of_the_kind_asked_for(client, stub) -> None:
    key = rsa.generate_private_key(65537, 2048)
    stub.put(two_parts(pkcs8(key), issued(stub, key)), operation="serverkeygen")
    with pytest.raises(VerificationFailed, match="another kind"):
        client.serverkeygen(draft())


def test_c_k04_the_signer_must_be_trusted(client, stub) -> None:
    der = vector("derived-serverkeygen-encrypted-kek.p7m.der")
    key = unseal(der, VECTOR_KEK).key
    sealed = "application/pkcs7-mime; smime-type=server-generated-key"
    stub.put(two_parts(der, issued(stub, key), sealed), operation="serverkeygen")
    with pytest.raises(VerificationFailed, match="does not chain"):
        client.serverkeygen(draft(), VECTOR_KEK)
    stub.put(two_parts(der, issued(stub, key), sealed), operation="serverkeygen")
    with pytest.raises(BadAnswer, match="nothing was given"):
        client.serverkeygen(draft())


@pytest.mark.parametrize(("host", "error"), [("another.example", "not the server"), ("127.0.0.1", None)])
def test_c_k04_the_signer_must_be_the_server_itself(
    client, stub, root, tmp_path: Path, host: str, error: str | None
) -> None:
    """A certificate of the same CA is not enough: any device has one."""
    signer = FileSigner.generate("P-256", tmp_path / "signer.key")
    at = x509.IPAddress(ipaddress.ip_address(host)) if error is None else x509.DNSName(host)
    public = serialization.load_der_public_key(signer.spki)
    certificate = root.issue(name("signer"), public, san=(at,))
    made = GeneratedKey("P-256")
    signed = Generator(signer, (certificate.public_bytes(Encoding.DER),)).sign(made)
    recipient = sealing.SharedKey.choose(VECTOR_KEK.key_id, VECTOR_KEK.key, [Capability("2.16.840.1.101.3.4.1.45")])
    der = sealing.seal(signed, recipient, (), os.urandom)
    certified = stub.issuing.issue(draft().subject, serialization.load_der_public_key(made.spki))
    sealed = "application/pkcs7-mime; smime-type=server-generated-key"
    stub.put(two_parts(der, certified, sealed), operation="serverkeygen")
    if error is None:
        assert spki(client.serverkeygen(draft(), VECTOR_KEK).key) == made.spki
        return
    with pytest.raises(VerificationFailed, match=error):
        client.serverkeygen(draft(), VECTOR_KEK)


def test_c_k05_a_request_made_elsewhere_is_sent_as_it_is(client, stub, server) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    stub.put(two_parts(pkcs8(key), issued(stub, key)), operation="serverkeygen")
    sent = draft().sign()
    assert spki(client.serverkeygen(sent).key) == spki(key)
    assert server.seen[-1].csr.public_bytes(Encoding.DER) == sent


def test_the_decryption_key_of_a_certificate_is_read_from_a_file(tmp_path: Path) -> None:
    curve, signing = x25519.X25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    pem = [
        key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
        for key in (curve, signing)
        for protection in (serialization.NoEncryption(), serialization.BestAvailableEncryption(b"pw"))
    ]
    for data in pem[:2]:
        assert spki(load_decryption_key(data, tmp_path, b"pw")) == spki(curve)
    for data, passphrase in ((pem[1], None), (pem[1], b"wrong"), (pem[2], None), (b"nothing", None)):
        with pytest.raises(KeyStoreError):
            load_decryption_key(data, tmp_path, passphrase)
