"""DSSE: signing bytes, and finding out who signed them with nothing but a trust anchor in hand.

The envelope is DSSE v1.0.2. Each signature carries its signer's certificate chain (`extension`, x5c), so that a
verifier needs the trust anchor alone; `keyid` is the SHA-256 of the signer's certificate.

An algorithm is a row of `SCHEMES`, chosen by the type of the key and by nothing the envelope says.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.errors import UsageProblem, VerificationFailed
from devicesim.trust import TrustAnchors, build_path, fingerprint

CHAIN_KIND = "application/pkix-cert-chain"
CHAIN_CERTIFICATES_MAX = 6


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one type of key signs and verifies."""

    private: type[Any]
    public: type[Any]
    sign: Callable[[Any, bytes], bytes]
    verify: Callable[[Any, bytes, bytes], None]


def _ec_hash(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    return hashes.SHA256() if key.curve.key_size <= 256 else hashes.SHA384()


def _plain(private: type[Any], public: type[Any]) -> Scheme:
    return Scheme(private, public, lambda k, m: k.sign(m), lambda k, s, m: k.verify(s, m))


SCHEMES: tuple[Scheme, ...] = (
    Scheme(
        ec.EllipticCurvePrivateKey,
        ec.EllipticCurvePublicKey,
        lambda k, m: k.sign(m, ec.ECDSA(_ec_hash(k))),
        lambda k, s, m: k.verify(s, m, ec.ECDSA(_ec_hash(k))),
    ),
    Scheme(
        rsa.RSAPrivateKey,
        rsa.RSAPublicKey,
        lambda k, m: k.sign(m, padding.PKCS1v15(), hashes.SHA256()),
        lambda k, s, m: k.verify(s, m, padding.PKCS1v15(), hashes.SHA256()),
    ),
    _plain(ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey),
    _plain(mldsa.MLDSA44PrivateKey, mldsa.MLDSA44PublicKey),
    _plain(mldsa.MLDSA65PrivateKey, mldsa.MLDSA65PublicKey),
    _plain(mldsa.MLDSA87PrivateKey, mldsa.MLDSA87PublicKey),
)


@dataclass(frozen=True, slots=True)
class Signed:
    """What an envelope turned out to hold: the payload, and the certificate whose key signed it."""

    payload: bytes
    signer: x509.Certificate


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, payload_type: str, *, key: PrivateKeyTypes, chain: Sequence[x509.Certificate]) -> bytes:
    """Return the JSON envelope of `payload`, signed with `key`; `chain` is its certificate, then the intermediates."""
    scheme = next((row for row in SCHEMES if isinstance(key, row.private)), None)
    if scheme is None:
        raise UsageProblem(f"cannot sign with a {type(key).__name__}", advice="use an EC, RSA, Ed25519 or ML-DSA key")
    signature = {
        "keyid": fingerprint(chain[0]),
        "sig": _b64(scheme.sign(key, pae(payload_type, payload))),
        "extension": {
            "kind": CHAIN_KIND,
            "ext": {"x5c": [_b64(certificate.public_bytes(Encoding.DER)) for certificate in chain]},
        },
    }
    envelope = {"payload": _b64(payload), "payloadType": payload_type, "signatures": [signature]}
    return json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode()


def unseal(envelope: bytes, payload_type: str, *, trust: TrustAnchors, now: datetime) -> Signed:
    """Return what an envelope holds once its signature and its signer's chain are proven; else VerificationFailed."""
    try:
        fields = json.loads(envelope)
        if fields["payloadType"] != payload_type:
            raise VerificationFailed("the signature is over another type of content")
        payload = _unb64(fields["payload"])
        [signature] = fields["signatures"]
        chain = _chain(signature["extension"])
        sig = _unb64(signature["sig"])
        keyid = signature["keyid"]
    except (KeyError, TypeError, ValueError, RecursionError) as fault:
        raise VerificationFailed("the signature envelope is malformed") from fault
    if keyid != fingerprint(chain[0]):
        raise VerificationFailed("the key id is not that of the certificate sent with the signature")
    _check_signature(chain[0], sig, pae(payload_type, payload))
    check_chain(chain, trust=trust, now=now)
    return Signed(payload, chain[0])


def envelope_payload(envelope: bytes) -> bytes:
    """Return what an envelope holds, unproven: to read back what was just written, or to name what does not verify."""
    try:
        return _unb64(json.loads(envelope)["payload"])
    except (KeyError, TypeError, ValueError, RecursionError) as fault:
        raise VerificationFailed("the signature envelope is malformed") from fault


def check_chain(chain: Sequence[x509.Certificate], *, trust: TrustAnchors, now: datetime) -> None:
    """Check that a signer's chain reaches an anchor, is valid at `now`, and is of one who may sign (RFC 5280 §6)."""
    build_path(chain[0], chain[1:], trust, now)
    if not _may_sign(chain[0]):
        raise VerificationFailed("the signer's certificate is not one for signatures")


def _check_signature(certificate: x509.Certificate, signature: bytes, message: bytes) -> None:
    try:
        key = certificate.public_key()
    except ValueError as fault:
        raise VerificationFailed("the signer's key is of an unknown type") from fault
    scheme = next((row for row in SCHEMES if isinstance(key, row.public)), None)
    if scheme is None:
        raise VerificationFailed(f"a {type(key).__name__} is not a key that signs events")
    try:
        scheme.verify(key, signature, message)
    except InvalidSignature as fault:
        raise VerificationFailed(
            "the signature does not fit: the event was changed or signed by another key"
        ) from fault


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        extensions = certificate.extensions
    except ValueError:
        return False
    for extension in extensions:
        if isinstance(extension.value, x509.KeyUsage) and not extension.value.digital_signature:
            return False
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            return False
    return True


def _chain(extension: dict[str, Any]) -> tuple[x509.Certificate, ...]:
    if extension["kind"] != CHAIN_KIND:
        raise ValueError("an unknown kind of signature extension")
    encoded = extension["ext"]["x5c"]
    if not isinstance(encoded, list) or not 1 <= len(encoded) <= CHAIN_CERTIFICATES_MAX:
        raise ValueError("a chain of no or of too many certificates")
    return tuple(x509.load_der_x509_certificate(_unb64(each)) for each in encoded)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _unb64(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError("base64 text expected")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as fault:
        raise ValueError("not base64") from fault
