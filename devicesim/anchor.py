"""Learning the trust anchor from its fingerprint (RFC 7030 §4.1.1): the only time an unknown server is listened to."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from devicesim import codec
from devicesim.address import EstAddress
from devicesim.cacerts import CaCerts
from devicesim.client import EstClient
from devicesim.errors import UsageProblem, VerificationFailed
from devicesim.replies import Body, expect, refusal
from devicesim.transport import Connection, TlsChoice, TlsSettings
from devicesim.trust import TrustAnchors, is_self_signed

_FINGERPRINTS: dict[int, hashes.HashAlgorithm] = {64: hashes.SHA256(), 128: hashes.SHA512()}


def bootstrap(
    url: str,
    fingerprint: str,
    *,
    label: str = "",
    tls: TlsChoice = "auto",
    timeout_seconds: float = 30.0,
    clock: Callable[[], datetime] | None = None,
) -> CaCerts:
    """Learn the trust anchor from its fingerprint (RFC 7030 §4.1.1).

    One unauthenticated connection fetches `/cacerts` and nothing else, shows no certificate and answers no challenge.
    The self-signed certificate whose SHA-256 (or SHA-512) over the whole DER is `fingerprint` becomes the anchor; with
    it a second connection is verified, and what comes over that one is returned.
    """
    wanted = _parse_fingerprint(fingerprint)
    address = EstAddress.parse(url, label)
    connection = Connection(address.origin, TlsSettings(None, None, tls, timeout_seconds))
    try:
        answer = connection.exchange("GET", address.path("cacerts"), {"User-Agent": "devicesim", "Accept": "*/*"})
    finally:
        connection.close()
    if answer.status != 200:
        raise refusal(answer, "cacerts")
    anchor = _matching(codec.certs_only(expect(answer, Body.CERTS_ONLY)), wanted)
    with EstClient(
        url, trust=TrustAnchors((anchor,)), label=label, tls=tls, timeout_seconds=timeout_seconds, clock=clock
    ) as client:
        return client.cacerts()


def _parse_fingerprint(text: str) -> bytes:
    digits = text.strip().replace(":", "").replace(" ", "").lower()
    try:
        wanted = bytes.fromhex(digits)
    except ValueError:
        wanted = b""
    if len(digits) not in _FINGERPRINTS or not wanted:
        raise UsageProblem("not a fingerprint", advice="give the SHA-256 of the CA certificate: 64 hexadecimal digits")
    return wanted


def _matching(certificates: tuple[x509.Certificate, ...], wanted: bytes) -> x509.Certificate:
    algorithm = _FINGERPRINTS[len(wanted) * 2]
    for certificate in certificates:
        if hmac.compare_digest(certificate.fingerprint(algorithm), wanted) and is_self_signed(certificate):
            return certificate
    raise VerificationFailed(
        "no CA certificate of this server has that fingerprint; nothing was kept",
        advice="compare the fingerprint with the one the server's operator gave; if it is right, somebody else answers",
    )
