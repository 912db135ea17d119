"""RFC 7030 §4.2.2: renewal and rekey (S-N rows)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509

from estserver.enroll import Request
from estserver.model import BasicCredentials, Operation, Peer
from tests.csr_maker import CN, ORGANIZATION, PRINTABLE, UTF8, base64_lines, extension, known, names, new_key, request
from tests.est_server import TLS12, TLS13, Est, Holder, fresh_id, today

pytestmark = pytest.mark.e2e
PLANT = ["dns:pump.plant.example", "uri:urn:x:1"]


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_n01_the_same_names_are_renewed(est: Est, tls: int) -> None:
    device = est.device(san=PLANT)
    answer = est.reenroll(request(new_key(), device.device, san=PLANT), device, tls=tls)
    assert answer.status == 200
    assert answer.certificate.subject == device.certificate.subject
    assert answer.certificate.serial_number != device.certificate.serial_number


@pytest.mark.parametrize("san", [[], PLANT[:1], [*PLANT, "dns:more.plant.example"], ["dns:other.plant.example"]])
def test_s_n01_another_san_is_refused(est: Est, san: list[str]) -> None:
    device = est.device(san=PLANT)
    answer = est.reenroll(request(new_key(), device.device, san=san), device)
    assert answer.status == 403
    assert "SAN differs" in answer.text


@pytest.mark.parametrize("change", [[(ORGANIZATION, "x")], [("2.5.4.5", "sn-x")], [(CN, "other")]])
def test_s_n01_another_subject_is_refused(est: Est, change: list[tuple[str, str]]) -> None:
    device = est.device()
    answer = est.reenroll(request(new_key(), [(CN, device.device), *change]), device)
    assert answer.status in (400, 403)
    assert "subject differs" in answer.text


@pytest.mark.parametrize("first", [UTF8, PRINTABLE])
@pytest.mark.parametrize("second", [UTF8, PRINTABLE])
def test_s_n02_string_types_do_not_matter(est: Est, first: int, second: int) -> None:
    """strongSwan writes PrintableString where openssl writes UTF8String."""
    device = est.device(tag=first)
    assert est.reenroll(request(new_key(), device.device, tag=second), device).status == 200


def test_s_n02_case_does_not_matter_in_a_name(est: Est) -> None:
    device = est.device()
    assert est.reenroll(request(new_key(), device.device.upper()), device).status == 200


def test_s_n02_the_san_is_a_set_and_its_criticality_no_part_of_it(est: Est) -> None:
    device = est.device(san=PLANT)
    turned = [known(names(*reversed(PLANT), PLANT[0]), critical=True)]
    assert est.reenroll(request(new_key(), device.device, extensions=turned), device).status == 200


def test_s_n03_no_san_before_and_none_now(est: Est) -> None:
    device = est.device()
    assert est.reenroll(request(new_key(), device.device), device).status == 200


def test_libest_copies_every_old_extension_into_the_request(est: Est) -> None:
    device = est.device()
    copied = [
        extension(e.oid.dotted_string, e.value.public_bytes(), critical=e.critical)
        for e in device.certificate.extensions
    ]
    assert est.reenroll(request(new_key(), device.device, extensions=copied), device).status == 200


def test_s_n05_the_same_key_is_refused_in_words_where_a_new_one_is_wanted(est: Est) -> None:
    device = est.device()
    answer = est.reenroll(request(device.key, device.device), device)
    assert answer.status == 403
    assert "make a new key" in answer.text


def test_s_n05_a_secure_element_keeps_its_key(est: Est) -> None:
    device = est.device(label="element")
    answer = est.reenroll(request(device.key, device.device), device, label="element")
    assert answer.status == 200
    assert answer.certificate.serial_number != device.certificate.serial_number
    assert answer.certificate.public_key() == device.certificate.public_key()


def test_s_n06_an_older_certificate_of_the_same_device_will_do(est: Est) -> None:
    """S-N11: the device may not have stored the newer one."""
    old = est.device()
    first = est.reenroll(request(new_key(), old.device), old)
    second = est.reenroll(request(new_key(), old.device), old)
    assert (first.status, second.status) == (200, 200)


def test_s_n06_another_device_is_refused_and_a_station_is_not(est: Est) -> None:
    device, other = est.device(), est.device()
    csr = request(new_key(), device.device)
    assert est.reenroll(csr, other).status == 403
    assert est.reenroll(csr, est.station("somebody-else")).status == 403
    assert est.reenroll(csr, est.station(device.device)).status == 200


def test_s_n06_a_station_renews_itself_and_only_what_is_there(est: Est) -> None:
    station = est.station("*")
    key = new_key()
    answer = est.reenroll(request(key, station.device), station, label="station")
    assert answer.status == 200, answer.text
    station = Holder(key, answer.certificate, station.chain)
    assert est.post(request(new_key(), fresh_id()), client=station).status == 200
    answer = est.reenroll(request(new_key(), fresh_id()), station)
    assert answer.status == 403
    assert "no valid certificate" in answer.text


def test_a_station_makes_no_other_stations(est: Est) -> None:
    station, other = est.station("*"), est.station("*")
    for operation, name in [("simpleenroll", fresh_id("line")), ("simplereenroll", other.device)]:
        answer = est.post(request(new_key(), name), operation=operation, client=station, label="station")
        assert answer.status == 403
        assert "this is a station" in answer.text


def test_s_n06_a_certificate_with_cmc_ra_is_no_station_until_it_is_registered(est: Est) -> None:
    device, would_be = est.device(), est.device(fresh_id("line"), label="station")
    assert est.reenroll(request(new_key(), device.device), would_be).status == 403
    assert est.post(request(new_key(), fresh_id()), client=would_be).status == 403


def test_s_n06_a_registered_name_without_cmc_ra_is_no_station(est: Est) -> None:
    device = est.device()
    est.home.station(device.device, "*")
    assert est.post(request(new_key(), fresh_id()), client=device).status == 403


@pytest.mark.parametrize("label", ["", "device", "bound", "gateway", "station", "element"])
def test_s_n07_lesson_13_a_revoked_certificate_is_refused_on_every_path(est: Est, label: str) -> None:
    """It still enrols at UCM."""
    device = est.device()
    est.home.revoke(device.certificate)
    for operation in ("simplereenroll", "simpleenroll"):
        answer = est.post(request(new_key(), device.device), operation=operation, client=device, label=label)
        assert answer.status == 403
        assert "was revoked" in answer.text


def test_s_n07_a_revoked_station_enrols_nobody(est: Est) -> None:
    station = est.station("*")
    assert est.post(request(new_key(), fresh_id()), client=station).status == 200
    est.home.revoke(station.certificate)
    assert est.post(request(new_key(), fresh_id()), client=station).status == 403


def test_revocation_counts_at_once_on_a_connection_that_is_open(est: Est) -> None:
    device = est.device()
    body = [base64_lines(request(new_key(), device.device)) for _ in range(2)]
    headers = {"Content-Type": "application/pkcs10"}
    with est.wire(device) as wire:
        path = "/.well-known/est/simplereenroll"
        assert wire.request("POST", path, body[0], headers).status == 200
        est.home.revoke(device.certificate)
        assert wire.request("POST", path, body[1], headers).status == 403


def issued_at(est: Est, shift: timedelta, label: str = "") -> Holder:
    """A device whose certificate was issued at another time, by the same home."""
    device, key = fresh_id(), new_key()
    name, secret = est.home.credential(device, label=label)
    with est.home.enrollment(lambda: today() + shift) as enrollment:
        issued = enrollment.enroll(
            Request(
                Operation.SIMPLEENROLL,
                label,
                base64_lines(request(key, device)),
                Peer("192.0.2.1"),
                BasicCredentials(name, secret.encode()),
            )
        )
    return Holder(key, x509.load_der_x509_certificate(issued.certificate), (est.home.issuing,))


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_n08_an_expired_certificate_is_refused_in_words(est: Est, tls: int) -> None:
    device = issued_at(est, -timedelta(hours=20), "workload")  # that profile's certificates live for 8 hours
    answer = est.reenroll(request(new_key(), device.device), device, label="workload", tls=tls)
    assert answer.status == 403
    assert "expired on" in answer.text


def test_s_n08_lesson_14_a_certificate_of_the_future_is_refused(est: Est) -> None:
    device = issued_at(est, timedelta(days=2))
    answer = est.reenroll(request(new_key(), device.device), device)
    assert answer.status == 403
    assert "not valid before" in answer.text


def test_s_n09_enrol_then_renew_again_and_again_with_what_was_issued(est: Est) -> None:
    """A standard client renews; the Python peers cannot."""
    for label in ("", "gateway", "workload", "service", "server"):
        device = est.device(label=label)
        for _ in range(2):
            key = new_key()
            answer = est.reenroll(request(key, device.device), device, label=label)
            assert answer.status == 200, (label, answer.text)
            device = Holder(key, answer.certificate, device.chain)


def test_a_renewal_stays_in_its_profile(est: Est) -> None:
    device = est.device()
    for label in ("gateway", "server", "station", "idevid"):
        answer = est.reenroll(request(new_key(), device.device), device, label=label)
        assert answer.status == 403, label


def test_s_n11_the_old_certificate_still_authenticates_after_a_renewal(est: Est) -> None:
    old = est.device()
    assert est.reenroll(request(new_key(), old.device), old).status == 200
    assert est.post(request(new_key(), old.device), client=old).status == 200
    with est.home.inventory() as inventory:
        record = inventory.by_serial(old.certificate.serial_number)
    assert record is not None
    assert record.status == "superseded"
    assert record.revoked_at is None


def test_a_repeated_renewal_gets_the_same_certificate(est: Est) -> None:
    device = est.device()
    name, key = device.device, new_key()
    first = est.reenroll(lambda binding: request(key, name, binding=binding), device)
    again = est.reenroll(lambda binding: request(key, name, binding=binding), device)
    assert first.status == 200
    assert first.body == again.body
