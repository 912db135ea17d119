"""RFC 7030 §4.2.1: a first certificate (S-E and S-R rows), and what peers certify that nobody should."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, mlkem, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from tests.csr_maker import (
    CHANGE_SUBJECT_NAME,
    CN,
    ORGANIZATION,
    attribute,
    bits,
    extension,
    known,
    new_key,
    oid,
    purposes,
    request,
    sequence,
    spki,
    tlv,
    usage,
)
from tests.est_server import CERTS_ONLY, TLS12, TLS13, Est, Holder, fresh_id
from tests.makers import Maker

pytestmark = pytest.mark.e2e
VECTORS = Path(__file__).parents[1] / "vectors"
CHANGES = sorted(VECTORS.glob("derived-changeSubjectName-*.der"))
CLIENT_AUTH, SERVER_AUTH, CODE_SIGNING = (f"1.3.6.1.5.5.7.3.{arc}" for arc in (2, 1, 3))


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def rsa_spki(modulus: int, exponent: int) -> bytes:
    """An RSA key that no library would make."""
    numbers = sequence(_integer(modulus), _integer(exponent))
    return sequence(sequence(oid("1.2.840.113549.1.1.1"), b"\x05\x00"), bits(numbers))


def _integer(value: int) -> bytes:
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1))


# --- what is given --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_r01_s_r02_a_good_request_gets_its_certificate_and_nothing_else(est: Est, tls: int) -> None:
    key, device = new_key(), fresh_id()
    answer = est.over(tls).enroll(request(key, device))
    assert (answer.status, answer["Content-Type"]) == (200, CERTS_ONLY)
    assert spki(answer.certificate.public_key()) == spki(key)
    assert answer.certificate.subject.rfc4514_string() == f"CN={device}"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate,
        mldsa.MLDSA44PrivateKey.generate,
        mldsa.MLDSA65PrivateKey.generate,
        mldsa.MLDSA87PrivateKey.generate,
    ],
    ids=["P-256", "P-384", "P-521", "Ed25519", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87"],
)
def test_every_kind_of_key_enrols_and_renews(est: Est, make) -> None:
    key, name = make(), fresh_id()
    answer = est.enroll(request(key, name))
    assert answer.status == 200, answer.text
    assert spki(answer.certificate.public_key()) == spki(key)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return
    renewed = est.reenroll(request(make(), name), Holder(key, answer.certificate, (est.home.issuing,)))
    assert renewed.status == 200, renewed.text


@pytest.mark.parametrize("hash_name", ["SHA256", "SHA384", "SHA512"])
def test_rsa_keys_enrol_with_every_good_hash(est: Est, rsa_key: rsa.RSAPrivateKey, hash_name: str) -> None:
    name = fresh_id()
    key = rsa_key if hash_name == "SHA256" else new_key()
    assert est.enroll(request(key, name, hash_name=hash_name)).status == 200


def test_s_e10_an_rsa_key_for_encipherment_is_taken_and_stays_one(est: Est) -> None:
    key = rsa.generate_private_key(65537, 2048)
    csr = request(key, fresh_id(), extensions=[known(usage("key_encipherment"), critical=True)])
    certificate = est.enroll(csr).certificate
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value == usage("key_encipherment")


def test_a_request_within_the_profile_gets_its_names(est: Est) -> None:
    device = fresh_id()
    san = [f"dns:{device}", f"uri:urn:device:{device}", "dns:pump.plant.example", "ip:192.0.2.7", "ip:2001:db8::7"]
    credential = est.home.credential(device, names=["dns:*.plant.example", "ip:192.0.2.0/24", "ip:2001:db8::/32"])
    certificate = est.enroll(request(new_key(), device, san=san), credential=credential).certificate
    granted = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not granted.critical
    assert sorted(str(name.value) for name in granted.value) == sorted(one.partition(":")[2] for one in san)


# --- who asks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
def test_s_e01_without_authentication_there_is_no_certificate(est: Est, operation: str) -> None:
    assert est.post(request(new_key(), fresh_id()), operation=operation).status == 401


def test_s_e02_lesson_9_a_refusal_is_403_and_one_audit_row_with_reasons_and_key(est: Est) -> None:
    key, other = new_key(), fresh_id()
    credential = est.home.credential("only-this")
    before = len(est.home.audit())
    answer = est.enroll(request(key, other), credential=credential)
    assert answer.status == 403
    (row,) = est.home.audit()[before:]
    assert row["actor"] == f"credential:{credential[0]}"
    assert (row["action"], row["outcome"]) == ("refuse", "not-authorized")
    detail = row["detail"]
    assert detail["device"] == other
    assert detail["reasons"] == answer.text.splitlines()
    assert detail["spki_sha256"] == _sha256(spki(key))
    assert (detail["operation"], detail["peer_address"]) == ("simpleenroll", "127.0.0.1")


def _sha256(octets: bytes) -> str:
    import hashlib

    return hashlib.sha256(octets).hexdigest()


def test_s_e05_the_certificate_of_one_device_does_not_name_another(est: Est) -> None:
    device, other = est.device(), fresh_id()
    for operation in ("simpleenroll", "simplereenroll"):
        answer = est.post(request(new_key(), other), operation=operation, client=device)
        assert answer.status == 403
        assert other in answer.text


@pytest.mark.parametrize(
    "name",
    [
        "dns:other.example",
        "dns:sn-1",
        "dns:*.other.example",
        "dns:a.b.plant.example",
        "ip:192.0.3.1",
        "ip:::ffff:192.0.2.1",
        "uri:urn:device:other",
        "email:root@plant.example",
    ],
)
def test_s_e05_every_name_is_verified(est: Est, name: str) -> None:
    device = fresh_id()
    credential = est.home.credential(device, names=["dns:*.plant.example", "ip:192.0.2.0/24"])
    answer = est.enroll(request(new_key(), device, san=[f"dns:{device}", name]), credential=credential)
    assert answer.status in (400, 403)
    assert "may not have the name" in answer.text or "allows no email" in answer.text


def test_s_e09_a_device_does_not_get_another_kind_of_certificate_by_itself(est: Est) -> None:
    device = est.device()
    answer = est.post(request(new_key(), device.device), client=device, label="gateway")
    assert answer.status == 403
    assert "does not open profile gateway" in answer.text


def test_s_e09_a_device_may_enrol_anew_for_itself(est: Est) -> None:
    device = est.device()
    assert est.post(request(new_key(), device.device), client=device).status == 200


def test_all_reasons_are_told_at_once(est: Est) -> None:
    device = fresh_id()
    subject = [(CN, device), (ORGANIZATION, "Evil"), ("2.5.4.6", "XX")]
    csr = request(new_key(), subject, san=["dns:google.example", "email:a@b.example"])
    lines = est.enroll(csr, credential=est.home.credential("another")).text.splitlines()
    for words in ("may not name", "no organization", "no country", "dns:google.example", "no email"):
        assert any(words in line for line in lines), words


# --- what is asked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["signature", "subject", "key"])
def test_s_e03_a_flipped_bit_fails_proof_of_possession(est: Est, where: str) -> None:
    key, device = new_key(), fresh_id()
    csr = bytearray(request(key, device))
    position = {"signature": len(csr) - 3, "subject": csr.index(device.encode()) + 3, "key": csr.index(spki(key)) + 60}
    csr[position[where]] ^= 1
    answer = est.enroll(bytes(csr))
    assert answer.status == 400
    assert where == "key" or "proof of possession" in answer.text


def test_s_e03_a_request_signed_by_another_key_fails(est: Est) -> None:
    answer = est.enroll(request(new_key(), fresh_id(), public=spki(new_key())))
    assert answer.status == 400
    assert "POP" in answer.text


def _off_the_curve() -> bytes:
    whole = bytearray(spki(new_key()))
    whole[-1] ^= 1
    return bytes(whole)


def _pss(key: rsa.RSAPrivateKey) -> bytes:
    """The same key with RSASSA-PSS as its algorithm: cryptography writes it back as rsaEncryption."""
    return spki(key).replace(oid("1.2.840.113549.1.1.1") + b"\x05\x00", oid("1.2.840.113549.1.1.10") + b"\x30\x00")


def _compressed() -> bytes:
    point = new_key().public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    return sequence(sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7")), bits(point))


@pytest.fixture(scope="module")
def weak(rsa_key: rsa.RSAPrivateKey) -> dict[str, bytes]:
    """Public keys that nobody should have; the first screen does not need their signature."""
    modulus = rsa_key.public_key().public_numbers().n
    prime = rsa_key.private_numbers().p
    return {
        "RSA exponent 1": rsa_spki(modulus, 1),
        "RSA exponent 3": rsa_spki(modulus, 3),
        "RSA even exponent": rsa_spki(modulus, 65538),
        "RSA-1024": spki(rsa.generate_private_key(65537, 1024)),
        "RSA-512": rsa_spki((1 << 511) + 111, 65537),
        "RSA even modulus": rsa_spki(modulus + 1, 65537),
        "RSA small factor": rsa_spki(modulus // 7 * 7 | 1 if modulus // 7 * 7 % 2 else modulus // 7 * 7 + 7, 65537),
        "RSA square": rsa_spki(prime * prime, 65537),
        "RSA-16384": rsa_spki((1 << 16383) + 1, 65537),
        "RSA-PSS": _pss(rsa_key).replace(b"\x00", b"\x00"),
        "point off the curve": _off_the_curve(),
        "point at infinity": sequence(sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7")), bits(b"\x00")),
        "compressed point": _compressed(),
        "unknown curve": sequence(sequence(oid("1.2.840.10045.2.1"), oid("1.3.132.0.99")), bits(b"\x04" + bytes(64))),
        "unknown algorithm": sequence(sequence(oid("1.3.6.1.4.1.55555.9")), bits(bytes(32))),
        "X25519": spki(x25519.X25519PrivateKey.generate()),
        "ML-KEM": spki(mlkem.MLKEM768PrivateKey.generate()),
    }


WEAK = [
    *("RSA exponent 1", "RSA exponent 3", "RSA even exponent", "RSA-1024", "RSA-512", "RSA even modulus"),
    *("RSA small factor", "RSA square", "RSA-16384", "RSA-PSS", "point off the curve", "point at infinity"),
    *("compressed point", "unknown curve", "unknown algorithm", "X25519", "ML-KEM"),
]


@pytest.mark.parametrize("kind", WEAK)
def test_s_e04_a_key_that_nobody_should_have_is_400(est: Est, weak: dict[str, bytes], kind: str) -> None:
    """libest certifies exponent 1, globalsign RSA-512; an RSA-PSS key changes on the way through cryptography."""
    answer = est.enroll(request(new_key(), fresh_id(), public=weak[kind]))
    assert answer.status == 400
    assert "POP" not in answer.text, "refused for its signature, not for its key"


@pytest.mark.parametrize("curve", [ec.SECP256K1, ec.BrainpoolP256R1, ec.SECP224R1])
def test_s_e04_other_curves_are_400(est: Est, curve: type[ec.EllipticCurve]) -> None:
    answer = est.enroll(request(ec.generate_private_key(curve()), fresh_id()))
    assert answer.status == 400
    assert "takes P-256" in answer.text or "cannot be read" in answer.text


def test_s_e04_ed448_is_400_where_the_profile_does_not_name_it(est: Est) -> None:
    answer = est.enroll(request(ed448.Ed448PrivateKey.generate(), fresh_id()))
    assert answer.status == 400
    assert "Ed448 offered" in answer.text


@pytest.mark.parametrize("way", ["credential", "renewal", "station", "idevid"])
def test_s_e04_lesson_3_the_key_floor_stands_on_every_path(est: Est, weak: dict[str, bytes], way: str) -> None:
    name = fresh_id()
    public = weak["RSA-1024"]
    if way == "credential":
        answer = est.enroll(request(new_key(), name, public=public), label="device")
    elif way == "renewal":
        device = est.device(name)
        answer = est.reenroll(request(new_key(), name, public=public), device)
    elif way == "station":
        answer = est.post(request(new_key(), name, public=public), client=est.station(name))
    else:
        maker = Maker(f"Maker {name}")
        est.home.anchor(f"maker-{name}", maker.certificate)
        answer = est.post(request(new_key(), name, public=public), client=maker.idevid(name))
    assert answer.status == 400
    assert "RSA-1024" in answer.text


@pytest.mark.parametrize("hash_name", ["SHA1", "MD5", "SHA224"])
def test_peers_a_weak_signature_hash_is_named(est: Est, rsa_key: rsa.RSAPrivateKey, hash_name: str) -> None:
    """Globalsign takes SHA-1."""
    answer = est.enroll(request(rsa_key, fresh_id(), hash_name=hash_name))
    assert answer.status == 400
    assert f"signed with {hash_name}" in answer.text


@pytest.mark.parametrize("vector", ["A.3-simpleenroll", "A.4-serverkeygen"])
def test_the_rfcs_own_requests_are_refused_for_their_hash(est: Est, vector: str) -> None:
    body = (VECTORS / f"rfc7030-{vector}-request.p10.b64").read_bytes()
    answer = est.enroll(b"", body=body, credential=est.home.credential("*"))
    assert answer.status == 400
    assert "SHA1" in answer.text


@pytest.mark.parametrize(
    "value",
    [
        "a\0b",
        "a\r\nb",
        "a\nb",
        "\x1b[31m",
        "a\u2028b",
        "a\x85b",
        "sn/1",
        "sn 1",
        "../sn",
        "",
        "-sn",
        "s" * 65,
        "\uff53n-1",
    ],
)
def test_peers_control_characters_and_odd_names_are_refused(est: Est, value: str) -> None:
    """NUL and CRLF in names get through at globalsign."""
    answer = est.enroll(request(new_key(), value))
    assert answer.status in (400, 403)
    assert "\x1b" not in answer.text
    assert "\0" not in answer.text


@pytest.mark.parametrize(
    "subject",
    [[], [(CN, "sn-1"), (CN, "sn-2")], [(ORGANIZATION, "x")], [("2.5.4.5", "sn-a"), (CN, "sn-b")]],
    ids=["empty", "two", "no device id", "two ids that differ"],
)
def test_a_subject_names_one_device(est: Est, subject: list[tuple[str, str]]) -> None:
    assert est.enroll(request(new_key(), subject)).status in (400, 403)


def test_s_e06_the_intent_of_a_key_usage_is_never_inverted(est: Est) -> None:
    csr = request(new_key(), fresh_id(), extensions=[known(usage("key_agreement"), critical=True)])
    answer = est.enroll(csr)
    assert answer.status == 400
    assert "key_agreement" in answer.text


def test_s_e06_a_wider_wish_is_narrowed_to_what_the_profile_gives(est: Est) -> None:
    wishes = [
        known(usage("digital_signature", "key_agreement", "content_commitment"), critical=True),
        known(purposes(CLIENT_AUTH, SERVER_AUTH, CODE_SIGNING)),
    ]
    found = est.enroll(request(new_key(), fresh_id(), extensions=wishes)).certificate.extensions
    assert found.get_extension_for_class(x509.KeyUsage).value == usage("digital_signature")
    assert list(found.get_extension_for_class(x509.ExtendedKeyUsage).value) == [x509.ObjectIdentifier(CLIENT_AUTH)]


def test_s_e07_a_ca_certificate_is_refused(est: Est) -> None:
    """Lesson 4."""
    for value in (x509.BasicConstraints(ca=True, path_length=None), x509.BasicConstraints(ca=True, path_length=0)):
        answer = est.enroll(request(new_key(), fresh_id(), extensions=[known(value, critical=True)]))
        assert answer.status == 403
        assert "CA:TRUE" in answer.text


def test_s_e07_lesson_4_nothing_is_copied_that_the_profile_does_not_name(est: Est) -> None:
    """UCM copies CDP, AIA, EKU and unknown extensions."""
    uri = x509.UniformResourceIdentifier("http://evil.example/")
    wishes = [
        known(x509.BasicConstraints(ca=False, path_length=None), critical=True),
        known(usage("digital_signature"), critical=True),
        known(purposes(CLIENT_AUTH)),
        known(x509.CRLDistributionPoints([x509.DistributionPoint([uri], None, None, None)])),
        known(x509.AuthorityInformationAccess([x509.AccessDescription(x509.OID_OCSP, uri)])),
        known(x509.SubjectKeyIdentifier(b"evil" * 5)),
        known(x509.AuthorityKeyIdentifier(b"evil" * 5, None, None)),
        known(x509.NameConstraints([x509.DNSName("evil.example")], None)),
        known(x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)])),
        known(x509.TLSFeature([x509.TLSFeatureType.status_request])),
        extension("1.3.6.1.4.1.55555.1", b"\x05\x00"),
        extension("1.3.6.1.4.1.55555.2", b"not even DER"),
    ]
    answer = est.enroll(request(new_key(), fresh_id(), extensions=wishes))
    assert answer.status == 200, answer.text
    found = answer.certificate.extensions
    assert {e.oid for e in found} == {
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
    assert b"evil" not in answer.certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "wish",
    [
        extension("1.3.6.1.4.1.55555.1", b"\x05\x00", critical=True),
        known(x509.NameConstraints([x509.DNSName("evil.example")], None), critical=True),
        known(purposes(CODE_SIGNING)),
        known(purposes("1.3.6.1.5.5.7.3.9")),
        known(purposes("1.3.6.1.5.5.7.3.28")),
    ],
    ids=["unknown critical", "critical name constraints", "code signing", "OCSP signing", "cmcRA"],
)
def test_s_e07_what_cannot_be_given_as_asked_is_refused(est: Est, wish: bytes) -> None:
    assert est.enroll(request(new_key(), fresh_id(), extensions=[wish])).status == 400


@pytest.mark.parametrize(
    "attributes",
    [
        [attribute("1.2.840.113549.1.9.14", sequence()), attribute("1.2.840.113549.1.9.14", sequence())],
        [attribute("1.2.840.113549.1.9.14", sequence(), sequence(b"\x05\x00"))],
        [attribute("1.2.840.113549.1.9.14")],
        [attribute("1.2.840.113549.1.9.14", sequence(*[known(usage("digital_signature"))] * 2))],
        [attribute("1.2.840.113549.1.9.14", b"\x05\x00")],
        [attribute("1.2.840.113549.1.9.14", sequence(extension("2.5.29.17", b"\xff\xff")))],
        [attribute("1.2.840.113549.1.9.14", sequence(extension("2.5.29.15", b"\x04\x00")))],
        [sequence(oid(CN))],
        [b"\x05\x00"],
    ],
)
def test_requested_extensions_that_cannot_be_read_are_400(est: Est, attributes: list[bytes]) -> None:
    assert est.enroll(request(new_key(), fresh_id(), *attributes)).status == 400


@pytest.mark.parametrize("way", ["credential", "idevid"])
@pytest.mark.parametrize("value", CHANGES)
def test_s_e08_s_n04_change_subject_name_is_never_silently_ignored(est: Est, way: str, value: Path) -> None:
    name = fresh_id()
    csr = request(new_key(), name, attribute(CHANGE_SUBJECT_NAME, value.read_bytes()))
    if way == "credential":
        answer = est.enroll(csr, label="renaming")
    else:
        maker = Maker(f"Maker {name}")
        est.home.anchor(f"maker-{name}", maker.certificate)
        answer = est.post(csr, client=maker.idevid(name))
    assert answer.status == 400
    assert "ChangeSubjectName is for renewals" in answer.text


@pytest.mark.parametrize("kind", ["X25519", "ML-KEM"])
def test_s_e11_a_key_that_cannot_sign_is_pointed_elsewhere(est: Est, weak: dict[str, bytes], kind: str) -> None:
    answer = est.enroll(request(new_key(), fresh_id(), public=weak[kind]))
    assert answer.status == 400
    assert "RFC 9883" in answer.text


# --- again and at once ----------------------------------------------------------------------------------------------


def test_s_e12_peers_the_same_request_at_once_is_one_certificate_and_never_a_500(est: Est) -> None:
    """Trustpoint answers 4 % of these with 500."""
    device = fresh_id()
    csr, credential = request(new_key(), device), est.home.credential(device)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: est.enroll(csr, credential=credential), range(16)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1


def test_s_e12_different_requests_at_once_get_different_serials(est: Est) -> None:
    credential = est.home.credential("*", uses=16)
    csrs = [request(new_key(), fresh_id()) for _ in range(16)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda csr: est.enroll(csr, credential=credential), csrs))
    serials = {answer.certificate.serial_number for answer in answers}
    assert len(serials) == 16
    assert all(serial.bit_length() > 64 for serial in serials)


def test_lesson_15_a_repeat_is_the_same_certificate_over_every_kind_of_requester(est: Est) -> None:
    station, name, key = est.station("*"), fresh_id(), new_key()
    first, again = (est.post(request(key, name), client=station) for _ in range(2))
    assert first.status == 200
    assert first.body == again.body


def test_a_key_belongs_to_one_device(est: Est) -> None:
    key = new_key()
    est.device(key=key)
    answer = est.enroll(request(key, fresh_id()))
    assert answer.status == 403
    assert "belongs to another device" in answer.text


def test_s_r06_a_stranger_who_posts_a_seen_request_does_not_get_its_certificate(est: Est) -> None:
    device, key = fresh_id(), new_key()
    csr = request(key, device)
    assert est.enroll(csr).status == 200
    assert est.post(csr, credential=est.home.credential("another")).status == 403
    assert est.post(csr, credential=est.home.credential(device)).status == 403


# --- how it fails ---------------------------------------------------------------------------------------------------


def test_s_r07_s_r08_s_r10_errors_are_text_and_tell_nothing_of_the_inside(est: Est) -> None:
    """`Answer.check` holds every error of every test against this; here is one of each status."""
    name = fresh_id()
    seen = {
        est.enroll(b"\x30\x00").status,
        est.post(request(new_key(), name)).status,
        est.enroll(request(new_key(), name), credential=est.home.credential("another")).status,
        est.get("nothing").status,
        est.get("simpleenroll").status,
        est.enroll(request(new_key(), name), headers={"Content-Type": "text/html"}).status,
        est.post(b"", operation="fullcmc").status,
        est.enroll(b"", body=b"A" * 70_000).status,
    }
    assert seen == {400, 401, 403, 404, 405, 413, 415, 501}


def test_s_r10_what_the_client_sent_is_not_an_escape_sequence_in_the_answer(est: Est) -> None:
    answer = est.enroll(request(new_key(), [(CN, fresh_id()), (ORGANIZATION, "<script>alert(1)</script>")]))
    assert answer.status == 400
    assert answer["Content-Type"].startswith("text/plain")


def test_a_body_may_not_be_base64_of_something_else(est: Est) -> None:
    certificate = est.home.root.public_bytes(Encoding.DER)
    assert est.enroll(certificate).status == 400
    assert est.enroll(b"", body=base64.b64encode(b"hello")).status == 400
