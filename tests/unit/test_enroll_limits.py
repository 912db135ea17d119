"""Who asks too often, in the order of an enrolment: two workers of one home, and a clock that tests turn."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from estserver.config import load_settings
from estserver.enroll import Enrollment, Request
from estserver.errors import BadCredentials, ConfigError, EstError, MalformedRequest, NotAuthorized, RateLimited
from estserver.identity import credentials
from estserver.model import BasicCredentials, Issued, Operation, Peer
from estserver.records import CredentialRecord
from tests.csr_maker import new_key, request
from tests.est_server import Home, found_home, fresh_id

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY = new_key()
LIMITS = """
[limits]
credential_rate = "6/1m"
stranger_rate = "8/1m"
guess_rate = "3/1m"
names_max = 2
name_max_chars = 64
"""
SALT = b"s" * 16


class Workers:
    """Two processes' worth of one server; each request goes to the next."""

    def __init__(self, home: Home, stack: ExitStack) -> None:
        self.home, self.now = home, NOW
        self.all = [stack.enter_context(home.enrollment(lambda: self.now)) for _ in range(2)]
        self._turns: Iterator[Enrollment] = cycle(self.all)

    def ask(
        self, who: BasicCredentials | None, body: bytes | None = None, *, address: str = "192.0.2.1", **how: Any
    ) -> Issued:
        sent = base64.b64encode(request(new_key(), fresh_id(), **how)) if body is None else body
        asked = Request(Operation.SIMPLEENROLL, "", sent, Peer(address), who)
        return next(self._turns).enroll(asked)

    def answers(self, count: int, ask: Callable[[], object]) -> list[str]:
        return [self.answer(ask) for _ in range(count)]

    def answer(self, ask: Callable[[], object]) -> str:
        try:
            ask()
        except EstError as error:
            return error.code
        return "issued"

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def credential(self) -> BasicCredentials:
        name, secret = self.home.credential("*", uses=None)
        return BasicCredentials(name, secret.encode())

    def chosen(self, password: bytes) -> BasicCredentials:
        name = fresh_id("human")
        verifier = credentials.verifier_for_chosen(password, SALT)
        record = CredentialRecord(name, "scrypt", verifier, SALT, "", ("*",), (), None, 0, NOW, None)
        with self.home.inventory() as inventory:
            inventory.credential_add(record, "operator:test")
        return BasicCredentials(name, password)

    def limited(self, owner: str) -> list[dict[str, Any]]:
        rows = [row for row in self.home.audit() if row["outcome"] == "rate-limited" and row["actor"] == owner]
        return [row["detail"] for row in rows]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = found_home(tmp_path / "home", now=NOW)
    home.configure(LIMITS)
    return home


@pytest.fixture
def workers(home: Home) -> Iterator[Workers]:
    with ExitStack() as stack:
        yield Workers(home, stack)


def test_a_credential_is_limited_over_all_workers_and_no_other_one_is(workers: Workers) -> None:
    busy, calm = workers.credential(), workers.credential()
    assert workers.answers(8, lambda: workers.ask(busy)) == ["issued"] * 6 + ["rate-limited"] * 2
    assert workers.answer(lambda: workers.ask(calm)) == "issued"


def test_who_waits_as_long_as_told_is_served(workers: Workers) -> None:
    busy = workers.credential()
    workers.answers(6, lambda: workers.ask(busy))
    with pytest.raises(RateLimited, match="6 in 60 s") as caught:
        workers.ask(busy)
    assert caught.value.retry_after == timedelta(seconds=10)
    assert caught.value.advice == "come back in 10 s"
    workers.later(9)
    assert workers.answers(2, lambda: workers.ask(busy)) == ["rate-limited"] * 2
    workers.later(1)
    assert workers.answers(2, lambda: workers.ask(busy)) == ["issued", "rate-limited"]


def test_refused_requests_are_paid_for_too_and_do_not_fill_the_audit(workers: Workers) -> None:
    busy = workers.credential()
    before = len(workers.home.audit())
    refusals = workers.answers(100, lambda: workers.ask(busy, san=("dns:not.yours.example",)))
    assert refusals[6:] == ["rate-limited"] * 94
    assert set(refusals[:6]) == {"not-authorized"}
    assert len(workers.home.audit()) - before == 6 + 1


def test_a_flood_is_told_with_its_count(workers: Workers) -> None:
    busy = workers.credential()
    workers.answers(106, lambda: workers.ask(busy, base64.b64encode(request(KEY, "sn-flood"))))
    owner = f"credential:{busy.name}"
    assert [row.get("count", 1) for row in workers.limited(owner)] == [1]
    for _ in range(4):  # whoever asks next, each worker tells what it counted, one a minute
        workers.later(61)
        workers.answers(2, lambda: workers.ask(None))
    assert sum(row.get("count", 1) for row in workers.limited(owner)) == 100
    with workers.home.inventory() as inventory:
        assert inventory.counters()["refused"] == 100
        assert inventory.audit_verify().ok


def test_guesses_at_a_password_are_slow_and_scrypt_is_spared(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    human = workers.chosen(b"a password")
    tried: list[bytes] = []
    real = credentials.verifier_for_chosen

    def counted(secret: bytes, salt: bytes) -> bytes:
        tried.append(secret)
        return real(secret, salt)

    monkeypatch.setattr(credentials, "verifier_for_chosen", counted)
    wrong = BasicCredentials(human.name, b"guess")
    assert workers.answers(20, lambda: workers.ask(wrong)) == ["bad-credentials"] * 3 + ["rate-limited"] * 17
    assert len(tried) == 3
    assert workers.answer(lambda: workers.ask(human)) == "rate-limited"  # right, but not worth another guess now
    workers.later(20)
    assert workers.answer(lambda: workers.ask(human)) == "issued"


def test_who_was_let_in_before_is_not_kept_out_by_guesses_of_others(workers: Workers) -> None:
    human = workers.chosen(b"a password")
    assert workers.answers(2, lambda: workers.ask(human)) == ["issued"] * 2  # once on each worker
    wrong = BasicCredentials(human.name, b"guess")
    workers.answers(20, lambda: workers.ask(wrong))
    assert workers.answers(2, lambda: workers.ask(human)) == ["issued"] * 2


def test_a_generated_secret_is_never_kept_out(workers: Workers) -> None:
    """It cannot be guessed and costs nothing to compare, so that nobody is locked out by a stranger."""
    line = workers.credential()
    wrong = BasicCredentials(line.name, b"guess")
    assert workers.answers(20, lambda: workers.ask(wrong)) == ["bad-credentials"] * 3 + ["rate-limited"] * 17
    assert workers.answer(lambda: workers.ask(line)) == "issued"


def test_an_unknown_name_answers_as_a_known_one_does(workers: Workers) -> None:
    nobody = BasicCredentials("nobody", b"guess")
    assert workers.answers(20, lambda: workers.ask(nobody)) == ["bad-credentials"] * 3 + ["rate-limited"] * 17


def test_a_name_for_every_guess_is_limited_by_its_address(workers: Workers) -> None:
    guesses = workers.answers(20, lambda: workers.ask(BasicCredentials(fresh_id("who"), b"guess")))
    assert guesses == ["bad-credentials"] * 8 + ["rate-limited"] * 12
    elsewhere = BasicCredentials(fresh_id("who"), b"guess")
    with pytest.raises(BadCredentials):
        workers.ask(elsewhere, address="192.0.2.2")
    assert workers.answer(lambda: workers.ask(workers.credential())) == "issued"


def test_what_cannot_be_read_is_limited_by_its_address(workers: Workers) -> None:
    answers = workers.answers(20, lambda: workers.ask(None, b"AAAA"))
    assert answers == ["malformed-request"] * 8 + ["rate-limited"] * 12
    with pytest.raises(MalformedRequest):
        workers.ask(None, b"AAAA", address="2001:db8::1")
    assert workers.answer(lambda: workers.ask(workers.credential())) == "issued"
    assert workers.answer(lambda: workers.ask(None)) == "not-authenticated"  # a question costs nothing


def test_addresses_are_limited_when_the_operator_wants_it(home: Home) -> None:
    file = home.path / "estserver.toml"
    file.write_text(file.read_text("utf-8").replace("[limits]", '[limits]\naddress_rate = "4/1m"'), "utf-8")
    with ExitStack() as stack:
        workers = Workers(home, stack)
        everybody = [workers.credential() for _ in range(6)]
        answers = [workers.answer(lambda who=who: workers.ask(who)) for who in everybody]  # type: ignore[misc]
        assert answers == ["issued"] * 4 + ["rate-limited"] * 2
        assert workers.answer(lambda: workers.ask(everybody[0], address="192.0.2.2")) == "issued"


def test_names_are_bounded_by_the_configuration(workers: Workers) -> None:
    who = workers.credential()
    many = tuple(f"dns:h{number}.example" for number in range(3))
    with pytest.raises(MalformedRequest, match="at most 2 are taken"):
        workers.ask(who, san=many)
    with pytest.raises(MalformedRequest, match="too long"):
        workers.ask(who, san=("dns:" + "a" * 60 + ".example",))
    with pytest.raises(NotAuthorized, match="may not have the name"):
        workers.ask(who, san=many[:2])


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ('device_rate = "off"', "limits.device_rate: is not a rate"),
        ('guess_rate = "0/1m"', "limits.guess_rate: is not a rate of 1 to"),
        ('station_rate = "10/2h"', "limits.station_rate: is not a rate of 1 to"),
        ('address_rate = "sometimes"', "limits.address_rate: is not a rate"),
        ("names_max = 0", "limits.names_max"),
    ],
)
def test_a_limit_that_makes_no_sense_stops_the_start(tmp_path: Path, setting: str, problem: str) -> None:
    home = found_home(tmp_path / "home", now=NOW)
    home.configure(f"\n[limits]\n{setting}\n")
    with pytest.raises(ConfigError, match=problem):
        load_settings(home.path)


def test_addresses_have_no_limit_by_default(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home", now=NOW)
    assert home.settings.limits.address_rate is None
    home.configure('\n[limits]\naddress_rate = "off"\n')
    assert home.settings.limits.address_rate is None
