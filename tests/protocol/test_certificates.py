"""What a certificate of ours looks like (est-conformance section 11, RFC 5280 §4), at any time and from any CA.

Every kind of key, every profile and every CA key is issued here, in the present, across 2049/2050 (RFC 5280 §4.1.2.5)
and in a hundred years, and each certificate is linted by pkilint and verified by OpenSSL.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto
from pkilint import loader
from pkilint.pkix import certificate as lint
from pkilint.pkix import extension as lint_extension
from pkilint.pkix import name as lint_name
from pkilint.validation import ValidationFindingSeverity

from estserver.enroll import Enrollment, Request
from estserver.model import BasicCredentials, Operation, Peer
from tests import csr_maker
from tests.est_server import Home, found_home

PRESENT = datetime(2027, 3, 1, 12, tzinfo=UTC)
EDGE = datetime(2049, 12, 31, 23, 59, 50, tzinfo=UTC)
FAR = datetime(2127, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)

KEYS: dict[str, Any] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "ML-DSA-44": mldsa.MLDSA44PrivateKey.generate,
    "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate,
    "ML-DSA-87": mldsa.MLDSA87PrivateKey.generate,
}

ALLOWED_FINDINGS = {
    "pkix.invalid_domain_name_syntax",  # `localhost` in the test server's own certificate: a name of one label
}

LINTER = lint.create_pkix_certificate_validator_container(
    lint.create_decoding_validators(lint_name.ATTRIBUTE_TYPE_MAPPINGS, lint_extension.EXTENSION_MAPPINGS),
    [
        lint.create_issuer_validator_container([]),
        lint.create_validity_validator_container(),
        lint.create_subject_validator_container([]),
        lint.create_extensions_validator_container([]),
        lint.create_spki_validator_container([]),
    ],
)


@dataclass(frozen=True)
class Office:
    """A CA at one instant."""

    home: Home
    enrollment: Enrollment
    now: datetime

    def issue(
        self, subject: str | list[tuple[str, str]], *, kind: str = "P-256", label: str = "", **asked: Any
    ) -> x509.Certificate:
        credential = self.home.credential("*", label=label, names=asked.get("san", ()))
        der = csr_maker.request(KEYS[kind](), subject, **asked)
        request = Request(
            Operation.SIMPLEENROLL,
            label,
            base64.b64encode(der),
            Peer("127.0.0.1"),
            BasicCredentials(credential[0], credential[1].encode()),
        )
        return x509.load_der_x509_certificate(self.enrollment.enroll(request).certificate)


@pytest.fixture(scope="module", params=[PRESENT, EDGE, FAR], ids=["present", "2049-12-31", "in a century"])
def office(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    now: datetime = request.param
    home = found_home(tmp_path_factory.mktemp("office") / "home", now=now, idevid=True)
    with home.enrollment(lambda: now) as enrollment:
        yield Office(home, enrollment, now)


def findings(der: bytes) -> list[str]:
    document = loader.RFC5280CertificateDocumentLoader().load_der_document(der, "issued.crt")
    return [
        f"{description.finding.code}: {description.message}"
        for result in LINTER.validate(document.root)
        for description in result.finding_descriptions
        if description.finding.severity <= ValidationFindingSeverity.NOTICE
        and description.finding.code not in ALLOWED_FINDINGS
    ]


def verify(home: Home, leaf: x509.Certificate, now: datetime, *, idevid: bool = False) -> None:
    """OpenSSL 4 of the wheel, strict; it reads ML-DSA too."""
    root, issuing = ("idevid-root.pem", "idevid.pem") if idevid else ("root.pem", "issuing.pem")
    store = crypto.X509Store()
    store.set_flags(crypto.X509StoreFlags.X509_STRICT)
    store.set_time(now.replace(tzinfo=None))
    store.add_cert(crypto.X509.from_cryptography(x509.load_pem_x509_certificate((home.path / root).read_bytes())))
    between = crypto.X509.from_cryptography(x509.load_pem_x509_certificate((home.path / issuing).read_bytes()))
    crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf), [between]).verify_certificate()


def extension(certificate: x509.Certificate, kind: Any) -> Any:
    return certificate.extensions.get_extension_for_class(kind)


@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key_is_certified_and_sound(office: Office, kind: str) -> None:
    leaf = office.issue(f"sn-{kind.lower()}", kind=kind)
    assert findings(leaf.public_bytes(Encoding.DER)) == []
    verify(office.home, leaf, office.now + timedelta(hours=1))


@pytest.mark.parametrize(
    ("label", "purposes"),
    [
        ("", [ExtendedKeyUsageOID.CLIENT_AUTH]),
        ("gateway", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
        ("workload", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
        ("station", [ExtendedKeyUsageOID.CLIENT_AUTH, x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")]),
        ("server", [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        ("service", [ExtendedKeyUsageOID.CLIENT_AUTH]),
    ],
)
def test_p01_to_p14_every_profile(office: Office, label: str, purposes: list[x509.ObjectIdentifier]) -> None:
    san = ("dns:host.example", "ip:192.0.2.7") if label == "server" else ()
    leaf = office.issue(f"unit-{label or 'device'}", label=label, san=san)
    issuing = office.home.issuing
    assert findings(leaf.public_bytes(Encoding.DER)) == []
    verify(office.home, leaf, office.now + timedelta(minutes=1))
    assert leaf.version is x509.Version.v3  # P-01
    assert 0 < leaf.serial_number < 1 << 159  # P-02: at most 20 octets, positive
    assert leaf.serial_number.bit_length() > 150  # P-02: entropy
    assert leaf.not_valid_before_utc < office.now < leaf.not_valid_after_utc <= issuing.not_valid_after_utc  # P-04
    ski = extension(issuing, x509.SubjectKeyIdentifier).value
    authority = extension(leaf, x509.AuthorityKeyIdentifier)
    assert (authority.value.key_identifier, authority.critical) == (ski.digest, False)  # P-05
    assert extension(leaf, x509.SubjectKeyIdentifier).critical is False  # P-06
    usage = extension(leaf, x509.KeyUsage)
    assert usage.critical  # P-07
    assert usage.value.digital_signature
    assert not usage.value.key_encipherment
    assert not usage.value.key_cert_sign
    with pytest.raises(x509.ExtensionNotFound):  # P-08: no basicConstraints in a leaf
        extension(leaf, x509.BasicConstraints)
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == purposes  # P-09
    if san:
        assert extension(leaf, x509.SubjectAlternativeName).critical is False  # P-10
    assert leaf.issuer.public_bytes() == issuing.subject.public_bytes()  # P-11
    oids = [found.oid for found in leaf.extensions]
    assert len(oids) == len(set(oids))  # P-12
    assert leaf.signature_algorithm_parameters is not None  # P-14


def test_p03_times_are_utctime_to_2049_and_generalizedtime_after(office: Office) -> None:
    der = office.issue("sn-time").public_bytes(Encoding.DER)
    until = office.now + 365 * DAY
    tag = b"\x17\x0d" if until.year < 2050 else b"\x18\x0f"
    text = until.strftime("%y%m%d%H%M%SZ" if until.year < 2050 else "%Y%m%d%H%M%SZ")
    assert tag + text.encode() in der


def test_p07_an_rsa_key_may_also_encipher(office: Office) -> None:
    usage = extension(office.issue("sn-rsa", kind="RSA-2048"), x509.KeyUsage).value
    assert usage.digital_signature
    assert usage.key_encipherment


def test_d01_d02_an_idevid_names_its_serial_and_never_ends(office: Office) -> None:
    leaf = office.issue([(NameOID.SERIAL_NUMBER.dotted_string, "gw-1")], label="idevid")
    assert leaf.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)[0].value == "gw-1"
    assert leaf.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert b"\x18\x0f99991231235959Z" in leaf.public_bytes(Encoding.DER)
    with pytest.raises(x509.ExtensionNotFound):  # D-05: no purpose is pinned for life
        extension(leaf, x509.ExtendedKeyUsage)
    assert findings(leaf.public_bytes(Encoding.DER)) == []
    verify(office.home, leaf, office.now + 1000 * DAY, idevid=True)


def test_the_ca_certificates_are_sound(office: Office) -> None:
    for name in ("root.pem", "issuing.pem", "tls.pem", "idevid-root.pem", "idevid.pem"):
        for certificate in x509.load_pem_x509_certificates((office.home.path / name).read_bytes()):
            assert findings(certificate.public_bytes(Encoding.DER)) == [], name
    constraints = extension(office.home.issuing, x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


@pytest.mark.parametrize("key_kind", ["P-384", "RSA-3072", "ML-DSA-65"])
def test_every_kind_of_ca_issues(key_kind: str, tmp_path: Path) -> None:
    home = found_home(tmp_path / "home", now=PRESENT, key_kind=key_kind)
    with home.enrollment(lambda: PRESENT) as enrollment:
        leaf = Office(home, enrollment, PRESENT).issue("sn-1")
    assert findings(leaf.public_bytes(Encoding.DER)) == []
    verify(home, leaf, PRESENT + DAY)


def test_the_systems_openssl_agrees(tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    home = found_home(tmp_path / "home", now=now)
    with home.enrollment(lambda: now) as enrollment:
        leaf = Office(home, enrollment, now).issue("sn-1", san=("dns:sn-1", "ip:192.0.2.1"))
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    chain = ["-CAfile", home.path / "root.pem", "-untrusted", home.path / "issuing.pem"]
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", *chain, tmp_path / "leaf.pem"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
