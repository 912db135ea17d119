"""A private key that was made here → octets that only its recipient can open (RFC 7030 §4.4.2).

Rules:
- Only what SMIMECapabilities lists is used (§4.4.1): without it, or without anything in common, nothing leaves.
- The first listed that is as strong as the recipient's own key is taken; when none is, the strongest.
- Key wraps are AES (RFC 3565). RSA is OAEP with SHA-256 where the list has RSAES-OAEP, PKCS#1 v1.5 where it has not.
- Key agreement is ephemeral-static ECDH with the KDF of X9.63 (RFC 5753, RFC 8418).
- A certificate whose key usage allows no encryption of keys is not encrypted to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.padding import PKCS7

from estserver import asn1, enveloped
from estserver.errors import MalformedRequest, NotAuthorized
from estserver.keys import GeneratedKey, Signer, agree
from estserver.model import Der

Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Capability:
    """One algorithm of SMIMECapabilities: dotted OID, and the one that its parameters name (RFC 5753 §7)."""

    oid: str
    within: str | None = None


class _Strong(NamedTuple):
    """An AES algorithm: its dotted OID and its strength in bits."""

    oid: str
    bits: int


_AES = "2.16.840.1.101.3.4.1"
_WRAPS = {row.oid: row for row in (_Strong(f"{_AES}.5", 128), _Strong(f"{_AES}.25", 192), _Strong(f"{_AES}.45", 256))}
_CIPHERS = {row.oid: row for row in (_Strong(f"{_AES}.2", 128), _Strong(f"{_AES}.22", 192), _Strong(f"{_AES}.42", 256))}
"""AES-CBC: what EnvelopedData can carry (RFC 3565 §2.1); AES-GCM needs another structure."""
_AGREEMENTS: dict[str, hashes.HashAlgorithm] = {
    "1.3.132.1.11.1": hashes.SHA256(),  # dhSinglePass-stdDH-sha256kdf-scheme, RFC 5753 §7.1.4
    "1.3.132.1.11.2": hashes.SHA384(),
    "1.3.132.1.11.3": hashes.SHA512(),
}
_RSA, _OAEP = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7"
_SHA256, _MGF1 = "2.16.840.1.101.3.4.2.1", "1.2.840.113549.1.1.8"
_NULL = Der(b"\x05\x00")
_DIGESTS = {
    "1.2.840.10045.4.3.3": ("2.16.840.1.101.3.4.2.2", "sha384"),
    "1.3.101.112": ("2.16.840.1.101.3.4.2.3", "sha512"),  # RFC 8419 §3.1
    **{f"2.16.840.1.101.3.4.3.{arc}": ("2.16.840.1.101.3.4.2.3", "sha512") for arc in (17, 18, 19)},  # RFC 9882
}
"""Signature algorithm → the digest that goes with it, where that is not SHA-256."""


@dataclass(frozen=True, slots=True)
class Generator:
    """Who answers for keys made here: signs each package that is encrypted (RFC 7030 §4.4.2).

    Attributes:
        certificates: the signer's own, then what is above it.
    """

    signer: Signer
    certificates: tuple[Der, ...]

    def sign(self, key: GeneratedKey) -> Der:
        """Put a key into a signed package."""
        package, algorithm = enveloped.key_package(key.pkcs8()), self.signer.algorithm
        oid, name = _DIGESTS.get(enveloped.algorithm_oid(algorithm), (_SHA256, "sha256"))
        attributes = enveloped.signed_attributes(hashlib.new(name, package).digest())
        return enveloped.signed_data(
            package,
            certificates=self.certificates,
            digest_algorithm=enveloped.algorithm(oid),
            attributes=attributes,
            signature_algorithm=algorithm,
            signature=self.signer.sign_data(attributes),
        )


# --- recipients -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SharedKey:
    """A symmetric key that the device has too, under the name it gave (RFC 7030 §4.4.1.1)."""

    key_id: bytes
    key: bytes = field(repr=False)
    wrap: _Strong

    @classmethod
    def choose(cls, key_id: bytes, key: bytes, capabilities: Iterable[Capability]) -> SharedKey:
        """Take the key wrap that is made for the length of this key, if it is listed."""
        listed = [_WRAPS[one.oid] for one in capabilities if one.oid in _WRAPS]
        for wrap in listed:
            if wrap.bits == len(key) * 8:
                return cls(key_id, key, wrap)
        raise _nothing_in_common(f"AES-{len(key) * 8} key wrap")

    @property
    def bits(self) -> int:
        """Strength of the key."""
        return self.wrap.bits

    def recipient(self, secret: bytes) -> Der:
        """Wrap the content-encryption key."""
        wrapped = aes_key_wrap(self.key, secret)
        return enveloped.kek_recipient(self.key_id, enveloped.algorithm(self.wrap.oid), wrapped)


@dataclass(frozen=True, slots=True)
class Transport:
    """An RSA key of the device's."""

    who: enveloped.RecipientId
    key: rsa.RSAPublicKey
    oaep: bool

    @property
    def bits(self) -> int:
        """Strength of the key (NIST SP 800-57 part 1, table 2)."""
        return 192 if self.key.key_size >= 7680 else 128

    def recipient(self, secret: bytes) -> Der:
        """Encrypt the content-encryption key."""
        if not self.oaep:
            transport = enveloped.algorithm(_RSA, _NULL)
            return enveloped.transport_recipient(self.who, transport, self.key.encrypt(secret, padding.PKCS1v15()))
        digest = hashes.SHA256()
        encrypted = self.key.encrypt(secret, padding.OAEP(padding.MGF1(digest), digest, None))
        transport = enveloped.algorithm(_OAEP, enveloped.oaep_parameters(_SHA256, _MGF1))
        return enveloped.transport_recipient(self.who, transport, encrypted)


@dataclass(frozen=True, slots=True)
class Agreement:
    """A key of the device's on a curve."""

    who: enveloped.RecipientId
    key: ec.EllipticCurvePublicKey | x25519.X25519PublicKey
    scheme: str
    wrap: _Strong

    @property
    def bits(self) -> int:
        """Strength of the key."""
        return _curve_bits(self.key)

    def recipient(self, secret: bytes) -> Der:
        """Wrap the content-encryption key under a key agreed upon with a new one of ours (RFC 5753 §3.1)."""
        originator, shared = agree(self.key)
        wrap = enveloped.algorithm(self.wrap.oid)
        info = enveloped.shared_info(wrap, self.wrap.bits)
        key = X963KDF(_AGREEMENTS[self.scheme], self.wrap.bits // 8, info).derive(shared)
        agreement = enveloped.algorithm(self.scheme, wrap)
        return enveloped.agreement_recipient(self.who, originator, agreement, aes_key_wrap(key, secret))


Recipient = SharedKey | Transport | Agreement


def certificate_recipient(certificate: Der, capabilities: Sequence[Capability], *, by_key_id: bool) -> Recipient:
    """Say how to encrypt to the key of a certificate.

    Raises:
        NotAuthorized: its key usage allows neither key encipherment nor key agreement, or its key cannot do either.
        MalformedRequest: no algorithm of the list fits the key.
    """
    parsed = x509.load_der_x509_certificate(certificate)
    key = parsed.public_key()
    who = _recipient_id(certificate, parsed, by_key_id=by_key_id)
    if isinstance(key, rsa.RSAPublicKey) and _key_usage(parsed, "key_encipherment"):
        return _transport(who, key, capabilities)
    if isinstance(key, (ec.EllipticCurvePublicKey, x25519.X25519PublicKey)) and _key_usage(parsed, "key_agreement"):
        return _agreement(who, key, capabilities)
    raise NotAuthorized(
        "the certificate named to encrypt the key to allows neither key encipherment nor key agreement",
        code="decryption-key-unusable",
    )


def _transport(who: enveloped.RecipientId, key: rsa.RSAPublicKey, capabilities: Sequence[Capability]) -> Transport:
    listed = {one.oid for one in capabilities}
    if not listed & {_OAEP, _RSA}:
        raise _nothing_in_common("RSAES-OAEP or rsaEncryption")
    return Transport(who, key, oaep=_OAEP in listed)


def _agreement(
    who: enveloped.RecipientId,
    key: ec.EllipticCurvePublicKey | x25519.X25519PublicKey,
    capabilities: Sequence[Capability],
) -> Agreement:
    """Take a scheme with the wrap its parameters name; the two may also stand side by side, or the wrap alone."""
    wraps = [_WRAPS[one.oid] for one in capabilities if one.oid in _WRAPS]
    schemes = [one.oid for one in capabilities if one.oid in _AGREEMENTS and one.within is None]
    pairs = [(one.oid, _WRAPS[one.within]) for one in capabilities if one.oid in _AGREEMENTS and one.within in _WRAPS]
    default = next(iter(_AGREEMENTS))
    pairs += [(scheme, wrap) for scheme in schemes or [default] for wrap in wraps]
    if not pairs:
        raise _nothing_in_common("dhSinglePass-stdDH-sha256kdf with AES key wrap")
    strongest = max(pairs, key=lambda pair: pair[1].bits)
    scheme, wrap = next((pair for pair in pairs if pair[1].bits >= _curve_bits(key)), strongest)
    return Agreement(who, key, scheme, wrap)


def _nothing_in_common(wanted: str) -> MalformedRequest:
    return MalformedRequest(
        f"SMIMECapabilities lists no algorithm to encrypt the key with: {wanted} is needed", code="no-common-algorithm"
    )


def _recipient_id(der: Der, parsed: x509.Certificate, *, by_key_id: bool) -> enveloped.RecipientId:
    issuer, serial = asn1.issuer_and_serial(der)
    return enveloped.RecipientId(key_identifier(parsed) if by_key_id else None, issuer, serial)


def key_identifier(certificate: x509.Certificate) -> bytes | None:
    """Return the SubjectKeyIdentifier of a certificate (RFC 5280 §4.2.1.2), if it has one."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _key_usage(certificate: x509.Certificate, bit: str) -> bool:
    try:
        return bool(getattr(certificate.extensions.get_extension_for_class(x509.KeyUsage).value, bit))
    except x509.ExtensionNotFound:
        return True  # RFC 5280 §4.2.1.3: without the extension every use is allowed


def _curve_bits(key: ec.EllipticCurvePublicKey | x25519.X25519PublicKey) -> int:
    size = key.key_size if isinstance(key, ec.EllipticCurvePublicKey) else 256
    return 128 if size < 384 else 192 if size < 512 else 256


# --- sealing --------------------------------------------------------------------------------------------------------


def seal(signed: Der, recipient: Recipient, capabilities: Iterable[Capability], random: Random) -> Der:
    """Encrypt a signed key package to a recipient."""
    cipher = _cipher(capabilities, recipient.bits)
    secret, vector = random(cipher.bits // 8), random(16)
    padder = PKCS7(128).padder()
    padded = padder.update(signed) + padder.finalize()
    encryptor: Any = Cipher(algorithms.AES(secret), modes.CBC(vector)).encryptor()
    encrypted = encryptor.update(padded) + encryptor.finalize()
    algorithm = enveloped.algorithm(cipher.oid, asn1.octet_string(vector))
    return enveloped.enveloped_data(recipient.recipient(secret), algorithm, encrypted)


def _cipher(capabilities: Iterable[Capability], bits: int) -> _Strong:
    """Take a cipher as strong as the recipient's key (RFC 7030 §4.4.2); who lists none can read every one of them."""
    listed = [_CIPHERS[one.oid] for one in capabilities if one.oid in _CIPHERS] or list(_CIPHERS.values())
    return next((cipher for cipher in listed if cipher.bits >= bits), max(listed, key=lambda cipher: cipher.bits))
