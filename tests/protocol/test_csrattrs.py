"""RFC 7030 §4.5 with RFC 8951 and RFC 9908: what a CSR should look like (S-X rows), read by the client's own codec."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from devicesim.client import EstClient
from devicesim.codec import parse_csrattrs, san_wishes
from devicesim.device import Device
from devicesim.errors import CannotComply
from devicesim.keystore import FileKeyStore
from devicesim.transport import ClientIdentity
from devicesim.trust import TrustAnchors
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
from tests.est_server import DEVICE_KINDS, TLS12, TLS13, Answer, Est, basic, fresh_id, today
from tests.makers import Maker

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


# --- who asks -------------------------------------------------------------------------------------------------------


def told(answer: Answer) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Subject and alternative names of the template, None and an empty value where the device is to fill in."""
    wishes = parse_csrattrs(answer.der)
    san = [san_wishes(wish.value) for wish in wishes.extensions if wish.oid == "2.5.29.17" and wish.value is not None]
    subject = [(one.oid, one.value) for rdn in wishes.subject or () for one in rdn]
    return subject, [name.text for names in san for name in names]


NOBODY: tuple[list[tuple[str, str | None]], list[str]] = ([(CN, None)], [])


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_x01_a_certificate_is_told_its_own_names(est: Est, tls: int) -> None:
    san = ["dns:pump.plant.example", "ip:192.0.2.9"]
    device = est.device(san=san)
    answer = est.over(tls).get("csrattrs", client=device)
    assert told(answer) == ([(CN, device.device)], san)
    assert items(answer.der)[-1] == (CN, None), "a bare OID ends the list"
    assert told(est.get("gateway/csrattrs", client=device)) == NOBODY, "another profile"
    assert told(est.get("csrattrs")) == NOBODY


def test_s_x01_a_credential_for_one_device_is_told_what_it_was_given(est: Est) -> None:
    device = fresh_id()
    one = est.home.credential(device, names=["dns:a.plant.example", "dns:*.plant.example"])
    assert told(est.get("csrattrs", basic(one))) == ([(CN, device)], ["dns:a.plant.example"])
    assert told(est.get("csrattrs", basic(est.home.credential("sn-*")))) == NOBODY
    answer = est.post(request(new_key(), device, san=["dns:a.plant.example"]), credential=one)
    assert answer.status == 200, "asking spends nothing"


def test_s_x01_an_idevid_is_told_its_device_and_a_station_nothing(est: Est) -> None:
    name = fresh_id()
    maker = Maker(f"Maker {name}")
    est.home.anchor(f"maker-{name}", maker.certificate)
    assert told(est.get("csrattrs", client=maker.idevid(name))) == ([(CN, name)], [])
    assert told(est.get("csrattrs", client=est.station("*"))) == NOBODY


def test_s_x01_a_certificate_that_does_not_count_is_answered_like_nobody(est: Est) -> None:
    revoked = est.device()
    est.home.revoke(revoked.certificate)
    for client in (revoked, Maker("Stranger").idevid(fresh_id())):
        assert told(est.get("csrattrs", client=client)) == NOBODY


def test_s_x01_a_wrong_secret_is_refused_here_too_and_written_down(est: Est) -> None:
    name, _ = est.home.credential("sn-*")
    answer = est.get("csrattrs", basic((name, "wrong")))
    assert answer.status == 401
    last = [row for row in est.home.audit() if row["actor"] == f"unrecognised:{name}"][-1]
    assert "csrattrs" in json.dumps(last)


def test_s_x12_the_device_enrols_by_the_names_it_is_told(est: Est, tmp_path: Path) -> None:
    """Its manufacturer's certificate says who it is, and the answer says it in turn."""
    name = fresh_id()
    maker = Maker(f"Maker {name}")
    est.home.anchor(f"maker-{name}", maker.certificate)
    idevid = maker.idevid(name)
    trust = TrustAnchors((est.home.root,))
    shown = ClientIdentity((idevid.certificate,), idevid.key)
    with EstClient(est.server.url, trust=trust, identity=shown) as client:
        device = Device(name, store=FileKeyStore(tmp_path / "own"), clock=today)
        assert device.enroll(client).device_id == name
        other = Device(fresh_id(), store=FileKeyStore(tmp_path / "other"), clock=today)
        with pytest.raises(CannotComply, match=f"call itself '{name}'"):
            other.enroll(client)
