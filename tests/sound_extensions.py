"""One sound value of every certificate extension that the library reads, to be asked for, spoiled or left alone."""

from __future__ import annotations

import ipaddress
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from tests import csr_maker

_DIRECTORY = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"), x509.NameAttribute(NameOID.COMMON_NAME, "x")])
_NAMES: list[x509.GeneralName] = [
    x509.DNSName("a.plant.example"),
    x509.UniformResourceIdentifier("http://a.example/b"),
    x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
    x509.DirectoryName(_DIRECTORY),
    x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
    x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),
    x509.RFC822Name("a@plant.example"),
]
_POINTS = [
    x509.DistributionPoint(_NAMES, None, frozenset([x509.ReasonFlags.key_compromise]), _NAMES),
    x509.DistributionPoint(None, _DIRECTORY.rdns[0], None, _NAMES[3:4]),
]
_NOTICE = x509.UserNotice(x509.NoticeReference("organisation", [1, 2]), "text")
_POLICY = x509.PolicyInformation(x509.ObjectIdentifier("1.2.3.4"), ["http://cps.example", _NOTICE])

_KNOWN: tuple[x509.ExtensionType, ...] = (
    x509.SubjectAlternativeName(_NAMES),
    x509.IssuerAlternativeName(_NAMES),
    x509.CRLDistributionPoints(_POINTS),
    x509.FreshestCRL(_POINTS),
    x509.AuthorityInformationAccess(
        [x509.AccessDescription(AuthorityInformationAccessOID.OCSP, name) for name in _NAMES]
    ),
    x509.CertificatePolicies([_POLICY]),
    x509.NameConstraints([_NAMES[0], x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))], None),
    x509.PolicyConstraints(1, 2),
    x509.InhibitAnyPolicy(3),
    x509.TLSFeature([x509.TLSFeatureType.status_request]),
    x509.OCSPNoCheck(),
    x509.PrecertPoison(),
    x509.AuthorityKeyIdentifier(bytes(20), _NAMES[3:4], 5),
    x509.SubjectKeyIdentifier(bytes(20)),
    csr_maker.usage("digital_signature", "key_agreement", "decipher_only"),
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
    x509.BasicConstraints(ca=True, path_length=3),
    x509.MSCertificateTemplate(x509.ObjectIdentifier("1.2.3"), 1, 2),
    x509.PrivateKeyUsagePeriod(datetime(2026, 1, 1), datetime(2027, 1, 1)),  # noqa: DTZ001  (the library wants it so)
    x509.DeltaCRLIndicator(3),
    x509.CRLNumber(1),
)
_OTHERS = ("1.3.6.1.4.1.11129.2.4.2", "1.3.6.1.4.1.11129.2.4.5", "1.3.36.8.3.3", "2.5.29.33", "2.5.29.9", "1.2.3.4.5")
"""Timestamps, admissions, policy mappings, directory attributes, and one of nobody: any DER, which fits few."""

SOUND_EXTENSIONS: tuple[tuple[str, bytes], ...] = (
    *((one.oid.dotted_string, one.public_bytes()) for one in _KNOWN),
    *((oid, csr_maker.sequence(csr_maker.tlv(0x02, b"\x05"))) for oid in _OTHERS),
)
"""(dotted OID, value in DER)."""
