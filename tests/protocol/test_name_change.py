"""RFC 7030 §4.2.2 with RFC 6402 §2.8: a renewal that changes names (S-N04), in every shape and both encodings."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from tests.csr_maker import (
    CHANGE_SUBJECT_NAME,
    CN,
    ORGANIZATION,
    SERIAL_NUMBER,
    attribute,
    name,
    names,
    new_key,
    request,
    sequence,
    tlv,
)
from tests.est_server import Answer, Est, Holder, fresh_id

pytestmark = pytest.mark.e2e
VECTORS = Path(__file__).parents[1] / "vectors"
OLD = ["dns:old.example.com"]


def vector(which: str) -> bytes:
    """An attribute's value; the names in it are CN=new-name and new.example.com."""
    return (VECTORS / f"derived-changeSubjectName-{which}.der").read_bytes()


def untagged(san: list[str]) -> bytes:
    return names(*san).public_bytes()


def tagged(san: list[str]) -> bytes:
    """The same GeneralNames, IMPLICIT [1]."""
    octets = untagged(san)
    return tlv(0xA1, octets[2:])


def rename(est: Est, device: Holder, value: bytes, *, san: list[str] | None = None, **how: object) -> Answer:
    """Renew with the names the certificate has, and ask for others."""
    wanted = OLD if san is None else san
    subject = [(a.oid.dotted_string, str(a.value)) for a in device.certificate.subject]
    csr = request(new_key(), subject, attribute(CHANGE_SUBJECT_NAME, value), san=wanted)
    return est.reenroll(csr, device, **{"label": "renaming", **how})


def named(certificate: x509.Certificate) -> tuple[str, list[str]]:
    """Subject and DNS names."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return certificate.subject.rfc4514_string(), []
    return certificate.subject.rfc4514_string(), san.get_values_for_type(x509.DNSName)


def test_s_n04_a_subject_alone_replaces_the_subject_and_removes_the_san(est: Est) -> None:
    device = est.device("new-name", label="renaming", san=OLD)
    answer = rename(est, device, vector("subject-only"))
    assert answer.status == 200, answer.text
    assert named(answer.certificate) == ("CN=new-name", [])


def test_s_n04_a_subject_and_a_san_replace_both(est: Est) -> None:
    key = new_key()
    csr = request(key, [(CN, "new-name"), (SERIAL_NUMBER, "new-name")], san=OLD)
    device = Holder(key, est.enroll(csr, label="renaming").certificate, (est.home.issuing,))
    answer = rename(est, device, vector("subject-and-san-untagged-rfc6402"))
    assert answer.status == 200, answer.text
    assert named(answer.certificate) == ("CN=new-name", ["new.example.com"])


def test_s_n04_both_with_the_tag_of_the_draft(est: Est) -> None:
    device = est.device(label="renaming", san=OLD)
    both = sequence(name(device.device), tagged(["dns:new.example.com", "dns:more.example.com"]))
    answer = rename(est, device, both)
    assert named(answer.certificate) == (f"CN={device.device}", ["more.example.com", "new.example.com"])


@pytest.mark.parametrize("encoding", ["untagged-rfc6402", "tagged1-rfc5272bis-draft"])
def test_s_n04_a_san_alone_leaves_the_subject_empty_where_the_profile_lets_it(est: Est, encoding: str) -> None:
    device = est.device(label="nameless", san=OLD)
    value, key = vector(f"san-only-{encoding}"), new_key()
    csr = request(key, device.device, attribute(CHANGE_SUBJECT_NAME, value), san=OLD)
    answer = est.reenroll(csr, device, label="nameless")
    assert answer.status == 200, answer.text
    assert named(answer.certificate) == ("", ["new.example.com"])
    assert answer.certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).critical
    with est.home.inventory() as inventory:
        record = inventory.by_serial(answer.certificate.serial_number)
    assert record is not None
    assert record.device == device.device, "the device stays known by what it has"
    nameless = Holder(key, answer.certificate, device.chain)
    again = est.reenroll(request(new_key(), [], san=["dns:new.example.com"]), nameless, label="nameless")
    assert again.status == 200, again.text
    assert named(again.certificate) == ("", ["new.example.com"])


@pytest.mark.parametrize("encoding", ["untagged-rfc6402", "tagged1-rfc5272bis-draft"])
def test_s_n04_a_san_alone_is_refused_where_a_subject_is_wanted(est: Est, encoding: str) -> None:
    device = est.device(label="renaming", san=OLD)
    answer = rename(est, device, vector(f"san-only-{encoding}"))
    assert answer.status == 400
    assert "wants a subject" in answer.text


def test_s_n04_no_profile_changes_names_unless_it_says_so_and_every_reason_is_told(est: Est) -> None:
    device = est.device(san=OLD)
    value = sequence(name([(CN, device.device), (ORGANIZATION, "x")]), untagged(["dns:new.example.com"]))
    answer = rename(est, device, value, label="")
    assert answer.status == 403
    lines = answer.text.splitlines()
    assert [line for line in lines if "changes no names" in line]
    assert [line for line in lines if "allows no organization" in line]
    assert [line for line in lines if "may not have the name dns:new.example.com" in line]


@pytest.mark.parametrize(
    ("subject", "san", "words"),
    [
        ("sn-else", ["dns:new.example.com"], "does not name the device"),
        (None, ["dns:bank.example"], "may not have the name dns:bank.example"),
        (None, ["email:a@b.example"], "allows no email names"),
    ],
)
def test_s_n04_new_names_are_checked_like_any(est: Est, subject: str | None, san: list[str], words: str) -> None:
    device = est.device(label="renaming", san=OLD)
    answer = rename(est, device, sequence(name(subject or device.device), untagged(san)))
    assert answer.status in (400, 403)
    assert words in answer.text


def test_s_n04_the_request_still_has_the_names_of_the_certificate(est: Est) -> None:
    device = est.device(label="renaming", san=OLD)
    value = sequence(name(device.device), untagged(["dns:new.example.com"]))
    answer = rename(est, device, value, san=["dns:new.example.com"])
    assert answer.status == 403
    assert "SAN differs from the certificate being renewed" in answer.text


def test_s_n04_a_name_that_the_certificate_has_may_stay(est: Est) -> None:
    device = est.device(label="renaming", san=["dns:given.plant.example", *OLD])
    value = sequence(name(device.device), untagged(["dns:given.plant.example"]))
    answer = rename(est, device, value, san=["dns:given.plant.example", *OLD])
    assert named(answer.certificate) == (f"CN={device.device}", ["given.plant.example"])


def test_s_n04_a_repeat_gets_the_same_and_other_names_for_the_same_key_are_refused(est: Est) -> None:
    device, key = est.device(label="renaming", san=OLD), new_key()

    def ask(who: Holder, *san: str) -> Answer:
        change = sequence(name(device.device), untagged(list(san)))
        csr = request(key, device.device, attribute(CHANGE_SUBJECT_NAME, change), san=OLD)
        return est.reenroll(csr, who, label="renaming")

    first = ask(device, "dns:new.example.com")
    assert first.status == 200, first.text
    assert ask(device, "dns:new.example.com").body == first.body
    other = ask(device, "dns:other.example.com")
    assert other.status == 403
    assert "certified before" in other.text


def test_s_n04_a_station_changes_the_names_of_its_devices_and_may_repeat_it(est: Est) -> None:
    device, station, key = est.device(label="renaming", san=OLD), est.station("*"), new_key()
    change = sequence(name(device.device), untagged(["dns:new.example.com"]))
    csr = request(key, device.device, attribute(CHANGE_SUBJECT_NAME, change), san=OLD)
    first, again = (est.reenroll(csr, station, label="renaming") for _ in range(2))
    assert first.status == 200, first.text
    assert first.body == again.body
    assert named(first.certificate) == (f"CN={device.device}", ["new.example.com"])
    stranger = est.reenroll(csr, est.station(fresh_id()), label="renaming")
    assert stranger.status == 403


@pytest.mark.parametrize(
    "values",
    [
        [b"\x30\x00"],
        [b"\x05\x00"],
        [sequence(b"\x30\x00", b"\x30\x00")],
        [sequence(untagged(OLD), name("sn-1"))],
        [sequence(tlv(0xA1))],
        [sequence(name("sn-1"), b"\x04\x00")],
        [sequence(name("sn-1"), tlv(0x30, tlv(0x82, b"a b")))],
        [sequence(name("sn-1"), tlv(0x30, tlv(0x87, b"abc")))],
        [sequence(name("sn-1")), sequence(name("sn-2"))],
        [],
    ],
)
def test_s_n04_what_is_no_change_of_names_is_400(est: Est, values: list[bytes]) -> None:
    device = est.device(label="renaming")
    csr = request(new_key(), device.device, attribute(CHANGE_SUBJECT_NAME, *values))
    answer = est.reenroll(csr, device, label="renaming")
    assert answer.status == 400, answer.text
