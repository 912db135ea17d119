"""Several enrolments at once: one synced commit for all; who is refused takes none along, a failed commit takes all."""

from __future__ import annotations

import base64
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from estserver.enroll import Admission, Enrollment, Request
from estserver.errors import EstError, InternalError, KeyReused, StorageUnavailable
from estserver.inventory import Inventory, database
from estserver.model import BasicCredentials, Issued, Operation, Peer
from estserver.web.turn import Turn
from tests.csr_maker import new_key, request
from tests.est_server import Home, found_home, fresh_id, today


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return found_home(tmp_path_factory.mktemp("group") / "home")


@pytest.fixture
def enrollment(home: Home) -> Iterator[Enrollment]:
    with home.enrollment(today) as made:
        yield made


@pytest.fixture
def ask(home: Home) -> Any:
    name, secret = home.credential("*", uses=None)

    def ask(device: str | None = None, key: Any = None) -> Request:
        body = base64.b64encode(request(key or new_key(), device or fresh_id()))
        return Request(Operation.SIMPLEENROLL, "", body, Peer("192.0.2.1"), BasicCredentials(name, secret.encode()))

    return ask


def admit(enrollment: Enrollment, asked: Sequence[Request]) -> list[Admission]:
    return [enrollment.admit(one) for one in asked]


def held(home: Home, admissions: Sequence[Admission]) -> list[int]:
    """How many certificates the inventory holds for each."""
    with home.inventory() as inventory:
        return [len(inventory.list_certificates(device=one.grant.device)) for one in admissions]


def test_a_group_costs_two_transactions_and_one_sync(
    home: Home, enrollment: Enrollment, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bool] = []
    begin = database._begin
    monkeypatch.setattr(
        database, "_begin", lambda link, durable: (begun.append(durable), begin(link, durable=durable))[1]
    )
    admissions = admit(enrollment, [ask() for _ in range(8)])
    assert begun == []
    issued = enrollment.issue(admissions)
    assert begun == [False, True]
    assert all(isinstance(one, Issued) for one in issued)
    assert held(home, admissions) == [1] * 8


def test_one_that_is_refused_takes_none_along(home: Home, enrollment: Enrollment, ask: Any) -> None:
    shared = new_key()
    admissions = admit(enrollment, [ask(), ask(key=shared), ask(key=shared), ask()])
    refused_before = len([row for row in home.audit() if row["outcome"] == "key-reused"])
    results = enrollment.issue(admissions)
    assert [type(one) for one in results] == [Issued, Issued, KeyReused, Issued]
    assert held(home, admissions) == [1, 1, 0, 1]
    assert len([row for row in home.audit() if row["outcome"] == "key-reused"]) == refused_before + 1


def test_one_whose_rows_break_a_rule_takes_none_along(home: Home, enrollment: Enrollment, ask: Any) -> None:
    unlucky = fresh_id()
    admissions = admit(enrollment, [ask(), ask(unlucky), ask()])
    trigger = (
        f"CREATE TRIGGER fault BEFORE INSERT ON certificate WHEN NEW.device = '{unlucky}' "
        "BEGIN SELECT RAISE(ABORT, 'fault'); END"
    )
    with closing(sqlite3.connect(home.path / "estserver.db")) as other:
        other.execute(trigger)
        results = enrollment.issue(admissions)
        other.execute("DROP TRIGGER fault")
    assert [type(one) for one in results] == [Issued, InternalError, Issued]
    assert held(home, admissions) == [1, 0, 1]
    with home.inventory() as inventory:
        assert inventory.audit_verify().ok
        assert [left.device for left in inventory.leftovers_void(today())] == [unlucky]


def test_the_same_request_twice_in_a_group_is_one_certificate(home: Home, enrollment: Enrollment, ask: Any) -> None:
    device, key = fresh_id(), new_key()
    admissions = admit(enrollment, [ask(device, key), ask(device, key), ask()])
    first, second, _ = enrollment.issue(admissions)
    assert isinstance(first, Issued)
    assert isinstance(second, Issued)
    assert first.certificate == second.certificate
    assert (first.repeated, second.repeated) == (False, True)
    assert held(home, admissions) == [1, 1, 1]


@pytest.mark.parametrize("durable", [False, True])
def test_a_commit_that_fails_issues_nothing_and_all_may_try_again(
    home: Home, enrollment: Enrollment, ask: Any, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    asked = [ask() for _ in range(3)]
    admissions = admit(enrollment, asked)
    commit, calls = database._commit, []

    def failing(link: Any) -> None:
        calls.append(link)
        if len(calls) == 1 + durable:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        commit(link)

    with monkeypatch.context() as patch:
        patch.setattr(database, "_commit", failing)
        results = enrollment.issue(admissions)
    assert [type(one) for one in results] == [StorageUnavailable] * 3
    assert held(home, admissions) == [0, 0, 0]
    again = enrollment.issue(admit(enrollment, asked))
    assert all(isinstance(one, Issued) for one in again)
    assert held(home, admissions) == [1, 1, 1]
    with home.inventory() as inventory:
        assert inventory.audit_verify().ok
        assert len(inventory.leftovers_void(today())) == (3 if durable else 0)


def test_a_name_that_two_kinds_of_holders_ask_for_at_once_is_given_to_one(home: Home, ask: Any) -> None:
    name, both = fresh_id(), []
    for_station, secret = home.credential(name, label="server")
    as_server = Request(
        Operation.SIMPLEENROLL,
        "server",
        base64.b64encode(request(new_key(), name)),
        Peer("192.0.2.1"),
        BasicCredentials(for_station, secret.encode()),
    )
    with ExitStack() as stack:
        first, second = (stack.enter_context(home.enrollment(today)) for _ in range(2))
        one, other = first.admit(ask(name)), second.admit(as_server)
        both = [*first.issue([one]), *second.issue([other])]
    assert [isinstance(result, Issued) for result in both] == [True, False]
    assert isinstance(both[1], EstError)
    assert both[1].code == "name-taken"


def test_a_name_taken_between_reservation_and_record_is_not_given_twice(
    home: Home, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fresh_id()
    credential, secret = home.credential(name, label="server")
    body = base64.b64encode(request(new_key(), name))
    as_server = Request(
        Operation.SIMPLEENROLL, "server", body, Peer("192.0.2.1"), BasicCredentials(credential, secret.encode())
    )
    with ExitStack() as stack:
        slow, quick = (stack.enter_context(home.enrollment(today)) for _ in range(2))
        record = Inventory.record_all

        def overtaken(self: Inventory, *arguments: Any) -> Any:
            monkeypatch.setattr(Inventory, "record_all", record)
            quick.enroll(as_server)
            return record(self, *arguments)

        monkeypatch.setattr(Inventory, "record_all", overtaken)
        (result,) = slow.issue([slow.admit(ask(name))])
    assert isinstance(result, EstError)
    assert result.code == "name-taken"
    with home.inventory() as inventory:
        assert [record.profile for record in inventory.list_certificates(device=name)] == ["server"]
        assert inventory.leftovers_void(today()) == []


# --- the turn -------------------------------------------------------------------------------------------------------


class Desk:
    """Issues numbers instead of certificates, and notes each group."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []

    def issue(self, admissions: Sequence[Any]) -> list[Any]:
        self.groups.append(list(admissions))
        if "broken" in admissions:
            raise RuntimeError("no more paper")
        return [InternalError("no") if one == "refused" else ("issued", one) for one in admissions]


def test_a_turn_is_issued_when_its_first_answer_is_wanted(tmp_path: Path) -> None:
    desk = Desk()
    turn = Turn(desk.issue)
    tickets = [turn.join(one) for one in (1, "refused", 3)]
    assert desk.groups == []
    assert tickets[2].result() == ("issued", 3)
    with pytest.raises(InternalError):
        tickets[1].result()
    assert tickets[0].result() == ("issued", 1)
    assert turn.join(4).result() == ("issued", 4)
    assert desk.groups == [[1, "refused", 3], [4]]


def test_a_turn_that_breaks_answers_everybody_and_the_next_one_works(caplog: pytest.LogCaptureFixture) -> None:
    turn = Turn(Desk().issue)
    tickets = [turn.join(one) for one in (1, "broken")]
    for ticket in tickets:
        with pytest.raises(InternalError):
            ticket.result()
    assert "no more paper" in caplog.text
    assert turn.join(2).result() == ("issued", 2)


def test_threads_share_turns_and_everybody_gets_his_own() -> None:
    desk = Desk()
    turn = Turn(desk.issue)
    results: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: turn.join(n).result()})) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: ("issued", n) for n in range(50)}
    assert sorted(n for group in desk.groups for n in group) == list(range(50))
