"""How often one may ask: the arithmetic, the table, who pays, and what a process remembers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estserver.config import parse_rate
from estserver.errors import KeyReused, RateLimited, StorageUnavailable
from estserver.inventory import Inventory
from estserver.limits import Bucket, Limits, Rate, Throttle
from estserver.model import BasicCredentials, Event, Identity, IdentityKind, Peer, Refusal, Serial
from tests.inventory_support import DAY, NOW, grant_for, new_inventory

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
FIVE = Rate(5, MINUTE)
REFUSAL = Refusal("policy-refused", ("because",), "simpleenroll", "", "certificate:sn-1", "192.0.2.1")
numbers = iter(range(10**6))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "estserver.db"


@pytest.fixture
def inventory(path: Path) -> Iterator[Inventory]:
    with new_inventory(path) as inventory:
        yield inventory


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Inventory, Inventory]]:
    """Two workers of one server."""
    path = tmp_path_factory.mktemp("limits") / "estserver.db"
    with new_inventory(path) as one, Inventory.open(path) as other:
        yield one, other


def bucket(rate: Rate = FIVE, owner: str = "device:sn-1") -> Bucket:
    return Bucket("device_rate", owner, rate)


def refused(inventory: Inventory, one: Bucket, now: datetime) -> RateLimited | None:
    try:
        inventory.refuse(REFUSAL, now, payment=[one])
    except RateLimited as error:
        return error
    return None


def rows(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT count(*) FROM bucket").fetchone()[0]
    connection.close()
    return int(found)


# --- the arithmetic -------------------------------------------------------------------------------------------------


class Model:
    """A bucket as one would draw it: tokens that drip, told by whole intervals instead of a time stamp."""

    def __init__(self, rate: Rate) -> None:
        self.rate, self.tokens, self.at = rate, float(rate.count), NOW

    def take(self, now: datetime) -> bool:
        self.tokens = min(self.rate.count, self.tokens + (now - self.at) / self.rate.interval)
        self.at = now
        if self.tokens < 1 - 1e-6:
            return False
        self.tokens -= 1
        return True


rates = st.builds(Rate, st.integers(1, 20), st.integers(1, 120).map(lambda s: s * SECOND))
steps = st.lists(st.integers(0, 40_000).map(lambda ms: timedelta(milliseconds=ms)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=rates, waits=steps)
def test_the_statement_does_what_a_dripping_bucket_does(
    shared: tuple[Inventory, Inventory], rate: Rate, waits: list[timedelta]
) -> None:
    """And it does so whichever worker is asked, and says truly how long to wait."""
    model, one, now = Model(rate), bucket(rate, f"device:{next(numbers)}"), NOW
    for turn, wait in enumerate(waits):
        now += wait
        worker = shared[turn % 2]
        error = refused(worker, one, now)
        assert (error is None) == model.take(now)
        if error is not None:
            assert error.retry_after is not None
            assert SECOND <= error.retry_after <= rate.period + SECOND
            worker.require([one], now + error.retry_after)


@given(rate=rates, start=st.integers(0, 10**6))
def test_at_most_the_count_at_once_and_once_more_in_every_period(rate: Rate, start: int) -> None:
    full_at: datetime | None = None
    now = NOW + timedelta(milliseconds=start)
    taken = 0
    for _ in range(rate.count * 2):
        if not rate.wait(full_at, now):
            full_at = max(now, full_at or now) + rate.interval
            taken += 1
    assert taken == rate.count
    assert rate.wait(full_at, now) == rate.interval
    assert not rate.wait(full_at, now + rate.interval)


@given(rate=rates, ahead=st.integers(-(10**9), 10**9))
def test_nobody_waits_longer_than_a_period_for_a_clock_that_was_set_back(rate: Rate, ahead: int) -> None:
    wait = rate.wait(NOW + ahead * SECOND, NOW)
    assert timedelta() <= wait <= 2 * rate.period


def test_a_clock_that_was_far_ahead_locks_nobody_out(inventory: Inventory) -> None:
    future = NOW + 365 * DAY
    for _ in range(5):
        assert refused(inventory, bucket(), future) is None
    assert refused(inventory, bucket(), future) is not None
    assert [refused(inventory, bucket(), NOW) for _ in range(5)] == [None] * 5
    assert refused(inventory, bucket(), NOW) is not None


@pytest.mark.parametrize(("text", "rate"), [("20/1m", Rate(20, MINUTE)), ("100/10s", Rate(100, 10 * SECOND))])
def test_a_rate_is_a_number_and_a_duration(text: str, rate: Rate) -> None:
    assert parse_rate(text) == parse_rate(rate) == parse_rate(str(rate)) == rate


@pytest.mark.parametrize(
    "text", ["", "20", "0/1m", "20/0s", "20/9s", "20/2h", "20/m", "-1/1m", "200000/1m", "off", 20, None]
)
def test_nothing_else_is_a_rate(text: object) -> None:
    with pytest.raises(ValueError, match=r"rate|duration"):
        parse_rate(text)


# --- the table ------------------------------------------------------------------------------------------------------


def test_who_cannot_pay_has_changed_nothing(inventory: Inventory) -> None:
    for _ in range(5):
        refused(inventory, bucket(), NOW)
    before = inventory.counters(), inventory.audit_verify()
    other = bucket(owner="device:sn-2")
    with pytest.raises(RateLimited) as caught:
        inventory.refuse(REFUSAL, NOW, payment=[other, bucket()])
    assert (caught.value.limit, caught.value.owner) == ("device_rate", "device:sn-1")
    assert caught.value.retry_after == 12 * SECOND
    assert (inventory.counters(), inventory.audit_verify()) == before
    assert [refused(inventory, other, NOW) for _ in range(5)] == [None] * 5  # nor paid in part


def test_a_reservation_is_paid_for_with_it_or_not_made(inventory: Inventory) -> None:
    one = bucket(Rate(2, MINUTE))
    inventory.reserve(grant_for("sn-1"), Serial(1), NOW, [one])
    with pytest.raises(KeyReused):
        inventory.reserve(grant_for("sn-2", "key of sn-1"), Serial(2), NOW, [one])
    inventory.reserve(grant_for("sn-3"), Serial(3), NOW, [one])
    with pytest.raises(RateLimited):
        inventory.reserve(grant_for("sn-4"), Serial(4), NOW, [one])
    assert inventory.key_device(grant_for("sn-4").csr.spki_sha256) is None
    assert len(inventory.leftovers_void(NOW)) == 2


def test_names_without_end_do_not_fill_the_table(inventory: Inventory, path: Path) -> None:
    """A thousand strangers a minute, each with a name of its own, for twenty minutes."""
    most = 0
    for turn in range(2000):
        now = NOW + turn * timedelta(milliseconds=600)
        with suppress(RateLimited):
            inventory.refuse(REFUSAL, now, payment=[bucket(Rate(20, MINUTE), f"unrecognised:{'x' * 200}{turn}")])
        if turn % 100 == 0:
            most = max(most, rows(path))
    assert most <= 70


def test_nothing_a_stranger_offers_is_kept_in_it(inventory: Inventory, path: Path) -> None:
    refused(inventory, bucket(owner="unrecognised:my password by mistake\udcff"), NOW)
    with sqlite3.connect(path) as connection:
        ((key,),) = connection.execute("SELECT key FROM bucket").fetchall()
    connection.close()
    assert len(key) == 64


# --- who pays -------------------------------------------------------------------------------------------------------


def owners(buckets: tuple[Bucket, ...]) -> list[tuple[str, str]]:
    return [(one.limit, one.owner) for one in buckets]


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (IdentityKind.STATION, "station_rate"),
        (IdentityKind.CREDENTIAL, "credential_rate"),
        (IdentityKind.CERTIFICATE, "device_rate"),
        (IdentityKind.IDEVID, "device_rate"),
    ],
)
def test_who_was_recognised_pays_alone(kind: IdentityKind, limit: str) -> None:
    identity = Identity(kind, "x", ())
    assert owners(Limits().of_identity(identity, Peer("192.0.2.1"))) == [(limit, f"{kind}:x")]


def test_a_stranger_pays_by_its_address_and_the_name_it_guessed_for() -> None:
    peer, guess = Peer("192.0.2.1"), BasicCredentials("line-1", b"x")
    address = ("stranger_rate", "address:192.0.2.1")
    assert owners(Limits().of_stranger(peer, None)) == [address]
    assert owners(Limits().of_stranger(peer, guess)) == [address, ("guess_rate", "unrecognised:line-1")]


def test_addresses_count_only_when_the_operator_wants_it() -> None:
    limits = Limits(address_rate=FIVE)
    identity = Identity(IdentityKind.STATION, "s-07", ())
    assert ("address_rate", "address:192.0.2.1") in owners(limits.of_identity(identity, Peer("192.0.2.1")))
    assert ("address_rate", "address:192.0.2.1") in owners(limits.of_stranger(Peer("192.0.2.1"), None))


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_an_ipv6_client_is_its_network(address: str, counts_as: str) -> None:
    (one,) = Limits().of_stranger(Peer(address), None)
    assert one.owner == f"address:{counts_as}"


def test_a_station_may_enrol_at_line_speed() -> None:
    rate = Limits().station_rate
    assert rate.count / rate.period.total_seconds() >= 200


# --- what a process remembers ---------------------------------------------------------------------------------------


class Book:
    """What was written down, as the inventory would; `full` makes it fail."""

    def __init__(self, inventory: Inventory | None = None) -> None:
        self.inventory, self.full = inventory, False
        self.told: list[tuple[int, datetime]] = []

    def __call__(self, refusal: Refusal, now: datetime, events: Sequence[Event], payment: Sequence[Bucket]) -> None:
        if self.full:
            raise StorageUnavailable("the disk is full")
        if self.inventory is not None:
            self.inventory.refuse(refusal, now, events, payment)
        self.told.append((refusal.count, now))


def test_a_flood_is_one_row_a_minute_with_its_count() -> None:
    book = Book()
    throttle = Throttle(book)
    for turn in range(1800):
        throttle.note(bucket().refusal(SECOND), REFUSAL, NOW + turn * SECOND / 10)
    throttle.settle(NOW + DAY)
    assert [count for count, _ in book.told] == [1, 600, 600, 599]


def test_what_came_after_the_last_row_is_told_by_the_next_request_of_anybody() -> None:
    book = Book()
    throttle = Throttle(book)
    for _ in range(10):
        throttle.note(bucket().refusal(SECOND), REFUSAL, NOW)
    throttle.settle(NOW)
    throttle.settle(NOW + MINUTE)
    throttle.settle(NOW + 2 * MINUTE)
    assert book.told == [(1, NOW), (9, NOW + MINUTE)]


def test_workers_share_the_row_of_a_minute(shared: tuple[Inventory, Inventory]) -> None:
    books = [Book(inventory) for inventory in shared]
    throttles = [Throttle(book) for book in books]
    one = bucket(owner="device:flooding")
    for turn in range(2 * 180):
        throttles[turn % 2].note(one.refusal(SECOND), REFUSAL, NOW + turn // 2 * SECOND)
    for turn in range(4):
        for throttle in throttles:
            throttle.settle(NOW + DAY + turn * MINUTE)
    told = sorted(at for book in books for _, at in book.told)
    assert all(later - earlier >= MINUTE for earlier, later in pairwise(told))
    assert sum(count for book in books for count, _ in book.told) == 360


def test_what_could_not_be_told_is_told_later() -> None:
    book = Book()
    book.full = True
    throttle = Throttle(book)
    throttle.note(bucket().refusal(SECOND), REFUSAL, NOW)
    book.full = False
    throttle.settle(NOW + MINUTE)
    assert book.told == [(1, NOW + MINUTE)]


def test_what_is_in_vain_is_refused_without_a_look_at_the_inventory() -> None:
    throttle = Throttle(Book())
    throttle.check([bucket()], NOW)
    throttle.note(bucket().refusal(30 * SECOND), REFUSAL, NOW)
    with pytest.raises(RateLimited) as caught:
        throttle.check([bucket(owner="device:other"), bucket()], NOW + 10 * SECOND)
    assert caught.value.retry_after == 20 * SECOND
    throttle.check([bucket()], NOW + 30 * SECOND)
    throttle.check([bucket()], NOW - DAY)  # the clock was set back: nothing is known of this time


def test_memory_is_bounded() -> None:
    throttle = Throttle(Book())
    for turn in range(Throttle.REMEMBERED_MAX + 10):
        throttle.note(bucket(owner=f"device:{turn}").refusal(MINUTE), REFUSAL, NOW)
    throttle.check([bucket(owner="device:0")], NOW)
    with pytest.raises(RateLimited):
        throttle.check([bucket(owner=f"device:{Throttle.REMEMBERED_MAX}")], NOW)
    throttle.settle(NOW + 2 * MINUTE)
    throttle.note(bucket().refusal(MINUTE), REFUSAL, NOW)
