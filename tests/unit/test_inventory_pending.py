"""What waits for an operator: one entry for a request, whole or not there, for so long, and so many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from estserver.errors import AwaitingApproval, BadCredentials, EstError, KeyReused, NotAuthorized, NotFound, QueueFull
from estserver.errors import StateError as AlreadyDecided
from estserver.inventory import Claim, Inventory
from estserver.limits import DEFAULT_QUEUE, Queue
from estserver.model import Der, Event, Grant, Issued, Reservation, Serial
from estserver.records import PendingRecord
from tests.inventory_support import (
    DAY,
    HOUR,
    NOW,
    credential_record,
    csr_for,
    dump,
    enroll,
    event,
    grant_for,
    new_inventory,
    run,
)

WEEK = 7 * DAY
GRANT = grant_for(credential="sn-1", requester="credential:sn-1", approval=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "estserver.db"


@pytest.fixture
def inventory(path: Path) -> Iterator[Inventory]:
    with new_inventory(path) as opened:
        opened.credential_add(credential_record(), "operator:a")
        yield opened


def ask(
    inventory: Inventory,
    grant: Grant = GRANT,
    serial: int = 1,
    now: datetime = NOW,
    queue: Queue = DEFAULT_QUEUE,
    events: tuple[Event, ...] = (),
) -> Reservation | Issued | EstError:
    (result,) = inventory.reserve_all([Claim(grant, Serial(serial), queue=queue, events=events)], now)
    return result


def waiting(inventory: Inventory, now: datetime = NOW) -> list[PendingRecord]:
    return inventory.pending.page(now)


def approve(inventory: Inventory, *numbers: int, now: datetime = NOW) -> None:
    inventory.pending.approve(numbers or [entry.id for entry in waiting(inventory)], "operator:a", now, WEEK)


def deny(inventory: Inventory, *numbers: int, reason: str | None = None, now: datetime = NOW) -> None:
    inventory.pending.deny(numbers or [entry.id for entry in waiting(inventory)], reason, "operator:a", now, WEEK)


def spent(inventory: Inventory) -> int:
    record = inventory.credential("sn-1")
    assert record is not None
    return record.spent


def test_a_request_is_queued_once_with_all_that_is_to_be_decided(inventory: Inventory) -> None:
    first = ask(inventory, events=(event("asked"),))
    signed_anew = replace(GRANT, csr=replace(GRANT.csr, der=Der(b"signed anew")), peer_address="192.0.2.8")
    again = ask(inventory, signed_anew, 2, NOW + HOUR, events=(event("again"),))
    for answer in (first, again):
        assert isinstance(answer, AwaitingApproval)
        assert answer.retry_after == DEFAULT_QUEUE.retry_after
    (entry,) = waiting(inventory)
    assert (entry.device, entry.state, entry.requester) == ("sn-1", "waiting", "credential:sn-1")
    assert (entry.subject, entry.san, entry.csr) == (GRANT.subject, GRANT.san, GRANT.csr.der)
    assert (entry.asked_at, entry.expires_at, entry.peer_address) == (NOW, NOW + WEEK, "192.0.2.7")
    assert inventory.pending.find(entry.id, NOW) == entry
    assert [row.event.id for row in inventory.outbox.pending(9)] == ["asked"]
    assert [row.action for row in inventory.audit_rows()] == ["credential-add", "queue"]
    assert spent(inventory) == 1


def test_what_only_waits_claims_no_key_and_no_serial(inventory: Inventory) -> None:
    """The device may be asked to come back under another name, with the key it cannot change."""
    ask(inventory)
    assert inventory.key_device(GRANT.csr.spki_sha256) is None
    deny(inventory)
    assert enroll(inventory, grant_for("sn-2", "key of sn-1"), 1).serial == 1
    approve(inventory)
    assert isinstance(ask(inventory), KeyReused)


def test_an_approved_request_is_issued_once(inventory: Inventory) -> None:
    grant = replace(GRANT, key_reuse=True, credential=None)
    ask(inventory, grant)
    approve(inventory)
    assert enroll(inventory, grant, 1) == Issued(Serial(1), Der(b"certificate 1"), grant.device)
    assert waiting(inventory) == []
    assert enroll(inventory, grant, 2).repeated
    inventory.revoke(Serial(1), "unspecified", "operator:a", NOW)
    assert isinstance(ask(inventory, grant, 2), AwaitingApproval)


def test_two_that_were_reserved_with_one_approval_are_one_certificate(inventory: Inventory) -> None:
    grant = replace(GRANT, key_reuse=True)
    ask(inventory, grant)
    approve(inventory)
    one, other = ask(inventory, grant, 1), ask(inventory, grant, 2)
    assert isinstance(one, Reservation)
    assert isinstance(other, Reservation)
    inventory.record(one, Der(b"one"), [], NOW)
    inventory.revoke(Serial(1), "unspecified", "operator:a", NOW)
    with pytest.raises(NotAuthorized, match="withdrawn"):
        inventory.record(other, Der(b"other"), [], NOW)
    assert inventory.by_serial(Serial(2)) is None
    assert inventory.leftovers_void(NOW) == []


def test_a_denial_between_reservation_and_record_is_in_time(inventory: Inventory) -> None:
    ask(inventory)
    approve(inventory)
    reserved = ask(inventory)
    assert isinstance(reserved, Reservation)
    deny(inventory, reason="second thoughts")
    with pytest.raises(NotAuthorized, match="withdrawn"):
        inventory.record(reserved, Der(b"one"), [], NOW)
    answer = ask(inventory, serial=2)
    assert isinstance(answer, NotAuthorized)
    assert (answer.code, str(answer)) == ("denied", "an operator denied this request: second thoughts")
    assert spent(inventory) == 1


def test_a_signature_that_failed_costs_neither_approval_nor_use(inventory: Inventory) -> None:
    ask(inventory)
    approve(inventory)
    reserved = ask(inventory)
    assert isinstance(reserved, Reservation)
    inventory.void(reserved, "signing failed", NOW)
    assert spent(inventory) == 1
    assert enroll(inventory, GRANT, 2).serial == 2
    assert spent(inventory) == 1


def test_decisions_are_made_together_or_not_at_all_and_can_be_changed(inventory: Inventory) -> None:
    for number in (1, 2):
        ask(inventory, grant_for(f"sn-{number}", approval=True))
    with pytest.raises(NotFound, match="no pending request 9"):
        approve(inventory, 1, 9)
    assert {entry.state for entry in waiting(inventory)} == {"waiting"}
    approve(inventory, 1, 2, 1)
    with pytest.raises(AlreadyDecided, match="approved already, by operator:a"):
        approve(inventory, 1)
    deny(inventory, 2, reason="no", now=NOW + DAY)
    first, second = waiting(inventory)
    assert (first.state, first.decided_by, first.expires_at, first.reason) == (
        "approved",
        "operator:a",
        NOW + WEEK,
        None,
    )
    assert (second.state, second.decided_at, second.expires_at, second.reason) == (
        "denied",
        NOW + DAY,
        NOW + DAY + WEEK,
        "no",
    )
    told = [(row.actor, row.action, row.detail.get("pending")) for row in inventory.audit_rows()][3:]
    assert told == [("operator:a", "approve", 1), ("operator:a", "approve", 2), ("operator:a", "deny", 2)]
    assert inventory.audit_verify().ok


def test_entries_are_found_page_by_page(inventory: Inventory, path: Path) -> None:
    for number in range(1, 6):
        ask(inventory, grant_for(f"sn-{number}", approval=True))
    approve(inventory, 2)
    numbers = [entry.id for entry in inventory.pending.page(NOW, after=1, limit=2)]
    assert numbers == [2, 3]
    assert [entry.id for entry in inventory.pending.page(NOW, state="approved")] == [2]
    assert [entry.id for entry in inventory.pending.page(NOW, device="sn-4")] == [4]


def test_who_waits_for_an_operator_is_counted(inventory: Inventory) -> None:
    for number in range(1, 5):
        ask(inventory, grant_for(f"sn-{number}", approval=True))
    approve(inventory, 2)
    deny(inventory, 3)
    assert inventory.pending.waiting(NOW) == 2
    assert inventory.pending.waiting(NOW + WEEK) == 0


# --- for so long, and so many ---------------------------------------------------------------------------------------


def test_an_entry_ends_with_its_time_and_its_number_is_not_used_again(inventory: Inventory) -> None:
    """Or an operator would approve what was asked meanwhile under the number on the screen."""
    grant = grant_for(approval=True)
    ask(inventory, grant)
    late = NOW + WEEK
    assert waiting(inventory, late) == []
    with pytest.raises(NotFound):
        approve(inventory, 1, now=late)
    assert isinstance(ask(inventory, grant, now=late), AwaitingApproval)
    (entry,) = waiting(inventory, late)
    assert (entry.id, entry.asked_at) == (2, late)


def test_a_decision_is_kept_for_a_time_of_its_own(inventory: Inventory) -> None:
    ask(inventory)
    approve(inventory, now=NOW + 6 * DAY)
    assert isinstance(ask(inventory, now=NOW + 12 * DAY), Reservation)
    assert isinstance(ask(inventory, grant_for(approval=True), now=NOW), AwaitingApproval)


def test_only_so_many_wait_altogether_and_for_one_device(inventory: Inventory) -> None:
    queue = Queue(size_max=3, device_max=2)
    for key in ("a", "b"):
        assert isinstance(ask(inventory, grant_for("sn-1", key, approval=True), queue=queue), AwaitingApproval)
    third = ask(inventory, grant_for("sn-1", "c", approval=True), queue=queue)
    assert isinstance(third, QueueFull)
    assert "for sn-1" in str(third)
    assert third.retry_after is not None
    assert isinstance(ask(inventory, grant_for("sn-2", approval=True), queue=queue), AwaitingApproval)
    full = ask(inventory, replace(GRANT, csr=csr_for("sn-3", "d"), device=grant_for("sn-3").device), queue=queue)
    assert isinstance(full, QueueFull)
    assert spent(inventory) == 0
    assert isinstance(ask(inventory, grant_for("sn-1", "a", approval=True), queue=queue), AwaitingApproval)
    assert isinstance(ask(inventory, grant_for("sn-3", approval=True), now=NOW + WEEK, queue=queue), AwaitingApproval)


# --- the credential -------------------------------------------------------------------------------------------------


def test_a_spent_or_expired_credential_authenticates_what_it_queued_and_pays_for_nothing_else(path: Path) -> None:
    with new_inventory(path) as inventory:
        inventory.credential_add(credential_record(uses=2, expires_at=NOW + HOUR), "operator:a")
        ask(inventory)
        later = NOW + 6 * DAY
        assert inventory.authenticable("sn-1", later) is not None
        other = grant_for("sn-2", credential="sn-1", requester="credential:sn-1")
        for grant in (other, replace(other, approval=True)):
            assert isinstance(ask(inventory, grant, 2, later), BadCredentials)
        approve(inventory, now=later)
        last = later + 6 * DAY
        assert inventory.authenticable("sn-1", last) is not None
        assert enroll(inventory, GRANT, 3, last).serial == 3
        assert inventory.authenticable("sn-1", last) is None, "it has expired, and nothing waits any more"


def test_a_spent_credential_authenticates_for_a_day_after_what_was_approved_is_issued(inventory: Inventory) -> None:
    ask(inventory)
    approve(inventory, now=NOW + 3 * DAY)
    later = NOW + 5 * DAY
    enroll(inventory, GRANT, 1, later)
    assert inventory.authenticable("sn-1", later + 23 * HOUR) is not None
    assert inventory.authenticable("sn-1", later + 24 * HOUR) is None


def test_a_removed_credential_authenticates_nothing_that_it_queued(inventory: Inventory) -> None:
    ask(inventory)
    inventory.credential_remove("sn-1", "operator:a", NOW)
    assert inventory.authenticable("sn-1", NOW) is None


# --- between the statements of one transaction ----------------------------------------------------------------------


def _fault(path: Path, write: str) -> list[str]:
    before = dump(path)
    run(path, f"CREATE TRIGGER fault BEFORE {write} BEGIN SELECT RAISE(ABORT, 'fault'); END")
    return before


def _attempt(inventory: Inventory) -> object:
    """What a request comes to, returned or raised."""
    try:
        return ask(inventory, events=(event(),))
    except EstError as error:
        return error


def _mended(path: Path) -> list[str]:
    run(path, "DROP TRIGGER fault")
    return dump(path)


@pytest.mark.parametrize(
    "write",
    [
        "UPDATE ON credential",
        "INSERT ON credential_use",
        "INSERT ON pending",
        "INSERT ON audit",
        "UPDATE ON audit_head",
        "INSERT ON outbox",
    ],
)
def test_an_entry_is_whole_or_not_there(inventory: Inventory, path: Path, write: str) -> None:
    before = _fault(path, write)
    assert not isinstance(_attempt(inventory), AwaitingApproval)
    assert _mended(path) == before
    assert isinstance(ask(inventory, events=(event(),)), AwaitingApproval)
    assert spent(inventory) == 1


@pytest.mark.parametrize("write", ["DELETE ON pending", "UPDATE ON credential", "INSERT ON certificate"])
def test_an_approval_is_used_with_the_certificate_or_not_at_all(inventory: Inventory, path: Path, write: str) -> None:
    ask(inventory)
    approve(inventory)
    reserved = ask(inventory)
    assert isinstance(reserved, Reservation)
    before = _fault(path, write)
    with pytest.raises(EstError):
        inventory.record(reserved, Der(b"one"), [], NOW)
    assert _mended(path) == before
    assert inventory.record(reserved, Der(b"one"), [], NOW).serial == 1


@pytest.mark.parametrize("write", ["UPDATE ON pending", "INSERT ON audit"])
def test_a_decision_is_whole_or_not_made(inventory: Inventory, path: Path, write: str) -> None:
    ask(inventory)
    before = _fault(path, write)
    with pytest.raises(EstError):
        approve(inventory)
    assert _mended(path) == before
    approve(inventory)
