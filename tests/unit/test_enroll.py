"""The use case at any time, and when its parts fail: nothing issued that is not written down, nothing written twice."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from estserver.assembly import enrollment_of
from estserver.ca import IssuingCa
from estserver.enroll import Enrollment, Request
from estserver.errors import (
    BadCredentials,
    CapacityError,
    ConfigError,
    EstError,
    InternalError,
    KeyReused,
    MalformedRequest,
    NotAuthenticated,
    NotAuthorized,
    StorageUnavailable,
    UnknownLabel,
)
from estserver.inventory import Inventory
from estserver.model import BasicCredentials, Der, Issued, Operation, Peer
from tests.csr_maker import new_key, request
from tests.est_server import Home, found_home, fresh_id

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
FIXED = b"\x55" * 20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return found_home(tmp_path_factory.mktemp("enroll") / "home", now=NOW)


def ask(csr: bytes, **how: Any) -> Request:
    values = {"operation": Operation.SIMPLEENROLL, "label": "", "peer": Peer("192.0.2.1"), "credentials": None, **how}
    return Request(body=base64.b64encode(csr), **values)


class Office:
    """The enrolment path of one home with a clock that tests turn."""

    def __init__(self, home: Home, now: datetime = NOW) -> None:
        self.home, self.now = home, now

    def __call__(self, asked: Request) -> Issued:
        with self.home.enrollment(lambda: self.now) as enrollment:
            return enrollment.enroll(asked)

    def credential(self, device: str, **how: Any) -> BasicCredentials:
        name, secret = self.home.credential(device, **how)
        return BasicCredentials(name, secret.encode())

    def first(self, device: str | None = None, key: Any = None, **how: Any) -> Issued:
        device = device or fresh_id()
        label = how.get("label", "")
        return self(ask(request(key or new_key(), device), credentials=self.credential(device, label=label), **how))

    def renew(self, issued: Issued, key: Any = None, **how: Any) -> Issued:
        peer = Peer("192.0.2.1", certificate=issued.certificate, intermediates=())
        csr = request(key or new_key(), issued.device)
        return self(ask(csr, operation=Operation.SIMPLEREENROLL, peer=peer, **how))


@pytest.fixture
def office(home: Home) -> Office:
    return Office(home)


def life(issued: Issued) -> tuple[datetime, datetime]:
    certificate = x509.load_der_x509_certificate(issued.certificate)
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


# --- time -----------------------------------------------------------------------------------------------------------


def test_a_year_of_renewals(office: Office) -> None:
    issued = office.first()
    for _ in range(4):
        before = issued
        office.now += 240 * DAY
        issued = office.renew(before)
        assert issued.serial != before.serial
        assert life(issued) == (office.now - timedelta(minutes=5), office.now + 365 * DAY)


@pytest.mark.parametrize("shift", [timedelta(0), timedelta(seconds=1)])
def test_s_n08_the_last_second_of_a_certificate_renews_it_and_the_next_does_not(
    office: Office, shift: timedelta
) -> None:
    issued = office.first()
    office.now = life(issued)[1] + shift
    if not shift:
        assert office.renew(issued).serial != issued.serial
        return
    with pytest.raises(NotAuthorized, match="expired on"):
        office.renew(issued)


def test_lesson_14_a_clock_set_back_makes_a_certificate_of_the_future(office: Office) -> None:
    issued = office.first()
    office.now -= timedelta(minutes=6)
    with pytest.raises(NotAuthorized, match="not valid before"):
        office.renew(issued)


def test_a_clock_before_the_ca_was_made_stops_everything_and_so_does_one_after_its_end(home: Home) -> None:
    ca = home.issuing
    begin, end = ca.not_valid_before_utc, ca.not_valid_after_utc
    second = timedelta(seconds=1)
    for now in (begin, end):
        with home.enrollment(lambda now=now: now) as enrollment:  # type: ignore[misc]  # the loop's own value
            enrollment.check_clock()
    for now in (begin - second, end + second):
        with home.enrollment(lambda now=now: now) as enrollment, pytest.raises(ConfigError, match="clock says"):  # type: ignore[misc]  # as above
            enrollment.check_clock()
    office = Office(home, begin - second)
    with pytest.raises(CapacityError, match="the clock of this server is wrong") as told:
        office(ask(request(new_key(), "sn-1"), credentials=office.credential("sn-1")))
    assert told.value.code == "clock-not-trustworthy"
    assert told.value.retry_after == timedelta(minutes=1)


def test_what_is_tolerated_of_a_renewal_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = found_home(tmp_path / "home", now=NOW)
    office = Office(home)
    issued = office.first("sn-1")
    profile = home.path / "profiles" / "device.toml"
    profile.write_text(profile.read_text("utf-8").replace('"P-256", ', ""), "utf-8")
    assert office.renew(issued).device == "sn-1"
    (line,) = [one.getMessage() for one in caplog.records if "at par" in one.getMessage()]
    assert line.startswith("sn-1 renews at par, request : P-256 offered; profile device takes P-384")


def test_lesson_15_a_repeat_gets_the_same_for_a_day(office: Office) -> None:
    device, key = fresh_id(), new_key()
    credentials = office.credential(device)
    first = office(ask(request(key, device), credentials=credentials))
    again = office(ask(request(key, device), credentials=credentials))
    assert again.repeated
    assert again.certificate == first.certificate
    office.now += 2 * DAY
    with pytest.raises(BadCredentials):
        office(ask(request(key, device), credentials=credentials))


@pytest.mark.parametrize("year", [2049, 2127])
def test_a_home_of_another_century_enrols_and_renews(tmp_path: Path, year: int) -> None:
    """UTCTime ends with 2049, GeneralizedTime begins with 2050."""
    at = datetime(2049, 12, 31, 23, 59, 50, tzinfo=UTC) if year == 2049 else NOW.replace(year=year)
    office = Office(found_home(tmp_path / "home", now=at), at)
    issued = office.first()
    office.now += timedelta(seconds=30)
    renewed = office.renew(issued)
    assert life(renewed)[0] == office.now - timedelta(minutes=5)
    assert renewed.serial != issued.serial


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (ask(b"junk"), MalformedRequest),
        (ask(request(new_key(), "sn-1"), label="nowhere"), UnknownLabel),
        (ask(request(new_key(), "sn-1")), NotAuthenticated),
        (ask(request(new_key(), "sn-1"), credentials=BasicCredentials("nobody", b"x")), BadCredentials),
        (ask(request(new_key(), "sn-1"), peer=Peer("192.0.2.1", certificate=Der(b"junk"))), NotAuthorized),
    ],
)
def test_every_refusal_but_a_question_is_one_audit_row(office: Office, asked: Request, error: type[EstError]) -> None:
    before = len(office.home.audit())
    with pytest.raises(error):
        office(asked)
    rows = office.home.audit()[before:]
    assert len(rows) == (0 if error in (UnknownLabel, NotAuthenticated) else 1)
    assert all(row["action"] == "refuse" for row in rows)


def test_one_key_in_two_devices_is_refused_and_raised_as_an_event(office: Office) -> None:
    key, first, second = new_key(), fresh_id(), fresh_id()
    office.first(first, key)
    with pytest.raises(KeyReused):
        office.first(second, key)
    with office.home.inventory() as inventory:
        found = [row.event for row in inventory.outbox.pending(10_000) if "key-reused" in row.event.type]
    assert [(event.data["device_id"], event.data["key_of"]) for event in found] == [(second, first)]


# --- faults ---------------------------------------------------------------------------------------------------------


@contextmanager
def broken(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, error: Exception) -> Iterator[None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, fail)
        yield


def test_a_failed_signature_issues_nothing_and_costs_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    device, key = fresh_id(), new_key()
    asked = ask(request(key, device), credentials=office.credential(device))
    with (
        broken(monkeypatch, IssuingCa, "issue", RuntimeError("the HSM is gone: /secret/path")),
        pytest.raises(InternalError) as refused,
    ):
        office(asked)
    assert "secret" not in str(refused.value)
    with office.home.inventory() as inventory:
        assert inventory.leftovers_void(NOW) == []
    assert office(asked).device == device


@pytest.mark.parametrize("method", ["reserve_all", "record_all"])
def test_storage_that_fails_is_said_to_be_unavailable_and_a_retry_works(
    office: Office, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    device, key = fresh_id(), new_key()
    asked = ask(request(key, device), credentials=office.credential(device))
    with (
        broken(monkeypatch, Inventory, method, StorageUnavailable("the disk is full")),
        pytest.raises(StorageUnavailable),
    ):
        office(asked)
    issued = office(asked)
    assert not issued.repeated
    with office.home.inventory() as inventory:
        assert [row.serial for row in inventory.list_certificates(device=device)] == [issued.serial]  # type: ignore[arg-type]  # a DeviceId is a str


def test_a_refusal_that_cannot_be_written_down_is_a_refusal_all_the_same(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        broken(monkeypatch, Inventory, "refuse", StorageUnavailable("the disk is full")),
        pytest.raises(MalformedRequest),
    ):
        office(ask(b"junk"))


def test_nothing_is_signed_before_it_is_reserved_nor_leaves_before_it_is_recorded(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    for owner, method in ((Inventory, "reserve_all"), (IssuingCa, "issue"), (Inventory, "record_all")):
        real = getattr(owner, method)

        def noted(*args: Any, _real: Any = real, _method: str = method, **kwargs: Any) -> Any:
            order.append(_method)
            return _real(*args, **kwargs)

        monkeypatch.setattr(owner, method, noted)
    office.first()
    assert order == ["reserve_all", "issue", "record_all"]


def test_issuing_announces_in_the_same_breath(office: Office) -> None:
    with office.home.inventory() as inventory:
        before = len(inventory.outbox.pending(10_000))
        issued = office.first()
        told = [row.event for row in inventory.outbox.pending(10_000)[before:]]
    assert [event.topic for event in told] == ["ca/acme/evt/issued", f"d/{issued.device}/identity"]
    assert [event.retain for event in told] == [False, True]
    assert all(event.data["cert"]["serial"] == f"{issued.serial:x}" for event in told)  # type: ignore[index]  # JSON


def test_the_random_bytes_are_the_serial(home: Home) -> None:
    device = fresh_id()
    name, secret = home.credential(device)
    with home.inventory() as inventory:
        made: Enrollment = enrollment_of(
            home.settings,
            inventory,
            clock=lambda: NOW,
            random=lambda size: os.urandom(size) if size != 20 else b"\x55" * 20,
        )
        issued = made.enroll(ask(request(new_key(), device), credentials=BasicCredentials(name, secret.encode())))
    assert issued.serial == int.from_bytes(FIXED) >> 1 | 1 << 158
