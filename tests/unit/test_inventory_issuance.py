"""Reserve, record, void: one certificate for one request, one device for one key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from estserver.errors import BadCredentials, InternalError, KeyReused, NotAuthorized, StorageUnavailable
from estserver.inventory import Inventory
from estserver.inventory.issuance import fingerprint
from estserver.model import Der, DeviceId, Issued, NameAttribute, Operation, Serial
from tests.inventory_support import (
    DAY,
    HOUR,
    NOW,
    credential_record,
    csr_for,
    enroll,
    event,
    grant_for,
    new_inventory,
    reserve,
)


@pytest.fixture
def inventory(tmp_path: Path) -> Iterator[Inventory]:
    with new_inventory(tmp_path / "estserver.db") as opened:
        yield opened


def test_what_was_recorded_is_found_whole(inventory: Inventory) -> None:
    grant = grant_for(operation=Operation.SIMPLEREENROLL, label="lab", predecessor=None)
    issued = enroll(inventory, grant, 0xA1, events=[event()])
    assert issued == Issued(Serial(0xA1), Der(b"certificate 161"), DeviceId("sn-1"))
    record = inventory.by_serial(Serial(0xA1))
    assert record is not None
    assert record == inventory.certificate(record.sha256) == inventory.current(DeviceId("sn-1"), "device")
    assert (record.subject, record.san, record.status) == (grant.subject, grant.san, "valid")
    assert (record.not_before, record.not_after, record.renew_after) == (
        grant.not_before,
        grant.not_after,
        grant.renew_after,
    )
    assert inventory.csr(Serial(0xA1)) == grant.csr.der
    assert inventory.key_device(grant.csr.spki_sha256) == "sn-1"
    assert inventory.counters()["issued"] == 1


def test_a_repeat_gets_the_same_bytes_whatever_its_csr_octets(inventory: Inventory) -> None:
    first = enroll(inventory, grant_for(), 1)
    again = grant_for(csr=replace(csr_for("sn-1", "key of sn-1"), der=Der(b"bound to another connection")))
    assert inventory.reserve(again, Serial(2), NOW + HOUR) == replace(first, repeated=True)
    assert inventory.counters() == {
        "issued": 1,
        "repeated": 1,
        "refused": 0,
        "revoked": 0,
        "voided": 0,
        "outbox_depth": 0,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"requester": "station:line-2"},
        {"label": "other"},
        {"operation": Operation.SIMPLEREENROLL},
        {"predecessor": Serial(9)},
        {"csr": csr_for("sn-1", "another key")},
        {"csr": replace(csr_for("sn-1", "key of sn-1"), subject=(NameAttribute("2.5.4.5", "sn-1"),))},
        {"csr": replace(csr_for("sn-1", "key of sn-1"), san=())},
    ],
)
def test_the_fingerprint_knows_every_fact_that_makes_a_request_another_one(change: dict[str, object]) -> None:
    assert fingerprint(grant_for(**change)) != fingerprint(grant_for())


@pytest.mark.parametrize("instant", [NOW + 60 * DAY, NOW + 91 * DAY])
def test_once_due_or_expired_a_repeat_is_a_new_request_and_needs_a_new_key(
    inventory: Inventory, instant: datetime
) -> None:
    enroll(inventory, grant_for(), 1)
    with pytest.raises(KeyReused):
        inventory.reserve(grant_for(), Serial(2), instant)


def test_a_revoked_certificate_answers_no_repeat(inventory: Inventory) -> None:
    enroll(inventory, grant_for(key_reuse=True), 1)
    inventory.revoke(Serial(1), "affiliationChanged", "operator:a", NOW)
    assert not isinstance(inventory.reserve(grant_for(key_reuse=True), Serial(2), NOW), Issued)


def test_a_key_that_others_know_is_not_even_reserved_for(inventory: Inventory) -> None:
    enroll(inventory, grant_for(key_reuse=True), 1)
    inventory.revoke(Serial(1), "keyCompromise", "operator:a", NOW)
    with pytest.raises(KeyReused, match="compromised"):
        inventory.reserve(grant_for(key_reuse=True), Serial(2), NOW)


def test_a_superseded_certificate_answers_no_repeat(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    enroll(inventory, grant_for(key="second key"), 2)
    with pytest.raises(KeyReused):
        inventory.reserve(grant_for(), Serial(3), NOW)


def test_a_key_of_another_device_is_refused_even_when_it_was_never_certified(inventory: Inventory) -> None:
    inventory.void(reserve(inventory, grant_for("sn-1", "same flash image"), 1), "signing failed", NOW)
    with pytest.raises(KeyReused) as caught:
        inventory.reserve(grant_for("sn-2", "same flash image", key_reuse=True), Serial(2), NOW)
    assert "sn-1" not in str(caught.value)
    assert enroll(inventory, grant_for("sn-1", "same flash image"), 3).serial == 3


def test_a_key_is_certified_once_unless_the_profile_lets_the_device_keep_it(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    with pytest.raises(KeyReused):
        inventory.reserve(grant_for(label="other"), Serial(2), NOW)
    assert enroll(inventory, grant_for(label="other", key_reuse=True), 3).serial == 3


def test_the_next_certificate_supersedes_the_one_of_the_same_profile_only(inventory: Inventory) -> None:
    device = DeviceId("sn-1")
    enroll(inventory, grant_for(), 1)
    enroll(inventory, grant_for(key="tls key", profile="server"), 2)
    enroll(inventory, grant_for(key="next key"), 3)
    old, server = inventory.by_serial(Serial(1)), inventory.current(device, "server")
    assert old is not None
    assert (old.status, old.superseded_by) == ("superseded", 3)
    assert server is not None
    assert (server.serial, server.status) == (2, "valid")


def test_a_serial_is_never_used_twice(inventory: Inventory) -> None:
    inventory.void(reserve(inventory, grant_for(), 1), "signing failed", NOW)
    with pytest.raises(InternalError):
        inventory.reserve(grant_for("sn-2"), Serial(1), NOW)
    assert inventory.key_device(grant_for("sn-2").csr.spki_sha256) is None


def test_a_reservation_is_used_once(inventory: Inventory) -> None:
    reservation = reserve(inventory, grant_for(), 1)
    inventory.record(reservation, Der(b"one"), [], NOW)
    with pytest.raises(InternalError):
        inventory.record(reservation, Der(b"two"), [], NOW)
    with pytest.raises(InternalError):
        inventory.record(replace(reservation, serial=Serial(7)), Der(b"two"), [], NOW)
    other = reserve(inventory, grant_for("sn-2"), 2)
    with pytest.raises(InternalError):
        inventory.record(replace(other, grant=grant_for("sn-3")), Der(b"two"), [], NOW)


def test_of_two_reservations_for_one_request_the_first_recorded_wins(inventory: Inventory) -> None:
    first, second = reserve(inventory, grant_for(), 1), reserve(inventory, grant_for(), 2)
    won = inventory.record(second, Der(b"second"), [event("a")], NOW)
    late = inventory.record(first, Der(b"first"), [event("b")], NOW)
    assert late == replace(won, repeated=True)
    assert inventory.by_serial(Serial(1)) is None
    assert [row.event.id for row in inventory.outbox.pending(10)] == ["a"]
    assert inventory.counters()["voided"] == 1


def test_of_two_different_requests_with_one_key_the_second_is_refused_and_void(inventory: Inventory) -> None:
    first, second = reserve(inventory, grant_for(), 1), reserve(inventory, grant_for(label="other"), 2)
    inventory.record(first, Der(b"first"), [], NOW)
    with pytest.raises(KeyReused):
        inventory.record(second, Der(b"second"), [], NOW)
    assert inventory.by_serial(Serial(2)) is None
    assert inventory.counters()["voided"] == 1


def test_a_predecessor_revoked_meanwhile_stops_its_renewal(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    renewal = reserve(inventory, grant_for(key="new key", predecessor=Serial(1)), 2)
    inventory.revoke(Serial(1), "keyCompromise", "operator:a", NOW)
    with pytest.raises(NotAuthorized):
        inventory.record(renewal, Der(b"renewed"), [], NOW)
    assert inventory.counters()["voided"] == 1


def test_revoking_a_device_withdraws_what_is_being_issued_for_it(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    pending = reserve(inventory, grant_for(key="new key"), 2)
    assert [
        record.serial for record in inventory.revoke_device(DeviceId("sn-1"), "unspecified", "operator:a", NOW)
    ] == [1]
    with pytest.raises(StorageUnavailable) as caught:
        inventory.record(pending, Der(b"too late"), [], NOW)
    assert caught.value.retry_after is not None


def test_leftovers_are_told_once_and_never_used(inventory: Inventory) -> None:
    reserve(inventory, grant_for(), 5)
    enroll(inventory, grant_for("sn-2"), 6)
    assert [(left.serial, left.device, left.at) for left in inventory.leftovers_void(NOW)] == [(5, "sn-1", NOW)]
    assert inventory.leftovers_void(NOW) == []
    assert inventory.counters()["voided"] == 1


# --- credentials ----------------------------------------------------------------------------------------------------


def _spent(inventory: Inventory) -> int:
    record = inventory.credential("sn-1")
    assert record is not None
    return record.spent


def test_a_use_is_spent_with_the_reservation_and_a_repeat_costs_nothing(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(), "operator:a")
    grant = grant_for(credential="sn-1", requester="credential:sn-1")
    enroll(inventory, grant, 1)
    assert _spent(inventory) == 1
    assert enroll(inventory, grant, 2).repeated
    with pytest.raises(BadCredentials):
        inventory.reserve(replace(grant, csr=csr_for("sn-1", "other key")), Serial(3), NOW)
    assert _spent(inventory) == 1


def test_a_use_that_ended_in_a_void_reservation_pays_for_the_same_request_again(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(), "operator:a")
    grant = grant_for(credential="sn-1", requester="credential:sn-1")
    reserve(inventory, grant, 1)
    inventory.leftovers_void(NOW)
    assert enroll(inventory, grant, 2).serial == 2
    assert _spent(inventory) == 1


def test_a_refused_reservation_costs_no_use(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(), "operator:a")
    enroll(inventory, grant_for("sn-9", "shared key"), 1)
    with pytest.raises(KeyReused):
        inventory.reserve(grant_for("sn-1", "shared key", credential="sn-1"), Serial(2), NOW)
    with pytest.raises(InternalError):
        inventory.reserve(grant_for(credential="sn-1"), Serial(1), NOW)
    assert _spent(inventory) == 0


def test_a_counted_credential_pays_for_that_many_requests(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(uses=2), "operator:a")
    for number in (1, 2):
        enroll(inventory, grant_for(f"sn-{number}", credential="sn-1"), number)
    with pytest.raises(BadCredentials):
        inventory.reserve(grant_for("sn-3", credential="sn-1"), Serial(3), NOW)


def test_an_expired_or_removed_credential_pays_for_nothing(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(expires_at=NOW + HOUR), "operator:a")
    grant = grant_for(credential="sn-1")
    with pytest.raises(BadCredentials):
        inventory.reserve(grant, Serial(1), NOW + HOUR)
    inventory.credential_remove("sn-1", "operator:a", NOW)
    with pytest.raises(BadCredentials):
        inventory.reserve(grant, Serial(1), NOW)


def test_a_spent_credential_authenticates_its_retry_for_a_day(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(), "operator:a")
    assert inventory.authenticable("sn-1", NOW) is not None
    enroll(inventory, grant_for(credential="sn-1"), 1)
    assert inventory.authenticable("sn-1", NOW + 23 * HOUR) is not None
    assert inventory.authenticable("sn-1", NOW + 24 * HOUR) is None
    assert inventory.authenticable("unknown", NOW) is None


def test_a_credential_without_a_number_of_uses_is_never_spent_but_expires(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(uses=None, expires_at=NOW + 3 * DAY), "operator:a")
    for number in range(1, 6):
        enroll(inventory, grant_for(f"sn-{number}", credential="sn-1"), number)
    assert inventory.authenticable("sn-1", NOW + 2 * DAY) is not None
    assert inventory.authenticable("sn-1", NOW + 3 * DAY) is None
