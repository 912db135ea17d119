"""OCSP by RFC 6960 and its profile for many clients, RFC 9919: V-03 to V-06."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from pkilint import loader, pkix
from pkilint.pkix import extension as lint_extension
from pkilint.pkix import name as lint_name
from pkilint.pkix import ocsp as lint_ocsp
from pkilint.validation import ValidationFindingSeverity

from estserver.model import DeviceId
from estserver.ocsp import REQUEST_MAX_BYTES
from tests import csr_maker
from tests.conftest import require_program
from tests.est_server import Answer, Est, Home, RunningServer, today
from tests.status_support import RunningResponder, eventually, status_home

KIND = "application/ocsp-request"
STATUS = ocsp.OCSPResponseStatus
LINTER = lint_ocsp.create_pkix_ocsp_response_validator_container(
    [
        lint_ocsp.create_response_decoder(),
        pkix.create_attribute_decoder(lint_name.ATTRIBUTE_TYPE_MAPPINGS),
        pkix.create_extension_decoder(lint_extension.EXTENSION_MAPPINGS),
    ],
    [],
)


@pytest.fixture(scope="module", params=["P-256", "RSA-3072", "ML-DSA-65"])
def home(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Home:
    return status_home(tmp_path_factory.mktemp("ocsp") / "home", key_kind=request.param)


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[RunningServer]:
    with RunningServer(home) as running:
        yield running


@pytest.fixture(scope="module")
def est(server: RunningServer) -> Est:
    return Est(server)


def asking(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    algorithm: hashes.HashAlgorithm | None = None,
    nonce: bytes | None = None,
) -> bytes:
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, algorithm or hashes.SHA256())
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def post(est: Est, body: bytes, kind: str = KIND) -> Answer:
    with est.wire() as wire:
        return wire.request("POST", "/ocsp", body, {"Content-Type": kind})


def told(est: Est, body: bytes) -> ocsp.OCSPResponse:
    """The answer, once the server has somebody to sign it."""

    def ask() -> ocsp.OCSPResponse | None:
        answer = post(est, body)
        assert (answer.status, answer["Content-Type"]) == (200, "application/ocsp-response")
        response = ocsp.load_der_ocsp_response(answer.body)
        return None if response.response_status is STATUS.TRY_LATER else response

    return eventually(ask)


def verify(est: Est, response: ocsp.OCSPResponse) -> x509.Certificate:
    """Check a signature by the delegate, and the delegate's by the CA."""
    (delegate,) = response.certificates
    delegate.verify_directly_issued_by(est.home.issuing)
    key: Any = delegate.public_key()
    if response.signature_hash_algorithm is None:
        key.verify(response.signature, response.tbs_response_bytes)
    else:
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(response.signature_hash_algorithm))
    return delegate


def test_v_03_answers_are_signed_by_a_delegate_for_nothing_else(est: Est) -> None:
    certificate = est.device().certificate
    response = told(est, asking(certificate, est.home.issuing))
    delegate = verify(est, response)
    purposes = delegate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.OCSP_SIGNING]
    assert not delegate.extensions.get_extension_for_class(x509.OCSPNoCheck).critical
    usage = delegate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    with est.home.inventory() as inventory:
        assert inventory.by_serial(delegate.serial_number) is not None  # type: ignore[arg-type]  # a NewType


def test_v_03_no_device_gets_the_name_of_a_responder(est: Est) -> None:
    response = told(est, asking(est.device().certificate, est.home.issuing))
    name = response.certificates[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    answer = est.enroll(csr_maker.request(csr_maker.new_key(), str(name)))
    assert answer.status == 403
    assert "kept for a part of the site" in answer.text


def test_v_04_a_request_is_posted_or_is_the_path(est: Est) -> None:
    for _ in range(6):  # with and without the characters that a URL has to escape
        certificate = est.device().certificate
        asked = asking(certificate, est.home.issuing)
        posted = told(est, asked)
        path = "/ocsp/" + quote(base64.b64encode(asked).decode(), safe="")
        answer = est.get(path)
        assert (answer.status, answer["Content-Type"]) == (200, "application/ocsp-response")
        got = ocsp.load_der_ocsp_response(answer.body)
        assert got.serial_number == posted.serial_number == certificate.serial_number
        assert answer["Cache-Control"] == "max-age=60, public, no-transform, must-revalidate"
        assert answer["Expires"]
        assert est.get(path, {"If-None-Match": answer["ETag"]}).status == 304


def test_v_04_another_media_type_is_not_taken(est: Est) -> None:
    assert post(est, b"x", "application/octet-stream").status == 415
    assert est.get("/ocsp").status == 405


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256()])
def test_v_05_an_answer_has_the_form_of_the_profile(est: Est, algorithm: hashes.HashAlgorithm) -> None:
    certificate = est.device().certificate
    before = today()
    response = told(est, asking(certificate, est.home.issuing, algorithm))
    delegate = verify(est, response)
    assert response.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert response.hash_algorithm.name == algorithm.name
    assert response.responder_name is None
    ski = delegate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert response.responder_key_hash == ski
    assert response.next_update_utc is not None
    assert before <= response.this_update_utc < response.next_update_utc
    assert response.this_update_utc.microsecond == response.produced_at_utc.microsecond == 0
    assert not list(response.extensions)


def test_v_05_a_nonce_is_given_back_in_an_answer_of_its_own(est: Est) -> None:
    certificate = est.device().certificate
    told(est, asking(certificate, est.home.issuing))
    for nonce in (b"n", b"n" * 32, b"n" * 128):
        response = told(est, asking(certificate, est.home.issuing, nonce=nonce))
        verify(est, response)
        assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == nonce
    assert (
        told(est, asking(certificate, est.home.issuing, nonce=b"n" * 129)).response_status is STATUS.MALFORMED_REQUEST
    )
    assert not list(told(est, asking(certificate, est.home.issuing)).extensions)


def test_an_answer_is_signed_once_and_never_outlives_a_revocation(est: Est) -> None:
    device = est.device()
    asked = asking(device.certificate, est.home.issuing)
    assert told(est, asked).public_bytes(Encoding.DER) == told(est, asked).public_bytes(Encoding.DER)
    est.home.revoke(device.certificate)
    response = told(est, asked)
    assert response.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert response.revocation_reason is x509.ReasonFlags.key_compromise
    assert response.revocation_time_utc is not None
    assert response.revocation_time_utc <= today()
    other = est.device()
    with est.home.inventory() as inventory:
        inventory.revoke_device(DeviceId(other.device), "unspecified", "operator:test", today())
    response = told(est, asking(other.certificate, est.home.issuing))
    assert (response.certificate_status, response.revocation_reason) == (ocsp.OCSPCertStatus.REVOKED, None)


def test_v_06_of_what_was_not_issued_here_nothing_is_said(est: Est) -> None:
    certificate = est.device().certificate
    issuing = est.home.issuing
    name, key = hashlib.sha256(b"name").digest(), hashlib.sha256(b"key").digest()
    unknown = ocsp.OCSPRequestBuilder().add_certificate_by_hash(name, key, 5, hashes.SHA256()).build()
    good = ocsp.load_der_ocsp_request(asking(certificate, issuing))
    never = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        good.issuer_name_hash, good.issuer_key_hash, 5, hashes.SHA256()
    )
    other_hash = asking(certificate, issuing, hashes.SHA384())
    for body in (
        unknown.public_bytes(Encoding.DER),
        never.build().public_bytes(Encoding.DER),
        asking(certificate, est.home.root),
        other_hash,
    ):
        assert told(est, body).response_status is STATUS.UNAUTHORIZED


@pytest.mark.parametrize(
    "body", [b"", b"0", b"\x30\x00", b"\x30\x80\x00\x00", b"x" * 100, b"\x30" * (REQUEST_MAX_BYTES + 1)]
)
def test_what_is_no_request_is_malformed(est: Est, body: bytes) -> None:
    assert ocsp.load_der_ocsp_response(post(est, body).body).response_status is STATUS.MALFORMED_REQUEST
    if body:
        answer = est.get("/ocsp/" + quote(base64.b64encode(body[:600]).decode(), safe=""))
        assert ocsp.load_der_ocsp_response(answer.body).response_status is STATUS.MALFORMED_REQUEST
    answer = est.get("/ocsp/%21not-base64")
    assert ocsp.load_der_ocsp_response(answer.body).response_status is STATUS.MALFORMED_REQUEST
    assert answer.get("Cache-Control") is None


def test_an_answer_passes_the_linter(est: Est) -> None:
    response = told(est, asking(est.device().certificate, est.home.issuing))
    loaded = loader.RFC6960OCSPResponseDocumentLoader().load_der_document(response.public_bytes(Encoding.DER), "answer")
    findings = [
        str(finding.finding.code)
        for result in LINTER.validate(loaded.root)
        for finding in result.finding_descriptions
        if finding.finding.severity >= ValidationFindingSeverity.NOTICE
    ]
    assert findings == []


def test_openssl_asks_over_plain_http_what_the_responder_tells(est: Est, tmp_path: Path) -> None:
    openssl = require_program("openssl", "openssl")
    good, bad = est.device().certificate, est.device().certificate
    told(est, asking(good, est.home.issuing))
    est.home.revoke(bad)
    for name, certificate in (("good", good), ("bad", bad), ("issuing", est.home.issuing), ("root", est.home.root)):
        (tmp_path / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    with RunningResponder(est.home) as responder:

        def ask(*more: str) -> str:
            command = [openssl, "ocsp", "-url", f"{responder.url}/ocsp", "-issuer", "issuing.pem"]
            command += ["-CAfile", "root.pem", "-verify_other", "issuing.pem", *more]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
            assert "Response verify OK" in done.stderr
            assert "no nonce" not in done.stderr
            return done.stdout

        readable = est.home.issuing.signature_hash_algorithm is not None  # ML-DSA is the wheel's to verify, above
        for digest in ("-sha1", "-sha256") if readable else ():
            assert "good.pem: good" in ask(digest, "-cert", "good.pem")
            assert "bad.pem: revoked" in ask(digest, "-cert", "bad.pem")
        curl = require_program("curl", "curl")
        crl = subprocess.run(
            [curl, "--silent", "--fail", f"{responder.url}/crl/acme.crl"], capture_output=True, check=True
        )
        assert x509.load_der_x509_crl(crl.stdout).issuer == est.home.issuing.subject
        for path in ("/.well-known/est/cacerts", "/", "/crl/"):
            command = [curl, "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", responder.url + path]
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "404"
