"""The check of the certificate that came back against what was asked for, before anything is installed.

The key, the path to the explicit anchors, dates, subject, names and purpose: all of them are looked at, and everything
wrong is said at once. Names are compared by value, whatever string type the CA wrote them in (RFC 5280 §7.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509

from devicesim.csr import alternative_names, spki
from devicesim.errors import ClockUntrustworthy, VerificationFailed
from devicesim.trust import TrustAnchors, build_path, is_ca, is_self_signed, may_authenticate_client


def check_certificate(
    certificate: x509.Certificate,
    request: x509.CertificateSigningRequest | x509.Certificate,
    *,
    chain: Iterable[x509.Certificate],
    trust: TrustAnchors,
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """Return the intermediates between the certificate and its anchor, or raise with all that is wrong.

    `request` is what was asked for: the CSR, or the certificate that is being renewed with its own key.
    """
    if now < min(anchor.not_valid_before_utc for anchor in trust.explicit):
        raise ClockUntrustworthy(f"it is {now:%Y-%m-%d} here, and the trust anchor did not exist then")
    problems = list(_problems(certificate, request, now))
    path: tuple[x509.Certificate, ...] = ()
    try:
        path = chain_of(certificate, chain, trust, now)
    except VerificationFailed as error:
        problems.append(str(error))
    if problems:
        raise VerificationFailed(
            "the certificate that came back is not usable: " + "; ".join(problems),
            advice="nothing was changed; report it to whoever runs the server",
        )
    return path


def chain_of(
    certificate: x509.Certificate, chain: Iterable[x509.Certificate], trust: TrustAnchors, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Return the intermediates between a certificate and its anchor; its own dates are not at stake here."""
    path = build_path(certificate, chain, trust, _within(certificate, now))
    return tuple(found for found in path[1:] if not is_self_signed(found))


def chains(
    certificate: x509.Certificate, chain: Iterable[x509.Certificate], trust: TrustAnchors, now: datetime
) -> bool:
    """Tell whether a certificate has a path to an anchor, whatever else may be wrong with it."""
    try:
        chain_of(certificate, chain, trust, now)
    except VerificationFailed:
        return False
    return True


def _problems(
    certificate: x509.Certificate, request: x509.CertificateSigningRequest | x509.Certificate, now: datetime
) -> Iterable[str]:
    if spki(certificate) != spki(request):
        yield "it is for another key"
    if now < certificate.not_valid_before_utc:
        yield f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
    if now > certificate.not_valid_after_utc:
        yield f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
    if comparable(certificate.subject) != comparable(request.subject):
        yield f"its subject is {certificate.subject.rfc4514_string()!r}, not {request.subject.rfc4514_string()!r}"
    missing = _names(request) - _names(certificate)
    if missing:
        yield f"it lacks the names {', '.join(sorted(missing))}"
    if not may_authenticate_client(certificate):
        yield "it may not be used to authenticate a client"
    if is_ca(certificate):
        yield "it is a CA certificate"


def comparable(name: x509.Name) -> tuple[frozenset[tuple[str, str]], ...]:
    """Return a name such that equal names compare equal: case and inner white space folded, string type ignored."""
    return tuple(
        frozenset((found.oid.dotted_string, " ".join(str(found.value).split()).casefold()) for found in rdn)
        for rdn in name.rdns
    )


def _names(thing: x509.CertificateSigningRequest | x509.Certificate) -> frozenset[str]:
    try:
        return alternative_names(thing.extensions)
    except ValueError:
        return frozenset({"an unreadable name"})


def _within(certificate: x509.Certificate, now: datetime) -> datetime:
    return min(max(now, certificate.not_valid_before_utc), certificate.not_valid_after_utc)
