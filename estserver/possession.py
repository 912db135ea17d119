"""Keys that cannot sign: whose signature says that they are possessed (RFC 9883).

Rules:
- The request is signed with the key of a certificate that its holder has already, and names it by issuer and serial.
- The statement is for keys that establish other keys. One that can sign does so itself; nobody vouches for it (§6).
- Whether that certificate counts is `estserver.identity`'s to say, whether its holder may have this one the policy's.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, mlkem, rsa, x25519

from estserver.asn1 import Tlv, read_children
from estserver.errors import MalformedRequest, ProofOfPossessionFailed
from estserver.model import Der, KeyFacts

OID_STATEMENT = "1.3.6.1.4.1.22112.2.1"
SERIAL_MAX_BYTES = 20
_ESTABLISHING: tuple[tuple[type, KeyFacts], ...] = (
    (x25519.X25519PublicKey, KeyFacts("X25519", "X25519")),
    (mlkem.MLKEM768PublicKey, KeyFacts("ML-KEM", "ML-KEM-768")),
    (mlkem.MLKEM1024PublicKey, KeyFacts("ML-KEM", "ML-KEM-1024")),
)
_PLAIN = (
    *(ed25519.Ed25519PublicKey, ed448.Ed448PublicKey),
    *(mldsa.MLDSA44PublicKey, mldsa.MLDSA65PublicKey, mldsa.MLDSA87PublicKey),
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A PrivateKeyPossessionStatement (RFC 9883 §3): which certificate's key signed; `certificate` may be left out."""

    issuer: Der
    serial: int
    certificate: Der | None


def establishing(key: object) -> KeyFacts | None:
    """Say what kind of key this is, if it is one that establishes other keys; None for any other."""
    return next((facts for kind, facts in _ESTABLISHING if isinstance(key, kind)), None)


def statement_of(value: Tlv) -> Statement:
    """Read a PrivateKeyPossessionStatement.

    Raises:
        MalformedRequest: it is none.
    """
    parts = read_children(value.content, most=2) if value.tag == 0x30 else []
    names = read_children(parts[0].content, most=2) if parts and parts[0].tag == 0x30 else []
    if [part.tag for part in parts] not in ([0x30], [0x30, 0x30]) or [name.tag for name in names] != [0x30, 0x02]:
        raise MalformedRequest("a statement of possession names an issuer and a serial number (RFC 9883 §3)")
    number = names[1].content
    if not 1 <= len(number) <= SERIAL_MAX_BYTES or number[0] & 0x80:
        raise MalformedRequest("the statement of possession has a serial number that no certificate has")
    certificate = Der(parts[1].octets) if len(parts) == 2 else None
    return Statement(Der(names[0].octets), int.from_bytes(number), certificate)


def verify(request: x509.CertificateSigningRequest, signer: Der) -> None:
    """Check that the key of `signer` signed the request.

    Raises:
        ProofOfPossessionFailed: it did not.
    """
    if not _signed_by(x509.load_der_x509_certificate(signer).public_key(), request):
        raise ProofOfPossessionFailed(
            "the signature does not verify with the key of the certificate that the statement of possession names"
        )


def _signed_by(key: object, request: x509.CertificateSigningRequest) -> bool:
    signature, signed = request.signature, request.tbs_certrequest_bytes
    try:
        parameters = request.signature_algorithm_parameters
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(signature, signed, parameters)
        elif isinstance(key, rsa.RSAPublicKey):
            digest = request.signature_hash_algorithm
            key.verify(signature, signed, parameters, digest)  # type: ignore[arg-type]  # a padding and its digest
        elif isinstance(key, _PLAIN):
            key.verify(signature, signed)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True
