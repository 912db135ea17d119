"""The server's octets: strict in, plain out."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import pkcs7
from hypothesis import given
from hypothesis import strategies as st

from devicesim import codec
from estserver import asn1, csrattrs
from estserver.errors import EstError, MalformedRequest
from estserver.model import Der, NameAttribute
from tests import csr_maker as maker

VECTORS = Path(__file__).parents[1] / "vectors"


@given(st.binary(min_size=1, max_size=4000), st.sampled_from([None, 1, 64, 76]))
def test_what_is_encoded_decodes_to_itself(der: bytes, columns: int | None) -> None:
    body = asn1.encode_body(Der(der), columns=columns)
    assert body.endswith(b"\n")
    assert asn1.decode_body(body) == der
    assert codec.decode_body(body) == der


@given(st.binary(max_size=300))
def test_a_body_decodes_or_is_malformed(body: bytes) -> None:
    try:
        der = asn1.decode_body(body)
    except MalformedRequest:
        return
    assert base64.b64encode(der) in body.translate(None, b" \t\r\n")


def test_a_body_of_white_space_or_more_than_one_padding_is_malformed() -> None:
    for body in (b"", b"  \n", b"MA==MA==", b"MA=", b"MA===", b"M", b"MA==\0", b"-----BEGIN X-----\n-----END X-----"):
        with pytest.raises(MalformedRequest):
            asn1.decode_body(body)


@given(st.integers(0, 255).filter(lambda tag: tag & 0x1F != 0x1F), st.binary(max_size=70_000))
def test_a_value_is_read_as_it_was_written(tag: int, content: bytes) -> None:
    octets = maker.tlv(tag, content)
    assert asn1.read_tlv(b"xy" + octets + b"z", 2) == (asn1.Tlv(tag, content, octets), 2 + len(octets))


@given(st.lists(st.binary(max_size=200), max_size=50))
def test_children_are_what_was_put_in(contents: list[bytes]) -> None:
    octets = [maker.tlv(0x04, content) for content in contents]
    assert [child.octets for child in asn1.read_children(b"".join(octets))] == octets


@given(st.binary(max_size=100))
def test_reading_ends_in_a_value_or_in_malformed(data: bytes) -> None:
    try:
        value, end = asn1.read_tlv(data)
    except MalformedRequest:
        return
    assert data[:end] == value.octets == maker.tlv(value.tag, value.content), "only minimal lengths are read"


@given(st.binary(max_size=200))
def test_the_readers_of_parts_raise_nothing_else(data: bytes) -> None:
    for read in (asn1.request_parts, asn1.name_attributes, asn1.dotted):
        try:
            read(Der(data))
        except EstError:
            continue


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
def test_object_identifiers_go_round(arcs: list[int]) -> None:
    for first in ((0, 9), (1, 3), (2, 5), (2, 47)):
        dotted = ".".join(map(str, (*first, *arcs)))
        assert asn1.oid_der(dotted) == maker.oid(dotted)
        assert asn1.dotted(asn1.oid_der(dotted)) == dotted


@given(st.text(st.characters(codec="utf-8"), max_size=50))
def test_texts_of_every_type_are_the_same_text(value: str) -> None:
    for tag in (maker.UTF8, maker.BMP, maker.T61, maker.PRINTABLE, maker.IA5):
        try:
            octets = maker.text(value, tag)
        except UnicodeEncodeError:
            continue
        assert asn1.directory_string(asn1.read_tlv(octets)[0]) == value


@given(st.lists(st.tuples(st.sampled_from(["2.5.4.3", "2.5.4.5"]), st.text(st.characters(codec="ascii"), max_size=20))))
def test_names_are_read_in_their_order(pairs: list[tuple[str, str]]) -> None:
    if len(pairs) > 32:
        return
    assert asn1.name_attributes(Der(maker.name(pairs))) == tuple(NameAttribute(*pair) for pair in pairs)


@pytest.mark.parametrize("name", sorted(p.name for p in VECTORS.glob("*.p10.der")))
def test_the_rfcs_requests_come_apart(name: str) -> None:
    parts = asn1.request_parts(Der((VECTORS / name).read_bytes()))
    passwords = [values for oid, values in parts.attributes if oid == asn1.OID_CHALLENGE_PASSWORD]
    text = asn1.directory_string(passwords[0][0])
    assert text in ("+rrCir/7+EYu50T4", "dFsAXmJnjokBtDvr")


def test_both_sides_read_what_the_server_writes() -> None:
    der = base64.b64decode((VECTORS / "rfc7030-A.3-simpleenroll-response.p7.b64").read_bytes())
    certificates = [c.public_bytes(maker.Encoding.DER) for c in codec.certs_only(der)]
    bag = asn1.certs_only([Der(c) for c in certificates])
    assert [c.public_bytes(maker.Encoding.DER) for c in codec.certs_only(bag)] == certificates
    assert len(pkcs7.load_der_pkcs7_certificates(bag)) == 1
    assert b"\xa1\x00" not in bag[-4:], "no empty crls field is written"


def test_a_template_without_wishes_keeps_its_mandatory_field() -> None:
    """S-X08: `attributes [1]` is always there; subject and key only where they are wanted."""
    empty = csrattrs.request_template(subject=[], key=None, extensions=[])
    assert empty == maker.sequence(b"\x02\x01\x00", b"\xa1\x00")
    assert csrattrs.csr_attrs([]) == (VECTORS / "derived-csrattrs-empty-sequence.der").read_bytes()


def rdns(*octets: bytes) -> Der:
    return Der(maker.sequence(*octets))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (rdns(maker.set_of(maker.sequence(maker.oid("2.5.4.3"), maker.text("x")), maker.sequence())), "several attr"),
        (rdns(maker.set_of()), "several attributes"),
        (rdns(maker.set_of(maker.sequence(maker.oid("2.5.4.3")))), "a type and a value"),
        (rdns(maker.set_of(maker.sequence(maker.text("x"), maker.text("x")))), "type"),
        (rdns(maker.set_of(maker.sequence(maker.oid("2.5.4.3"), b"\x05\x00"))), r"not a character string \(tag 0x05\)"),
        (rdns(maker.set_of(maker.sequence(maker.oid("2.5.4.3"), maker.tlv(0x0C, b"\xff")))), "not of its type"),
        (Der(maker.set_of()), "a distinguished name"),
    ],
)
def test_a_name_that_is_none_is_malformed_in_words(name: Der, words: str) -> None:
    with pytest.raises(MalformedRequest, match=words):
        asn1.name_attributes(name)


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"\x06\x00", "not encoded right"),
        (b"\x06\x01\x80", "not encoded right"),
        (b"\x06\x03\x2a\x80\x01", "not encoded right"),
        (b"\x06\x02\x2a\x83", "not encoded right"),
        (b"\x02\x01\x01", "not encoded right"),
        (maker.tlv(0x06, b"\x2a" * 200), "is too long"),
    ],
)
def test_an_object_identifier_that_is_none_is_malformed(octets: bytes, words: str) -> None:
    """Empty, unfinished and padded ones were once read."""
    with pytest.raises(MalformedRequest, match=words):
        asn1.dotted(octets)


def test_a_certificate_to_be_has_its_eight_parts() -> None:
    parts = [maker.tlv(0x30, bytes([number])) for number in range(8)]
    assert asn1.certificate_parts(Der(maker.sequence(*parts))) == (parts[3], parts[5], parts[6])
    with pytest.raises(MalformedRequest, match="eight parts"):
        asn1.certificate_parts(Der(maker.sequence(*parts[:7])))


@pytest.mark.parametrize("value", [0, 127, 128, 3072, 65537, (1 << 64) - 1])
def test_integers_are_as_short_as_they_can_be(value: int) -> None:
    assert asn1.integer_der(value) == maker.tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1))
