"""What is revoked, and how everybody learns of it: lists and where certificates say they are (V-01, V-02, P-13)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID
from pkilint import loader
from pkilint.pkix import certificate as lint_certificate
from pkilint.pkix import crl as lint_crl
from pkilint.pkix import extension as lint_extension
from pkilint.pkix import name as lint_name
from pkilint.validation import ValidationFindingSeverity

from estserver.model import DeviceId
from tests import csr_maker
from tests.conftest import require_program
from tests.est_server import DAY, EST, Est, Home, RunningServer, found_home, fresh_id, today
from tests.status_support import BASE, eventually, status_home

CRL_LINTER = lint_crl.create_pkix_crl_validator_container(
    lint_certificate.create_decoding_validators(lint_name.ATTRIBUTE_TYPE_MAPPINGS, lint_extension.EXTENSION_MAPPINGS),
    [
        lint_crl.create_issuer_validator_container([]),
        lint_crl.create_validity_validator_container([]),
        lint_crl.create_extensions_validator_container([]),
    ],
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return status_home(tmp_path_factory.mktemp("revocation") / "home")


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[RunningServer]:
    with RunningServer(home, "--workers", "2") as running:
        yield running


@pytest.fixture(scope="module")
def est(server: RunningServer) -> Est:
    return Est(server)


def crl_path(certificate: x509.Certificate) -> str:
    """Where a certificate says its list is, on this server."""
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (point,) = points
    assert point.full_name is not None
    (uri,) = point.full_name
    assert uri.value.startswith(BASE)
    return uri.value.removeprefix(BASE)


def listed(est: Est, certificate: x509.Certificate, path: str | None = None) -> x509.CertificateRevocationList | None:
    """The list a certificate points at, once it has that certificate on it."""
    answer = est.get(path or crl_path(certificate))
    if answer.status != 200:
        return None
    crl = x509.load_der_x509_crl(answer.body)
    return crl if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None else None


# --- what certificates say ------------------------------------------------------------------------------------------


def test_p_13_v_02_a_certificate_says_where_its_status_is(est: Est) -> None:
    certificate = est.device().certificate
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    assert not points.critical
    (point,) = points.value
    assert (point.relative_name, point.reasons, point.crl_issuer) == (None, None, None)
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
    assert not access.critical
    said = {one.access_method: one.access_location.value for one in access.value}
    assert said.keys() == {AuthorityInformationAccessOID.OCSP, AuthorityInformationAccessOID.CA_ISSUERS}
    assert said[AuthorityInformationAccessOID.OCSP] == f"{BASE}/ocsp"
    answer = est.get(said[AuthorityInformationAccessOID.CA_ISSUERS].removeprefix(BASE))
    assert (answer["Content-Type"], answer.body) == (
        "application/pkix-cert",
        est.home.issuing.public_bytes(Encoding.DER),
    )


def test_p_13_the_uri_leads_to_one_list_in_der(est: Est) -> None:
    certificate = est.device().certificate
    answer = eventually(lambda: one if (one := est.get(crl_path(certificate))).status == 200 else None)
    assert answer["Content-Type"] == "application/pkix-crl"
    crl = x509.load_der_x509_crl(answer.body)
    assert crl.issuer == certificate.issuer
    assert crl.is_signature_valid(est.home.issuing.public_key())  # type: ignore[arg-type]  # a CA's key signs


def test_p_13_nothing_is_said_where_nothing_is_configured(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home")
    with home.inventory() as inventory:
        (record,) = inventory.list_certificates()
    certificate = x509.load_der_x509_certificate(record.certificate)
    for oid in (ExtensionOID.CRL_DISTRIBUTION_POINTS, ExtensionOID.AUTHORITY_INFORMATION_ACCESS):
        with pytest.raises(x509.ExtensionNotFound):
            certificate.extensions.get_extension_for_oid(oid)


# --- lists ----------------------------------------------------------------------------------------------------------


def test_v_01_a_revocation_is_published_by_itself_under_a_greater_number(est: Est) -> None:
    first, second = est.device().certificate, est.device().certificate
    numbers = []
    for certificate in (first, second):
        est.home.revoke(certificate)
        crl = eventually(lambda certificate=certificate: listed(est, certificate))  # type: ignore[misc]
        numbers.append(crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
        assert crl.next_update_utc is not None
        assert crl.next_update_utc - crl.last_update_utc == 7 * DAY
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        assert entry is not None
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
        assert reason is x509.ReasonFlags.key_compromise
        findings = [
            result.validator.__class__.__name__
            for result in CRL_LINTER.validate(loader.load_crl(crl.public_bytes(Encoding.DER), "list").root)
            for finding in result.finding_descriptions
            if finding.finding.severity >= ValidationFindingSeverity.NOTICE
        ]
        assert findings == []
    assert numbers[0] < numbers[1]


def test_openssl_checks_the_whole_chain_by_lists(est: Est, tmp_path: Path) -> None:
    openssl = require_program("openssl", "openssl")
    good, bad = est.device().certificate, est.device().certificate
    est.home.revoke(bad)
    issuing = eventually(lambda: listed(est, bad))
    root = x509.load_der_x509_crl(est.get(f"/crl/{key_id(est.home.root)}.crl").body)
    (tmp_path / "lists.pem").write_bytes(issuing.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM))
    for name, certificate in (("good", good), ("bad", bad), ("issuing", est.home.issuing), ("root", est.home.root)):
        (tmp_path / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))

    def verify(name: str) -> subprocess.CompletedProcess[str]:
        command = [openssl, "verify", "-crl_check_all", "-CRLfile", "lists.pem", "-CAfile", "root.pem"]
        command += ["-untrusted", "issuing.pem", f"{name}.pem"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert verify("good").returncode == 0
    assert "certificate revoked" in verify("bad").stderr


def key_id(certificate: x509.Certificate) -> str:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def test_crls_are_distributed_over_est_to_anybody(est: Est, tmp_path: Path) -> None:
    """RFC 8295 §4: a message of lists and nothing else."""
    bad = est.device().certificate
    est.home.revoke(bad)
    eventually(lambda: listed(est, bad))
    for path in ("crls", "device/crls"):
        answer = est.get(path)
        assert answer["Content-Type"] == "application/pkcs7-mime"
        assert answer.body.count(b"\n") == 1
        (tmp_path / "lists.p7").write_bytes(answer.der)
        openssl = require_program("openssl", "openssl")
        command = [openssl, "pkcs7", "-inform", "DER", "-in", "lists.p7", "-print_certs"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        crls = [
            x509.load_pem_x509_crl(pem + b"-----END X509 CRL-----\n")
            for pem in done.stdout.split(b"-----END X509 CRL-----")
            if b"BEGIN X509 CRL" in pem
        ]
        keys = {home.subject: home.public_key() for home in (est.home.issuing, est.home.root)}
        assert {crl.issuer for crl in crls} == keys.keys()
        assert all(crl.is_signature_valid(keys[crl.issuer]) for crl in crls)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no certificate data"):
            pkcs7.load_der_pkcs7_certificates(answer.der)


@pytest.mark.parametrize(
    "path", [f"{EST}/nowhere/crls", "/crl/nobody.crl", "/crl/00.crl", "/ca/nobody.cer", "/crl/acme", "/crl/../crl"]
)
def test_what_is_not_there_is_not_found(est: Est, path: str) -> None:
    assert est.get(path).status == 404


@pytest.mark.parametrize("path", ["/crl/acme.crl", "/ca/acme.cer", f"{EST}/crls"])
def test_lists_are_only_read(est: Est, path: str) -> None:
    with est.wire() as wire:
        assert wire.request("POST", path, b"x").status == 405


def test_who_has_a_list_is_not_sent_it_again(est: Est) -> None:
    """And a name stands for the key that the CA has now."""
    answer = eventually(lambda: one if (one := est.get("/crl/acme.crl")).status == 200 else None)
    assert answer["Cache-Control"] == "no-cache"
    again = est.get("/crl/acme.crl", {"If-None-Match": answer["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert est.get("/crl/acme.crl", {"If-None-Match": '"other"'}).status == 200


# --- what is taken back stays away ----------------------------------------------------------------------------------


def test_a_revoked_device_does_not_come_back_by_the_front_door(est: Est) -> None:
    """Whoever vouches for it: a credential, another certificate of its own, an operator's mistake."""
    device = est.device()
    with est.home.inventory() as inventory:
        inventory.revoke_device(DeviceId(device.device), "keyCompromise", "operator:test", today())
    key = csr_maker.new_key()
    for label in ("", "workload"):
        answer = est.enroll(csr_maker.request(key, device.device), label=label)
        assert answer.status == 403
        assert "was revoked and may not enrol" in answer.text
    with est.home.inventory() as inventory:
        inventory.takeback.unblock(DeviceId(device.device), "operator:test", today())
    assert est.enroll(csr_maker.request(key, device.device)).status == 200


def test_a_superseded_sibling_of_what_was_revoked_renews_nothing(est: Est) -> None:
    first = est.device(fresh_id())
    key = csr_maker.new_key()
    second = est.reenroll(csr_maker.request(key, first.device), first).certificate
    est.home.revoke(second)
    answer = est.reenroll(csr_maker.request(csr_maker.new_key(), first.device), first)
    assert answer.status == 403
    assert "revoked" in answer.text
    crl = eventually(lambda: listed(est, first.certificate))
    assert crl.get_revoked_certificate_by_serial_number(second.serial_number) is not None


def test_what_a_killed_server_owed_is_published_by_the_next(tmp_path: Path) -> None:
    """It had written the revocation down, taken a number and written half of a list."""
    home = status_home(tmp_path / "home")
    with home.inventory() as inventory:
        (record,) = [one for one in inventory.list_certificates() if one.profile == "server"]
        certificate = x509.load_der_x509_certificate(record.certificate)
        inventory.revoke(record.serial, "superseded", "operator:test", today())
        build = inventory.crls.begin(key_id(home.issuing), today(), regular=True)
        assert build is not None
        inventory.crls.put(build, [b"half of a list"], today())
    with RunningServer(home) as server:
        crl = eventually(lambda: listed(Est(server), certificate, "/crl/acme.crl"))
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number > build.number
