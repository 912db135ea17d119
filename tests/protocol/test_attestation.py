"""Attestation of a key in its request (Q-11): kept in the audit, ignored otherwise, refused when it is no bundle."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estserver import csr
from estserver.attestation import OID_ATTESTATION, STATEMENTS_MAX
from estserver.errors import MalformedRequest
from estserver.model import Der
from tests.csr_maker import attribute, new_key, oid, request, sequence, set_of, text, tlv
from tests.est_server import Est, fresh_id

STATEMENT = sequence(oid("1.3.6.1.4.1.55555.7"), tlv(0x04, b"what the chip says"))
BUNDLE = sequence(sequence(STATEMENT), sequence(sequence(b"\x02\x01\x07")))
KEY = new_key()


def attested(*bundles: bytes) -> bytes:
    return attribute(OID_ATTESTATION, *bundles)


@pytest.mark.e2e
def test_q_11_an_attestation_is_kept_in_the_audit_and_nowhere_else(est: Est) -> None:
    device, key = fresh_id(), new_key()
    answer = est.enroll(request(key, device, attested(BUNDLE)))
    assert answer.status == 200, answer.text
    (row,) = [row for row in est.home.audit() if row["action"] == "issue" and row["detail"]["device"] == device]
    assert row["detail"]["attestation"] == {"sha256": hashlib.sha256(BUNDLE).hexdigest(), "size_bytes": len(BUNDLE)}
    plain = est.enroll(request(new_key(), fresh_id())).certificate
    assert STATEMENT not in answer.der
    assert [e.oid for e in answer.certificate.extensions] == [e.oid for e in plain.extensions]
    with est.home.inventory() as inventory:
        kept = inventory.csr(answer.certificate.serial_number)  # type: ignore[arg-type]  # an int is a serial
    assert kept is not None
    assert BUNDLE in kept


@pytest.mark.e2e
def test_q_11_two_attestations_are_refused_over_the_wire(est: Est) -> None:
    answer = est.enroll(request(new_key(), fresh_id(), attested(BUNDLE), attested(BUNDLE)))
    assert (answer.status, "more than one attestation" in answer.text) == (400, True), answer.text


@pytest.mark.parametrize("bundle", [BUNDLE, sequence(sequence(STATEMENT)), sequence(sequence(STATEMENT, STATEMENT))])
def test_q_11_one_bundle_is_taken_with_and_without_certificates(bundle: bytes) -> None:
    found = csr.parse(Der(request(KEY, "sn-1", attested(bundle))))
    assert found.attestation is not None
    assert found.attestation.size_bytes == len(bundle)
    assert found.attributes == ()
    assert csr.parse(Der(request(KEY, "sn-1"))).attestation is None


@pytest.mark.parametrize(
    "attributes",
    [
        [attested(BUNDLE), attested(BUNDLE)],
        [attested(BUNDLE, BUNDLE)],
        [attested()],
        [attested(b"")],
        [attested(sequence())],
        [attested(set_of(sequence(STATEMENT)))],
        [attested(text("a bundle"))],
        [attested(sequence(sequence()))],
        [attested(sequence(sequence(sequence())))],
        [attested(sequence(sequence(sequence(text("no oid"), tlv(0x04, b"x")))))],
        [attested(sequence(sequence(sequence(oid("1.2.3")))))],
        [attested(sequence(sequence(tlv(0x04, b"x"))))],
        [attested(sequence(sequence(STATEMENT), sequence()))],
        [attested(sequence(sequence(STATEMENT), text("x")))],
        [attested(sequence(sequence(STATEMENT), sequence(STATEMENT), sequence(STATEMENT)))],
        [attested(sequence(sequence(*[STATEMENT] * (STATEMENTS_MAX + 1))))],
        [attested(sequence(tlv(0x30, b"\x30\x7f")))],
    ],
)
def test_q_11_what_is_no_single_bundle_is_malformed(attributes: list[bytes]) -> None:
    with pytest.raises(MalformedRequest):
        csr.parse(Der(request(KEY, "sn-1", *attributes)))


@settings(max_examples=60)
@given(st.binary(max_size=80))
def test_q_11_any_octets_are_a_bundle_or_malformed(octets: bytes) -> None:
    for bundle in (octets, sequence(octets), sequence(sequence(octets))):
        try:
            csr.parse(Der(request(KEY, "sn-1", attested(bundle))))
        except MalformedRequest:
            continue
