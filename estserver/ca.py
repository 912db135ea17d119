"""`Grant` + serial → certificate, and nothing that the grant does not say.

Rules (est-conformance section 11, RFC 5280 §4):
- The subject is written anew from the grant, the issuer's name is copied from the CA's certificate octet for octet.
- The key is the CSR's, octet for octet.
- Before a certificate leaves, another library than wrote it reads it, and it is compared with the grant: what was not
  decided is not in it.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import BinaryIO, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from estserver import asn1, crl
from estserver.errors import ConfigError, InternalError, MalformedRequest
from estserver.key_ids import key_id_text
from estserver.keys import Signer
from estserver.model import Der, GeneralName, Grant, NameAttribute, Reservation, Serial

SERIAL_BYTES = 20
ROOT_LIFETIME = timedelta(days=20 * 365)
ISSUING_LIFETIME = timedelta(days=10 * 365)
BACKDATE = timedelta(days=1)
"""CA certificates begin in the past: not every clock that will check them is right."""

_SAN_WRITERS: dict[str, Callable[[str], x509.GeneralName]] = {
    "dns": x509.DNSName,
    "ip": lambda value: x509.IPAddress(ipaddress.ip_address(value)),
    "uri": x509.UniformResourceIdentifier,
    "email": x509.RFC822Name,
}


def serial_from(random_bytes: bytes) -> Serial:
    """Make a serial number of 159 random bits, positive and at most 20 octets (RFC 5280 §4.1.2.2)."""
    if len(random_bytes) != SERIAL_BYTES:
        raise ValueError("a serial number is made of exactly 20 random bytes")
    return Serial(int.from_bytes(random_bytes) >> 1 | 1 << 158)


@dataclass(frozen=True, slots=True)
class StatusUrls:
    """Where relying parties find what became of a certificate (RFC 5280 §4.2.1.13, §4.2.2.1); empty: not said."""

    crl: str = ""
    ocsp: str = ""
    issuer: str = ""

    def extensions(self) -> list[tuple[str, bool, Der]]:
        """Write them as extensions: one distribution point that is a URI, and the accesses."""
        found, accesses = list[tuple[str, bool, Der]](), list[x509.AccessDescription]()
        for method, url in ((_OCSP, self.ocsp), (_CA_ISSUERS, self.issuer)):
            if url:
                accesses.append(x509.AccessDescription(method, x509.UniformResourceIdentifier(url)))
        if accesses:
            found.append((_AIA, False, Der(x509.AuthorityInformationAccess(accesses).public_bytes())))
        if self.crl:  # no cRLIssuer: who signs the certificate signs the list (RFC 5280 §4.2.1.13)
            point = x509.DistributionPoint([x509.UniformResourceIdentifier(self.crl)], None, None, None)
            found.append((_CRL_POINTS, False, Der(x509.CRLDistributionPoints([point]).public_bytes())))
        return found


_OCSP, _CA_ISSUERS = AuthorityInformationAccessOID.OCSP, AuthorityInformationAccessOID.CA_ISSUERS
_AIA = ExtensionOID.AUTHORITY_INFORMATION_ACCESS.dotted_string
_CRL_POINTS = ExtensionOID.CRL_DISTRIBUTION_POINTS.dotted_string


class IssuingCa:
    """One issuing CA: its certificate, the chain above it, and a signer.

    Args:
        certificate: the issuing CA's own.
        chain: certificates from its issuer up to and including the root; none for a root.
        urls: what its certificates say of where to look them up.
        besides: what clients are given as well while a rollover is on its way (`estserver.rollover`).

    Attributes:
        key_id: identifier of the key that signs; its leaves carry it.

    Raises:
        ConfigError: the key is not the certificate's, or the chain does not hold together.
    """

    def __init__(
        self,
        certificate: Der,
        chain: Sequence[Der],
        signer: Signer,
        urls: StatusUrls = StatusUrls(),
        besides: Sequence[Der] = (),
    ) -> None:
        self.certificate = certificate
        self.chain = tuple(chain)
        self._besides = tuple(besides)
        self._signer = signer
        self._parsed = x509.load_der_x509_certificate(certificate)
        if spki_of(self._parsed) != signer.spki:
            raise ConfigError("the issuing CA's key does not belong to its certificate")
        below = self._parsed
        for der in self.chain:
            above = x509.load_der_x509_certificate(der)
            try:
                below.verify_directly_issued_by(above)
            except Exception:  # noqa: BLE001 - several types, all meaning that the chain is broken
                raise ConfigError("the issuing CA's certificate was not issued by the root") from None
            below = above
        ski = self._parsed.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        self._authority_key = Der(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski).public_bytes())
        self._subject = Der(self._parsed.subject.public_bytes())
        self._status = urls.extensions()
        self.key_id = key_id_text(ski.digest)

    @property
    def public_key(self) -> CertificatePublicKeyTypes:
        """The key that its signatures are verified with."""
        return self._parsed.public_key()

    @property
    def not_after(self) -> datetime:
        """No leaf outlives this."""
        return self._parsed.not_valid_after_utc

    @property
    def not_before(self) -> datetime:
        """No clock that is right is earlier than this."""
        return self._parsed.not_valid_before_utc

    @property
    def name(self) -> str:
        """The CA's subject, for people (RFC 4514)."""
        return self._parsed.subject.rfc4514_string()

    @property
    def hierarchy(self) -> tuple[Der, ...]:
        """Everything a client needs to verify a leaf: issuing CA up to the root, and links (RFC 7030 §4.1.3)."""
        return (self.certificate, *self.chain, *self._besides)

    @cached_property
    def hierarchy_sha256(self) -> str:
        """What tells this CA's answer to `/cacerts` from an earlier one."""
        return answer_sha256(self.hierarchy)

    def issue(self, reservation: Reservation) -> Der:
        """Sign the certificate that a reservation stands for.

        Raises:
            InternalError: what came out is not what was granted; it must not leave.
        """
        grant, signer = reservation.grant, self._signer
        tbs = asn1.tbs_certificate(
            serial=reservation.serial,
            algorithm=signer.algorithm,
            issuer=self._subject,
            not_before=grant.not_before,
            not_after=grant.not_after,
            subject=Der(write_name(grant.subject).public_bytes()),
            spki=grant.csr.spki,
            extensions=self._extensions(grant),
        )
        certificate = asn1.signed(tbs, signer.algorithm, signer.sign_data(tbs))
        self._compare(certificate, reservation)
        return certificate

    def write_crl(
        self,
        spool: BinaryIO,
        entries: Iterable[crl.Revoked],
        *,
        number: int,
        this_update: datetime,
        next_update: datetime,
    ) -> tuple[int, int]:
        """Sign a list of what was taken back, into an empty file; returned as by `crl.write`."""
        signer = self._signer
        head = crl.Head(self._subject, self._authority_key, signer.algorithm, number, this_update, next_update)
        return crl.write(spool, head, entries, signer.sign_data)

    def _extensions(self, grant: Grant) -> list[tuple[str, bool, Der]]:
        """Say whose key this is and whose signature, what was granted, and where its status is told."""
        found = [
            (_SKI, False, asn1.octet_string(asn1.key_identifier(grant.csr.spki))),
            (_AKI, False, self._authority_key),
        ]
        if grant.san:
            found.append((asn1.OID_SAN, not grant.subject, Der(write_san(grant.san).public_bytes())))
        granted = ((extension.oid, extension.critical, extension.value) for extension in grant.extensions)
        return [*found, *granted, *self._status]

    def _compare(self, der: Der, reservation: Reservation) -> None:
        """Let another reader than the one who wrote it say what the certificate is."""
        grant = reservation.grant
        expected = {_SKI, _AKI, *(extension.oid for extension in grant.extensions), *([asn1.OID_SAN] * bool(grant.san))}
        expected |= {oid for oid, _, _ in self._status}
        try:
            certificate = x509.load_der_x509_certificate(der)
            issuer, subject, spki = asn1.certificate_parts(Der(certificate.tbs_certificate_bytes))
            faithful = (
                certificate.serial_number == reservation.serial
                and issuer == self._subject
                and subject == write_name(grant.subject).public_bytes()
                and certificate.not_valid_before_utc == grant.not_before
                and certificate.not_valid_after_utc == grant.not_after
                and spki == grant.csr.spki
                and {extension.oid.dotted_string for extension in certificate.extensions} == expected
            )
        except (ValueError, x509.DuplicateExtension, MalformedRequest):
            faithful = False
        if not faithful:
            raise InternalError("the certificate that was signed is not the one that was granted")


_SKI, _AKI = ExtensionOID.SUBJECT_KEY_IDENTIFIER.dotted_string, ExtensionOID.AUTHORITY_KEY_IDENTIFIER.dotted_string


def write_name(attributes: Sequence[NameAttribute]) -> x509.Name:
    """Write a subject, each attribute in its own RDN and of the string type RFC 5280 appendix A gives it."""
    return x509.Name([x509.NameAttribute(x509.ObjectIdentifier(a.oid), a.value) for a in attributes])


def write_san(names: Sequence[GeneralName]) -> x509.SubjectAlternativeName:
    """Write subject alternative names (RFC 5280 §4.2.1.6)."""
    return x509.SubjectAlternativeName([_SAN_WRITERS[name.kind](name.value) for name in names])


def _public_key(spki: Der) -> CertificatePublicKeyTypes:
    return cast("CertificatePublicKeyTypes", serialization.load_der_public_key(spki))


def spki_of(certificate: x509.Certificate) -> Der:
    """Return the SubjectPublicKeyInfo of a certificate."""
    return Der(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


# --- the CA certificates themselves, made by `estserver init` and in a rollover ------------------------------------

_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def answer_sha256(certificates: Sequence[Der]) -> str:
    """Return what tells one answer to `/cacerts` from another, in whatever order they are."""
    return hashlib.sha256(b"".join(sorted(certificates))).hexdigest()


def make_ca_certificate(
    *,
    subject: str | x509.Name,
    spki: Der,
    serial: Serial,
    not_before: datetime,
    not_after: datetime,
    issuer: tuple[x509.Certificate, Signer] | Signer,
    path_length: int | None = 0,
) -> Der:
    """Make a root (issuer is its own signer), or a CA below one: issuing, or, without path length, a link.

    RFC 5280 §4.2.1.9, RFC 4210 §4.4.1.
    """
    key = _public_key(spki)
    if isinstance(subject, str):
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    ski = x509.SubjectKeyIdentifier.from_public_key(key)
    builder = (
        x509.CertificateBuilder()
        .serial_number(serial)
        .subject_name(subject)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .public_key(key)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(ski, critical=False)
    )
    if isinstance(issuer, tuple):
        parent, signer = issuer
        parent_ski = parent.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(parent_ski)
        builder = builder.issuer_name(parent.subject).add_extension(
            x509.BasicConstraints(ca=True, path_length=path_length), critical=True
        )
    else:
        signer = issuer
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)
        builder = builder.issuer_name(subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = signer.sign_certificate(builder.add_extension(authority, critical=False))
    return Der(certificate.public_bytes(Encoding.DER))
