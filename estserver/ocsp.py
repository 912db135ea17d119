"""OCSP messages: octets → what is asked, what became of a certificate → signed octets (RFC 6960, RFC 9919).

Rules:
- One request, for one certificate; what more there could be in it is not read, but for a nonce (RFC 9919 §3.1).
- The responder is named by its key, nextUpdate is always there, times have whole seconds (RFC 9919 §3.2).
- A nonce is given back when it has a fit length (RFC 9654 §2.1); an answer without one may serve many.
- Certificates are told apart by SHA-256 or, for old clients, SHA-1 of their issuer (RFC 6960 §4.3, RFC 9919 §3.1.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver import asn1
from estserver.errors import MalformedRequest
from estserver.keys import Signer
from estserver.model import Der, Serial

REQUEST_MAX_BYTES = 4096
NONCE_MAX_BYTES = 128
HASHES: Mapping[str, hashes.HashAlgorithm] = {"sha256": hashes.SHA256(), "sha1": hashes.SHA1()}  # noqa: S303 - a name
_ERRORS = ocsp.OCSPResponseStatus


def _error(status: ocsp.OCSPResponseStatus) -> bytes:
    return ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)


MALFORMED = _error(_ERRORS.MALFORMED_REQUEST)
TRY_LATER = _error(_ERRORS.TRY_LATER)
UNAUTHORIZED = _error(_ERRORS.UNAUTHORIZED)
"""Nothing is known of this certificate: it was never issued here, or not by this CA (RFC 9919 §3.2.3)."""


@dataclass(frozen=True, slots=True)
class IssuerHash:
    """How a request names a CA."""

    algorithm: str
    name: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    issuer: IssuerHash
    serial: Serial
    nonce: bytes | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a certificate: revoked, when `revoked_at` says so; `reason` as in the inventory."""

    revoked_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Delegate:
    """Who signs answers for a CA: a certificate that it issued for nothing else, and its key."""

    certificate: x509.Certificate
    signer: Signer


def issuer_hashes(certificate: Der) -> tuple[IssuerHash, ...]:
    """Return every name that a CA may have in a request (RFC 6960 §4.1.1)."""
    _, subject, spki = asn1.certificate_parts(Der(x509.load_der_x509_certificate(certificate).tbs_certificate_bytes))
    key = asn1.read_children(asn1.read_tlv(spki)[0].content, most=2)[1].content[1:]
    return tuple(
        IssuerHash(name, hashlib.new(name, subject).digest(), hashlib.new(name, key).digest()) for name in HASHES
    )


def read(octets: bytes) -> Asked:
    """Read a request.

    Raises:
        MalformedRequest: it is none, is longer than one for a single certificate is, or asks for several.
    """
    if len(octets) > REQUEST_MAX_BYTES:
        raise MalformedRequest(f"an OCSP request has at most {REQUEST_MAX_BYTES} octets")
    try:
        request = ocsp.load_der_ocsp_request(octets)
        issuer = IssuerHash(request.hash_algorithm.name, request.issuer_name_hash, request.issuer_key_hash)
        return Asked(issuer, Serial(request.serial_number), _nonce(request))
    except (ValueError, NotImplementedError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise MalformedRequest("this is no OCSP request for one certificate") from None


def _nonce(request: ocsp.OCSPRequest) -> bytes | None:
    nonce = None
    for extension in request.extensions:
        if isinstance(extension.value, x509.OCSPNonce):
            nonce = extension.value.nonce
            if not 1 <= len(nonce) <= NONCE_MAX_BYTES:
                raise ValueError("a nonce has 1 to 128 octets")
        elif extension.critical:
            raise ValueError("an extension that has to be understood is not (RFC 6960 §4.4)")
    return nonce


def answer(asked: Asked, verdict: Verdict, delegate: Delegate, this_update: datetime, next_update: datetime) -> bytes:
    """Sign what became of a certificate; `asked.issuer` is one of `issuer_hashes`."""
    revoked, issuer = verdict.revoked_at is not None, asked.issuer
    reason = None if verdict.reason in (None, "unspecified") else x509.ReasonFlags(verdict.reason)
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response_by_hash(
            issuer.name,
            issuer.key,
            asked.serial,
            HASHES[issuer.algorithm],
            ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
            this_update,
            next_update,
            verdict.revoked_at,
            reason,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, delegate.certificate)
        .certificates([delegate.certificate])
    )
    if asked.nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(asked.nonce), critical=False)
    return delegate.signer.sign_ocsp(builder).public_bytes(Encoding.DER)
