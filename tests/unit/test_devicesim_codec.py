"""The client's own decoding, against the bytes of the RFCs and against noise."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from devicesim import codec
from devicesim.codec import AttributeWish, CsrAttrs, KeyWish, certs_only, decode_body, parse_csrattrs
from devicesim.errors import BadAnswer, DeviceSimError

VECTORS = Path(__file__).parents[1] / "vectors"
P256 = KeyWish(codec.EC_PUBLIC_KEY, curve="1.2.840.10045.3.1.7")
P384 = KeyWish(codec.EC_PUBLIC_KEY, curve="1.3.132.0.34")
P521 = KeyWish(codec.EC_PUBLIC_KEY, curve="1.3.132.0.35")
SAN, KU, EKU = "2.5.29.17", "2.5.29.15", "2.5.29.37"


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def attrs(name: str) -> CsrAttrs:
    return parse_csrattrs(decode_body(vector(f"{name}.b64")))


# --- base64 ---------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.sampled_from([b"\n", b"\r\n", b" ", b"\t", b" \r\n\t"]), st.integers(1, 80))
def test_base64_may_be_wrapped_in_any_white_space(data, space, width):
    text = base64.b64encode(data)
    wrapped = space.join(text[i : i + width] for i in range(0, len(text), width)) + space
    assert decode_body(wrapped) == data


@pytest.mark.parametrize("body", [b"MAA", b"MA-_", b"<html>", b"-----BEGIN X-----", "é".encode()])
def test_what_is_not_base64_is_refused(body):
    with pytest.raises(BadAnswer, match="base64"):
        decode_body(body)


# --- certs-only -----------------------------------------------------------------------------------------------------


def test_a_certificate_that_our_library_will_refuse_one_day_is_no_warning():
    """Found by hypothesis: a serial number that is not positive."""
    message = decode_body(vector("rfc7030-A.3-simpleenroll-response.p7.b64"))
    (certificate,) = certs_only(message)
    length = (certificate.serial_number.bit_length() + 8) // 8
    serial = bytes((2, length)) + certificate.serial_number.to_bytes(length)
    assert serial in message
    (odd,) = certs_only(message.replace(serial, bytes((2, length, 0x80)) + serial[3:]))
    assert odd.subject == certificate.subject


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("rfc7030-A.1-cacerts-response.p7", 4),  # an unsorted set, and an empty crls field
        ("rfc7030-A.3-simpleenroll-response.p7", 1),
    ],
)
def test_the_answers_printed_in_rfc_7030_are_read(name, count):
    certificates = certs_only(decode_body(vector(f"{name}.b64")))
    assert len(certificates) == count
    assert all(isinstance(found, x509.Certificate) for found in certificates)


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30\x00",
        b"\x30\x80",
        vector("rfc7030-A.3-simpleenroll-request.p10.der"),
        vector("rfc7030-A.3-simpleenroll-response.p7.der")[:-5],
        vector("rfc7030-A.3-simpleenroll-response.p7.der") + b"\x00",
        bytes.fromhex("301f06092a864886f70d010702a0123010020101310030 0906092a864886f70d0107013100".replace(" ", "")),
    ],
)
def test_what_is_not_certs_only_is_refused(der):
    with pytest.raises(BadAnswer):
        certs_only(der)


@given(st.binary(max_size=400))
def test_noise_is_refused_as_certs_only(noise):
    with pytest.raises(DeviceSimError):
        certs_only(noise)


@given(st.data())
def test_a_damaged_answer_gives_certificates_or_our_error(data):
    der = bytearray(vector("rfc7030-A.3-simpleenroll-response.p7.der"))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = certs_only(bytes(der))
    except DeviceSimError:
        return
    assert all(isinstance(one, x509.Certificate) for one in found)


def test_octets_of_an_extension_are_returned_as_they_stand():
    (certificate,) = certs_only(decode_body(vector("rfc7030-A.3-simpleenroll-response.p7.b64")))
    found = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert codec.raw_extension(certificate, KU) == found.value.public_bytes()
    assert codec.raw_extension(certificate, "1.2.3") is None
    assert certificate.public_bytes(Encoding.DER)


# --- CsrAttrs: legacy lists -----------------------------------------------------------------------------------------


def test_an_empty_sequence_is_no_wishes():
    assert attrs("derived-csrattrs-empty-sequence") == CsrAttrs()


def test_unknown_attributes_of_rfc_7030_a2_are_ignored():
    wishes = attrs("rfc7030-A.2-csrattrs.csrattrs")
    assert wishes.binding
    assert (wishes.subject, wishes.key, wishes.extensions) == (None, None, ())


def test_the_nonconformant_example_of_rfc_7030_does_no_harm():
    wishes = attrs("rfc7030-4.5.2-original-NONCONFORMANT-per-9908.csrattrs")
    assert wishes.binding
    assert wishes.key == P384
    assert wishes.extensions == ()


@pytest.mark.parametrize(
    ("name", "binding", "key", "subject"),
    [
        ("rfc9908-5.2-rfc7030-corrected.csrattrs", True, P384, None),
        ("rfc9908-5.4-rsa4096.csrattrs", True, KeyWish(codec.RSA_ENCRYPTION, bits=4096), None),
        ("rfc9908-5.5-p384-serial.csrattrs", True, P384, (((AttributeWish("2.5.4.5", None)),),)),
        ("rfc9908-5.6-p521-friendlyname-drink.csrattrs", True, P521, ((AttributeWish("2.5.4.5", None),),)),
        ("rfc9908-5.3-potato-AS-PUBLISHED-WRONG.csrattrs", True, P521, ((AttributeWish("2.5.4.5", None),),)),
        ("derived-rfc9908-5.3-potato-corrected", True, P521, None),
    ],
)
def test_the_examples_of_rfc_9908(name, binding, key, subject):
    wishes = attrs(name)
    assert (wishes.binding, wishes.key, wishes.subject, wishes.from_template) == (binding, key, subject, False)


def test_an_extension_asked_for_in_a_legacy_list():
    (wish,) = attrs("rfc9908-5.1-acp-san.csrattrs").extensions
    assert (wish.oid, wish.critical) == (SAN, True)
    (name,) = codec.san_wishes(wish.value)
    assert (name.kind, name.partial) == ("other", False)
    assert b"rfc8994+fd739fc23c3440112233445500000000+@acp.example.com" in name.der
    (potato,) = codec.san_wishes(attrs("derived-rfc9908-5.3-potato-corrected").extensions[0].value)
    assert potato.text == "email:potato@example.com"


# --- CsrAttrs: templates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "-WITH-PRINTED-OID-1.2.840.113549.1.9.62"])
def test_the_template_of_rfc_9908_with_the_right_and_the_printed_identifier(suffix):
    wishes = attrs(f"derived-rfc9908-3.4-csrattrs{suffix}")
    assert wishes.from_template
    assert wishes.key == P256
    assert wishes.subject == (
        (AttributeWish("2.5.4.3", None),),
        (AttributeWish("2.5.4.11", "myDept"),),
        (AttributeWish("2.5.4.11", "myGroup"),),
    )
    san, usage, purposes = wishes.extensions
    assert [(name.text, name.partial) for name in codec.san_wishes(san.value)] == [
        ("dns:www.myserver.com", False),
        ("ip:", True),
    ]
    assert (usage.oid, usage.critical, usage.value) == (KU, True, bytes.fromhex("03020388"))
    assert (purposes.oid, purposes.value) == (EKU, None)


def test_a_template_comes_before_the_legacy_list_beside_it():
    wishes = attrs("derived-rfc9908-coexist-legacy-p384-plus-template-p256")
    assert wishes.key == P256


def test_a_template_says_the_size_of_an_rsa_key_by_a_placeholder():
    wishes = attrs("derived-rfc9908-template-rsa3072-empty-attributes")
    assert wishes.key == KeyWish(codec.RSA_ENCRYPTION, bits=3072)
    assert wishes.subject is None


def test_a_template_may_have_no_opinion_about_the_subject():
    wishes = attrs("derived-rfc9908-template-no-subject-full-extensionReq")
    assert wishes.subject is None
    assert [name.text for name in codec.san_wishes(wishes.extensions[0].value)] == ["dns:dev1.example.com"]


@pytest.mark.parametrize("der", ["", "05 00", "30 01", "30 02 05 00", "31 00", "30 80 00 00 00"])
def test_what_are_not_csr_attributes_is_refused(der):
    with pytest.raises(BadAnswer):
        parse_csrattrs(bytes.fromhex(der))


@given(st.sampled_from(sorted(VECTORS.glob("*csrattrs*.der")) + sorted(VECTORS.glob("*template*.der"))), st.data())
def test_damaged_csr_attributes_are_wishes_or_our_error(path, data):
    der = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        wishes = parse_csrattrs(bytes(der))
        for wish in wishes.extensions:
            if wish.value is not None:
                codec.san_wishes(wish.value)
                codec.asks_for_ca(wish.oid, wish.value)
    except DeviceSimError:
        pass


@given(st.binary(max_size=300))
def test_noise_in_any_reader_gives_our_error_or_a_value(noise):
    for reader in (decode_body, parse_csrattrs, codec.san_wishes, lambda raw: codec.asks_for_ca("2.5.29.19", raw)):
        try:
            reader(noise)
        except DeviceSimError as error:
            assert error.line  # noqa: PT017 - both ends are right
