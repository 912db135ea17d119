"""/serverkeygen: a key made by the server (S-K, RFC 7030 §4.4), in clear and in every encrypted form."""

from __future__ import annotations

import base64
import itertools
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from email import policy
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import cms, core
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key
from cryptography.hazmat.primitives.serialization.pkcs7 import load_der_pkcs7_certificates

from devicesim import Credentials, CsrDraft, EstClient, OwnCertificate, SharedKey, TrustAnchors
from devicesim.cli import run
from devicesim.envelope import unseal
from devicesim.errors import EstRefused
from estserver.csr import spki_hash
from estserver.enroll import Request
from estserver.keys import DEVICE_KINDS
from estserver.model import BasicCredentials, Operation, Peer
from tests import csr_maker
from tests.csr_maker import base64_lines, new_key, oid, request, sequence, spki, tlv, values
from tests.est_server import (
    CERTS_ONLY,
    EST,
    TLS12,
    TLS13,
    Answer,
    Est,
    Holder,
    Home,
    RunningServer,
    basic,
    found_home,
    fresh_id,
    today,
)
from tests.protocol.client_stub import Authority

VECTORS = Path(__file__).parents[1] / "vectors"
SMIME_CAPABILITIES, DECRYPT_KEY_ID, ASYMMETRIC_ID = (
    "1.2.840.113549.1.9.15",
    "1.2.840.113549.1.9.16.2.37",
    "1.2.840.113549.1.9.16.2.54",
)
WRAP128, WRAP256, CBC128, CBC256 = (f"2.16.840.1.101.3.4.1.{arc}" for arc in (5, 45, 2, 42))
RSA, OAEP, ECDH = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7", "1.3.132.1.11.1"
KEK_ID, KEK = bytes.fromhex("c0ffee01"), bytes(range(32))
PEER = Peer("192.0.2.1", "TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")
SEALED = "application/pkcs7-mime; smime-type=server-generated-key"

LABELS = """
[labels.made]
profile = "device"
ca = "acme"
serverkeygen = "on"
decryption_keys = "private/decryption.keys"

[labels.sealed]
profile = "device"
ca = "acme"
serverkeygen = "encrypted-only"

[labels.bound]
profile = "device"
ca = "acme"
serverkeygen = "on"
channel_binding = "required"

[labels.p384]
profile = "p384"
ca = "acme"
serverkeygen = "on"

[labels.agreement]
profile = "agreement"
ca = "acme"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = found_home(tmp_path_factory.mktemp("keygen") / "home")
    profiles = home.path / "profiles"
    device = (profiles / "device.toml").read_text("utf-8")
    types = device[device.index("key_types") : device.index("rsa_bits")]
    (profiles / "p384.toml").write_text(device.replace(types, 'key_types = ["P-384"]\n'), "utf-8")
    agreement = device.replace(
        'key_usage = ["digital_signature"]', 'key_usage = ["digital_signature", "key_agreement"]'
    )
    (profiles / "agreement.toml").write_text(agreement, "utf-8")
    file = home.path / "private" / "decryption.keys"
    file.touch(0o600)
    file.write_text(f"# ID KEY\n{KEK_ID.hex()} {KEK.hex()}\n")
    home.configure(LABELS)
    return home


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[RunningServer]:
    with RunningServer(home) as running:
        yield running


@pytest.fixture(scope="module")
def est(server: RunningServer) -> Est:
    return Est(server)


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


# --- what is asked, and what came ------------------------------------------------------------------------------------


def capabilities(*listed: str | tuple[str, str]) -> bytes:
    rows = [(one,) if isinstance(one, str) else one for one in listed]
    return csr_maker.attribute(
        SMIME_CAPABILITIES, sequence(*(sequence(oid(row[0]), *(sequence(oid(p)) for p in row[1:])) for row in rows))
    )


def shared(key_id: bytes = KEK_ID) -> bytes:
    return csr_maker.attribute(DECRYPT_KEY_ID, tlv(0x04, key_id))


def to_certificate(name: bytes) -> bytes:
    return csr_maker.attribute(ASYMMETRIC_ID, tlv(0x04, name))


def ski(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def ask(est: Est, csr: bytes | Callable[[bytes], bytes], **how: Any) -> Answer:
    how = {"label": "made", **how}
    return est.enroll(csr, operation="serverkeygen", **how)


def parts(answer: Answer) -> list[tuple[str, bytes]]:
    """Content type and DER of each part, as a MIME parser that is not ours reads them."""
    assert answer.status == 200, (answer.status, answer.text)
    head = f"Content-Type: {answer['Content-Type']}\r\n\r\n".encode()
    message = BytesParser(policy=policy.HTTP).parsebytes(head + answer.body)
    assert not message.defects
    found = list(message.iter_parts())
    assert all(part["Content-Transfer-Encoding"] == "base64" for part in found)
    return [(str(part["Content-Type"]), part.get_payload(decode=True)) for part in found]


def delivered(answer: Answer) -> tuple[str, bytes, x509.Certificate]:
    (kind, key), (certs, bag) = parts(answer)
    assert certs == CERTS_ONLY.replace("=certs-only", '="certs-only"') or certs == CERTS_ONLY
    (certificate,) = load_der_pkcs7_certificates(bag)
    return kind, key, certificate


def in_clear(answer: Answer) -> tuple[Any, x509.Certificate]:
    kind, der, certificate = delivered(answer)
    assert kind == "application/pkcs8"
    key = load_der_private_key(der, None)
    assert spki(key) == spki(certificate.public_key())
    return key, certificate


def openssl(*words: str | Path, data: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, words)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def as_content_info(signed_data: bytes) -> bytes:
    return sequence(oid("1.2.840.113549.1.7.2"), tlv(0xA0, signed_data))


def opened(est: Est, answer: Answer, *how: str | Path) -> tuple[Any, x509.Certificate, cms.EnvelopedData]:
    """The key, as `openssl cms` decrypts it and verifies who made it (S-K11)."""
    kind, der, certificate = delivered(answer)
    assert kind.replace('"', "") == SEALED
    content = cms.ContentInfo.load(der, strict=True)
    assert content["content_type"].native == "enveloped_data"
    inner = content["content"]["encrypted_content_info"]
    assert inner["content_type"].native == "signed_data"  # openssl does not look
    signed = openssl("cms", "-decrypt", "-inform", "DER", "-binary", *how, data=der)
    trust = ("-CAfile", est.home.path / "root.pem", "-purpose", "any")
    package = openssl("cms", "-verify", "-inform", "DER", "-binary", *trust, data=as_content_info(signed))
    checked = cms.SignedData.load(signed, strict=True)
    assert checked["version"].native == "v3"
    assert checked["encap_content_info"]["content_type"].dotted == "2.16.840.1.101.2.1.2.78.5"
    (one,) = values(package)  # a SEQUENCE OF around the PKCS#8 (RFC 5958)
    key = load_der_private_key(one, None)
    assert spki(key) == spki(certificate.public_key())
    return key, certificate, content["content"]


def key_file(key: Any, path: Path) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def certificate_file(certificate: x509.Certificate, path: Path) -> Path:
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


# --- whether at all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["", "device", "gateway", "agreement"])
def test_s_k01_it_is_off_until_a_label_switches_it_on(est: Est, label: str) -> None:
    answer = ask(est, request(new_key(), fresh_id()), label=label)
    assert answer.status == 501
    assert "simpleenroll" in answer.text


def test_s_k02_nobody_gets_a_key_without_being_known_and_allowed(est: Est) -> None:
    device = fresh_id()
    assert ask(est, request(new_key(), device), credential=None).status == 401
    assert ask(est, request(new_key(), device), credential=est.home.credential("other", label="made")).status == 403
    other = est.device(label="device")
    assert ask(est, request(new_key(), device), client=other).status == 403


def test_s_k02_a_device_asks_with_the_certificate_it_has(est: Est) -> None:
    device = est.device(label="made")
    _, certificate = in_clear(ask(est, request(new_key(), device.device), client=device))
    assert certificate.subject == device.certificate.subject


@pytest.mark.parametrize(
    ("tls", "suites", "kind", "status"),
    [
        (TLS13, "TLS_AES_128_GCM_SHA256", "P-256", 200),
        (TLS13, "TLS_AES_128_GCM_SHA256", "RSA-3072", 200),
        (TLS13, "TLS_AES_128_GCM_SHA256", "P-384", 400),
        (TLS13, "TLS_AES_128_GCM_SHA256", "ML-DSA-65", 400),
        (TLS13, "TLS_CHACHA20_POLY1305_SHA256", "P-384", 200),
        (TLS13, "", "P-384", 200),
        (TLS12, "ECDHE+AES128", "P-256", 200),
        (TLS12, "ECDHE+AES128", "P-384", 400),
        (TLS12, "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305", "P-384", 200),
        (TLS12, "", "P-384", 200),
    ],
)
def test_s_k02_no_key_leaves_through_a_cipher_suite_that_is_weaker(
    est: Est, tls: int, suites: str, kind: str, status: int
) -> None:
    """RFC 7030 §4.4; the server chooses the strongest that both have, so that only who has none is refused."""
    device = fresh_id()
    credential = est.home.credential(device, label="made")
    body = base64.b64encode(request(DEVICE_KINDS[kind](), device))
    headers = {"Content-Type": "application/pkcs10", **basic(credential)}
    with est.wire(tls=tls, suites=suites) as wire:
        answer = wire.request("POST", f"{EST}/made/serverkeygen", body, headers)
    assert answer.status == status, answer.text
    if status == 200:
        in_clear(answer)
        return
    assert answer.text.startswith(f"a {kind} key (192 bits of security) is not sent through ")
    assert len(answer.text.splitlines()) == 1
    assert est.home.audit()[-1]["outcome"] == "weak-cipher-suite"
    with est.wire(tls=tls) as wire:
        answer = wire.request("POST", f"{EST}/made/serverkeygen", body, headers)
    assert answer.status == 200, "no use was spent"


# --- what the request is worth ---------------------------------------------------------------------------------------


def test_s_k03_key_and_signature_of_the_request_are_ignored(est: Est) -> None:
    asking = new_key()
    csr = request(asking, fresh_id())
    key, _ = in_clear(ask(est, csr[:-8] + bytes(8)))
    assert spki(key) != spki(asking)
    weak = spki(rsa.generate_private_key(65537, 1024))
    for public in (weak, sequence(sequence(oid("2.999.1")), tlv(0x03, b"\0nonsense"))):
        in_clear(ask(est, request(asking, fresh_id(), public=public, hash_name="SHA1")))


def test_s_k03_everything_else_of_the_request_is_judged(est: Est) -> None:
    for san, words in ((("email:a@b.example",), "email"), (("dns:x.example",), "may not have the name")):
        answer = ask(est, request(new_key(), fresh_id(), san=san))
        assert answer.status in (400, 403)
        assert words in answer.text
    assert ask(est, b"", body=base64_lines(b"\x30\x00")).status == 400


@pytest.mark.parametrize("kind", [ec.SECP256R1(), ec.SECP384R1(), 2048, 3072])
def test_the_key_is_of_the_kind_of_the_one_in_the_request(est: Est, kind: Any) -> None:
    asking = rsa.generate_private_key(65537, kind) if isinstance(kind, int) else ec.generate_private_key(kind)
    key, _ = in_clear(ask(est, request(asking, fresh_id())))
    assert (type(key), key.key_size) == (type(asking), asking.key_size)


def test_the_key_is_of_a_kind_that_the_profile_takes(est: Est) -> None:
    key, _ = in_clear(ask(est, request(new_key(), fresh_id()), label="p384"))
    assert key.curve.name == "secp384r1"


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_k04_a_channel_binding_is_verified(est: Est, tls: int) -> None:
    device = fresh_id()
    in_clear(ask(est, lambda binding: request(new_key(), device, binding=binding), tls=tls))
    assert ask(est, request(new_key(), device, binding=b"another!conn"), tls=tls).status == 403
    assert ask(est, request(new_key(), device), label="bound").status == 403
    rfc = (VECTORS / "rfc7030-A.4-serverkeygen-request.p10.b64").read_bytes()
    answer = ask(est, b"", body=rfc)
    assert answer.status == 403
    assert "challengePassword" in answer.text


# --- the answer ------------------------------------------------------------------------------------------------------


def test_s_k05_s_k06_s_k07_s_k17_two_parts_in_clear(est: Est) -> None:
    device = fresh_id()
    answer = ask(est, request(new_key(), device))
    key, certificate = in_clear(answer)
    assert certificate.subject.rfc4514_string() == f"CN={device}"
    assert answer["Content-Type"].startswith("multipart/mixed; boundary=")
    assert answer["Cache-Control"] == "no-store"
    assert b"\r\nContent-Type: application/pkcs7-mime; smime-type=certs-only\r\n" in answer.body
    assert answer.body.count(b"\r\nContent-Transfer-Encoding: base64\r\n") == 2
    assert b"\n" not in answer.body.replace(b"\r\n", b"")
    assert answer.body.endswith(b"--\r\n")
    certificate.verify_directly_issued_by(est.home.issuing)
    assert isinstance(key, ec.EllipticCurvePrivateKey)


def test_every_request_is_a_new_key_and_costs_a_use(est: Est) -> None:
    """A lost answer loses the key: the repeat is a new enrolment that supersedes the one before."""
    device = fresh_id()
    csr = request(new_key(), device)
    credential = est.home.credential("*", label="made", uses=2)
    (first, one), (second, two) = (in_clear(ask(est, csr, credential=credential)) for _ in range(2))
    assert spki(first) != spki(second)
    assert ask(est, csr, credential=credential).status == 401
    with est.home.inventory() as inventory:
        found = inventory.list_certificates(device=device)
    assert [(one.serial_number, "superseded"), (two.serial_number, "valid")] == [(r.serial, r.status) for r in found]


# --- encrypted with a key that both have -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "cipher"),
    [((WRAP256,), CBC256), ((CBC128, WRAP128, WRAP256), CBC128), ((CBC256, WRAP256), CBC256)],
)
def test_s_k11_s_k12_s_k13_kekri(est: Est, listed: tuple[str, ...], cipher: str) -> None:
    answer = ask(est, request(new_key(), fresh_id(), shared(), capabilities(*listed)))
    _, _, envelope = opened(est, answer, "-secretkey", KEK.hex(), "-secretkeyid", KEK_ID.hex())
    (recipient,) = envelope["recipient_infos"]
    assert (recipient.name, recipient.chosen["version"].native) == ("kekri", "v4")
    assert recipient.chosen["kekid"]["key_identifier"].native == KEK_ID
    assert recipient.chosen["key_encryption_algorithm"]["algorithm"].dotted == WRAP256
    assert envelope["version"].native == "v2"
    assert envelope["encrypted_content_info"]["content_encryption_algorithm"]["algorithm"].dotted == cipher


def test_s_k08_an_unknown_shared_key_is_refused_and_no_key_leaves(est: Est) -> None:
    answer = ask(est, request(new_key(), fresh_id(), shared(b"nobody's"), capabilities(WRAP256)))
    assert answer.status == 403
    assert "DecryptKeyIdentifier" in answer.text


@pytest.mark.parametrize("label", ["made", "sealed"])
def test_s_k10_an_encrypted_key_needs_an_algorithm_in_common(est: Est, label: str) -> None:
    device = fresh_id()
    for attributes in ([shared()], [to_certificate(b"x")], [shared(), to_certificate(b"x"), capabilities(WRAP256)]):
        answer = ask(est, request(new_key(), device, *attributes), label=label)
        assert answer.status == 400, answer.text
    for listed in ((), (WRAP128,), (CBC256, OAEP), ("2.999.1",)):
        answer = ask(est, request(new_key(), device, shared(), capabilities(*listed)))
        assert answer.status == 400, answer.text
        assert "SMIMECapabilities" in answer.text


@pytest.mark.parametrize(
    "attribute",
    [
        csr_maker.attribute(DECRYPT_KEY_ID, tlv(0x0C, b"text")),
        csr_maker.attribute(DECRYPT_KEY_ID, tlv(0x04, b"a"), tlv(0x04, b"b")),
        csr_maker.attribute(DECRYPT_KEY_ID, tlv(0x04)),
        csr_maker.attribute(DECRYPT_KEY_ID),
        shared() + shared(),
    ],
)
def test_attributes_that_are_malformed_are_named(est: Est, attribute: bytes) -> None:
    answer = ask(est, request(new_key(), fresh_id(), attribute, capabilities(WRAP256)))
    assert answer.status == 400


def test_s_k14_encrypted_only_is_kept(est: Est) -> None:
    answer = ask(est, request(new_key(), fresh_id()), label="sealed")
    assert answer.status == 400
    assert "encrypted only" in answer.text


# --- encrypted to a certificate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("listed", "oaep"), [((OAEP,), True), ((RSA,), False), ((RSA, OAEP, CBC256), True)])
@pytest.mark.parametrize("by_ski", [True, False])
def test_s_k11_s_k12_ktri(est: Est, tmp_path: Path, listed: tuple[str, ...], oaep: bool, by_ski: bool) -> None:
    device = est.device(key=rsa.generate_private_key(65537, 2048), label="sealed")
    issuer_and_serial = sequence(
        device.certificate.issuer.public_bytes(), core.Integer(device.certificate.serial_number).dump()
    )
    name = ski(device.certificate) if by_ski else issuer_and_serial
    csr = request(new_key(), device.device, to_certificate(name), capabilities(*listed))
    answer = ask(est, csr, client=device, label="sealed")
    private, recipient = key_file(device.key, tmp_path / "k"), certificate_file(device.certificate, tmp_path / "c")
    _, _, envelope = opened(est, answer, "-inkey", private, "-recip", recipient)
    (info,) = envelope["recipient_infos"]
    assert (info.name, info.chosen["version"].native) == ("ktri", "v2" if by_ski else "v0")
    assert envelope["version"].native == ("v2" if by_ski else "v0")
    assert info.chosen["key_encryption_algorithm"]["algorithm"].dotted == (OAEP if oaep else RSA)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
@pytest.mark.parametrize(
    "listed",
    [((ECDH, WRAP128),), ((ECDH, WRAP256), CBC256), (WRAP256,), (ECDH, WRAP128), (("1.3.132.1.11.2", WRAP256),)],
)
def test_s_k11_s_k12_kari(est: Est, tmp_path: Path, curve: ec.EllipticCurve, listed: Any) -> None:
    device = est.device(key=ec.generate_private_key(curve), label="agreement")
    csr = request(new_key(), device.device, to_certificate(ski(device.certificate)), capabilities(*listed))
    answer = ask(est, csr, label="sealed")
    private, recipient = key_file(device.key, tmp_path / "k"), certificate_file(device.certificate, tmp_path / "c")
    _, _, envelope = opened(est, answer, "-inkey", private, "-recip", recipient)
    (info,) = envelope["recipient_infos"]
    assert (info.name, info.chosen["version"].native) == ("kari", "v3")
    (key,) = info.chosen["recipient_encrypted_keys"]
    assert key["rid"].chosen["subject_key_identifier"].native == ski(device.certificate)


def agreeing(est: Est, key: x25519.X25519PrivateKey) -> Holder:
    """A device whose certificate is for a key that cannot sign; PKCS#10 brings none (RFC 9883 would)."""
    device = fresh_id()
    name, secret = est.home.credential(device, label="agreement")
    asked = Request(
        Operation.SIMPLEENROLL,
        "agreement",
        base64_lines(request(new_key(), device)),
        PEER,
        BasicCredentials(name, secret.encode()),
    )
    with est.home.enrollment(today) as enrollment:
        admission = enrollment.admit(asked)
        csr = replace(admission.grant.csr, spki=spki(key), spki_sha256=spki_hash(spki(key)))
        (issued,) = enrollment.issue([replace(admission, grant=replace(admission.grant, csr=csr))])
    return Holder(key, x509.load_der_x509_certificate(issued.certificate))


def openssl_agrees_by_x25519(recipient: Path) -> bool:
    """Whether this openssl has CMS for X25519 at all; 3.0 has not."""
    command = ["openssl", "cms", "-encrypt", "-aes128", "-binary", "-outform", "DER", "-out", "/dev/null", recipient]
    return subprocess.run(command, input=b"x", capture_output=True, check=False).returncode == 0


def test_s_k12_kari_with_x25519(est: Est, tmp_path: Path) -> None:
    """Opened by the client's own decoder, and by openssl where it can (RFC 8418)."""
    device = agreeing(est, x25519.X25519PrivateKey.generate())
    csr = request(new_key(), device.device, to_certificate(ski(device.certificate)), capabilities((ECDH, WRAP128)))
    answer = ask(est, csr, label="sealed")
    _, der, certificate = delivered(answer)
    assert spki(unseal(der, OwnCertificate(device.certificate, device.key)).key) == spki(certificate.public_key())
    private, recipient = key_file(device.key, tmp_path / "k"), certificate_file(device.certificate, tmp_path / "c")
    if openssl_agrees_by_x25519(recipient):
        opened(est, answer, "-inkey", private, "-recip", recipient)


def test_s_k12_ktri_to_the_idevid_that_a_device_bootstraps_with(est: Est, tmp_path: Path) -> None:
    maker, key, device = Authority.root("Maker"), rsa.generate_private_key(65537, 2048), fresh_id("unit")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, device)])
    idevid = Holder(key, maker.issue(subject, key.public_key()))
    est.home.anchor("maker", maker.certificate)
    asked = OwnCertificate(idevid.certificate, key)
    attributes = [csr_maker.sequence(oid(kind), csr_maker.set_of(value)) for kind, value in asked.attributes()]
    answer = ask(est, request(new_key(), device, *attributes), client=idevid)
    private, recipient = key_file(key, tmp_path / "k"), certificate_file(idevid.certificate, tmp_path / "c")
    opened(est, answer, "-inkey", private, "-recip", recipient)


def test_a_group_gets_each_its_own_key(est: Est) -> None:
    """Requests of one turn are issued together; each key stays with its certificate."""
    name, secret = est.home.credential("*", label="made", uses=4)
    who = BasicCredentials(name, secret.encode())
    with est.home.enrollment(today) as enrollment:
        bodies = [base64_lines(request(new_key(), fresh_id())) for _ in range(4)]
        admitted = [enrollment.admit(Request(Operation.SERVERKEYGEN, "made", body, PEER, who)) for body in bodies]
        issued = enrollment.issue(admitted)
    for admission, one in zip(admitted, issued, strict=True):
        assert admission.key is not None
        certificate = x509.load_der_x509_certificate(one.certificate)
        assert spki(load_der_private_key(admission.key.der, None)) == spki(certificate.public_key())


def test_s_k09_a_certificate_that_is_not_this_devices_is_unknown(est: Est, rsa_key: rsa.RSAPrivateKey) -> None:
    other = est.device(key=rsa_key, label="device")
    revoked = est.device(key=rsa.generate_private_key(65537, 2048), label="device")
    est.home.revoke(revoked.certificate)
    for device, name in (
        (fresh_id(), ski(other.certificate)),
        (fresh_id(), b"nobody"),
        (revoked.device, ski(revoked.certificate)),
    ):
        answer = ask(est, request(new_key(), device, to_certificate(name), capabilities(OAEP)))
        assert answer.status == 403
        assert "AsymmetricDecryptKeyIdentifier" in answer.text


def test_s_k09_a_certificate_whose_usage_allows_no_encryption_is_refused(est: Est) -> None:
    device = est.device(label="device")
    csr = request(new_key(), device.device, to_certificate(ski(device.certificate)), capabilities((ECDH, WRAP128)))
    answer = ask(est, csr)
    assert answer.status == 403
    assert "neither key encipherment nor key agreement" in answer.text


def test_s_k10_no_algorithm_for_a_certificate(est: Est, tmp_path: Path) -> None:
    device = est.device(key=rsa.generate_private_key(65537, 2048), label="device")
    curve = est.device(label="agreement")
    for holder in (device, curve):
        csr = request(new_key(), holder.device, to_certificate(ski(holder.certificate)), capabilities(CBC256))
        assert ask(est, csr, credential=est.home.credential("*", label="made")).status == 400


# --- what stays ------------------------------------------------------------------------------------------------------


def test_s_k15_s_k16_no_key_is_logged_or_stored(est: Est) -> None:
    """Every delivered key is looked for, in every form it could have, in all that the server has written."""
    made = [in_clear(ask(est, request(new_key(), fresh_id())))[0] for _ in range(3)]
    answer = ask(est, request(new_key(), fresh_id(), shared(), capabilities(WRAP256)))
    made.append(opened(est, answer, "-secretkey", KEK.hex(), "-secretkeyid", KEK_ID.hex())[0])
    written = [file.read_bytes() for file in est.home.path.rglob("*") if file.is_file()]
    written += [est.server.stderr.encode(), repr(est.home.audit()).encode()]
    assert any(b"serverkeygen" in text for text in written)
    for key in made:
        secret = key.private_numbers().private_value.to_bytes(32)
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        forms = [secret, secret.hex().encode(), base64.b64encode(secret)[:-3], base64.b64encode(der)[8:-8]]
        assert not [form for form, text in itertools.product(forms, written) if form in text]


def test_s_k15_a_refusal_is_one_audit_row(est: Est) -> None:
    device = fresh_id()
    assert ask(est, request(new_key(), device, shared(b"?"), capabilities(WRAP256))).status == 403
    row = next(row for row in reversed(est.home.audit()) if device in repr(row))
    assert "unknown-decryption-key" in repr(row)


# --- this client and this server -------------------------------------------------------------------------------------


def client_of(est: Est, label: str = "made") -> EstClient:
    name, secret = est.home.credential("*", label=label)
    url = f"https://127.0.0.1:{est.server.port}"
    who = Credentials(name, secret.encode())
    return EstClient(url, trust=TrustAnchors((est.home.root,)), label=label, credentials=who)


@pytest.mark.parametrize("kind", ["clear", "shared", "RSA", "P-256", "P-384", "P-521", "X25519"])
def test_c_k04_this_client_opens_what_this_server_seals(est: Est, kind: str) -> None:
    makers: dict[str, Callable[[], Holder]] = {
        "RSA": lambda: est.device(key=rsa.generate_private_key(65537, 2048), label="agreement"),
        "X25519": lambda: agreeing(est, x25519.X25519PrivateKey.generate()),
        **{
            name: lambda curve=curve: est.device(key=ec.generate_private_key(curve), label="agreement")
            for name, curve in (("P-256", ec.SECP256R1()), ("P-384", ec.SECP384R1()), ("P-521", ec.SECP521R1()))
        },
    }
    device, decryptor = fresh_id(), SharedKey(KEK_ID, KEK) if kind == "shared" else None
    if kind in makers:
        holder = makers[kind]()
        device, decryptor = holder.device, OwnCertificate(holder.certificate, holder.key)
    asking = new_key()
    with client_of(est) as client:
        made = client.serverkeygen(CsrDraft.of(asking, device), decryptor)
    assert spki(made.key) == spki(made.certificate.public_key()) != spki(asking)


def test_c_k01_a_server_that_makes_no_keys_says_so(est: Est) -> None:
    with client_of(est, "device") as client, pytest.raises(EstRefused) as error:
        client.serverkeygen(CsrDraft.of(new_key(), fresh_id()))
    assert error.value.status == 501


def test_the_command_installs_a_key_made_by_the_server(
    est: Est, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = fresh_id()
    root, password, kek = tmp_path / "root.pem", tmp_path / "pw", tmp_path / "kek"
    root.write_bytes(est.home.root.public_bytes(Encoding.PEM))
    name, secret = est.home.credential("*", label="made", uses=3)
    password.write_text(secret)
    kek.write_text(KEK.hex())
    url = f"https://127.0.0.1:{est.server.port}"
    command = ["est", "serverkeygen", "--server", url, "--trust", str(root), "--label", "made", "--user", name]
    command += ["--password-file", str(password), "--subject", device, "--out", str(tmp_path / "d"), "--json"]
    sealed = ["--decrypt-key-id", KEK_ID.hex(), "--decrypt-key", str(kek)]
    for more in ([], ["--key-type", "RSA-2048"], sealed):
        assert run([*command, *more]) == 0, capsys.readouterr().err
        assert f'"device_id": "{device}"' in capsys.readouterr().out
        key, certificate = (tmp_path / "d" / "key.pem"), (tmp_path / "d" / "cert.pem")
        assert key.stat().st_mode & 0o077 == 0
        public = openssl("x509", "-in", certificate, "-noout", "-pubkey")
        assert openssl("pkey", "-in", key, "-pubout") == public
    holder = est.device(key=rsa.generate_private_key(65537, 2048), label="made")
    certificate, key = holder.write(tmp_path, "own")
    own = ["--subject", holder.device, "--out", str(tmp_path / "e"), "--cert", str(certificate), "--key", str(key)]
    assert run([*command, *own, "--decrypt-cert", str(certificate), "--decrypt-key", str(key)]) == 0
    for wrong in (["--decrypt-key", str(kek)], ["--decrypt-key-id", "xyz", "--decrypt-key", str(kek)], sealed[:2]):
        assert run([*command, *wrong]) in (2, 3)
