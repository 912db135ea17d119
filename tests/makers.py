"""Other people's CAs: manufacturers whose IDevIDs bootstrap, and strangers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.csr_maker import bits, new_key, oid, sequence, usage
from tests.est_server import Holder

DAY = timedelta(days=1)
FAR = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def _today() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Maker:
    """A CA that is not ours: a root, or a sub-CA below one."""

    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key, repr=False)
    above: Maker | None = None
    not_before: datetime = field(default_factory=lambda: _today() - 3650 * DAY)
    not_after: datetime = FAR

    @property
    def subject(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    @property
    def certificate(self) -> x509.Certificate:
        builder = self._builder(
            self.subject, self.key.public_key(), self.not_before, self.not_after, self.above or self
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(usage("key_cert_sign", "crl_sign"), critical=True)
        return builder.sign((self.above or self).key, hashes.SHA256(), ecdsa_deterministic=True)

    def _builder(
        self, subject: x509.Name, key: Any, not_before: datetime, not_after: datetime, issuer: Maker
    ) -> x509.CertificateBuilder:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(1 if subject == self.subject else x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(authority, critical=False)
        )

    def sign(self, tbs: bytes) -> bytes:
        """A certificate of any content, in DER, with a signature that verifies."""
        value = self.key.sign(tbs, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        return sequence(tbs, sequence(oid("1.2.840.10045.4.3.2")), bits(value))

    def idevid(
        self,
        serial: str | None,
        *,
        not_before: datetime | None = None,
        not_after: datetime = FAR,
        purposes: Sequence[x509.ObjectIdentifier] = (),
        key_usage: x509.KeyUsage | None = None,
        ca: bool = False,
        critical_unknown: bool = False,
        key: Any = None,
    ) -> Holder:
        """A factory certificate (IEEE 802.1AR): the serial number in the subject, no end, few extensions."""
        key = key or new_key()
        pairs = [(NameOID.ORGANIZATION_NAME, self.name), *([(NameOID.SERIAL_NUMBER, serial)] if serial else [])]
        subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])
        start = not_before or _today() - DAY
        builder = self._builder(subject, key.public_key(), start, not_after, self)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if key_usage is not None:
            builder = builder.add_extension(key_usage, critical=True)
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        if critical_unknown:
            oid = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, b"\x05\x00"), critical=True)
        certificate = builder.sign(self.key, hashes.SHA256())
        chain, maker = [], self
        while maker.above is not None:
            chain.append(maker.certificate)
            maker = maker.above
        return Holder(key, certificate, tuple(chain))
