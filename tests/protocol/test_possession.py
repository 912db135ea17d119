"""RFC 9883: keys that cannot sign, and whose signature says that they are possessed (Q-06)."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, mlkem, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.codec import parse_csrattrs
from tests.csr_maker import attribute, new_key, request, sequence, spki, tlv
from tests.est_server import Answer, Est, Holder, fresh_id
from tests.makers import Maker

pytestmark = pytest.mark.e2e
STATEMENT = "1.3.6.1.4.1.22112.2.1"
ESTABLISHING = {
    "X25519": x25519.X25519PrivateKey.generate,
    "ML-KEM-768": mlkem.MLKEM768PrivateKey.generate,
    "ML-KEM-1024": mlkem.MLKEM1024PrivateKey.generate,
}


def statement(certificate: x509.Certificate, *, whole: bool = False) -> bytes:
    """PrivateKeyPossessionStatement, with the certificate in it or without."""
    number = certificate.serial_number.to_bytes(certificate.serial_number.bit_length() // 8 + 1)
    signer = sequence(certificate.issuer.public_bytes(), tlv(0x02, number))
    return attribute(STATEMENT, sequence(signer, certificate.public_bytes(Encoding.DER) if whole else b""))


def ask(est: Est, signer: Holder, key: Any, *, by: Any = None, name: str | None = None, **how: Any) -> Answer:
    """Ask for a certificate for `key`, signed with the key of another one."""
    san, words = how.pop("san", ()), how.pop("words", None) or statement(signer.certificate)
    csr = request(by or signer.key, name or signer.device, words, public=spki(key), san=san)
    return est.post(csr, **{"label": "sealing", "client": signer, **how})


@pytest.mark.parametrize("kind", ESTABLISHING)
@pytest.mark.parametrize("whole", [False, True])
def test_q_06_a_key_that_cannot_sign_gets_a_certificate(est: Est, kind: str, whole: bool) -> None:
    device, key = est.device(), ESTABLISHING[kind]()
    answer = ask(est, device, key, words=statement(device.certificate, whole=whole))
    assert answer.status == 200, answer.text
    assert answer.certificate.public_key() == key.public_key()
    usage = answer.certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_agreement is (kind == "X25519")
    assert usage.value.key_encipherment is (kind != "X25519"), "Q-04: nothing else for ML-KEM"
    assert not usage.value.digital_signature


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
        mldsa.MLDSA65PrivateKey.generate,
    ],
)
def test_q_06_any_kind_of_key_vouches(est: Est, make: Any) -> None:
    device = est.device(key=make())
    credential = est.home.credential(device.device, label="sealing")
    answer = ask(est, device, ESTABLISHING["ML-KEM-768"](), client=None, credential=credential)
    assert answer.status == 200, answer.text


def test_q_06_a_repeat_gets_the_same(est: Est) -> None:
    device, key = est.device(), ESTABLISHING["X25519"]()
    first, again = (ask(est, device, key) for _ in range(2))
    assert first.status == 200
    assert first.body == again.body


def test_q_06_no_profile_takes_it_unless_it_says_so(est: Est) -> None:
    device = est.device()
    answer = ask(est, device, ESTABLISHING["X25519"](), label="")
    assert answer.status == 400
    assert "X25519 offered; profile device takes P-256" in answer.text


def test_q_06_the_signature_is_checked_with_the_key_of_that_certificate(est: Est) -> None:
    device = est.device()
    for other in (new_key(), ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)):
        answer = ask(est, device, ESTABLISHING["ML-KEM-768"](), by=other)
        assert answer.status == 400
        assert "does not verify" in answer.text


def test_q_06_without_the_statement_it_is_pointed_elsewhere(est: Est) -> None:
    device = est.device()
    csr = request(device.key, device.device, public=spki(ESTABLISHING["X25519"]()))
    answer = est.post(csr, client=device, label="sealing")
    assert answer.status == 400
    assert "RFC 9883" in answer.text


def test_q_06_a_certificate_that_does_not_count_vouches_for_nothing(est: Est) -> None:
    revoked = est.device()
    credential = est.home.credential(revoked.device, label="sealing", uses=9)
    est.home.revoke(revoked.certificate)
    answer = ask(est, revoked, ESTABLISHING["X25519"](), client=None, credential=credential)
    assert answer.status == 403
    assert "was revoked" in answer.text
    stranger = Maker("Stranger").idevid(revoked.device)
    for whole in (True, False):
        words = statement(stranger.certificate, whole=whole)
        answer = ask(est, stranger, ESTABLISHING["X25519"](), name=revoked.device, words=words, client=None,
                     credential=credential)  # fmt: skip
        assert answer.status == 403
        assert "none of this CA" in answer.text


def test_q_06_a_certificate_that_cannot_sign_vouches_for_nothing(est: Est) -> None:
    device, key = est.device(), ESTABLISHING["X25519"]()
    sealed = Holder(device.key, ask(est, device, key).certificate)
    answer = ask(est, sealed, ESTABLISHING["X25519"](), client=device)
    assert answer.status == 403
    assert "digital signatures" in answer.text


def test_q_06_another_subject_or_name_than_in_that_certificate_is_refused(est: Est) -> None:
    device, other = est.device(), fresh_id()
    credential = est.home.credential("*", label="sealing", uses=9)
    answer = ask(est, device, ESTABLISHING["X25519"](), name=other, client=None, credential=credential)
    assert answer.status == 403
    assert "of the certificate that vouches" in answer.text
    answer = ask(est, device, ESTABLISHING["X25519"](), san=[f"dns:{device.device}"])
    assert answer.status == 403
    assert f"does not have the name dns:{device.device}" in answer.text


def test_q_06_names_of_that_certificate_may_be_asked_for(est: Est) -> None:
    san = ["dns:pump.plant.example"]
    device = est.device(san=san)
    answer = ask(est, device, ESTABLISHING["X25519"](), san=san)
    assert answer.status == 200, answer.text


def test_q_06_no_certificate_for_signing_is_had_that_way(est: Est) -> None:
    device = est.device()
    for csr in (
        request(new_key(), device.device, statement(device.certificate)),
        request(device.key, device.device, statement(device.certificate), public=spki(new_key())),
    ):
        for label in ("", "sealing"):
            answer = est.post(csr, client=device, label=label)
            assert answer.status == 400
            assert "leave out the statement" in answer.text


def test_q_06_with_that_certificate_goes_what_it_vouched_for(est: Est) -> None:
    device = est.device()
    sealed = ask(est, device, ESTABLISHING["ML-KEM-768"]()).certificate
    with est.home.inventory() as inventory:
        assert inventory.by_serial(sealed.serial_number).status == "valid"
    est.home.revoke(device.certificate)
    with est.home.inventory() as inventory:
        record = inventory.by_serial(sealed.serial_number)
    assert (record.status, record.revocation_reason) == ("revoked", "keyCompromise")


@pytest.mark.parametrize(
    "value",
    [
        b"\x05\x00",
        b"\x30\x00",
        sequence(sequence()),
        sequence(sequence(sequence(), tlv(0x02, b"\x80"))),
        sequence(sequence(sequence(), tlv(0x02, bytes(21)))),
        sequence(sequence(sequence(), tlv(0x02, b"\x01")), b"\x04\x00"),
    ],
)
def test_q_06_what_is_no_statement_is_400(est: Est, value: bytes) -> None:
    device = est.device()
    answer = ask(est, device, ESTABLISHING["X25519"](), words=attribute(STATEMENT, value))
    assert answer.status == 400, answer.text


def test_q_06_the_usage_that_every_key_of_the_profile_has_is_told(est: Est) -> None:
    wishes = parse_csrattrs(est.get("sealing/csrattrs").der)
    assert [wish.oid for wish in wishes.extensions] == [], "X25519 and ML-KEM have no usage in common"
