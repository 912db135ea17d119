"""What becomes of a request whose reservation is void, or whose clock has moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from estserver.errors import BadCredentials, StorageUnavailable
from estserver.inventory import Inventory
from estserver.model import Der, Serial
from tests.inventory_support import DAY, NOW, credential_record, enroll, grant_for, new_inventory, reserve

PAID = {"requester": "credential:once", "credential": "once"}


@pytest.fixture
def inventory(tmp_path: Path) -> Iterator[Inventory]:
    with new_inventory(tmp_path / "estserver.db") as opened:
        opened.credential_add(credential_record("once"), "operator:a")
        yield opened


def _spent(inventory: Inventory) -> int:
    record = inventory.credential("once")
    assert record is not None
    return record.spent


def test_a_left_over_reservation_gives_its_use_back_to_any_request(inventory: Inventory) -> None:
    reserve(inventory, grant_for(**PAID), 1)
    assert _spent(inventory) == 1
    with pytest.raises(BadCredentials):
        reserve(inventory, grant_for(key="another", **PAID), 2)
    assert [left.serial for left in inventory.leftovers_void(NOW)] == [1]
    assert _spent(inventory) == 0
    assert inventory.authenticable("once", NOW + 3 * DAY) is not None
    assert enroll(inventory, grant_for(key="another", **PAID), 2).serial == 2
    with pytest.raises(BadCredentials):
        reserve(inventory, grant_for(**PAID), 3)


def test_a_signature_that_failed_gives_its_use_back(inventory: Inventory) -> None:
    inventory.void(reserve(inventory, grant_for(**PAID), 1), "signing failed", NOW)
    assert _spent(inventory) == 0
    reserve(inventory, grant_for(**PAID), 2)
    assert _spent(inventory) == 1


def test_a_use_that_a_certificate_came_of_is_not_given_back(inventory: Inventory) -> None:
    reserve(inventory, grant_for(**PAID), 1)
    assert enroll(inventory, grant_for(**PAID), 2).serial == 2
    assert len(inventory.leftovers_void(NOW)) == 1
    assert _spent(inventory) == 1


def test_several_left_over_tries_of_one_request_give_one_use_back(inventory: Inventory) -> None:
    late = [reserve(inventory, grant_for(**PAID), serial) for serial in (1, 2, 3)]
    assert _spent(inventory) == 1
    assert len(inventory.leftovers_void(NOW)) == 3
    assert _spent(inventory) == 0
    with pytest.raises(StorageUnavailable):
        inventory.record(late[0], Der(b"too late"), [], NOW)
    assert inventory.leftovers_void(NOW) == []
    assert _spent(inventory) == 0


def test_a_clock_that_was_set_back_does_not_take_the_answer_away(inventory: Inventory) -> None:
    issued = enroll(inventory, grant_for(), 1)
    again = inventory.reserve(grant_for(), Serial(2), NOW - 30 * DAY)
    assert (again.serial, again.certificate, again.repeated) == (1, issued.certificate, True)
