"""What is signed is what was granted: P and D rows, openssl, four kinds of CA, and the edges of time."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from cryptography.x509.oid import SignatureAlgorithmOID as Sig
from hypothesis import given, settings
from hypothesis import strategies as st

from estserver import asn1, csr
from estserver.ca import IssuingCa, make_ca_certificate, serial_from, write_name
from estserver.errors import ConfigError, InternalError
from estserver.keys import KINDS, FileSigner
from estserver.model import Der, Grant, Identity, Operation, Reservation, Serial
from estserver.policy import Ask, Profile, decide, parse_profile
from estserver.policy.decide import NEVER
from estserver.policy.names import OIDS
from tests import csr_maker as maker
from tests.conftest import require_program

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
EDGE = datetime(2049, 12, 31, 23, 59, 50, tzinfo=UTC)
CENTURY = NOW.replace(year=2127)
CLOCKS = {"now": NOW, "2049": EDGE, "+100 years": CENTURY}
YEARS = timedelta(days=3650)
PROFILES = {
    entry.name.removesuffix(".toml"): parse_profile(
        entry.name.removesuffix(".toml"), entry.read_text("utf-8"), source=Path(entry.name)
    )
    for entry in (resources.files("estserver.policy") / "profiles").iterdir()
}
DEVICE = PROFILES["device"]
KEYS: dict[str, Any] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA-2048": rsa.generate_private_key(65537, 2048),
    "RSA-3072": rsa.generate_private_key(65537, 3072),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ML-DSA-44": mldsa.MLDSA44PrivateKey.generate(),
    "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate(),
    "ML-DSA-87": mldsa.MLDSA87PrivateKey.generate(),
}


@dataclass(frozen=True)
class Hierarchy:
    """A root, an issuing CA below it, and what that issues."""

    root: Der
    issuing: Der
    ca: IssuingCa

    def issue(self, grant: Grant) -> x509.Certificate:
        reservation = Reservation(serial_from(os.urandom(20)), grant, NOW)
        return x509.load_der_x509_certificate(self.ca.issue(reservation))


def hierarchy(kind: str, now: datetime = NOW, end: datetime | None = None) -> Hierarchy:
    key = KEYS.get(kind) or KINDS[kind]()
    signer, root_signer = FileSigner(key), FileSigner(KINDS[kind]() if kind != "RSA-3072" else key)
    times = {"not_before": now - timedelta(days=1), "not_after": end or now + 2 * YEARS}
    serial = serial_from(os.urandom(20))
    root = make_ca_certificate(subject="Root CA", spki=root_signer.spki, serial=serial, issuer=root_signer, **times)
    issuer = (x509.load_der_x509_certificate(root), root_signer)
    serial = serial_from(os.urandom(20))
    issuing = make_ca_certificate(subject="Issuing CA", spki=signer.spki, serial=serial, issuer=issuer, **times)
    return Hierarchy(root, issuing, IssuingCa(issuing, [root], signer))


@pytest.fixture(scope="module")
def home() -> Hierarchy:
    return hierarchy("P-256", end=NEVER)


SAN = ("dns:sn-1", "dns:a.plant.example", "ip:192.0.2.1", "ip:2001:db8::1", "uri:urn:device:sn-1")


def grant_for(
    profile: Profile = DEVICE, key: str = "P-256", now: datetime = NOW, end: datetime = NEVER, san: tuple[str, ...] = ()
) -> Grant:
    subject = [(OIDS[profile.device_id[0]], "sn-1")]
    request = csr.parse(Der(maker.request(KEYS[key], subject, san=san)))
    who = Identity(profile.requesters[0], "who", ("*",), san)
    return decide(profile, Ask(Operation.SIMPLEENROLL, "", who, request, None, "absent", now, end))


# --- every kind of CA -----------------------------------------------------------------------------------------------

SIGNED_WITH = {
    "P-256": Sig.ECDSA_WITH_SHA256,
    "P-384": Sig.ECDSA_WITH_SHA384,
    "RSA-3072": Sig.RSA_WITH_SHA256,
    "Ed25519": Sig.ED25519,
    "ML-DSA-44": x509.ObjectIdentifier("2.16.840.1.101.3.4.3.17"),
    "ML-DSA-65": x509.ObjectIdentifier("2.16.840.1.101.3.4.3.18"),
    "ML-DSA-87": x509.ObjectIdentifier("2.16.840.1.101.3.4.3.19"),
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_ca_issues_a_chain_that_holds(tmp_path: Path, kind: str, clock: str) -> None:
    made = hierarchy(kind, CLOCKS[clock])
    leaf = made.issue(grant_for(now=CLOCKS[clock], end=made.ca.not_after, san=SAN))
    root, issuing = map(x509.load_der_x509_certificate, (made.root, made.issuing))
    leaf.verify_directly_issued_by(issuing)
    issuing.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    assert leaf.signature_algorithm_oid == SIGNED_WITH[kind]
    if kind.startswith("ML-DSA"):
        return  # the system's OpenSSL may be too old to read it
    for stem, certificate in (("root", root), ("issuing", issuing), ("leaf", leaf)):
        (tmp_path / f"{stem}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    command = [require_program("openssl", "openssl"), "verify", "-x509_strict", "-purpose", "sslclient"]
    command += ["-attime", str(int(CLOCKS[clock].timestamp())), "-no-CApath", "-no-CAstore"]
    command += ["-CAfile", "root.pem", "-untrusted", "issuing.pem", "leaf.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "leaf.pem: OK\n", done.stderr


# --- rows -----------------------------------------------------------------------------------------------------------


def test_p_01_p_02_version_and_serial(home: Hierarchy) -> None:
    certificates = [home.issue(grant_for()) for _ in range(20)]
    assert {c.version for c in certificates} == {x509.Version.v3}
    assert len({c.serial_number for c in certificates}) == 20
    assert all(64 < c.serial_number.bit_length() <= 159 for c in certificates)


@given(st.binary(min_size=20, max_size=20))
def test_p_02_a_serial_is_positive_of_20_octets_and_keeps_its_randomness(random: bytes) -> None:
    serial = serial_from(random)
    assert 1 << 158 <= serial < 1 << 159
    assert serial & (1 << 157) - 1 == int.from_bytes(random) >> 1 & (1 << 157) - 1


def test_p_02_a_serial_is_made_of_exactly_20_bytes() -> None:
    with pytest.raises(ValueError, match="20"):
        serial_from(b"1")


@pytest.mark.parametrize(
    ("end", "tag"),
    [
        (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), "utc_time"),
        (datetime(2050, 1, 1, 0, 0, 0, tzinfo=UTC), "general_time"),
        (NEVER, "general_time"),
    ],
)
def test_p_03_dates_are_utc_time_to_2049_and_generalized_time_from_2050(
    home: Hierarchy, end: datetime, tag: str
) -> None:
    certificate = home.issue(replace(grant_for(), not_after=end))
    assert certificate.not_valid_after_utc == end
    validity = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))["tbs_certificate"]["validity"]
    assert (validity["not_before"].name, validity["not_after"].name) == ("utc_time", tag)
    octets = validity["not_after"].chosen.contents
    assert octets.endswith(b"Z")
    assert len(octets) == (13 if tag == "utc_time" else 15)


def test_p_03_across_the_edge_of_2050(home: Hierarchy) -> None:
    certificate = home.issue(grant_for(PROFILES["workload"], now=EDGE))
    validity = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))["tbs_certificate"]["validity"]
    assert (validity["not_before"].name, validity["not_after"].name) == ("utc_time", "general_time")


def test_p_04_no_leaf_outlives_its_ca_and_each_begins_a_little_earlier() -> None:
    made = hierarchy("P-256", end=NOW + timedelta(days=30))
    certificate = made.issue(grant_for(end=made.ca.not_after))
    assert certificate.not_valid_after_utc == made.ca.not_after
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)


def test_p_05_p_06_key_identifiers(home: Hierarchy) -> None:
    issuing, leaf = x509.load_der_x509_certificate(home.issuing), home.issue(grant_for())
    ours = issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    subject = leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert authority.value.key_identifier == ours.value.digest
    assert subject.value == x509.SubjectKeyIdentifier.from_public_key(leaf.public_key())
    assert not any(e.critical for e in (ours, authority, subject))


@pytest.mark.parametrize("key", sorted(KEYS))
def test_p_07_q_02_key_usage_fits_the_key(home: Hierarchy, key: str) -> None:
    """keyEncipherment in EC certificates is a fault of both Python peers."""
    found = home.issue(grant_for(key=key)).extensions.get_extension_for_class(x509.KeyUsage)
    wanted = ("digital_signature", "key_encipherment") if key.startswith("RSA") else ("digital_signature",)
    assert found.critical
    assert found.value == maker.usage(*wanted)


def test_p_07_p_08_ca_certificates_are_cas_and_leaves_are_not(home: Hierarchy) -> None:
    root, issuing = map(x509.load_der_x509_certificate, (home.root, home.issuing))
    for certificate, length in ((root, None), (issuing, 0)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert (constraints.critical, usage.critical) == (True, True)
        assert (constraints.value.ca, constraints.value.path_length) == (True, length)
        assert usage.value == maker.usage("key_cert_sign", "crl_sign")
    for profile in PROFILES.values():
        leaf = home.issue(grant_for(profile))
        with pytest.raises(x509.ExtensionNotFound):
            leaf.extensions.get_extension_for_class(x509.BasicConstraints)


@pytest.mark.parametrize(
    ("profile", "purposes"),
    [
        ("device", [2]),
        ("gateway", [2, 1]),
        ("workload", [2, 1]),
        ("station", [2, 28]),
        ("server", [1, 2]),
        ("service", [2]),
    ],
)
def test_p_09_purposes(home: Hierarchy, profile: str, purposes: list[int]) -> None:
    found = home.issue(grant_for(PROFILES[profile])).extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert not found.critical
    assert [oid.dotted_string for oid in found.value] == [f"1.3.6.1.5.5.7.3.{arc}" for arc in purposes]


def test_p_10_the_san_is_critical_only_beside_an_empty_subject(home: Hierarchy) -> None:
    grant = grant_for(san=SAN)
    named = home.issue(grant).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    empty = home.issue(replace(grant, subject=())).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert (named.critical, empty.critical) == (False, True)
    assert {address.packed.__len__() for address in named.value.get_values_for_type(x509.IPAddress)} == {4, 16}
    assert not [e for e in home.issue(grant_for()).extensions if isinstance(e.value, x509.SubjectAlternativeName)]


def test_p_11_names_are_written_in_the_types_of_rfc_5280(home: Hierarchy) -> None:
    certificate = home.issue(grant_for(PROFILES["idevid"]))
    assert certificate.issuer.public_bytes() == x509.load_der_x509_certificate(home.issuing).subject.public_bytes()
    parsed = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
    (rdn,) = parsed["tbs_certificate"]["subject"].chosen
    assert rdn[0]["value"].dump()[0] == maker.PRINTABLE
    (rdn,) = asn1_x509.Certificate.load(home.root)["tbs_certificate"]["subject"].chosen
    assert rdn[0]["value"].dump()[0] == maker.UTF8


def test_p_12_no_extension_stands_twice(home: Hierarchy) -> None:
    grant = grant_for()
    with pytest.raises(InternalError, match="not the one that was granted"):
        home.issue(replace(grant, extensions=(*grant.extensions, grant.extensions[0])))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_p_14_the_algorithm_is_said_twice_alike_with_the_right_parameters(kind: str) -> None:
    made = hierarchy(kind)
    for der in (made.root, made.issuing, made.issue(grant_for(end=made.ca.not_after)).public_bytes(Encoding.DER)):
        parsed = asn1_x509.Certificate.load(der)
        inner, outer = parsed["tbs_certificate"]["signature"], parsed["signature_algorithm"]
        assert inner.dump() == outer.dump()
        assert inner.dump().endswith(b"\x05\x00") is (kind == "RSA-3072")


def test_d_01_to_d_05_a_birth_certificate(home: Hierarchy) -> None:
    """IEEE 802.1AR: serialNumber, no end, AKI, no SAN that says nothing, digitalSignature alone, no purposes."""
    certificate = home.issue(grant_for(PROFILES["idevid"]))
    assert certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)[0].value == "sn-1"
    assert certificate.not_valid_after_utc == NEVER
    assert b"99991231235959Z" in certificate.public_bytes(Encoding.DER)
    kinds = {type(e.value) for e in certificate.extensions}
    assert kinds == {x509.AuthorityKeyIdentifier, x509.SubjectKeyIdentifier, x509.KeyUsage}
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value == maker.usage("digital_signature")


def test_d_07_a_local_certificate_has_an_end(home: Hierarchy) -> None:
    for profile in set(PROFILES) - {"idevid"}:
        assert home.issue(grant_for(PROFILES[profile])).not_valid_after_utc <= NOW + timedelta(days=366)


# --- faithfulness ---------------------------------------------------------------------------------------------------

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(KEYS)),
    labels,
    st.lists(st.one_of(labels.map("dns:{}.plant.example".format), st.ip_addresses().map("ip:{}".format)), max_size=4),
)
def test_a_request_parsed_decided_and_signed_has_exactly_what_was_granted(
    key: str, device: str, san: list[str]
) -> None:
    made = FIXED
    request = csr.parse(Der(maker.request(KEYS[key], device, san=san)))
    who = Identity(DEVICE.requesters[0], "who", ("*",), ("dns:*.plant.example", "ip:0.0.0.0/0", "ip:::/0"))
    grant = decide(DEVICE, Ask(Operation.SIMPLEENROLL, "", who, request, None, "absent", NOW, NEVER))
    certificate = made.issue(grant)
    assert maker.spki(certificate.public_key()) == maker.spki(KEYS[key])
    assert certificate.subject == write_name(grant.subject)
    found = [e for e in certificate.extensions if isinstance(e.value, x509.SubjectAlternativeName)]
    assert (csr.general_names(found[0].value) if found else ()) == grant.san
    assert {e.oid.dotted_string: e.value.public_bytes() for e in certificate.extensions}.items() >= {
        (e.oid, bytes(e.value)) for e in grant.extensions
    }


FIXED = hierarchy("P-256", end=NEVER)


def test_what_was_not_granted_does_not_leave(home: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    write = asn1.tbs_certificate

    def add(extensions: list[tuple[str, bool, Der]], **parts: Any) -> Der:
        return write(extensions=[*extensions, ("1.2.3.4", False, Der(b"\x05\x00"))], **parts)

    monkeypatch.setattr(asn1, "tbs_certificate", add)
    with pytest.raises(InternalError, match="not the one that was granted"):
        home.ca.issue(Reservation(Serial(1 << 158), grant_for(), NOW))


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("kind", ["P-256", "RSA-3072", "ML-DSA-65"])
@pytest.mark.parametrize("clock", sorted(CLOCKS))
def test_our_writer_writes_what_the_library_does(profile: str, kind: str, clock: str) -> None:
    home = hierarchy(kind, CLOCKS[clock], NEVER)
    grant = replace(grant_for(PROFILES[profile]), not_before=CLOCKS[clock], not_after=CLOCKS[clock] + YEARS)
    ours = home.issue(grant)
    builder = x509.CertificateBuilder(
        issuer_name=x509.load_der_x509_certificate(home.issuing).subject,
        subject_name=write_name(grant.subject),
        public_key=x509.load_der_x509_csr(grant.csr.der).public_key(),  # type: ignore[arg-type]  # a key that signs
        serial_number=ours.serial_number,
        not_valid_before=ours.not_valid_before_utc.replace(tzinfo=None),
        not_valid_after=ours.not_valid_after_utc.replace(tzinfo=None),
        extensions=list(ours.extensions),
    )
    key = KEYS[kind]
    theirs = builder.sign(key, ours.signature_hash_algorithm)  # type: ignore[arg-type]  # none for ML-DSA
    assert ours.tbs_certificate_bytes == theirs.tbs_certificate_bytes
    assert ours.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value == (
        x509.SubjectKeyIdentifier.from_public_key(builder._public_key)  # type: ignore[arg-type]  # it has one
    )


def test_a_ca_whose_parts_do_not_fit_is_not_made(home: Hierarchy) -> None:
    with pytest.raises(ConfigError, match="does not belong"):
        IssuingCa(home.issuing, [home.root], FileSigner(maker.new_key()))
    with pytest.raises(ConfigError, match="not issued by the root"):
        IssuingCa(home.issuing, [hierarchy("P-256").root], FileSigner(KEYS["P-256"]))
