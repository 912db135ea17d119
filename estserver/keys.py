"""The only place where private keys exist.

Rules:
- A key is a file of its own, 0600 in a directory of 0700, in PKCS#8, encrypted when there is a passphrase.
- Everybody else holds a `Signer`, which signs what a builder describes and gives away the public key, nothing more.
- Kinds of keys are rows of a table; a new one is a new row.
- A key made for a device (RFC 7030 §4.4) comes from the operating system's generator through OpenSSL (RFC 4086), is
  never written anywhere, and leaves this room once, as the octets of the answer.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa, x25519
from cryptography.x509 import ocsp
from cryptography.x509.oid import SignatureAlgorithmOID
from OpenSSL import crypto

from estserver.asn1 import algorithm_identifier, read_children, read_tlv, write_tlv
from estserver.errors import ConfigError
from estserver.model import Der

KINDS: dict[str, Callable[[], Any]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA-3072": lambda: rsa.generate_private_key(65537, 3072),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "ML-DSA-44": mldsa.MLDSA44PrivateKey.generate,
    "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate,
    "ML-DSA-87": mldsa.MLDSA87PrivateKey.generate,
}
"""How to make each kind of CA key."""

DEVICE_KINDS: dict[str, Callable[[], Any]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA-3072": lambda: rsa.generate_private_key(65537, 3072),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "ML-DSA-44": mldsa.MLDSA44PrivateKey.generate,
    "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate,
    "ML-DSA-87": mldsa.MLDSA87PrivateKey.generate,
}
"""How to make each kind of key for a device; RSA beyond 3072 bits would keep everybody else waiting."""


class Signer(Protocol):
    """A private key that can be asked to sign and cannot be read."""

    @property
    def spki(self) -> Der:
        """SubjectPublicKeyInfo of the key."""

    @property
    def algorithm(self) -> Der:
        """AlgorithmIdentifier of what `sign_data` makes."""

    def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign what the builder describes."""

    def sign_request(self, builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequest:
        """Sign a request for the key itself."""

    def sign_ocsp(self, builder: ocsp.OCSPResponseBuilder) -> ocsp.OCSPResponse:
        """Sign the answer that the builder describes."""

    def sign_data(self, data: bytes | memoryview) -> bytes:
        """Sign octets, with the hash that belongs to the key; the signature as a certificate holds it."""


class FileSigner:
    """A key from a PEM file, held in memory."""

    def __init__(self, key: Any) -> None:  # noqa: ANN401 - cryptography has no common type for private keys
        self._key = key
        self._hash = _hash_of(key)

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> FileSigner:
        """Read a PKCS#8 key.

        Raises:
            ConfigError: missing, readable by others, not a key, or the passphrase is wrong.
        """
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"{path} can be read by others", advice=f"run: chmod 600 {path}")
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"the key {path} cannot be read: {error.strerror}") from None
        try:
            return cls(_read(data, passphrase))
        except TypeError:
            advice = "name its passphrase_file in estserver.toml" if passphrase is None else "remove passphrase_file"
            raise ConfigError(f"the key {path} is {'not ' if passphrase else ''}encrypted", advice=advice) from None
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(f"{path} holds no usable key, or its passphrase is wrong") from None

    @classmethod
    def generate(cls, kind: str, path: Path, passphrase: bytes | None = None) -> FileSigner:
        """Make a key and write it, 0600, into a file that must not exist yet."""
        key = KINDS[kind]()
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        write_secret(path, pem)
        return cls(key)

    @cached_property
    def algorithm(self) -> Der:
        """AlgorithmIdentifier of what `sign_data` makes (RFC 5758 §3.2, RFC 4055 §5, RFC 8410, RFC 9881)."""
        oid = next(oid for kind, oid in _ALGORITHMS if isinstance(self._key, kind))
        if isinstance(self._key, ec.EllipticCurvePrivateKey) and isinstance(self._hash, hashes.SHA384):
            oid = SignatureAlgorithmOID.ECDSA_WITH_SHA384
        return algorithm_identifier(oid.dotted_string, null=isinstance(self._key, rsa.RSAPrivateKey))

    @property
    def spki(self) -> Der:
        """SubjectPublicKeyInfo of the key."""
        return _spki(self._key)

    def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign what the builder describes."""
        return builder.sign(self._key, self._hash)

    def sign_request(self, builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequest:
        """Sign a request for the key itself."""
        return builder.sign(self._key, self._hash)

    def sign_ocsp(self, builder: ocsp.OCSPResponseBuilder) -> ocsp.OCSPResponse:
        """Sign the answer that the builder describes."""
        return builder.sign(self._key, self._hash)

    def sign_data(self, data: bytes | memoryview) -> bytes:
        """Sign octets: ECDSA in DER, RSA PKCS#1 v1.5, Ed25519 or ML-DSA, by the kind of the key."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            assert self._hash is not None
            return self._key.sign(data, ec.ECDSA(self._hash))
        if isinstance(self._key, rsa.RSAPrivateKey):
            assert self._hash is not None
            octets = cast("bytes", data)  # any buffer will do
            return self._key.sign(octets, padding.PKCS1v15(), self._hash)
        return bytes(self._key.sign(data))


def _read(pem: bytes, passphrase: bytes | None) -> object:
    """Read a key in PEM; one of ML-DSA by its seed, whichever form it is written in (RFC 9881 §6)."""
    try:
        return serialization.load_pem_private_key(pem, passphrase)
    except ValueError:
        seed = _seed_form(pem, passphrase)
        if seed is None:
            raise
        return serialization.load_der_private_key(seed, None)


def _seed_form(pem: bytes, passphrase: bytes | None) -> Der | None:
    """Return the PKCS#8 with only the seed of an ML-DSA key that has seed and expanded key, which OpenSSL compares."""
    try:
        with warnings.catch_warnings():
            # a cryptography key is what pyOpenSSL would rather have, and cryptography does not read these forms
            warnings.simplefilter("ignore", DeprecationWarning)
            pkey = crypto.load_privatekey(crypto.FILETYPE_PEM, pem, passphrase or b"")  # without one it would ask
            der = crypto.dump_privatekey(crypto.FILETYPE_ASN1, pkey)
    except (crypto.Error, ValueError):
        return None
    version, algorithm, octets = read_children(read_tlv(der)[0].content)[:3]
    both = read_tlv(octets.content)[0]
    if algorithm.octets not in _ML_DSA or both.tag != 0x30:
        return None
    seed = write_tlv(0x80, read_children(both.content)[0].content)
    return Der(write_tlv(0x30, version.octets, algorithm.octets, write_tlv(0x04, seed)))


_ML_DSA = tuple(
    algorithm_identifier(oid.dotted_string)
    for oid in (SignatureAlgorithmOID.ML_DSA_44, SignatureAlgorithmOID.ML_DSA_65, SignatureAlgorithmOID.ML_DSA_87)
)
_ALGORITHMS = (
    (ec.EllipticCurvePrivateKey, SignatureAlgorithmOID.ECDSA_WITH_SHA256),
    (rsa.RSAPrivateKey, SignatureAlgorithmOID.RSA_WITH_SHA256),
    (ed25519.Ed25519PrivateKey, SignatureAlgorithmOID.ED25519),
    (mldsa.MLDSA44PrivateKey, SignatureAlgorithmOID.ML_DSA_44),
    (mldsa.MLDSA65PrivateKey, SignatureAlgorithmOID.ML_DSA_65),
    (mldsa.MLDSA87PrivateKey, SignatureAlgorithmOID.ML_DSA_87),
)


class GeneratedKey:
    """A private key made here for a device."""

    def __init__(self, kind: str) -> None:
        self._key = DEVICE_KINDS[kind]()

    @property
    def spki(self) -> Der:
        """SubjectPublicKeyInfo of the key."""
        return _spki(self._key)

    def pkcs8(self) -> Der:
        """PrivateKeyInfo of the key (RFC 5958): the octets that go to the device."""
        none = serialization.NoEncryption()
        return Der(self._key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, none))


def agree(public: ec.EllipticCurvePublicKey | x25519.X25519PublicKey) -> tuple[Der, bytes]:
    """Agree on a secret with the holder of a key, by a new key of ours; return that and the secret (RFC 5753 §3.1)."""
    if isinstance(public, x25519.X25519PublicKey):
        ours = x25519.X25519PrivateKey.generate()
        return _spki(ours), ours.exchange(public)
    sender = ec.generate_private_key(public.curve)
    return _spki(sender), sender.exchange(ec.ECDH(), public)


def read_shared_keys(path: Path) -> dict[bytes, bytes]:
    """Read the symmetric keys that devices can decrypt with: a line `ID KEY` each, both in hexadecimal.

    Raises:
        ConfigError: missing, readable by others, or a line that is no such thing.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others", advice=f"run: chmod 600 {path}")
        lines = [line.split() for line in path.read_text("ascii").splitlines() if line.strip() and line[0] != "#"]
        found = {bytes.fromhex(name): bytes.fromhex(key) for name, key in lines}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} has a line that is not `ID KEY`, both in hexadecimal") from None
    if len(found) != len(lines) or any(len(key) not in (16, 24, 32) for key in found.values()):
        raise ConfigError(f"{path} names a key twice, or holds one that is not of 16, 24 or 32 bytes")
    return found


def _spki(key: Any) -> Der:  # noqa: ANN401 - cryptography has no common type for private keys
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return Der(key.public_key().public_bytes(serialization.Encoding.DER, form))


def _hash_of(key: object) -> hashes.SHA256 | hashes.SHA384 | None:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return hashes.SHA384() if key.curve.key_size > 256 else hashes.SHA256()
    return hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey) else None


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read; durable when this returns.

    Raises:
        ConfigError: it exists already, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
