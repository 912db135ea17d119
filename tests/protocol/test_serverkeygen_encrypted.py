"""/serverkeygen: a key encrypted beyond TLS, to a shared key or a certificate; openssl opens each (S-K08 to S-K14)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import core
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import load_der_private_key

from devicesim import OwnCertificate
from devicesim.envelope import unseal
from estserver.enroll import Request
from estserver.model import BasicCredentials, Operation
from tests import csr_maker
from tests.csr_maker import base64_lines, new_key, oid, request, sequence, spki, tlv
from tests.est_server import (
    Est,
    Holder,
    fresh_id,
    today,
)
from tests.protocol.client_stub import Authority
from tests.protocol.serverkeygen_support import (
    CBC128,
    CBC256,
    DECRYPT_KEY_ID,
    ECDH,
    KEK,
    KEK_ID,
    OAEP,
    PEER,
    RSA,
    WRAP128,
    WRAP256,
    agreeing,
    ask,
    capabilities,
    certificate_file,
    delivered,
    key_file,
    opened,
    shared,
    ski,
    to_certificate,
)


@pytest.fixture
def est(keygen: Est) -> Est:
    return keygen


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


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
