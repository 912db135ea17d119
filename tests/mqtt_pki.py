"""A small PKI for the announcement tests: one root, and a certificate for each who speaks or listens."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devicesim.mqtt.connection import MqttIdentity
from devicesim.trust import CMC_RA, TrustAnchors

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH


@dataclass
class Party:
    """A key, its certificate, and the files they lie in."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    files: MqttIdentity


@dataclass
class Pki:
    """A root that issues to whoever the test asks for."""

    directory: Path
    at: datetime
    name: str = "Test Root"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.root = self._build(self.name, self.key, ca=True, usages=())
        self.trust_path = self.directory / "trust.pem"
        self.trust_path.write_bytes(self.root.public_bytes(Encoding.PEM))
        self.trust = TrustAnchors((self.root,))

    def station(self, name: str = "s-07") -> Party:
        return self.issue(name, CLIENT, CMC_RA)

    def device(self, name: str) -> Party:
        return self.issue(name, CLIENT)

    def issue(self, name: str, *usages: x509.ObjectIdentifier, days: tuple[int, int] = (-1, 30)) -> Party:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._build(name, key, ca=False, usages=usages, days=days)
        stem = f"{name}-{certificate.serial_number:x}"
        paths = self.directory / f"{stem}.pem", self.directory / f"{stem}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].touch(mode=0o600)
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Party(name, key, certificate, MqttIdentity(*paths, self.trust_path, name))

    def _build(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        ca: bool,
        usages: tuple[x509.ObjectIdentifier, ...],
        days: tuple[int, int] = (-1, 30),
    ) -> x509.Certificate:
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        public = key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.at + timedelta(days=days[0]))
            .not_valid_after(self.at + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_key_usage(ca=ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if SERVER in usages:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    on = {"key_cert_sign", "crl_sign"} if ca else {"digital_signature"}
    return x509.KeyUsage(**{name: name in on for name in names.split()})


def real_now() -> datetime:
    """The real time, in whole seconds: what real TLS peers check certificates against."""
    return datetime.now(UTC).replace(microsecond=0)
