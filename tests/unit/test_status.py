"""What is told of certificates is kept up to date: when lists are published, who signs answers, what goes wrong."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from estserver.errors import StorageUnavailable
from estserver.inventory import Inventory
from estserver.inventory.crls import Build, CrlRecord, Crls
from estserver.model import Serial
from estserver.status import Keeper, Publisher
from estserver.status.delegate import LIFETIME, DelegateFile, delegate_path, renew_due
from estserver.status_assembly import directory_of, keepers_of, responder_of
from tests.est_server import DAY, Home, found_home, today
from tests.status_support import ca_of, status_home

NOW = today()
WEEK = 7 * DAY


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return status_home(tmp_path / "home")


@pytest.fixture
def inventory(home: Home) -> Iterator[Inventory]:
    with home.inventory() as inventory:
        yield inventory


class Stopwatch:
    """A clock for how long a build takes: each look at it takes so many seconds."""

    def __init__(self, step: float) -> None:
        self.seconds, self.step = 0.0, step

    def __call__(self) -> float:
        self.seconds += self.step
        return self.seconds


def revoke_something(inventory: Inventory) -> int:
    """Revoke the server's own certificate, the one there is after init."""
    (record,) = [one for one in inventory.list_certificates() if one.profile == "server"]
    inventory.revoke(record.serial, "superseded", "operator:test", NOW)
    return record.serial


# --- lists ----------------------------------------------------------------------------------------------------------


def test_a_list_is_published_when_it_has_to_be(home: Home, inventory: Inventory) -> None:
    ca = ca_of(home)
    publisher = Publisher([ca], inventory.crls, lifetime=WEEK, seconds=Stopwatch(0.0))
    assert len(list(publisher.publish_due(NOW))) == 1
    assert list(publisher.publish_due(NOW + DAY)) == []
    revoke_something(inventory)
    assert len(list(publisher.publish_due(NOW + DAY))) == 1
    assert list(publisher.publish_due(NOW + 2 * DAY)) == []
    assert len(list(publisher.publish_due(NOW + WEEK / 2))) == 1  # half of the life of the last regular one
    published = inventory.crls.published(ca.key_id)
    assert published is not None
    assert (published.this_update, published.next_update, published.entries) == (NOW + WEEK / 2, NOW + WEEK * 1.5, 1)


def test_long_lists_are_not_built_all_the_time(home: Home, inventory: Inventory) -> None:
    watch = Stopwatch(1.0)
    publisher = Publisher([ca_of(home)], inventory.crls, lifetime=WEEK, seconds=watch)
    assert len(list(publisher.publish_due(NOW))) == 1  # took a second
    revoke_something(inventory)
    assert list(publisher.publish_due(NOW)) == []
    watch.seconds += 9
    assert len(list(publisher.publish_due(NOW))) == 1


class Killed(Exception):
    """Where a test pulls the plug."""


class Fragile(Crls):
    """Lists whose process is killed at one of the stages of a publication."""

    stage = ""

    def put(self, build: Build, parts: Iterable[bytes], now: datetime) -> None:
        if self.stage == "before the parts":
            raise Killed
        super().put(build, parts, now)
        if self.stage == "after the parts":
            raise Killed

    def publish(self, build: Build, record: CrlRecord, now: datetime) -> bool:
        done = super().publish(build, record, now)
        if self.stage == "after all":
            raise Killed
        return done


@pytest.mark.parametrize("stage", ["before the parts", "after the parts", "after all"])
def test_a_killed_publication_is_completed_by_the_next(home: Home, inventory: Inventory, stage: str) -> None:
    ca = ca_of(home)
    serial = revoke_something(inventory)
    crls = inventory.crls
    fragile = Fragile(crls._read, crls._write)
    fragile.stage = stage
    with pytest.raises(Killed):
        Publisher([ca], fragile, lifetime=WEEK).publish(ca, NOW)
    before = inventory.crls.published(ca.key_id)
    list(Publisher([ca], inventory.crls, lifetime=WEEK).publish_due(NOW + DAY))
    assert (before is None) == (stage != "after all")
    after = directory_of(home.settings, inventory).crl(ca.key_id)
    assert after is not None
    record, octets = after
    if before is not None:
        assert before == record  # it was published, and there is nothing to complete
    read = x509.load_der_x509_crl(octets)
    assert read.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == record.number
    assert read.get_revoked_certificate_by_serial_number(serial) is not None
    again = inventory.crls.begin(ca.key_id, NOW, regular=False)
    assert again is not None
    assert again.number > record.number


# --- who signs answers ----------------------------------------------------------------------------------------------


def renew(home: Home, inventory: Inventory, now: datetime) -> bool:
    ca = ca_of(home)
    file = DelegateFile(delegate_path(home.path, ca.key_id))
    return renew_due(ca, file, inventory, server_id="estserver", now=now, random=os.urandom)


def delegate(home: Home) -> x509.Certificate:
    found = DelegateFile(delegate_path(home.path, ca_of(home).key_id)).current()
    assert found is not None
    assert found.certificate.public_key().public_bytes(*_FORM) == found.signer.spki
    return found.certificate


_FORM = Encoding.DER, PublicFormat.SubjectPublicKeyInfo


def test_a_responder_has_a_new_key_at_half_of_its_life(home: Home, inventory: Inventory) -> None:
    assert renew(home, inventory, NOW)
    first = delegate(home)
    assert not renew(home, inventory, NOW + LIFETIME / 2 - DAY)
    assert delegate(home) == first
    assert renew(home, inventory, NOW + LIFETIME / 2)
    second = delegate(home)
    assert second.public_key() != first.public_key()
    path = delegate_path(home.path, ca_of(home).key_id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    old = inventory.by_serial(Serial(first.serial_number))
    assert old is not None
    assert (old.profile, old.superseded_by) == ("ocsp", second.serial_number)


@pytest.mark.parametrize("harm", ["killed", "cut", "gone", "readable"])
def test_a_spoilt_responder_is_replaced(home: Home, inventory: Inventory, harm: str) -> None:
    assert renew(home, inventory, NOW)
    first, path = delegate(home), delegate_path(home.path, ca_of(home).key_id)
    if harm == "killed":
        path.rename(path.with_name(f".{path.name}.new"))
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif harm == "gone":
        path.unlink()
    else:
        path.chmod(0o644)
    assert renew(home, inventory, NOW)
    assert delegate(home) != first
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


def test_nobody_answers_without_a_responder_in_time(home: Home, inventory: Inventory) -> None:
    (record,) = inventory.list_certificates()
    certificate = x509.load_der_x509_certificate(record.certificate)
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, home.issuing, hashes.SHA256())
    asked = builder.build().public_bytes(Encoding.DER)
    responder = responder_of(home.settings, inventory)

    def status(now: datetime) -> Any:
        return ocsp.load_der_ocsp_response(responder.respond(asked, now).octets).response_status

    assert status(NOW) is ocsp.OCSPResponseStatus.TRY_LATER
    assert renew(home, inventory, NOW)
    assert status(NOW) is ocsp.OCSPResponseStatus.SUCCESSFUL
    assert status(NOW + LIFETIME + DAY) is ocsp.OCSPResponseStatus.TRY_LATER
    assert renew(home, inventory, NOW + LIFETIME + DAY)
    assert status(NOW + LIFETIME + DAY) is ocsp.OCSPResponseStatus.SUCCESSFUL


def test_v_03_nobody_signs_for_a_ca_that_does_not_say_so(tmp_path: Path) -> None:
    home = found_home(tmp_path / "plain")
    with home.inventory() as inventory:
        for keeper in keepers_of(home.settings, inventory, clock=lambda: NOW, random=os.urandom):
            assert keeper.step()
        assert [record.profile for record in inventory.list_certificates()] == ["server"]
        assert inventory.crls.published(ca_of(home).key_id) is not None
        certificate = x509.load_pem_x509_certificates((home.path / "tls.pem").read_bytes())[0]
        builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, home.issuing, hashes.SHA256())
        reply = responder_of(home.settings, inventory).respond(builder.build().public_bytes(Encoding.DER), NOW)
    assert ocsp.load_der_ocsp_response(reply.octets).response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED


def test_an_answer_is_signed_anew_at_half_of_its_life(home: Home, inventory: Inventory) -> None:
    (record,) = inventory.list_certificates()
    certificate = x509.load_der_x509_certificate(record.certificate)
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, home.issuing, hashes.SHA1())
    asked = builder.build().public_bytes(Encoding.DER)
    assert renew(home, inventory, NOW)
    responder = responder_of(home.settings, inventory)
    first = responder.respond(asked, NOW)
    assert responder.respond(asked, NOW + timedelta(minutes=29)) == first
    second = responder.respond(asked, NOW + timedelta(minutes=30))
    assert second.next_update == NOW + timedelta(minutes=90)


# --- the keeper -----------------------------------------------------------------------------------------------------


def test_what_goes_wrong_is_said_once_and_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problems: list[Exception | None] = [StorageUnavailable("busy"), StorageUnavailable("busy"), None, OSError("full")]
    done: list[datetime] = []

    def fails(_now: datetime) -> list[str]:
        problem = problems.pop(0)
        if problem is not None:
            raise problem
        return ["a line"]

    def works(now: datetime) -> list[str]:
        done.append(now)
        return []

    keeper = Keeper([fails, works], lock=tmp_path / "lock", clock=lambda: NOW)
    with caplog.at_level(logging.INFO):
        assert [keeper.step() for _ in range(4)] == [False, False, True, False]
    assert done == [NOW] * 4
    assert [record.message for record in caplog.records] == [
        "what is told of certificates waits: busy",
        "a line",
        "what is told of certificates waits: full",
    ]


def test_a_mistake_of_ours_does_not_end_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def wrong(_now: datetime) -> list[str]:
        raise ZeroDivisionError

    keeper = Keeper([wrong], lock=tmp_path / "lock", clock=lambda: NOW)
    assert [keeper.step(), keeper.step()] == [False, False]
    assert [record.message for record in caplog.records] == ["keeping what is told of certificates failed"]
