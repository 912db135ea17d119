"""Whom this side of the wire believes.

Rules:
- Only explicit trust anchors, given by the caller; never the system's store (RFC 7030 §3.1, §3.6.1).
- A path is built and checked by OpenSSL over exactly these anchors (RFC 5280 §6). An anchor need not be self-signed.
- A server is authorised by its name in the subject alternative name, or by id-kp-cmcRA under an explicit anchor
  (RFC 7030 §3.6.1). The common name is never looked at (RFC 9525 §2).
"""

from __future__ import annotations

import ipaddress
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from devicesim.errors import ConfigInvalid, VerificationFailed

CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")  # id-kp-cmcRA, RFC 6402 §2.10
_FILE_MAX_BYTES = 1 << 20
# What asking a certificate for its parts can raise: some of it is only parsed then.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class TrustAnchors:
    """The explicit trust anchors (RFC 7030 §1.1)."""

    explicit: tuple[x509.Certificate, ...]

    def __post_init__(self) -> None:
        if not self.explicit:
            raise ConfigInvalid("there is no trust anchor", advice="give the CA certificate of the EST server")

    @classmethod
    def from_file(cls, path: Path | str) -> TrustAnchors:
        """Read one or more certificates in PEM, or one in DER."""
        return cls(load_certificates(path))

    def store(self, now: datetime | None = None) -> crypto.X509Store:
        """Return an OpenSSL store holding these anchors, set to verify at `now` (default: when it verifies)."""
        store = crypto.X509Store()
        self.fill(store, now)
        return store

    def fill(self, store: crypto.X509Store, now: datetime | None = None) -> None:
        """Put these anchors, and nothing else, into a store of OpenSSL's."""
        for certificate in self.explicit:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        if now is not None:
            store.set_time(now)
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)

    def pem(self) -> bytes:
        """Return the anchors as PEM."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.explicit)


def load_certificates(path: Path | str) -> tuple[x509.Certificate, ...]:
    """Read certificates from a file of the user's, PEM (any number) or DER (one)."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _FILE_MAX_BYTES:
        raise ConfigInvalid(f"{path} is too large to be a certificate file")
    try:
        pem = b"-----BEGIN" in data
        found = tuple(x509.load_pem_x509_certificates(data)) if pem else (x509.load_der_x509_certificate(data),)
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigInvalid(f"{path} holds no readable certificate", advice="expected PEM or DER") from error
    if not all(map(readable, found)):
        raise ConfigInvalid(f"{path} holds a certificate that cannot be read")
    return found


def build_path(
    certificate: x509.Certificate,
    untrusted: Iterable[x509.Certificate],
    trust: TrustAnchors,
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """Return the verified path from `certificate` to an anchor, both included; otherwise say what is wrong."""
    # A root that is no anchor leads nowhere, and OpenSSL does not turn back from it to the link beside it.
    pool = [crypto.X509.from_cryptography(other) for other in untrusted if not is_self_signed(other)]
    context = crypto.X509StoreContext(trust.store(now), crypto.X509.from_cryptography(certificate), pool)
    try:
        return tuple(found.to_cryptography() for found in context.get_verified_chain())
    except crypto.X509StoreContextError as error:
        raise VerificationFailed(
            f"the certificate {certificate.subject.rfc4514_string()!r} does not chain to a trust anchor: {error}"
        ) from error


def readable_ones(found: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    """Load certificates in DER, leaving out those of which some part cannot be read.

    What others send is no news about our libraries: that they will refuse some of it one day is not warned of.

    Raises:
        ValueError: one is no certificate at all.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(filter(readable, map(x509.load_der_x509_certificate, found)))


def readable(certificate: x509.Certificate) -> bool:
    """Tell whether every part of a certificate can be read; some are parsed only when they are asked for."""
    try:
        _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key()
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _UNREADABLE:
        return False
    return True


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate is signed with its own key."""
    return is_signed_by(certificate, certificate)


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tell whether a certificate bears the name of its issuer and the signature of that one's key."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm: all say "no"
        return False
    return True


def is_ca(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate may sign others (RFC 5280 §4.2.1.9)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except _UNREADABLE:
        return False


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the whole DER certificate, lower-case hex (RFC 7030 §4.1.1)."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def authorises(certificate: x509.Certificate, host: str) -> bool:
    """Tell whether a server whose path was verified may speak for `host` (RFC 7030 §3.6.1)."""
    return names_host(certificate, host) or CMC_RA in extended_key_usage(certificate)


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Match a host name or address against the subject alternative name alone (RFC 9525 §6.3)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _UNREADABLE:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return any(_dns_match(pattern, host) for pattern in names.get_values_for_type(x509.DNSName))
    return address in names.get_values_for_type(x509.IPAddress)


def extended_key_usage(certificate: x509.Certificate) -> frozenset[x509.ObjectIdentifier]:
    """Return the purposes of a certificate; none when it names none."""
    try:
        return frozenset(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except _UNREADABLE:
        return frozenset()


def may_authenticate_client(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate can be shown in a TLS handshake by a client (RFC 5280 §4.2.1.12)."""
    purposes = extended_key_usage(certificate)
    wanted = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    return not purposes or not wanted.isdisjoint(purposes)


def _dns_match(pattern: str, host: str) -> bool:
    """Compare DNS names; a wildcard stands for exactly one whole left-most label (RFC 9525 §6.3)."""
    wanted, given = host.rstrip(".").lower().split("."), pattern.rstrip(".").lower().split(".")
    if len(wanted) != len(given) or "*" in "".join(given[1:]):
        return False
    if given[0] == "*":
        return len(given) > 2 and wanted[1:] == given[1:]
    return "*" not in given[0] and wanted == given
