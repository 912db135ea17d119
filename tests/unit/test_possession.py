"""Statements of possession (RFC 9883): how they are read, who may make them, and what goes when a voucher goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import x25519
from hypothesis import given
from hypothesis import strategies as st

from estserver import csr, possession
from estserver.asn1 import read_tlv
from estserver.errors import ConfigError, MalformedRequest, NotAuthorized
from estserver.model import Der, KeyFacts, Serial
from estserver.policy import Profile, csr_attributes, explain, parse_profile
from tests import csr_maker as maker
from tests.inventory_support import NOW, csr_for, enroll, grant_for, new_inventory, reserve
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
