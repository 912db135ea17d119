"""Statements of possession (RFC 9883): how they are read, who may make them, and what goes when a voucher goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import x25519
from hypothesis import given
from hypothesis import strategies as st

from estserver import asn1, csr, possession
from estserver.asn1 import issuer_and_serial, read_tlv
from estserver.errors import ConfigError, MalformedRequest, NotAuthorized, ProofOfPossessionFailed
from estserver.model import CertificateRecord, Der, GeneralName, KeyFacts, Serial
from estserver.policy import Profile, csr_attributes, explain, parse_profile
from tests import csr_maker as maker
from tests.est_server import Holder
from tests.inventory_support import NOW, csr_for, enroll, grant_for, new_inventory, reserve
from tests.makers import Maker
from tests.policy_support import asked, previous
from tests.unit.test_policy import DEVICE


def taking(*kinds: str) -> Profile:
    constraints = DEVICE.constraints.model_copy(update={"key_types": kinds})
    return DEVICE.model_copy(update={"constraints": constraints})


@given(st.binary(max_size=60), st.booleans())
def test_any_octets_are_a_statement_or_refused_in_words(content: bytes, wrapped: bool) -> None:
    octets = maker.sequence(content) if wrapped else maker.tlv(0x04, content)
    try:
        statement = possession.statement_of(read_tlv(octets)[0])
    except MalformedRequest:
        return
    assert statement.serial >= 0


def test_q_06_without_somebody_to_ask_no_statement_counts() -> None:
    public = maker.spki(x25519.X25519PrivateKey.generate())
    words = maker.attribute(possession.OID_STATEMENT, maker.sequence())
    with pytest.raises(MalformedRequest, match="cannot sign"):
        csr.parse(Der(maker.request(maker.new_key(), "sn-1", words, public=public)))


SEALING = x25519.X25519PrivateKey.generate()


def stating(signer: Any = None, *, public: bytes | None = None, **how: Any) -> tuple[bytes, CertificateRecord, Holder]:
    """A request for a key that cannot sign, the certificate that vouches for it, and who has that."""
    holder = Maker("Root").idevid("1")
    der = Der(holder.certificate.public_bytes(maker.Encoding.DER))
    issuer, serial = issuer_and_serial(der)
    statement = maker.sequence(maker.sequence(issuer, asn1.integer_der(serial)), der)
    words = maker.attribute(possession.OID_STATEMENT, statement)
    request = maker.request(signer or holder.key, "sn-1", words, public=public or maker.spki(SEALING), **how)
    return request, previous(asked(), certificate=der, serial=serial), holder


def test_q_06_a_request_for_a_key_that_cannot_sign_is_read_and_its_voucher_found_by_the_statement() -> None:
    request, voucher, _ = stating(san=["dns:a.example"])
    heard = list[possession.Statement]()

    def vouch(statement: possession.Statement) -> CertificateRecord:
        heard.append(statement)
        return voucher

    found = csr.parse(Der(request), vouch=vouch)
    issuer, serial = issuer_and_serial(voucher.certificate)
    assert heard == [possession.Statement(issuer, serial, voucher.certificate)]
    assert (found.voucher, found.key, found.signature_hash) == (voucher, KeyFacts("X25519", "X25519"), "SHA256")
    assert (found.der, found.spki, found.san) == (request, maker.spki(SEALING), (GeneralName("dns", "a.example"),))
    assert found.attributes == ()
    with pytest.raises(MalformedRequest, match="at most 0 are taken"):
        csr.parse(Der(request), csr.Bounds(names_max=0), vouch)


def test_q_06_another_key_than_that_of_the_certificate_proves_nothing() -> None:
    request, voucher, _ = stating(maker.new_key())
    with pytest.raises(ProofOfPossessionFailed, match="of the certificate that the statement of possession names"):
        csr.parse(Der(request), vouch=lambda _: voucher)
    request, voucher, _ = stating(hash_name="SHA1")
    with pytest.raises(ProofOfPossessionFailed, match="signed with SHA1"):
        csr.parse(Der(request), vouch=lambda _: voucher)


def test_q_06_nobody_is_asked_where_there_is_no_statement_or_no_need_of_one() -> None:
    def nobody(_: possession.Statement) -> CertificateRecord:
        raise AssertionError("asked")

    key = maker.new_key()
    assert csr.parse(Der(maker.request(key)), vouch=nobody).voucher is None
    with pytest.raises(MalformedRequest, match="cannot sign"):
        csr.parse(Der(maker.request(key, public=maker.spki(SEALING))), vouch=nobody)
    request, _, _ = stating(key, public=maker.spki(key))
    with pytest.raises(MalformedRequest, match="leave out the statement"):
        csr.parse(Der(request), vouch=nobody)


def test_q_06_keys_that_sign_and_keys_that_cannot_do_not_share_a_profile() -> None:
    """The certificate for the one would supersede that for the other."""
    text = (Path("estserver") / "policy" / "profiles" / "device.toml").read_text("utf-8")
    mixed = text.replace('"P-256", ', '"P-256", "X25519", ')
    with pytest.raises(ConfigError, match="beside keys that cannot"):
        parse_profile("mixed", mixed, source=Path("mixed.toml"))


def test_q_06_a_profile_says_that_possession_is_stated() -> None:
    told = "\n".join(explain(taking("X25519", "ML-KEM-768")))
    assert "key_agreement for X25519, key_encipherment for ML-KEM-768" in told
    assert "RFC 9883" in told
    assert "RFC 9883" not in "\n".join(explain(DEVICE))
    assert b"\x03\x02\x03\x08" in csr_attributes(taking("X25519"), binding_required=False), "keyAgreement alone"


@pytest.mark.parametrize(("reason", "status"), [("unspecified", "revoked"), ("superseded", "valid")])
def test_q_06_what_a_certificate_vouched_for_goes_with_it(tmp_path: Path, reason: str, status: str) -> None:
    with new_inventory(tmp_path / "estserver.db") as inventory:
        enroll(inventory, grant_for("sn-1"), 1)
        voucher = inventory.by_serial(Serial(1))
        sealed = replace(csr_for("sn-1", "sealing"), key=KeyFacts("X25519", "X25519"), voucher=voucher)
        enroll(inventory, replace(grant_for("sn-1"), csr=sealed, profile="sealing"), 2)
        enroll(inventory, grant_for("sn-2"), 3)
        inventory.revoke(Serial(1), reason, "operator:test", NOW)
        found = [inventory.by_serial(Serial(number)) for number in (1, 2, 3)]
    assert [record.status for record in found if record is not None] == ["revoked", status, "valid"]


def test_q_06_a_voucher_revoked_meanwhile_stops_what_it_vouches_for(tmp_path: Path) -> None:
    with new_inventory(tmp_path / "estserver.db") as inventory:
        enroll(inventory, grant_for("sn-1"), 1)
        sealed = replace(csr_for("sn-1", "sealing"), voucher=inventory.by_serial(Serial(1)))
        reservation = reserve(inventory, replace(grant_for("sn-1"), csr=sealed, profile="sealing"), 2)
        inventory.revoke(Serial(1), "keyCompromise", "operator:test", NOW)
        with pytest.raises(NotAuthorized, match="that vouches for the key was revoked"):
            inventory.record(reservation, Der(b"sealed"), [], NOW)
