"""Lists in the inventory: numbers, what belongs on them, who builds, what a killed build leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from estserver.errors import InternalError, NotAuthorized, NotFound
from estserver.inventory import Inventory
from estserver.inventory.crls import BUILD_MAX, Build, CrlRecord
from estserver.inventory.takeback import PAGE, Choice
from estserver.model import DeviceId, Serial
from tests.inventory_support import DAY, HOUR, NOW, csr_for, dump, enroll, grant_for, new_inventory, reserve

ISSUER = ""  # what stands for the issuer of certificates that are none
WEEK = 7 * DAY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inventory.db"


@pytest.fixture
def inventory(path: Path) -> Iterator[Inventory]:
    with new_inventory(path) as inventory:
        yield inventory


def begin(inventory: Inventory, now: datetime, *, regular: bool = True) -> Build:
    build = inventory.crls.begin(ISSUER, now, regular=regular)
    assert build is not None
    return build


def serials(inventory: Inventory, build: Build) -> list[int]:
    return [entry.serial for entry in inventory.crls.entries(build)]


def finish(inventory: Inventory, build: Build, now: datetime, *parts: bytes) -> bool:
    entries, size = len(serials(inventory, build)), sum(map(len, parts))
    inventory.crls.put(build, parts, now)
    record = CrlRecord(ISSUER, build.number, now, now + WEEK, entries, size)
    return inventory.crls.publish(build, record, now)


def publish(inventory: Inventory, now: datetime, *, regular: bool = True) -> list[int]:
    """Publish a list; return who is on it."""
    build = begin(inventory, now, regular=regular)
    assert finish(inventory, build, now, b"list", b" and more")
    return serials(inventory, build)


def test_v_01_a_number_is_never_used_again(inventory: Inventory) -> None:
    abandoned = begin(inventory, NOW)
    second = begin(inventory, NOW - DAY)  # the clock went back
    assert second.number == abandoned.number + 1
    assert finish(inventory, second, NOW)
    assert not finish(inventory, abandoned, NOW, b"late")
    published = inventory.crls.published(ISSUER)
    assert published is not None
    assert published.number == second.number
    assert begin(inventory, NOW + DAY).number == int((NOW + DAY).timestamp())


def test_v_01_a_restored_backup_does_not_repeat_a_number(inventory: Inventory, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    with new_inventory(backup) as restored:
        last = [begin(inventory, NOW).number for _ in range(50)][-1]
        assert begin(restored, NOW + HOUR).number > last


def test_news_is_what_was_revoked_since(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    assert not inventory.crls.standing(ISSUER).news
    inventory.revoke(Serial(1), "keyCompromise", "operator:a", NOW)
    assert inventory.crls.standing(ISSUER).news
    assert publish(inventory, NOW) == [1]
    assert not inventory.crls.standing(ISSUER).news
    assert not inventory.crls.standing("another").news


def test_what_is_revoked_while_a_list_is_built_is_on_the_next(inventory: Inventory) -> None:
    for serial in (1, 2):
        enroll(inventory, grant_for(f"sn-{serial}"), serial)
    inventory.revoke(Serial(1), "keyCompromise", "operator:a", NOW)
    build = begin(inventory, NOW)
    inventory.revoke(Serial(2), "keyCompromise", "operator:a", NOW)
    assert serials(inventory, build) == [1]
    assert finish(inventory, build, NOW)
    assert inventory.crls.standing(ISSUER).news
    assert publish(inventory, NOW) == [1, 2]


def test_an_entry_stays_until_a_regular_list_had_it_beyond_its_end(inventory: Inventory) -> None:
    """RFC 5280 §3.3."""
    enroll(inventory, grant_for(not_after=NOW + DAY), 1)
    inventory.revoke(Serial(1), "keyCompromise", "operator:a", NOW)
    assert publish(inventory, NOW) == [1]
    assert publish(inventory, NOW + 2 * DAY, regular=False) == [1]  # nobody has to have fetched this one
    assert publish(inventory, NOW + 3 * DAY) == [1]
    assert publish(inventory, NOW + 4 * DAY) == []


def test_what_had_expired_before_it_was_revoked_is_on_a_list_once(inventory: Inventory) -> None:
    enroll(inventory, grant_for(not_after=NOW + DAY), 1)
    assert publish(inventory, NOW + 2 * DAY) == []
    inventory.revoke(Serial(1), "keyCompromise", "operator:a", NOW + 3 * DAY)
    assert publish(inventory, NOW + 4 * DAY) == [1]
    assert publish(inventory, NOW + 5 * DAY) == []


def test_another_server_waits_for_a_build_and_not_for_ever(inventory: Inventory, path: Path) -> None:
    build = begin(inventory, NOW)
    with Inventory.open(path, server_id="other") as other:
        assert other.crls.begin(ISSUER, NOW, regular=True) is None
        taken = other.crls.begin(ISSUER, NOW + BUILD_MAX, regular=True)
        assert taken is not None
        assert taken.number > build.number
        assert finish(other, taken, NOW)
    assert not finish(inventory, build, NOW, b"late")


def test_a_killed_build_is_invisible_and_the_next_removes_it(inventory: Inventory, path: Path) -> None:
    publish(inventory, NOW)
    before = inventory.crls.published(ISSUER)
    assert before is not None
    inventory.crls.put(begin(inventory, NOW), [b"half of a list"], NOW)  # and then it was killed
    assert inventory.crls.published(ISSUER) == before
    assert b"".join(inventory.crls.parts(before)) == b"list and more"
    publish(inventory, NOW + HOUR)
    assert b"".join(inventory.crls.parts(before)) == b"list and more"  # for who is reading it
    inventory.close()
    assert not any(b"half of a list".hex().upper() in line.upper() for line in dump(path))


def test_who_reads_a_list_that_is_gone_is_told(inventory: Inventory) -> None:
    publish(inventory, NOW)
    old = inventory.crls.published(ISSUER)
    assert old is not None
    publish(inventory, NOW)
    publish(inventory, NOW)
    with pytest.raises(InternalError):
        list(inventory.crls.parts(old))


def test_a_list_that_nobody_began_is_not_published(inventory: Inventory) -> None:
    record = CrlRecord(ISSUER, 1, NOW, NOW + WEEK, 0, 0)
    with pytest.raises(InternalError):
        inventory.crls.publish(Build(ISSUER, 1, 0, None, regular=True), record, NOW)


# --- what goes with what --------------------------------------------------------------------------------------------


def test_with_a_certificate_go_those_that_it_superseded(inventory: Inventory) -> None:
    """Whose copy was kept would renew as the revoked one did."""
    enroll(inventory, grant_for(not_after=NOW + HOUR), 1)
    enroll(inventory, grant_for(key="k2"), 2)
    enroll(inventory, grant_for(key="k3", profile="server"), 3)
    enroll(inventory, grant_for(key="k4"), 4)
    enroll(inventory, grant_for("sn-2"), 5)
    revoked = inventory.revoke(Serial(4), "keyCompromise", "operator:a", NOW + DAY)
    assert [(record.serial, record.revocation_reason) for record in revoked] == [
        (4, "keyCompromise"),
        (2, "superseded"),
    ]
    for serial in (1, 3, 5):
        record = inventory.by_serial(Serial(serial))
        assert record is not None
        assert record.revoked_at is None


def test_an_older_certificate_takes_no_newer_one_along(inventory: Inventory) -> None:
    enroll(inventory, grant_for(key_reuse=True), 1)
    enroll(inventory, grant_for(key_reuse=True, predecessor=Serial(1)), 2)
    assert [record.serial for record in inventory.revoke(Serial(1), "unspecified", "operator:a", NOW)] == [1]


def test_the_same_key_is_compromised_in_every_certificate(inventory: Inventory) -> None:
    enroll(inventory, grant_for(key_reuse=True), 1)
    enroll(inventory, grant_for(key_reuse=True, predecessor=Serial(1)), 2)
    revoked = inventory.revoke(Serial(2), "keyCompromise", "operator:a", NOW)
    assert [record.revocation_reason for record in revoked] == ["keyCompromise", "keyCompromise"]


def test_a_revoked_device_is_blocked_until_an_operator_lifts_that(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    waiting = reserve(inventory, grant_for(key="in flight"), 2)
    inventory.revoke_device(DeviceId("sn-1"), "keyCompromise", "operator:a", NOW)
    for grant in (waiting.grant, grant_for(key="new"), grant_for(key="other", profile="server")):
        with pytest.raises(NotAuthorized) as refused:
            inventory.reserve(grant, Serial(3), NOW)
        assert refused.value.code == "device-blocked"
    assert [(one.device, one.reason) for one in inventory.takeback.blocked()] == [("sn-1", "keyCompromise")]
    inventory.takeback.unblock(DeviceId("sn-1"), "operator:b", NOW)
    enroll(inventory, grant_for(key="new"), 3)
    with pytest.raises(NotFound):
        inventory.takeback.unblock(DeviceId("sn-1"), "operator:b", NOW)
    assert [row.action for row in inventory.audit_rows() if "block" in row.action] == ["block", "unblock"]


def test_a_device_is_blocked_before_it_ever_came(inventory: Inventory) -> None:
    for name in ("sn-2", "sn-1", "sn-3"):
        inventory.takeback.block(DeviceId(name), "cessationOfOperation", "operator:a", NOW)
    inventory.takeback.block(DeviceId("sn-1"), "unspecified", "operator:b", NOW + DAY)
    with pytest.raises(NotAuthorized):
        inventory.reserve(grant_for(), Serial(1), NOW)
    first = inventory.takeback.blocked(limit=2)
    rest = inventory.takeback.blocked(after=first[-1].device)
    assert [one.device for one in (*first, *rest)] == ["sn-1", "sn-2", "sn-3"]
    assert (first[0].reason, first[0].at) == ("cessationOfOperation", NOW)


# --- in numbers -----------------------------------------------------------------------------------------------------


def chosen(inventory: Inventory, choice: Choice, now: datetime = NOW) -> list[int]:
    return [record.serial for page in inventory.takeback.chosen(choice, now) for record in page]


def test_a_choice_finds_what_is_in_force_and_fits(inventory: Inventory) -> None:
    enroll(inventory, grant_for("sn-1"), 1)
    enroll(inventory, grant_for("sn-2", not_after=NOW + HOUR), 2)
    enroll(inventory, grant_for("sn-3", requester="station:line-2"), 3)
    enroll(inventory, grant_for("sn-4"), 4)
    inventory.revoke(Serial(4), "unspecified", "operator:a", NOW)
    assert chosen(inventory, Choice(requester="station:line-1")) == [1, 2]
    assert chosen(inventory, Choice(requester="station:line-1"), NOW + DAY) == [1]
    assert chosen(inventory, Choice(issuer=ISSUER)) == [1, 2, 3]
    assert chosen(inventory, Choice(issuer="another")) == []
    assert chosen(inventory, Choice(csr_for("sn-3", "key of sn-3").spki_sha256)) == [3]
    assert chosen(inventory, Choice(csr_for("sn-9", "key of nobody").spki_sha256)) == []


def test_more_than_a_page_is_revoked_by_a_rerun_too(inventory: Inventory) -> None:
    count = PAGE + 20
    for serial in range(1, count + 1):
        enroll(inventory, grant_for(f"sn-{serial}"), serial)
    choice = Choice(requester="station:line-1")
    first = next(iter(inventory.takeback.chosen(choice, NOW)))  # and then it was killed
    inventory.takeback.revoke([record.serial for record in first], "unspecified", "operator:a", NOW)
    assert chosen(inventory, choice) == list(range(PAGE + 1, count + 1))
    for page in inventory.takeback.chosen(choice, NOW):
        inventory.takeback.revoke([record.serial for record in page], "unspecified", "operator:a", NOW)
    assert chosen(inventory, choice) == []
    assert inventory.counters()["revoked"] == count
    again = replace(choice, issuer=ISSUER)
    assert chosen(inventory, again) == []
    assert len(publish(inventory, NOW)) == count
