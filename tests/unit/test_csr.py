"""Whatever the bytes are, they are a sound request or an error of ours."""

from __future__ import annotations

from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estserver import csr
from estserver.errors import EstError, MalformedRequest, ProofOfPossessionFailed
from estserver.model import Der, GeneralName, NameAttribute
from tests import csr_maker as maker
from tests import mutations
from tests.sound_extensions import SOUND_EXTENSIONS

KEY = maker.new_key()
SOUND = maker.request(
    KEY,
    [("2.5.4.3", "sn-1"), ("2.5.4.5", "0042")],
    san=["dns:a.example", "ip:192.0.2.1", "uri:urn:x", "email:a@b.example"],
    extensions=[maker.known(maker.usage("digital_signature")), maker.known(maker.purposes("1.3.6.1.5.5.7.3.2"))],
    binding=b"012345678901",
)
NAMED = maker.request(KEY, "sn-1", maker.attribute("1.3.6.1.4.1.55555.1", b"\x30\x00"))


def parsed(der: bytes) -> csr.Csr | None:
    """Parse; None for an error of ours, and every other exception is the test's."""
    try:
        return csr.parse(Der(der))
    except EstError as error:
        told = error.reasons
    assert told
    assert not any("\n" in reason for reason in told)
    return None


def test_everything_asked_is_read() -> None:
    asked = csr.parse(Der(SOUND))
    assert asked.der == SOUND
    assert asked.spki == maker.spki(KEY)
    assert asked.subject == (NameAttribute("2.5.4.3", "sn-1"), NameAttribute("2.5.4.5", "0042"))
    assert set(asked.san) == {
        GeneralName("dns", "a.example"),
        GeneralName("ip", "192.0.2.1"),
        GeneralName("uri", "urn:x"),
        GeneralName("email", "a@b.example"),
    }
    assert asked.key_usage == ("digital_signature",)
    assert asked.extended_key_usage == ("1.3.6.1.5.5.7.3.2",)
    assert asked.binding == "MDEyMzQ1Njc4OTAx"
    assert csr.parse(Der(NAMED)).attributes == ("1.3.6.1.4.1.55555.1",)


@given(st.binary(max_size=400))
def test_arbitrary_bytes(data: bytes) -> None:
    assert parsed(data) is None


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(st.data())
def test_mutated_requests_are_never_what_was_signed(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from([SOUND, NAMED]))
    octets = bytearray(base)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(octets) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "swell"])):
            case "set":
                octets[at] = data.draw(st.integers(0, 255))
            case "cut":
                del octets[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                octets[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "swell":
                octets[at:at] = octets[at : at + 40]
        if not octets:
            return
    found = parsed(bytes(octets))
    assert found is None or bytes(octets) == base or found.subject == csr.parse(Der(base)).subject


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["2.5.29.17", "2.5.29.15", "2.5.29.37", "2.5.29.19", "2.5.29.31", "2.5.29.32",
                                        "2.5.29.30", "2.5.29.36", "1.3.6.1.5.5.7.1.1", "1.3.6.1.5.5.7.1.24",
                                        "1.3.6.1.4.1.11129.2.4.2", "2.5.29.9", "1.3.6.1.4.1.311.21.7"]),
                       st.binary(max_size=40), st.booleans()), max_size=4)
)  # fmt: skip
def test_any_requested_extensions_in_a_well_signed_request(wishes: list[tuple[str, bytes, bool]]) -> None:
    parsed(maker.request(KEY, extensions=[maker.extension(o, v, critical=c) for o, v, c in wishes]))


@given(st.sampled_from(SOUND_EXTENSIONS), st.randoms(use_true_random=False))
def test_extensions_that_are_nearly_sound_in_a_well_signed_request(wish: tuple[str, bytes], rng: Random) -> None:
    parsed(maker.request(KEY, extensions=[maker.extension(wish[0], mutations.der(rng, wish[1]))]))


def test_an_extension_that_can_be_read_and_not_written_again_is_malformed() -> None:
    """A negative serial number in authorityKeyIdentifier was once an internal error."""
    identifier = maker.sequence(maker.tlv(0xA1, maker.tlv(0x82, b"a")), maker.tlv(0x82, b"\xff"))
    with pytest.raises(MalformedRequest, match="requested extensions cannot be read"):
        csr.parse(Der(maker.request(KEY, extensions=[maker.extension("2.5.29.35", identifier)])))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=20)), max_size=4), st.booleans())
def test_any_alternative_names_in_a_well_signed_request(names: list[tuple[int, bytes]], constructed: bool) -> None:
    value = maker.sequence(*(maker.tlv((0xA0 if constructed else 0x80) | kind, octets) for kind, octets in names))
    parsed(maker.request(KEY, extensions=[maker.extension("2.5.29.17", value)]))


@settings(max_examples=60)
@given(st.binary(max_size=60), st.sampled_from([0x0C, 0x13, 0x14, 0x16, 0x1E, 0x1C, 0x02, 0x30]))
def test_any_subject_in_a_well_signed_request(value: bytes, tag: int) -> None:
    name = maker.sequence(maker.set_of(maker.sequence(maker.oid("2.5.4.3"), maker.tlv(tag, value))))
    found = parsed(maker.request(KEY, name))
    assert found is None or not any(c in found.subject[0].value for c in "\0\r\n\x1b\u2028")


@settings(max_examples=60)
@given(st.binary(max_size=120))
def test_any_public_key_in_a_well_formed_request(octets: bytes) -> None:
    assert parsed(maker.request(KEY, public=maker.sequence(octets))) is None


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=30), max_size=3))
def test_any_attributes_in_a_well_signed_request(attributes: list[bytes]) -> None:
    parsed(maker.request(KEY, "sn-1", *attributes))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), "P-256"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "P-384"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "P-521"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
        (ed25519.Ed25519PrivateKey.generate, "Ed25519"),
        (ed448.Ed448PrivateKey.generate, "Ed448"),
        (mldsa.MLDSA44PrivateKey.generate, "ML-DSA-44"),
        (mldsa.MLDSA65PrivateKey.generate, "ML-DSA-65"),
        (mldsa.MLDSA87PrivateKey.generate, "ML-DSA-87"),
    ],
)
def test_every_kind_of_key_has_its_name(make, name: str) -> None:
    assert csr.parse(Der(maker.request(make()))).key.name == name


@pytest.mark.parametrize("bits", [2048, 3072])
def test_rsa_keys_have_their_size_in_the_name(bits: int) -> None:
    facts = csr.parse(Der(maker.request(rsa.generate_private_key(65537, bits)))).key
    assert (facts.algorithm, facts.name, facts.bits) == ("RSA", f"RSA-{bits}", bits)


def test_another_version_and_missing_parts_are_malformed() -> None:
    for info in (
        maker.info("sn-1", maker.spki(KEY), version=3),
        maker.sequence(b"\x02\x01\x00", maker.name("sn-1"), maker.spki(KEY)),
        maker.sequence(b"\x02\x01\x00", maker.name("sn-1"), maker.spki(KEY), b"\xa1\x00"),
    ):
        algorithm, value = maker.signature(KEY, info)
        with pytest.raises(MalformedRequest):
            csr.parse(Der(maker.sequence(info, algorithm, maker.bits(value))))


@pytest.mark.parametrize(
    "parameters",
    [b"", b"\x05\x00", maker.sequence(), maker.sequence(maker.tlv(0xA3, b"\x02\x01\x05")), maker.tlv(0x02, b"\x01"),
     maker.sequence(maker.tlv(0xA0, maker.sequence(maker.oid("1.2.3"))))],
)  # fmt: skip
@pytest.mark.parametrize("algorithm", ["1.2.840.113549.1.1.10", "1.2.840.113549.1.1.7", "1.2.840.10045.4.3", "1.2.3"])
def test_a_signature_algorithm_that_makes_no_sense_is_refused(algorithm: str, parameters: bytes) -> None:
    """RSASSA-PSS without sound parameters was once an internal error."""
    info = maker.info("sn-1", maker.spki(KEY))
    _, value = maker.signature(KEY, info)
    stated = maker.sequence(maker.oid(algorithm), parameters)
    with pytest.raises((MalformedRequest, ProofOfPossessionFailed)):
        csr.parse(Der(maker.sequence(info, stated, maker.bits(value))))


def test_the_signature_covers_what_was_asked() -> None:
    info = maker.info("sn-1", maker.spki(KEY))
    algorithm, value = maker.signature(KEY, maker.info("sn-2", maker.spki(KEY)))
    with pytest.raises(ProofOfPossessionFailed, match="POP"):
        csr.parse(Der(maker.sequence(info, algorithm, maker.bits(value))))
