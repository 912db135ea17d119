"""A private key that the server makes for a device (RFC 7030 §4.4).

Rules:
- A label has it or has it not, and by default has it not (§6).
- Key and signature of the request are ignored; at most the kind of key is taken from it, where the profile takes that.
- Everything that can be refused is refused before a key is made, and the key is ready to leave before a serial is
  reserved: no certificate is issued for a key that nobody gets.
- Every request is a new key, since none is kept: a repeat is a new enrolment, costs a use of the credential, and what
  it brings supersedes what came before (docs/decisions/0007-server-keys.md).
- Encrypted or not, it leaves over TLS only, by a cipher suite no weaker than the key (`estserver.strength`), to whoever
  the identity and the policy let have the certificate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography import x509

from estserver import asn1, csr, enveloped, sealing
from estserver.errors import MalformedRequest, NotAuthorized, PolicyRefused
from estserver.keys import DEVICE_KINDS, GeneratedKey
from estserver.model import Csr, Der, KeyFacts
from estserver.policy import Profile
from estserver.policy.voices import wanted_key
from estserver.sealing import Capability, Generator, Random, Recipient, SharedKey
from estserver.strength import require_suite

KEY_IDENTIFIER_MAX_BYTES = 1024


@dataclass(frozen=True, slots=True)
class KeyGeneration:
    """How a label makes keys.

    Attributes:
        generator: signs what is encrypted.
        shared_keys: identifier → symmetric key that the device has too (RFC 7030 §4.4.1.1).
        encrypted_only: no key leaves under the protection of TLS alone.
    """

    generator: Generator
    shared_keys: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    encrypted_only: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """How the key is to be encrypted, beyond TLS (RFC 7030 §4.4.1).

    Attributes:
        key_id: DecryptKeyIdentifier, naming a symmetric key (§4.4.1.1).
        certificate_id: AsymmetricDecryptKeyIdentifier, naming a certificate's key (§4.4.1.2).
        capabilities: what the requester can decrypt, best first.
    """

    key_id: bytes | None = None
    certificate_id: bytes | None = None
    capabilities: tuple[Capability, ...] = ()


@dataclass(frozen=True, slots=True)
class DeliveredKey:
    """A key ready to leave: PKCS#8 in clear, or CMS EnvelopedData."""

    der: Der = field(repr=False)
    encrypted: bool


def make(
    rules: KeyGeneration, profile: Profile, asked: Csr, certificates: Iterable[Der], random: Random, *, suite: str
) -> tuple[Csr, DeliveredKey]:
    """Make the key that a request wants; return the request with that key in it, and the key as it will leave.

    Args:
        certificates: those of the device, to whose keys it may be encrypted.
        suite: the cipher suite of the connection that it leaves on.

    Raises:
        MalformedRequest, NotAuthorized, PolicyRefused: no key was made.
    """
    wish = wish_of(asked.der)
    recipient = recipient_of(wish, rules, certificates)
    kind = kind_for(profile, asked.key)
    require_suite(suite, kind)
    key = GeneratedKey(kind)
    made = csr.with_key(asked, key.spki)
    if recipient is None:
        return made, DeliveredKey(key.pkcs8(), encrypted=False)
    sealed = sealing.seal(rules.generator.sign(key), recipient, wish.capabilities, random)
    return made, DeliveredKey(sealed, encrypted=True)


def kind_for(profile: Profile, wished: KeyFacts) -> str:
    """Choose the kind of key: the one in the request if the profile takes it, one like it, else the profile's own.

    Raises:
        PolicyRefused: the profile takes none that is made here.
    """
    low, high = profile.constraints.rsa_bits
    kinds = [
        kind
        for family in profile.constraints.key_types
        for kind in DEVICE_KINDS
        if kind == family or (family == "RSA" and kind.startswith("RSA-") and low <= int(kind[4:]) <= high)
    ]
    if not kinds:
        raise PolicyRefused(f"profile {profile.name} takes no kind of key that this server makes")
    if wished.name in kinds:
        return wished.name
    alike = wished.algorithm if wished.algorithm in ("RSA", "ML-DSA") else None
    wanted = alike or wanted_key(profile) or kinds[0]
    return next((kind for kind in kinds if kind.startswith(wanted)), kinds[0])


# --- encrypted for whom ---------------------------------------------------------------------------------------------


def wish_of(der: Der) -> Wish:
    """Read how the key is to be encrypted; each attribute at most once, with one value (RFC 7030 §4.4.1).

    Raises:
        MalformedRequest: two recipients, or one and no list of algorithms.
    """
    found = dict[str, asn1.Tlv]()
    for oid, values in asn1.request_parts(der).attributes:
        if oid in (asn1.OID_SMIME_CAPABILITIES, asn1.OID_DECRYPT_KEY_ID, asn1.OID_ASYMMETRIC_DECRYPT_KEY_ID):
            if oid in found or len(values) != 1:
                raise MalformedRequest(f"attribute {oid} is there twice, or has not exactly one value")
            found[oid] = values[0]
    key_id = _identifier(found.get(asn1.OID_DECRYPT_KEY_ID))
    certificate_id = _identifier(found.get(asn1.OID_ASYMMETRIC_DECRYPT_KEY_ID))
    if key_id is None and certificate_id is None:
        return Wish()
    if key_id is not None and certificate_id is not None:
        raise MalformedRequest("both a symmetric and an asymmetric decryption key are named: name one")
    listed = found.get(asn1.OID_SMIME_CAPABILITIES)
    if listed is None:
        raise MalformedRequest(
            "a decryption key is named, and SMIMECapabilities does not say by which algorithm (RFC 7030 §4.4.1)"
        )
    return Wish(key_id, certificate_id, tuple(Capability(*one) for one in asn1.capabilities(listed)))


def _identifier(value: asn1.Tlv | None) -> bytes | None:
    if value is not None and (value.tag != 0x04 or not 1 <= len(value.content) <= KEY_IDENTIFIER_MAX_BYTES):
        raise MalformedRequest("the identifier of a decryption key is no OCTET STRING, empty or too long")
    return None if value is None else value.content


def recipient_of(wish: Wish, rules: KeyGeneration, certificates: Iterable[Der]) -> Recipient | None:
    """Find who can open the key; None for nobody in particular.

    Raises:
        NotAuthorized: nobody here knows the key that is named, or it cannot be used (RFC 7030 §4.4.1.1, §4.4.1.2).
        PolicyRefused: no key is named where one has to be.
        MalformedRequest: no algorithm in common.
    """
    if wish.key_id is not None:
        shared = rules.shared_keys.get(wish.key_id)
        if shared is None:
            raise _unknown("DecryptKeyIdentifier")
        return SharedKey.choose(wish.key_id, shared, wish.capabilities)
    if wish.certificate_id is not None:
        return _of_certificate(wish.certificate_id, certificates, wish.capabilities)
    if rules.encrypted_only:
        raise PolicyRefused(
            "a key leaves this label encrypted only: name a decryption key and SMIMECapabilities in the request "
            "(RFC 7030 §4.4.1)",
            code="encryption-required",
        )
    return None


def _of_certificate(name: bytes, certificates: Iterable[Der], capabilities: tuple[Capability, ...]) -> Recipient:
    """Find the certificate whose SubjectKeyIdentifier, or else issuer and serial number, is named."""
    pair = enveloped.read_issuer_and_serial(name)
    for certificate in certificates:
        if sealing.key_identifier(x509.load_der_x509_certificate(certificate)) == name:
            return sealing.certificate_recipient(certificate, capabilities, by_key_id=True)
        if pair is not None and asn1.issuer_and_serial(certificate) == pair:
            return sealing.certificate_recipient(certificate, capabilities, by_key_id=False)
    raise _unknown("AsymmetricDecryptKeyIdentifier")


def _unknown(attribute: str) -> NotAuthorized:
    return NotAuthorized(f"{attribute} names no key of this device that is known here", code="unknown-decryption-key")
