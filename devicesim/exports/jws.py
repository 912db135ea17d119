"""JSON Web Signatures over units (RFC 7515), as Microchip's manifests have them.

The unprotected header carries the signer's chain (`x5c`, RFC 7515 §4.1.6), bound by `x5t#S256` of the protected one, so
that who verifies needs the trust anchor alone. The algorithm follows from the type of the key; a header that says
another is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.csr import public_key_type
from devicesim.errors import UsageProblem, VerificationFailed
from devicesim.exports.arrays import compact
from devicesim.mqtt.dsse import CHAIN_CERTIFICATES_MAX, check_chain
from devicesim.transport import ClientIdentity
from devicesim.trust import TrustAnchors


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How one kind of key signs: its name in JOSE (RFC 7518 §3.1, RFC 9864 §2.2)."""

    alg: str
    sign: Callable[[Any, bytes], bytes]
    verify: Callable[[Any, bytes, bytes], None]


def _ecdsa(alg: str, digest: hashes.HashAlgorithm, size: int) -> Algorithm:
    """ECDSA as JOSE writes it: r and s side by side, each of the size of the field (RFC 7518 §3.4)."""

    def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
        return r.to_bytes(size) + s.to_bytes(size)

    def verify(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
        if len(signature) != 2 * size:
            raise InvalidSignature
        r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))

    return Algorithm(alg, sign, verify)


_RSA = Algorithm(
    "RS256",
    lambda k, m: k.sign(m, padding.PKCS1v15(), hashes.SHA256()),
    lambda k, s, m: k.verify(s, m, padding.PKCS1v15(), hashes.SHA256()),
)
_BY_KEY = {
    "EC-P256": _ecdsa("ES256", hashes.SHA256(), 32),
    "EC-P384": _ecdsa("ES384", hashes.SHA384(), 48),
    "EC-P521": _ecdsa("ES512", hashes.SHA512(), 66),
    "Ed25519": Algorithm("Ed25519", lambda k, m: k.sign(m), lambda k, s, m: k.verify(s, m)),
}


def algorithm_of(public: object) -> Algorithm:
    """Return how a key signs, or say that it cannot."""
    found = _RSA if isinstance(public, rsa.RSAPublicKey) else _BY_KEY.get(public_key_type(public))
    if found is None:
        raise UsageProblem(
            f"a {public_key_type(public)} key makes no JSON Web Signature", advice="export jsonl instead, which is DSSE"
        )
    return found


def protected_header(station: ClientIdentity) -> str:
    """Return the encoded header that says who signs: the same for every unit."""
    leaf = station.certificates[0]
    header = {
        "typ": "JWT",
        "alg": algorithm_of(leaf.public_key()).alg,
        "kid": _kid(leaf),
        "x5t#S256": b64url(leaf.fingerprint(hashes.SHA256())),
    }
    return b64url(compact(header).encode())


def x5c(station: ClientIdentity) -> list[str]:
    """Return the signer's certificate and its intermediates, for the unprotected header."""
    return [base64.b64encode(each.public_bytes(Encoding.DER)).decode("ascii") for each in station.certificates]


def sign(payload: bytes, protected: str, station: ClientIdentity) -> dict[str, str]:
    """Return payload, header and signature, encoded (RFC 7515 §7.2.2, flattened)."""
    encoded = b64url(payload)
    signature = algorithm_of(station.certificates[0].public_key()).sign(station.key, f"{protected}.{encoded}".encode())
    return {"payload": encoded, "protected": protected, "signature": b64url(signature)}


def verify(signed: dict[str, Any], *, trust: TrustAnchors, now: datetime) -> tuple[bytes, x509.Certificate]:
    """Return what was signed and by whom, once signature and chain are proven; else VerificationFailed."""
    try:
        header, encoded = json.loads(unb64url(signed["protected"])), signed["header"]["x5c"]
        payload, signature = unb64url(signed["payload"]), unb64url(signed["signature"])
        if not 1 <= len(encoded) <= CHAIN_CERTIFICATES_MAX or "crit" in header:
            raise ValueError("too many certificates, or a critical header")  # noqa: TRY301 - as malformed as the rest
        chain = [x509.load_der_x509_certificate(base64.b64decode(each, validate=True)) for each in encoded]
        algorithm = algorithm_of(chain[0].public_key())
        named = header["alg"] == algorithm.alg and header["x5t#S256"] == b64url(chain[0].fingerprint(hashes.SHA256()))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UsageProblem) as error:
        raise VerificationFailed("the signature is malformed") from error
    if not named:
        raise VerificationFailed("the header names another key or algorithm than that of the certificate in it")
    try:
        message = f"{signed['protected']}.{signed['payload']}".encode()
        algorithm.verify(chain[0].public_key(), signature, message)
    except InvalidSignature as error:
        raise VerificationFailed(
            "the signature does not fit: the entry was changed or signed by another key"
        ) from error
    check_chain(chain, trust=trust, now=now)
    return payload, chain[0]


def jwk(public: object) -> dict[str, str]:
    """Return a public key as a JSON Web Key (RFC 7517, RFC 7518 §6, RFC 8037 §2)."""
    if isinstance(public, ec.EllipticCurvePublicKey):
        size = (public.curve.key_size + 7) // 8
        point = public.public_numbers()
        curve = {256: "P-256", 384: "P-384", 521: "P-521"}[public.curve.key_size]
        return {"kty": "EC", "crv": curve, "x": b64url(point.x.to_bytes(size)), "y": b64url(point.y.to_bytes(size))}
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": b64url(_minimal(numbers.n)), "e": b64url(_minimal(numbers.e))}
    if isinstance(public, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": b64url(public.public_bytes_raw())}
    raise UsageProblem(f"a {public_key_type(public)} key has no JSON Web Key here")


def b64url(raw: bytes) -> str:
    """Encode without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64url(text: str) -> bytes:
    """Decode it; anything else is a ValueError."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if b64url(raw) != text:
        raise ValueError("not base64url in its one form")
    return raw


def _minimal(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def _kid(certificate: x509.Certificate) -> str:
    """Name the key as Microchip does: by the subject key identifier (RFC 5280 §4.2.1.2)."""
    return b64url(x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest)
