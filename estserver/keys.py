"""The only place where private keys exist.

Rules:
- A key is a file of its own, 0600 in a directory of 0700, in PKCS#8, encrypted when there is a passphrase.
- Everybody else holds a `Signer`, which signs what a builder describes and gives away the public key, nothing more.
- Kinds of keys are rows of a table; a new one is a new row.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from estserver.asn1 import algorithm_identifier
from estserver.errors import ConfigError
from estserver.model import Der

KINDS: dict[str, Callable[[], Any]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA-3072": lambda: rsa.generate_private_key(65537, 3072),
    "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate,
}
"""How to make each kind of CA key."""


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

    def sign_data(self, data: bytes) -> bytes:
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
            return cls(serialization.load_pem_private_key(data, passphrase))
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
        public = self._key.public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return Der(public.public_bytes(serialization.Encoding.DER, form))

    def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign what the builder describes."""
        return builder.sign(self._key, self._hash)

    def sign_request(self, builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequest:
        """Sign a request for the key itself."""
        return builder.sign(self._key, self._hash)

    def sign_data(self, data: bytes) -> bytes:
        """Sign octets: ECDSA in DER, RSA PKCS#1 v1.5, Ed25519 or ML-DSA, by the kind of the key."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            assert self._hash is not None
            return self._key.sign(data, ec.ECDSA(self._hash))
        if isinstance(self._key, rsa.RSAPrivateKey):
            assert self._hash is not None
            return self._key.sign(data, padding.PKCS1v15(), self._hash)
        return bytes(self._key.sign(data))


_ALGORITHMS = (
    (ec.EllipticCurvePrivateKey, SignatureAlgorithmOID.ECDSA_WITH_SHA256),
    (rsa.RSAPrivateKey, SignatureAlgorithmOID.RSA_WITH_SHA256),
    (ed25519.Ed25519PrivateKey, SignatureAlgorithmOID.ED25519),
    (mldsa.MLDSA44PrivateKey, SignatureAlgorithmOID.ML_DSA_44),
    (mldsa.MLDSA65PrivateKey, SignatureAlgorithmOID.ML_DSA_65),
    (mldsa.MLDSA87PrivateKey, SignatureAlgorithmOID.ML_DSA_87),
)


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
