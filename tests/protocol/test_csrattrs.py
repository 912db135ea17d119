"""RFC 7030 §4.5 with RFC 8951 and RFC 9908: what a CSR should look like (S-X rows), read by the client's own codec."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from devicesim.codec import parse_csrattrs
from tests.csr_maker import (
    CHALLENGE_PASSWORD,
    CN,
    EXTENSION_REQUEST,
    dotted,
    extension,
    new_key,
    oid,
    purposes,
    request,
    usage,
    values,
)
from tests.est_server import DEVICE_KINDS, Est, fresh_id

pytestmark = pytest.mark.e2e
LABELS = ["", *DEVICE_KINDS, "idevid", "bound", "p384"]
TEMPLATE, EC_KEY, P384 = "1.2.840.113549.1.9.16.2.61", "1.2.840.10045.2.1", "1.3.132.0.34"
CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"


def fetch(est: Est, label: str) -> bytes:
    return est.get(f"{label}/csrattrs" if label else "csrattrs").der


def items(der: bytes) -> list[tuple[str, list[bytes] | None]]:
    """A bare OID has no values."""
    found: list[tuple[str, list[bytes] | None]] = []
    for item in values(der):
        if item[0] == 0x06:
            found.append((dotted(item), None))
        else:
            kind, several = values(item)
            found.append((dotted(kind), values(several)))
    return found


def values_of(der: bytes, kind: str) -> list[list[bytes] | None]:
    return [several for found, several in items(der) if found == kind]


@pytest.mark.parametrize("label", LABELS)
def test_s_x01_s_x02_anybody_may_ask_and_gets_base64_of_csrattrs(est: Est, label: str) -> None:
    answer = est.get(f"{label}/csrattrs" if label else "csrattrs")
    assert (answer.status, answer["Content-Type"]) == (200, "application/csrattrs")
    assert answer.body == base64.b64encode(answer.der) + b"\n"
    assert parse_csrattrs(answer.der).subject


def test_s_x03_an_unknown_label_has_none(est: Est) -> None:
    """Every profile has something to say, so 404 is the only way of saying nothing."""
    assert est.get("nowhere/csrattrs").status == 404


def test_s_x04_a_wanted_key_type_is_said_and_another_one_refused(est: Est) -> None:
    wanted = parse_csrattrs(fetch(est, "p384")).key
    assert wanted is not None
    assert (wanted.algorithm, wanted.curve) == (EC_KEY, P384)
    assert est.enroll(request(ec.generate_private_key(ec.SECP384R1()), fresh_id()), label="p384").status == 200
    answer = est.enroll(request(new_key(), fresh_id()), label="p384")
    assert answer.status == 400
    assert "P-256 offered" in answer.text
    assert "P-384" in answer.text


def test_s_x05_a_required_binding_is_said_and_only_then(est: Est) -> None:
    assert values_of(fetch(est, "bound"), CHALLENGE_PASSWORD) == [None]
    assert values_of(fetch(est, ""), CHALLENGE_PASSWORD) == []
    assert parse_csrattrs(fetch(est, "bound")).binding


@pytest.mark.parametrize("label", LABELS)
def test_s_x06_extensions_are_one_attribute_with_one_value_without_repeats(est: Est, label: str) -> None:
    ((value,),) = values_of(fetch(est, label), EXTENSION_REQUEST)
    kinds = [dotted(values(one)[0]) for one in values(value)]
    assert kinds
    assert len(set(kinds)) == len(kinds)


def test_s_x07_a_key_requirement_is_one_attribute(est: Est) -> None:
    assert values_of(fetch(est, "p384"), EC_KEY) == [[oid(P384)]]
    assert values_of(fetch(est, ""), EC_KEY) == []


@pytest.mark.parametrize("label", LABELS)
def test_s_x09_the_template_has_one_extension_request_and_no_partial_one(est: Est, label: str) -> None:
    ((template,),) = values_of(fetch(est, label), TEMPLATE)
    attributes = values(template)[-1]
    assert attributes[0] == 0xA1
    assert [dotted(values(one)[0]) for one in values(attributes)] == [EXTENSION_REQUEST]


@pytest.mark.parametrize("label", LABELS)
def test_s_x10_template_and_legacy_list_stand_side_by_side(est: Est, label: str) -> None:
    der = fetch(est, label)
    assert len(values_of(der, TEMPLATE)) == 1
    assert parse_csrattrs(der).from_template


@pytest.mark.parametrize("label", LABELS)
def test_libest_needs_a_bare_oid_at_the_end(est: Est, label: str) -> None:
    assert items(fetch(est, label))[-1][1] is None


def test_s_x11_nobody_has_to_ask_first(est: Est) -> None:
    assert est.enroll(request(new_key(), fresh_id())).status == 200


@pytest.mark.parametrize("label", [*DEVICE_KINDS, "p384", ""])
def test_s_x12_what_follows_the_answer_is_accepted(est: Est, label: str) -> None:
    wishes = parse_csrattrs(fetch(est, label))
    assert wishes.subject is not None
    ((attribute,),) = wishes.subject
    assert attribute.oid == CN
    curve = ec.SECP384R1() if wishes.key is not None and wishes.key.curve == P384 else ec.SECP256R1()
    extensions = [_extension(wish.oid, wish.critical, wish.value) for wish in wishes.extensions]
    answer = est.enroll(request(ec.generate_private_key(curve), fresh_id(), extensions=extensions), label=label)
    assert answer.status == 200, answer.text
    granted = {e.oid.dotted_string: e.value.public_bytes() for e in answer.certificate.extensions}
    assert all(granted[wish.oid] == wish.value for wish in wishes.extensions)


def _extension(kind: str, critical: bool, value: bytes | None) -> bytes:
    assert value is not None
    return extension(kind, value, critical=critical)


def test_the_answer_names_what_the_device_will_get(est: Est) -> None:
    wishes = {wish.oid: wish.value for wish in parse_csrattrs(fetch(est, "device")).extensions}
    assert wishes == {
        "2.5.29.15": usage("digital_signature").public_bytes(),
        "2.5.29.37": purposes(CLIENT_AUTH).public_bytes(),
    }


@pytest.mark.parametrize("label", LABELS)
def test_s_x13_sets_are_in_der_order(est: Est, label: str) -> None:
    for _, several in items(fetch(est, label)):
        assert several is None or several == sorted(several)
