"""Requests: what is signed, what a server may make a device ask for, and what is told about it."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID, NameOID

from devicesim import codec, explain
from devicesim.check import comparable
from devicesim.codec import AttributeWish, CsrAttrs, ExtensionWish, KeyWish
from devicesim.csr import (
    KEY_TYPES,
    CsrDraft,
    alternative_names,
    general_name,
    key_type,
    key_type_of,
    load_csr,
    name_text,
    parse_subject,
    spki,
)
from devicesim.errors import CannotComply, ConfigInvalid, UsageProblem
from devicesim.profile import Profile
from devicesim.wishes import LocalPolicy, OwnNames, choose_key_type, draft

VECTORS = Path(__file__).parents[1] / "vectors"
PROFILES = Path(__file__).parents[2] / "estserver" / "policy" / "profiles"
CN, SERIAL_NUMBER, OU = "2.5.4.3", "2.5.4.5", "2.5.4.11"
SAN, KU, EKU, BC = "2.5.29.17", "2.5.29.15", "2.5.29.37", "2.5.29.19"


@pytest.fixture(scope="module")
def key():
    return key_type("EC-P256").generate()


def wishes(name: str) -> CsrAttrs:
    return codec.parse_csrattrs((VECTORS / f"{name}.der").read_bytes())


def request(made: CsrDraft, binding: bytes | None = None) -> x509.CertificateSigningRequest:
    return x509.load_der_x509_csr(made.sign(binding))


# --- keys and signatures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KEY_TYPES if name not in {"RSA-3072", "RSA-4096"}])
def test_every_kind_of_key_signs_a_request_that_proves_possession(name):
    made = KEY_TYPES[name].generate()
    found = request(CsrDraft.of(made, "sn-1"))
    assert found.is_signature_valid
    assert key_type_of(made) == name
    assert spki(found) == spki(made)


def test_a_kind_of_key_is_found_in_any_case_and_an_unknown_one_lists_all():
    assert key_type("ml-dsa-65").name == "ML-DSA-65"
    with pytest.raises(UsageProblem) as caught:
        key_type("P-224")
    assert "EC-P256" in caught.value.line


def test_the_binding_travels_as_base64_in_the_challenge_password(key):
    made, binding = CsrDraft.of(key, "sn-1"), bytes(range(32))
    attribute = request(made, binding).attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD)
    assert attribute.value == base64.b64encode(binding)
    assert len(request(made).attributes) == 0


def test_the_key_is_in_no_repr(key):
    secret = str(key.private_numbers().private_value)
    made = CsrDraft.of(key, "sn-1")
    assert secret not in repr(made)
    assert "key=" not in repr(made)


@pytest.mark.parametrize(
    ("oids", "digest"),
    [((), hashes.SHA256), (("1.2.840.10045.4.3.4",), hashes.SHA512), (("1.2.840.113549.1.1.13",), hashes.SHA256)],
)
def test_the_hash_is_the_one_the_server_names_if_it_fits_the_key(key, oids, digest):
    found = request(draft(key, OwnNames("sn-1"), CsrAttrs(oids=oids), LocalPolicy()))
    assert isinstance(found.signature_hash_algorithm, digest)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["dns:a.example", "ip:10.0.0.1", "ip:2001:db8::1", "uri:urn:x:1", "email:a@b.example"])
def test_a_name_is_written_as_it_is_read(text):
    assert name_text(general_name(text)) == text


@pytest.mark.parametrize("text", ["", "dns:", "a.example", "ip:a", "ip:300.1.1.1", "dns:ü.example", "foo:bar"])
def test_what_is_no_name_is_said_to_be_none(text):
    with pytest.raises(UsageProblem, match="not a subject alternative name"):
        general_name(text)


def test_a_subject_is_one_word_or_a_whole_name():
    assert parse_subject("sn-1") == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sn-1")])
    whole = parse_subject("CN=sn-1,serialNumber=7,O=Acme")
    assert {found.oid for found in whole} == {NameOID.COMMON_NAME, NameOID.SERIAL_NUMBER, NameOID.ORGANIZATION_NAME}
    for wrong in ("CN=", "=x", "XX=1"):
        with pytest.raises(UsageProblem):
            parse_subject(wrong)


def test_names_compare_by_value_whatever_their_string_type():
    utf8 = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SN  1")])
    printable = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sn 1", _type=x509.name._ASN1Type.PrintableString)])
    assert utf8 != printable
    assert comparable(utf8) == comparable(printable)
    assert comparable(utf8) != comparable(parse_subject("sn-1"))


def test_a_renewal_repeats_subject_and_names_octet_by_octet(key):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sn-1", _type=x509.name._ASN1Type.PrintableString)])
    san = x509.SubjectAlternativeName([x509.DNSName("SN-1.Example"), x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=1))
        .add_extension(san, critical=True)
        .sign(key, hashes.SHA256())
    )
    found = request(CsrDraft.renewing(certificate, ec.generate_private_key(ec.SECP256R1())))
    assert found.subject.public_bytes() == certificate.subject.public_bytes()
    extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert extension.critical
    assert extension.value.public_bytes() == codec.raw_extension(certificate, SAN)
    assert spki(found) != spki(certificate)


def test_a_draft_written_down_as_a_request_is_taken_up_again_unchanged(key):
    first = draft(
        key, OwnNames("www", ("ip:10.0.0.1",)), wishes("derived-rfc9908-3.4-csrattrs"), LocalPolicy(names=("dns:*",))
    )
    again = CsrDraft.resuming(request(first), key)
    assert list(request(again).extensions) == list(request(first).extensions)
    assert request(again).subject.public_bytes() == request(first).subject.public_bytes()


# --- what a server may wish -----------------------------------------------------------------------------------------


def test_a_template_is_met_with_the_device_s_own_names(key):
    own = OwnNames("dev-1", ("ip:10.0.0.1", "dns:other.example"))
    policy = LocalPolicy(names=("dns:www.myserver.com",))
    found = request(draft(key, own, wishes("derived-rfc9908-3.4-csrattrs"), policy))
    assert found.subject.rfc4514_string() == "OU=myGroup,OU=myDept,CN=dev-1"
    assert alternative_names(found.extensions) == {"dns:www.myserver.com", "ip:10.0.0.1"}
    usage = found.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_agreement
    assert usage.value.digital_signature
    purposes = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [use.dotted_string for use in purposes] == ["1.3.6.1.5.5.7.3.2"]


def test_a_foreign_name_in_a_template_is_not_asked_for(key):
    own = OwnNames("dev-1", ("ip:10.0.0.1",))
    with pytest.raises(CannotComply, match=r"dns:www\.myserver\.com"):
        draft(key, own, wishes("derived-rfc9908-3.4-csrattrs"), LocalPolicy())


def test_a_partial_name_the_device_cannot_fill_stops_it(key):
    policy = LocalPolicy(names=("dns:*",))
    with pytest.raises(CannotComply, match="'ip'"):
        draft(key, OwnNames("dev-1"), wishes("derived-rfc9908-3.4-csrattrs"), policy)


def test_another_name_for_the_device_itself_is_not_taken(key):
    renamed = CsrAttrs(subject=((AttributeWish(CN, "somebody-else"),),), from_template=True)
    with pytest.raises(CannotComply, match="somebody-else"):
        draft(key, OwnNames("dev-1"), renamed, LocalPolicy())
    allowed = draft(key, OwnNames("dev-1"), renamed, LocalPolicy(names=("somebody-*",)))
    assert allowed.subject == parse_subject("somebody-else")


def test_a_subject_attribute_nobody_knows_stops_it_unless_the_device_was_told(key):
    asked = CsrAttrs(subject=((AttributeWish(CN, None),), (AttributeWish("2.5.4.10", None),)), from_template=True)
    with pytest.raises(CannotComply, match="O in the subject"):
        draft(key, OwnNames("dev-1"), asked, LocalPolicy())
    own = OwnNames("dev-1", subject=parse_subject("CN=dev-1,O=Acme"))
    assert comparable(draft(key, own, asked, LocalPolicy()).subject) == comparable(parse_subject("O=Acme,CN=dev-1"))


def test_a_legacy_wish_adds_the_serial_number_to_the_subject():
    p384 = key_type("EC-P384").generate()
    made = draft(p384, OwnNames("sn-7"), wishes("rfc9908-5.5-p384-serial.csrattrs"), LocalPolicy())
    assert made.binding_required
    assert [(one.oid.dotted_string, one.value) for one in made.subject] == [(CN, "sn-7"), (SERIAL_NUMBER, "sn-7")]
    assert isinstance(made.digest, hashes.SHA384)


@pytest.mark.parametrize(
    "wish",
    [
        ExtensionWish(BC, critical=True, value=x509.BasicConstraints(ca=True, path_length=None).public_bytes()),
        ExtensionWish(KU, critical=True, value=bytes.fromhex("03020106")),  # keyCertSign, cRLSign
    ],
)
def test_no_server_makes_a_device_ask_to_be_a_ca(key, wish):
    with pytest.raises(CannotComply, match="CA certificate"):
        draft(key, OwnNames("dev-1"), CsrAttrs(extensions=(wish,)), LocalPolicy())


def test_an_extension_that_is_not_understood_is_left_out_when_it_has_no_value(key):
    asked = CsrAttrs(
        extensions=(
            ExtensionWish("1.2.3.4", critical=False, value=None),
            ExtensionWish("1.2.3.5", critical=False, value=b"\x05\x00"),
            ExtensionWish(BC, critical=True, value=None),
        )
    )
    found = request(draft(key, OwnNames("dev-1"), asked, LocalPolicy())).extensions
    assert [one.oid.dotted_string for one in found] == ["1.2.3.5", BC]


@pytest.mark.parametrize(
    ("wish", "preferred", "chosen"),
    [
        (None, "EC-P384", "EC-P384"),
        (KeyWish(codec.EC_PUBLIC_KEY), "EC-P521", "EC-P521"),
        (KeyWish(codec.EC_PUBLIC_KEY), "RSA-2048", "EC-P256"),
        (KeyWish(codec.RSA_ENCRYPTION, bits=3072), "EC-P256", "RSA-3072"),
        (KeyWish(codec.ML_DSA_65), "EC-P256", "ML-DSA-65"),
    ],
)
def test_the_kind_of_key_is_the_one_wished_for(wish, preferred, chosen):
    assert choose_key_type(wish, preferred, LocalPolicy()) == chosen


@pytest.mark.parametrize(
    "wish",
    [KeyWish(codec.RSA_ENCRYPTION, bits=1024), KeyWish(codec.EC_PUBLIC_KEY, curve="1.3.36.3.3.2.8.1.1.11")],
)
def test_a_weak_or_unknown_kind_of_key_is_never_made(wish):
    with pytest.raises(CannotComply, match="another kind"):
        choose_key_type(wish, "EC-P256", LocalPolicy())


def test_a_key_that_exists_is_not_bent_to_a_wish_it_does_not_fit(key):
    with pytest.raises(CannotComply, match="EC-P384"):
        draft(key, OwnNames("dev-1"), wishes("rfc9908-5.5-p384-serial.csrattrs"), LocalPolicy())
    with pytest.raises(CannotComply, match="another kind"):
        choose_key_type(KeyWish(codec.ED25519), "EC-P256", LocalPolicy(key_types=("EC-P256",)))


# --- in plain words -------------------------------------------------------------------------------------------------


def test_a_request_is_explained(key):
    own = OwnNames("www", ("ip:10.0.0.1",))
    policy = LocalPolicy(names=("dns:*",))
    lines = "\n".join(
        explain.request_lines(request(draft(key, own, wishes("derived-rfc9908-3.4-csrattrs"), policy), b"x" * 32))
    )
    for words in ("EC-P256", "OU=myDept", "ip:10.0.0.1", "TLS client", "digital signature", "bound to one", "valid"):
        assert words in lines


def test_a_sha1_signature_is_called_by_its_name():
    found = load_csr((VECTORS / "rfc7030-A.3-simpleenroll-request.p10.b64").read_bytes())
    assert "SHA-1" in explain.request_facts(found)["signature"]
    assert explain.request_facts(found)["bound_to_a_connection"]


def test_a_damaged_signature_is_told(key):
    der = bytearray(CsrDraft.of(key, "sn-1").sign())
    at = der.index(b"sn-1")
    der[at : at + 4] = b"sn-2"
    assert "INVALID" in explain.request_facts(x509.load_der_x509_csr(bytes(der)))["signature"]


def test_wishes_are_explained():
    lines = "\n".join(explain.csrattrs_lines(wishes("derived-rfc9908-3.4-csrattrs")))
    for words in ("EC-P256", "CN=(the device fills it in)", "OU=myDept", "dns:www.myserver.com", "ip:(the device"):
        assert words in lines
    assert explain.csrattrs_lines(CsrAttrs()) == ["the server has no wishes"]


@pytest.mark.parametrize("form", ["pem", "der", "base64"])
def test_a_request_is_read_in_every_usual_form(key, form):
    der = CsrDraft.of(key, "sn-1").sign()
    data = {"pem": x509.load_der_x509_csr(der).public_bytes(Encoding.PEM), "der": der, "base64": base64.b64encode(der)}
    assert load_csr(data[form]).subject == parse_subject("sn-1")


@pytest.mark.parametrize("data", [b"", b"0", b"hello", b"-----BEGIN CERTIFICATE REQUEST-----\nAA\n", b"\x30\x03abc"])
def test_what_is_no_request_is_said_to_be_none(data):
    with pytest.raises(ConfigInvalid, match="not a certificate request"):
        load_csr(data)


# --- a profile's opinion --------------------------------------------------------------------------------------------


def verdicts(key, subject: str, *san: str) -> dict[str, str]:
    profile = Profile.parse((PROFILES / "device.toml").read_bytes())
    return {one.what: one.verdict for one in profile.opinions(request(CsrDraft.of(key, subject, san=san)))}


def test_the_device_profile_allows_a_device_its_own_name(key):
    assert verdicts(key, "sn-1", "dns:sn-1") == {
        "key EC-P256": "allowed",
        "subject common_name=sn-1": "allowed",
        "name dns:sn-1": "allowed",
    }


def test_the_device_profile_refuses_what_it_does_not_name(key):
    found = verdicts(key, "CN=sn-1,O=Acme", "dns:sn-2", "email:a@b.example")
    assert found["subject organization=Acme"] == "refused"
    assert found["name dns:sn-2"] == "depends on who asks"
    assert found["name email:a@b.example"] == "refused"


@pytest.mark.parametrize(
    "data", [b"\xff", b"x", b"[constraints]\n", b"constraints = 1", b"[constraints]\nkey_types = 1"]
)
def test_what_is_no_profile_is_said_to_be_none(data):
    with pytest.raises(ConfigInvalid, match="not a profile"):
        Profile.parse(data)
