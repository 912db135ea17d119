"""Where a request stops being taken: the last value that is read, and the first that is not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver import csr
from estserver.csr import KEY_USAGE_BITS, Bounds
from estserver.errors import MalformedRequest, ProofOfPossessionFailed, WeakKey
from estserver.model import Csr, Der, GeneralName, KeyFacts
from tests import csr_maker as maker

KEY = maker.new_key()


def parse(*arguments: Any, bounds: Bounds = csr.DEFAULT_BOUNDS, key: Any = KEY, **how: Any) -> Csr:
    return csr.parse(Der(maker.request(key, *arguments, **how)), bounds)


def refused(words: str, *arguments: Any, **how: Any) -> None:
    with pytest.raises(MalformedRequest, match=words):
        parse(*arguments, **how)


# --- names ----------------------------------------------------------------------------------------------------------


def san(*octets: bytes) -> bytes:
    return maker.extension("2.5.29.17", maker.sequence(*octets))


dns, uri, email = (partial(maker.tlv, tag) for tag in (0x82, 0x86, 0x81))


def test_every_kind_of_name_is_read_in_its_form() -> None:
    other = maker.tlv(0xA0, maker.oid("1.2.3"), maker.tlv(0xA0, b"\x05\x00"))
    directory = maker.name("x")
    asked = parse(
        extensions=[
            san(
                dns(b"B.example"),
                dns(b"b.EXAMPLE"),
                maker.tlv(0x87, bytes([192, 0, 2, 1])),
                maker.tlv(0x87, bytes(15) + b"\x01"),
                uri(b"URN:x:Y"),
                email(b"A@B.example"),
                maker.tlv(0x88, maker.oid("1.2.3")[2:]),
                maker.tlv(0xA4, directory),
                other,
            )
        ]
    )
    assert asked.san == (
        GeneralName("dirname", directory.hex()),
        GeneralName("dns", "b.example"),
        GeneralName("email", "A@B.example"),
        GeneralName("ip", "192.0.2.1"),
        GeneralName("ip", "::1"),
        GeneralName("other", "1.2.3:0500"),
        GeneralName("rid", "1.2.3"),
        GeneralName("uri", "URN:x:Y"),
    ), "a set, sorted; a DNS name once, whatever its case"
    assert asked.extensions == (), "the SAN is read, not carried along"


@pytest.mark.parametrize("tag", [0xA3, 0xA5])
def test_x400_and_edi_names_are_of_no_kind_that_is_read(tag: int) -> None:
    refused("cannot be read", extensions=[san(maker.tlv(tag, maker.tlv(0x30)))])


def test_so_many_names_are_taken_and_one_more_is_not() -> None:
    names = [f"dns:h{number}.example" for number in range(4)]
    bounds = Bounds(names_max=3)
    assert len(parse(san=names[:3], bounds=bounds).san) == 3
    refused("4 subject alternative names; at most 3 are taken", san=names, bounds=bounds)
    assert (csr.DEFAULT_BOUNDS.names_max, csr.DEFAULT_BOUNDS.name_max_chars) == (100, 2048)


def test_names_are_so_long_and_no_longer() -> None:
    bounds = Bounds(name_max_chars=9)
    assert parse("a" * 9, san=["uri:urn:x:abc"], bounds=bounds).san == (GeneralName("uri", "urn:x:abc"),)
    refused(r"name \(uri\) is too long", san=["uri:urn:x:abcd"], bounds=bounds)
    refused("an attribute that is too long", "a" * 10, bounds=bounds)


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b"a-b.example",
        b"_service._tcp.example",
        b"*.example",
        b"1.example",
        b"1.2.3.example",
        b"1.2.3",
        b"a" * 63 + b".example",
        b".".join([b"a" * 61] * 4) + b".abcde",
    ],
)
def test_a_dns_name_of_good_form(value: bytes) -> None:
    assert parse(extensions=[san(dns(value))]).san == (GeneralName("dns", value.decode()),)


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b".", b".a", b"a.", b"a..b", b"-a", b"a-", b"a b", b"a/b", b"*", b"a.*.b", b"*a.b", b"*.*.b"),
        *(b"192.0.2.1", b"999.999.999.999", b"a" * 64, b".".join([b"a" * 61] * 4) + b".abcdef"),
        *(b"a\n", b"b\xc3\xbccher"),
    ],
)  # fmt: skip
def test_a_dns_name_of_bad_form(value: bytes) -> None:
    refused("is not well-formed|control characters|cannot be read", extensions=[san(dns(value))])


@pytest.mark.parametrize(
    ("name", "good"),
    [
        (uri(b"urn:x"), True),
        (uri(b"a+b-c.1:x"), True),
        (uri(b"https://[2001:db8::1]/a?b=c#d%20e"), True),
        (uri(b"x"), False),
        (uri(b":x"), False),
        (uri(b"1a:x"), False),
        (uri(b"urn:"), False),
        (uri(b"urn:a b"), False),
        (uri(b"urn:<a>"), False),
        (email(b"a@b.example"), True),
        (email(b"a+b.c@b"), True),
        (email(b"a" * 64 + b"@b.example"), True),
        (email(b"a" * 65 + b"@b.example"), False),
        (email(b"@b.example"), False),
        (email(b"a@"), False),
        (email(b"a@b."), False),
        (email(b"a b@b.example"), False),
        (email(b"b.example"), False),
    ],
)
def test_the_form_of_uris_and_mail_addresses(name: bytes, good: bool) -> None:
    if good:
        assert len(parse(extensions=[san(name)]).san) == 1
    else:
        refused("is not well-formed|cannot be read", extensions=[san(name)])


@pytest.mark.parametrize("character", ["\0", "\x1f", "\x7f", "\x80", "\x9f", "\u2028", "\u2029", "\ufeff"])
def test_a_subject_has_no_control_characters(character: str) -> None:
    refused("control characters", f"a{character}b")
    assert parse("a\u00a0\u2027\u202ab\x20~").subject[0].value == "a\u00a0\u2027\u202ab ~"


def test_a_name_of_another_kind_has_no_control_characters_either() -> None:
    refused(r"\(uri\) .*control characters", extensions=[san(uri(b"urn:a\x01"))])


# --- attributes -----------------------------------------------------------------------------------------------------


def test_a_challenge_password_has_1_to_255_characters() -> None:
    """RFC 2985 §5.4.1."""
    for length in (1, 255):
        assert parse(binding="x" * length).binding == "x" * length
    for length in (0, 256):
        refused("empty or longer than 255 characters", binding="x" * length)
    assert parse().binding is None


def test_attributes_that_mean_something_come_once_with_one_value() -> None:
    one = maker.sequence(maker.known(maker.usage("digital_signature")))
    request, password = maker.EXTENSION_REQUEST, maker.CHALLENGE_PASSWORD
    change = maker.sequence(maker.name("sn-2"))
    for dotted, value, words in (
        (request, one, r"more than one extensionRequest attribute \(RFC 2985"),
        (password, maker.text("x"), r"more than one challengePassword \(RFC 7030"),
        (maker.CHANGE_SUBJECT_NAME, change, r"more than one ChangeSubjectName \(RFC 6402"),
    ):
        single, other = maker.attribute(dotted, value), maker.attribute(dotted, value, value[:-1] + b"y")
        assert parse("sn-1", single).attributes == ()
        for attributes in ((single, single), (other,), (maker.attribute(dotted),)):
            refused(words, "sn-1", *attributes)


def test_microsofts_extension_request_is_one_too() -> None:
    value = maker.sequence(maker.known(maker.names("dns:a.example")))
    microsoft = maker.attribute("1.3.6.1.4.1.311.2.1.14", value)
    assert parse("sn-1", microsoft).san == (GeneralName("dns", "a.example"),)
    refused("more than one extensionRequest", "sn-1", microsoft, maker.attribute(maker.EXTENSION_REQUEST, value))


# --- wishes ---------------------------------------------------------------------------------------------------------


def test_every_key_usage_is_read_by_its_name() -> None:
    for bit in KEY_USAGE_BITS[:7]:
        assert parse(extensions=[maker.known(maker.usage(bit))]).key_usage == (bit,)
    for only in ("encipher_only", "decipher_only"):
        both = parse(extensions=[maker.known(maker.usage("key_agreement", only))])
        assert both.key_usage == ("key_agreement", only)


def test_wishes_are_told_apart_from_none() -> None:
    plain = parse()
    assert (plain.key_usage, plain.extended_key_usage, plain.ca, plain.san, plain.extensions) == (
        None, None, False, (), (),
    )  # fmt: skip
    empty = parse(extensions=[maker.extension("2.5.29.15", b"\x03\x02\x07\x00")])
    assert empty.key_usage == ()


def test_criticality_and_octets_of_a_wish_are_kept() -> None:
    found = parse(
        extensions=[
            maker.known(maker.purposes("1.2.3", "1.2.4"), critical=True),
            maker.extension("1.2.3.4", b"\x05\x00"),
            maker.known(maker.names("dns:a.example"), critical=True),
        ]
    )
    assert [(one.oid, one.critical, one.value) for one in found.extensions] == [
        ("2.5.29.37", True, maker.purposes("1.2.3", "1.2.4").public_bytes()),
        ("1.2.3.4", False, b"\x05\x00"),
    ]
    assert found.extended_key_usage == ("1.2.3", "1.2.4")


def test_what_cannot_be_read_says_what_the_library_says_of_it() -> None:
    with pytest.raises(MalformedRequest, match=r"^the request cannot be read: Invalid key$"):
        parse(public=maker.spki(KEY)[:-1] + b"\0")
    with pytest.raises(MalformedRequest, match=r"^the request cannot be read: .*arse"):
        csr.parse(Der(maker.sequence(maker.info("sn-1", maker.spki(KEY)), maker.sequence(), maker.bits(b"x"))))


@pytest.mark.parametrize("ca", [True, False])
def test_a_wish_to_be_a_ca_is_read(ca: bool) -> None:
    constraints = maker.extension("2.5.29.19", maker.sequence(b"\x01\x01\xff" if ca else b""))
    assert parse(extensions=[constraints]).ca is ca


# --- keys and signatures --------------------------------------------------------------------------------------------


def test_a_key_has_its_facts() -> None:
    assert parse().key == KeyFacts("EC", "P-256", 256)
    assert parse(key=ec.generate_private_key(ec.SECP521R1())).key == KeyFacts("EC", "P-521", 521)
    assert parse(key=rsa.generate_private_key(65537, 2048)).key == KeyFacts("RSA", "RSA-2048", 2048)


def test_weak_and_blocked_keys_are_screened_before_their_signature() -> None:
    digest = csr.spki_hash(maker.spki(KEY))
    with pytest.raises(WeakKey, match="block list"):
        parse(bounds=Bounds(blocked=frozenset({digest})))
    assert parse(bounds=Bounds(blocked=frozenset({csr.spki_hash(b"other")}))).spki_sha256 == digest
    even = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n - 1
    integers = (maker.tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1)) for value in (even, 65537))
    public = maker.sequence(
        maker.sequence(maker.oid("1.2.840.113549.1.1.1"), b"\x05\x00"), maker.bits(maker.sequence(*integers))
    )
    with pytest.raises((WeakKey, MalformedRequest), match=r"small factor|cannot be read"):
        parse(public=public)


def test_a_key_that_cannot_sign_is_told_what_to_do() -> None:
    with pytest.raises(MalformedRequest) as told:
        csr.key_facts(x25519.X25519PrivateKey.generate().public_key())
    assert str(told.value) == "the key cannot sign, so possession of it cannot be shown in PKCS#10"
    assert told.value.advice == "keys for encryption or key agreement need full CMC or RFC 9883"


@pytest.mark.parametrize("name", ["SHA256", "SHA384", "SHA512"])
def test_the_hash_of_a_signature_has_its_name(name: str) -> None:
    assert parse(hash_name=name).signature_hash == name


@pytest.mark.parametrize("name", ["SHA1", "SHA224"])
def test_a_weak_hash_is_refused_by_name(name: str) -> None:
    with pytest.raises(ProofOfPossessionFailed, match=f"signed with {name}; SHA-256, SHA-384 or SHA-512") as told:
        parse(hash_name=name)
    assert told.value.code == "weak-signature"


@pytest.mark.parametrize(
    "signature", [b"", b"x", bytes(64), bytes(256), maker.sequence(b"\x02\x01\x01", b"\x02\x01\x01")]
)
@pytest.mark.parametrize("algorithm", ["1.2.840.113549.1.1.11", "1.2.840.10045.4.3.2", "1.3.101.112", "1.3.101.113"])
@pytest.mark.parametrize(
    "key", [KEY, rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()], ids=["EC", "RSA", "Ed"]
)
def test_octets_that_are_no_signature_prove_nothing_whatever_they_say_they_are(
    key: Any, algorithm: str, signature: bytes
) -> None:
    stated = maker.sequence(maker.oid(algorithm))
    der = maker.sequence(maker.info("sn-1", maker.spki(key)), stated, maker.bits(signature))
    with pytest.raises((ProofOfPossessionFailed, MalformedRequest), match=r"POP|not supported|cannot be read"):
        csr.parse(Der(der))


def test_a_statement_of_possession_is_for_keys_that_cannot_sign() -> None:
    words = maker.attribute(csr.possession.OID_STATEMENT, maker.sequence())
    refused(r"leave out the statement \(RFC 9883 §6\)", "sn-1", words)
    twice = (words, maker.attribute(csr.possession.OID_STATEMENT, maker.sequence(b"\x05\x00")))
    refused(r"more than one statement of possession \(RFC 9883 §3\)", "sn-1", *twice)


def test_a_key_that_changes_when_it_is_encoded_again_is_told_how_to_send_it() -> None:
    point = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = maker.sequence(maker.oid("1.2.840.10045.2.1"), maker.oid("1.2.840.10045.3.1.7"))
    with pytest.raises(MalformedRequest) as told:
        parse(public=maker.sequence(algorithm, maker.bits(point)))
    assert str(told.value) == (
        "the public key changes when it is encoded again (RSA-PSS parameters, compressed point): "
        "send it as rsaEncryption or as an uncompressed point"
    )


def test_an_attestation_is_known_by_its_digest_and_size() -> None:
    bundle = maker.sequence(maker.sequence(maker.sequence(maker.oid("1.2.3"), b"\x05\x00")))
    found = parse("sn-1", maker.attribute(csr.attestation.OID_ATTESTATION, bundle))
    assert found.attestation is not None
    assert (found.attestation.sha256, found.attestation.size_bytes) == (sha256(bundle).hexdigest(), len(bundle))
    assert found.attributes == ()
    assert parse().attestation is None


# --- where the server makes the key ---------------------------------------------------------------------------------


def test_where_the_key_is_made_here_the_one_in_the_request_shows_its_kind_at_most() -> None:
    for public, facts in (
        (maker.spki(KEY), KeyFacts("EC", "P-256", 256)),
        (maker.spki(x25519.X25519PrivateKey.generate()), csr.UNKNOWN_KEY),
        (maker.sequence(maker.sequence(maker.oid("1.2.3")), maker.bits(b"x")), csr.UNKNOWN_KEY),
    ):
        asked = csr.parse_without_key(Der(maker.request(maker.new_key(), "sn-1", public=public)))
        assert (asked.key, asked.signature_hash, asked.spki) == (facts, "", public)
    assert (csr.UNKNOWN_KEY.algorithm, csr.UNKNOWN_KEY.name) == ("", "unknown")
    bounds = Bounds(names_max=0)
    with pytest.raises(MalformedRequest, match="at most 0 are taken"):
        csr.parse_without_key(Der(maker.request(KEY, san=["dns:a.example"])), bounds)


def test_the_key_made_here_takes_the_place_of_the_other() -> None:
    asked, made = csr.parse_without_key(Der(maker.request(KEY, "sn-1"))), Der(maker.spki(maker.new_key()))
    given = csr.with_key(replace(asked, signature_hash="SHA256", key=csr.UNKNOWN_KEY), made)
    assert (given.spki, given.spki_sha256, given.key) == (made, csr.spki_hash(made), KeyFacts("EC", "P-256", 256))
    assert (given.der, given.subject, given.signature_hash) == (asked.der, asked.subject, "")


# --- words ----------------------------------------------------------------------------------------------------------


def test_what_a_library_says_is_told_as_one_line_of_plain_characters() -> None:
    def line(*text: str) -> str:
        return csr._first_line(ValueError(*text))

    assert line("one\ntwo") == line("one\ntwo\nthree") == "one"
    assert line("a\u2028é\x1b~ ") == "a???~ "
    assert line("x" * 161) == "x" * 160
    assert line() == line("") == "ValueError"
