"""Keys made by the server: what is chosen, how it is written, and what is refused before any key is made."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.envelope import OwnCertificate, SharedKey, load_pkcs8, unseal
from devicesim.errors import BadAnswer
from estserver import csr, keygen, sealing
from estserver.assembly import load_profiles
from estserver.ca import make_ca_certificate, serial_from
from estserver.errors import ConfigError, MalformedRequest, NotAuthorized, PolicyRefused
from estserver.keys import DEVICE_KINDS, KINDS, FileSigner, GeneratedKey, read_shared_keys
from estserver.model import Der, KeyFacts
from estserver.policy import Profile
from estserver.sealing import Capability, Generator
from tests import csr_maker
from tests.csr_maker import new_key, request, sequence, spki, tlv
from tests.protocol.client_stub import build, name

PROFILES = Path(__file__).parents[2] / "estserver" / "policy" / "profiles"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
WRAPS = {bits: f"2.16.840.1.101.3.4.1.{arc}" for bits, arc in ((128, 5), (192, 25), (256, 45))}
CIPHERS = {bits: f"2.16.840.1.101.3.4.1.{arc}" for bits, arc in ((128, 2), (192, 22), (256, 42))}
ECDH = "1.3.132.1.11.1"


@pytest.fixture(scope="module")
def device() -> Profile:
    return load_profiles(PROFILES)["device"]


def generator_of(directory: Path, kind: str) -> Generator:
    signer = FileSigner.generate(kind, directory / "tls.key")
    certificate = make_ca_certificate(
        subject="EST",
        spki=signer.spki,
        serial=serial_from(os.urandom(20)),
        not_before=NOW,
        not_after=NOW + timedelta(days=9999),
        issuer=signer,
    )
    return Generator(signer, (certificate,))


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return generator_of(tmp_path_factory.mktemp("generator"), "P-256")


def limited(profile: Profile, **constraints: Any) -> Profile:
    return profile.model_copy(update={"constraints": profile.constraints.model_copy(update=constraints)})


# --- the kind of key -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wished", "types", "made"),
    [
        (KeyFacts("EC", "P-384", 384), ("P-256", "P-384"), "P-384"),
        (KeyFacts("EC", "P-521", 521), ("P-384", "P-256"), "P-384"),
        (KeyFacts("RSA", "RSA-1024", 1024), ("P-256", "RSA"), "RSA-2048"),
        (KeyFacts("RSA", "RSA-4096", 4096), ("P-256",), "P-256"),
        (KeyFacts("ML-DSA", "ML-DSA-87"), ("P-256", "ML-DSA-44"), "ML-DSA-44"),
        (csr.UNKNOWN_KEY, ("Ed25519", "P-256"), "Ed25519"),
    ],
)
def test_the_kind_of_key_is_the_one_wished_or_one_the_profile_takes(
    device: Profile, wished: KeyFacts, types: tuple[str, ...], made: str
) -> None:
    assert keygen.kind_for(limited(device, key_types=types), wished) == made


def test_a_preferred_kind_comes_before_the_first(device: Profile) -> None:
    assert keygen.kind_for(device.model_copy(update={"preferred_key": "P-521"}), csr.UNKNOWN_KEY) == "P-521"


def test_a_profile_that_takes_nothing_that_is_made_here_refuses(device: Profile) -> None:
    with pytest.raises(PolicyRefused):
        keygen.kind_for(limited(device, key_types=("RSA",), rsa_bits=(4096, 8192)), csr.UNKNOWN_KEY)


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_every_kind_is_made_and_is_what_it_says(kind: str) -> None:
    key = GeneratedKey(kind)
    asked = csr.parse_without_key(Der(request(new_key(), "sn-1")))
    made = csr.with_key(asked, key.spki)
    assert made.key.name == kind
    assert spki(load_pkcs8(key.pkcs8())) == made.spki == key.spki
    assert made.spki_sha256 == csr.spki_hash(key.spki) != asked.spki_sha256
    assert "PRIVATE" not in repr(key)


# --- what a request says ---------------------------------------------------------------------------------------------


def capability(*oids: str) -> bytes:
    return csr_maker.attribute("1.2.840.113549.1.9.15", sequence(*(sequence(csr_maker.oid(one)) for one in oids)))


def shared(key_id: bytes) -> bytes:
    return csr_maker.attribute("1.2.840.113549.1.9.16.2.37", tlv(0x04, key_id))


def test_a_request_without_a_decryption_key_wants_it_in_clear() -> None:
    assert keygen.wish_of(Der(request(new_key(), "sn-1", capability(CIPHERS[256])))) == keygen.Wish()


@pytest.mark.parametrize(
    "value",
    [tlv(0x04), sequence(tlv(0x04)), sequence(sequence()), sequence(sequence(tlv(0x04))), sequence(*[sequence()] * 65)],
)
def test_capabilities_that_are_none(value: bytes) -> None:
    listed = csr_maker.attribute("1.2.840.113549.1.9.15", value)
    with pytest.raises(MalformedRequest):
        keygen.wish_of(Der(request(new_key(), "sn-1", shared(b"x"), listed)))


@pytest.mark.parametrize("parameters", [b"\x05\x00", sequence(), sequence(b"\x05\x00"), tlv(0x02, b"\x01")])
def test_parameters_of_a_capability_that_name_nothing(parameters: bytes) -> None:
    row = sequence(csr_maker.oid(WRAPS[256]), parameters)
    listed = csr_maker.attribute("1.2.840.113549.1.9.15", sequence(row))
    assert keygen.wish_of(Der(request(new_key(), "sn-1", shared(b"x"), listed))).capabilities == (
        Capability(WRAPS[256]),
    )


def test_a_request_that_cannot_be_read_at_all() -> None:
    cut = csr_maker.sequence(
        csr_maker.info("sn-1", spki(new_key()), version=7), sequence(csr_maker.oid("1.2")), csr_maker.bits(b"")
    )
    with pytest.raises(MalformedRequest):
        csr.parse_without_key(Der(cut))


# --- sealing ---------------------------------------------------------------------------------------------------------


def sealed_to(
    generator: Generator, recipient: sealing.Recipient, *capabilities: Capability
) -> tuple[GeneratedKey, Der]:
    key = GeneratedKey("P-256")
    return key, sealing.seal(generator.sign(key), recipient, capabilities, os.urandom)


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_s_k12_a_shared_key_of_every_length(generator: Generator, bits: int) -> None:
    secret = os.urandom(bits // 8)
    listed = [Capability(WRAPS[256]), Capability(WRAPS[192]), Capability(WRAPS[128])]
    recipient = sealing.SharedKey.choose(b"id", secret, listed)
    key, der = sealed_to(generator, recipient, *listed)
    assert spki(unseal(der, SharedKey(b"id", secret)).key) == key.spki
    assert csr_maker.oid(CIPHERS[bits]) in der


def test_s_k13_the_strongest_cipher_there_is_when_none_is_strong_enough(generator: Generator) -> None:
    listed = [Capability(WRAPS[256]), Capability(CIPHERS[128]), Capability(CIPHERS[192])]
    recipient = sealing.SharedKey.choose(b"id", bytes(32), listed)
    _, der = sealed_to(generator, recipient, *listed)
    assert csr_maker.oid(CIPHERS[192]) in der


def holder(key: Any) -> tuple[Der, x509.Certificate]:
    issuer = new_key()
    certificate = build(name("sn-1"), key.public_key(), name("CA"), issuer)
    return Der(certificate.public_bytes(Encoding.DER)), certificate


@pytest.mark.parametrize(
    ("key", "listed", "chosen"),
    [
        (ec.generate_private_key(ec.SECP256R1()), [Capability(ECDH, WRAPS[128]), Capability(ECDH, WRAPS[256])], 128),
        (ec.generate_private_key(ec.SECP521R1()), [Capability(ECDH, WRAPS[128]), Capability(ECDH, WRAPS[256])], 256),
        (ec.generate_private_key(ec.SECP521R1()), [Capability(ECDH, WRAPS[128])], 128),
        (ec.generate_private_key(ec.SECP384R1()), [Capability(WRAPS[192])], 192),
        (x25519.X25519PrivateKey.generate(), [Capability("1.3.132.1.11.3"), Capability(WRAPS[256])], 256),
    ],
)
def test_s_k12_s_k13_agreement_takes_the_first_that_is_strong_enough(
    generator: Generator, key: Any, listed: list[Capability], chosen: int
) -> None:
    """Without a SubjectKeyIdentifier the certificate is named by issuer and serial number."""
    der, certificate = holder(key)
    recipient = sealing.certificate_recipient(der, listed, by_key_id=True)
    made, message = sealed_to(generator, recipient, *listed)
    assert csr_maker.oid(WRAPS[chosen]) in message
    assert spki(unseal(message, OwnCertificate(certificate, key)).key) == made.spki
    with pytest.raises(BadAnswer):
        unseal(message, OwnCertificate(holder(key)[1], key))


@pytest.mark.parametrize("size", [2048, 7680])
def test_the_strength_of_an_rsa_key(size: int) -> None:
    numbers = rsa.RSAPublicNumbers(65537, (1 << (size - 1)) + 1)
    who = keygen.enveloped.RecipientId(None, Der(b""), 1)
    assert sealing.Transport(who, numbers.public_key(), oaep=True).bits == (192 if size == 7680 else 128)


def test_a_key_that_can_do_neither_is_refused() -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    der, _ = holder(ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(NotAuthorized):
        sealing.certificate_recipient(der, [Capability(ECDH, WRAPS[128])], by_key_id=True)


@pytest.mark.parametrize("kind", KINDS)
def test_s_k11_every_kind_of_generator_signs_what_is_sealed(tmp_path: Path, kind: str) -> None:
    generator, key = generator_of(tmp_path, kind), GeneratedKey("P-256")
    recipient = sealing.SharedKey.choose(b"id", bytes(16), [Capability(WRAPS[128])])
    signed = generator.sign(key)
    opened = unseal(sealing.seal(signed, recipient, (), os.urandom), SharedKey(b"id", bytes(16)))
    assert opened.signer.public_bytes(Encoding.DER) == generator.certificates[0]
    assert spki(opened.key) == key.spki
    if kind in {"P-256", "P-384", "RSA-3072"}:  # openssl 3.0 reads no ML-DSA, and verifies no EdDSA in CMS
        content = sequence(csr_maker.oid("1.2.840.113549.1.7.2"), tlv(0xA0, signed))
        (tmp_path / "ca.pem").write_bytes(opened.signer.public_bytes(Encoding.PEM))
        command = ["openssl", "cms", "-verify", "-inform", "DER", "-binary", "-noverify", "-certfile"]
        done = subprocess.run([*command, tmp_path / "ca.pem"], input=content, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


# --- what is refused before a key is made -----------------------------------------------------------------------------


def test_recipients_are_found_or_refused(device: Profile, generator: Generator) -> None:
    rules = keygen.KeyGeneration(generator, {b"id": bytes(16)}, encrypted_only=True)
    der, certificate = holder(new_key())
    listed = (Capability(WRAPS[128]), Capability(ECDH, WRAPS[128]))
    assert keygen.recipient_of(keygen.Wish(b"id", None, listed), rules, ())
    issuer_and_serial = sequence(
        certificate.issuer.public_bytes(), tlv(0x02, certificate.serial_number.to_bytes(20).lstrip(b"\0"))
    )
    for wish, error in (
        (keygen.Wish(b"no", None, listed), NotAuthorized),
        (keygen.Wish(None, b"no", listed), NotAuthorized),
        (keygen.Wish(None, sequence(b"\x05\x00"), listed), NotAuthorized),
        (keygen.Wish(None, sequence(b"\x05"), listed), NotAuthorized),
        (keygen.Wish(b"id", None, ()), MalformedRequest),
        (keygen.Wish(), PolicyRefused),
    ):
        with pytest.raises(error):
            keygen.recipient_of(wish, rules, [der])
    assert keygen.recipient_of(keygen.Wish(None, issuer_and_serial, listed), rules, [der])
    open_rules = dataclasses.replace(rules, encrypted_only=False)
    assert keygen.recipient_of(keygen.Wish(), open_rules, ()) is None
    assert "00000000" not in repr(open_rules)
    asked = csr.parse_without_key(Der(request(new_key(), "sn-1")))
    made, key = keygen.make(open_rules, device, asked, (), os.urandom, suite="TLS_AES_128_GCM_SHA256")
    assert spki(load_pkcs8(key.der)) == made.spki
    assert repr(key) == "DeliveredKey(encrypted=False)"


@pytest.mark.parametrize(
    "text", ["00", "00 11 22", "zz 00112233445566778899aabbccddeeff", "00 0011", f"00 {'00' * 16}\n00 {'11' * 16}", "é"]
)
def test_a_file_of_shared_keys_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as error:
        read_shared_keys(file)
    assert "0011" not in str(error.value)


def test_a_file_of_shared_keys_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_shared_keys(file)
    file.write_text(f"# a comment\n\nC0FFEE {'00' * 24}\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="by others"):
        read_shared_keys(file)
    file.chmod(0o600)
    assert read_shared_keys(file) == {bytes.fromhex("c0ffee"): bytes(24)}
