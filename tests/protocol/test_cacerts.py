"""RFC 7030 §4.1: the CA's certificates (S-C rows)."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.conftest import require_program
from tests.csr_maker import new_key, request
from tests.est_server import CERTS_ONLY, DEVICE_KINDS, Est, fresh_id

pytestmark = pytest.mark.e2e


def names(certificates: list[x509.Certificate]) -> set[str]:
    return {certificate.subject.rfc4514_string() for certificate in certificates}


def test_s_c01_anybody_may_read(est: Est) -> None:
    assert est.get("cacerts").status == 200


def test_s_c01_a_stranger_with_a_bad_certificate_or_password_may_read_too(est: Est) -> None:
    device = est.device()
    est.home.revoke(device.certificate)
    assert est.get("cacerts", client=device).status == 200
    assert est.get("cacerts", {"Authorization": "Basic eDp5"}).status == 200


def test_s_c02_the_body_is_base64_of_a_certs_only_message(est: Est) -> None:
    answer = est.get("cacerts")
    assert answer.status == 200
    content = cms.ContentInfo.load(base64.b64decode(answer.body.strip(), validate=True), strict=True)
    assert content["content_type"].native == "signed_data"
    signed = content["content"]
    assert signed["version"].native == "v1"
    assert len(signed["digest_algorithms"]) == 0
    assert signed["encap_content_info"]["content_type"].native == "data"
    assert signed["encap_content_info"]["content"].native is None
    assert len(signed["signer_infos"]) == 0
    assert signed["crls"].native is None


def test_s_c03_the_self_signed_root_is_in_it_and_is_the_one_that_init_printed(est: Est) -> None:
    (root,) = [c for c in est.get("cacerts").certificates if c.issuer == c.subject]
    assert root == est.home.root
    root.verify_directly_issued_by(root)


def test_s_c04_a_fresh_leaf_verifies_with_this_bag_alone(est: Est, tmp_path: Path) -> None:
    openssl = require_program("openssl", "openssl")
    leaf = est.device().certificate
    bag = est.get("cacerts").certificates
    files = {
        "leaf.pem": [leaf],
        "root.pem": [c for c in bag if c.issuer == c.subject],
        "others.pem": [c for c in bag if c.issuer != c.subject],
    }
    for name, certificates in files.items():
        (tmp_path / name).write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
    command = [openssl, "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-purpose", "sslclient"]
    command += ["-CAfile", "root.pem", "-untrusted", "others.pem", "leaf.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "leaf.pem: OK\n", done.stderr


def test_s_c07_the_set_is_in_der_order(est: Est) -> None:
    signed = cms.ContentInfo.load(est.get("cacerts").der)["content"]
    octets = [choice.chosen.dump() for choice in signed["certificates"]]
    assert octets == sorted(octets)


def test_s_c08_the_content_type_says_certs_only(est: Est) -> None:
    assert est.get("cacerts")["Content-Type"] == CERTS_ONLY


def test_s_c09_each_label_has_the_bag_of_its_ca(est: Est) -> None:
    ours = {"CN=Acme Root CA", "CN=Acme Issuing CA"}
    assert names(est.get("cacerts").certificates) == ours
    for label in DEVICE_KINDS:
        assert names(est.get(f"{label}/cacerts").certificates) == ours
    assert names(est.get("idevid/cacerts").certificates) == {"CN=Acme IDevID Root CA", "CN=Acme IDevID Issuing CA"}


def test_s_c10_the_bag_holds_cas_only(est: Est) -> None:
    est.enroll(request(new_key(), fresh_id("gate")), label="server")
    for certificate in est.get("cacerts").certificates:
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_libest_gets_it_wrapped_and_everybody_else_on_one_line(est: Est) -> None:
    """libest reads `/cacerts` only when wrapped, strongSwan only when not."""
    plain, wrapped = est.get("cacerts"), est.get("cacerts", {"User-Agent": "libest 3.2.0"})
    assert plain.body.count(b"\n") == 1
    assert {len(line) for line in wrapped.body.splitlines()[:-1]} == {64}
    assert wrapped.der == plain.der
