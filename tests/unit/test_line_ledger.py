"""The ledger: unique for ever, chained, durable, and one run at a time."""

from __future__ import annotations

import sqlite3
import stat

import pytest

from devicesim.errors import ConfigInvalid, Conflict, Locked, StorageError, VerificationFailed
from devicesim.line.batch import Batch
from devicesim.line.ledger import Announce, Announcement, Ledger, Told
from devicesim.line.states import ORDER, Failure, FailureCode, State
from devicesim.mqtt import outbox
from tests.line_support import write_batch

PLACE = {"site": "hh1", "line": "l2", "station": "s-07"}
SOURCE = "/site/hh1/line/l2/station/s-07"


@pytest.fixture
def ledger(tmp_path, now):
    with Ledger.create(tmp_path / "line.db", clock=lambda: now, place=PLACE) as made:
        yield made


def batch_of(tmp_path, *rows: str, batch_id: str = "b1") -> Batch:
    return write_batch(tmp_path / f"batch-{batch_id}", [f"{row}\n" for row in rows], batch_id=batch_id)


def begin(ledger: Ledger, device_id: str = "sn-1") -> None:
    ledger.begin_attempt(device_id, attempt_id=f"attempt-of-{device_id}", slot=1)


def make(told: Told) -> Announcement:
    return Announcement(f"event-{told.sequence}", "est/1/s/s-07/evt/provisioned", told.place.head.encode())


say = Announce(SOURCE, make)


def owed(ledger: Ledger) -> list[tuple[str, bytes]]:
    conn = ledger.connect()
    try:
        return [(row.id, row.payload) for row in outbox.pending(conn, 100)]
    finally:
        conn.close()


def test_the_files_are_its_owners_alone(ledger, tmp_path):
    ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,"))
    with ledger.exclusive():
        files = [path for path in tmp_path.iterdir() if path.name.startswith("line.db")]
        assert len(files) >= 3
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_an_existing_ledger_is_never_written_over(ledger, now):
    with pytest.raises(Conflict):
        Ledger.create(ledger.path, clock=lambda: now, place=PLACE)
    assert ledger.place() == PLACE


def test_what_is_no_ledger_is_refused(tmp_path, now):
    with pytest.raises(ConfigInvalid, match="there is no ledger"):
        Ledger(tmp_path / "none.db", clock=lambda: now)
    (tmp_path / "text.db").write_text("not a database, but long enough to be mistaken for one" * 20)
    with pytest.raises((ConfigInvalid, StorageError)):
        Ledger(tmp_path / "text.db", clock=lambda: now)
    sqlite3.connect(tmp_path / "other.db").close()
    with pytest.raises(ConfigInvalid):
        Ledger(tmp_path / "other.db", clock=lambda: now)


def test_a_batch_comes_in_once_and_does_not_change(ledger, tmp_path):
    assert ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,", "sn-2,A2,,,"))
    assert not ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,", "sn-2,A2,,,"))
    with pytest.raises(Conflict, match="other units: sn-2, sn-3"):
        ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,", "sn-3,A2,,,"))
    with pytest.raises(Conflict, match="their order"):
        ledger.open_batch(batch_of(tmp_path, "sn-2,A2,,,", "sn-1,A1,,,"))


def test_nothing_repeats_across_batches_and_every_clash_is_named(ledger, tmp_path):
    ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,02005e100001,SE1", "sn-2,A2,,,"))
    again = batch_of(tmp_path, "sn-1,B1,,,", "sn-3,A2,,02005e100001,SE1", "sn-4,B4,,,", batch_id="b2")
    with pytest.raises(Conflict) as caught:
        ledger.open_batch(again)
    for clash in ("device_id sn-1", "serial A2", "mac 02:00:5e:10:00:01", "se_id SE1", "of batch b1"):
        assert clash in str(caught.value)
    assert ledger.batches() == [("b1", 2)]
    assert ledger.units("b2") == []


def test_edges_are_walked_in_order_and_again_without_harm(ledger, tmp_path):
    ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,"))
    begin(ledger)
    for state in ORDER[1:6]:
        assert ledger.advance("sn-1", state, took_ms=1.5).state is state
        assert ledger.advance("sn-1", state).state is state
    with pytest.raises(StorageError, match="cannot go from verified to keyed"):
        ledger.advance("sn-1", State.KEYED)
    (attempt,) = ledger.attempts("b1")
    assert attempt.timing_ms == dict.fromkeys(ORDER[1:6], 1.5)


def test_pass_and_its_announcement_are_one(ledger, tmp_path):
    ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,"))
    begin(ledger)
    for state in ORDER[1:6]:
        ledger.advance("sn-1", state)

    def broken(_told: Told) -> Announcement:
        raise RuntimeError("no signature")

    head = ledger.verify_chain()
    with pytest.raises(RuntimeError):
        ledger.record("sn-1", took_ms=1, announce=Announce(SOURCE, broken), birth=True)
    assert ledger.unit("sn-1").state is State.VERIFIED
    assert ledger.verify_chain() == head

    for _ in range(2):
        row = ledger.record("sn-1", took_ms=1, announce=say, birth=True)
        assert (row.state, row.event_id, row.birth) == (State.RECORDED, "event-1", "pending")
    assert owed(ledger) == [("event-1", ledger.verify_chain().head.encode())]
    assert ledger.attempts("b1")[0].outcome == "pass"


def test_announced_is_what_the_broker_has(ledger, tmp_path, now):
    ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,", "sn-2,A2,,,"))
    for device in ("sn-1", "sn-2"):
        begin(ledger, device)
        for state in ORDER[1:6]:
            ledger.advance(device, state)
        ledger.record(device, took_ms=1, announce=say, birth=False)
    assert ledger.settle_announced() == []
    conn = ledger.connect()
    outbox.mark_done(conn, ["event-2"], now)
    conn.commit()
    conn.close()
    assert ledger.settle_announced() == ["sn-2"]
    assert ledger.settle_announced() == []
    assert [row.state for row in ledger.units("b1")] == [State.RECORDED, State.ANNOUNCED]
    assert ledger.owed() == 1


def test_a_failure_keeps_the_state_and_the_next_attempt_forgets_it(ledger, tmp_path):
    ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,"))
    begin(ledger)
    ledger.advance("sn-1", State.KEYED)
    failed = ledger.fail("sn-1", Failure(FailureCode.CSR, "wrong"), step=State.DRAFTED, announce=say)
    assert (failed.state, failed.failure, failed.attempt_id) == (State.KEYED, Failure(FailureCode.CSR, "wrong"), None)
    row = ledger.begin_attempt("sn-1", attempt_id="second", slot=2)
    assert (row.state, row.failure, row.attempts, row.attempt_id) == (State.KEYED, None, 2, "second")
    assert ledger.begin_attempt("sn-1", attempt_id="third", slot=1).attempt_id == "second"
    assert [attempt.outcome for attempt in ledger.attempts("b1")] == ["fail", None]
    assert len(owed(ledger)) == 1


def test_a_key_and_a_certificate_belong_to_one_unit(ledger, tmp_path):
    ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,", "sn-2,A2,,,"))
    for device in ("sn-1", "sn-2"):
        begin(ledger, device)
    ledger.advance("sn-1", State.KEYED, spki_sha256="aa")
    with pytest.raises(Conflict, match="belongs to sn-1"):
        ledger.advance("sn-2", State.KEYED, spki_sha256="aa")
    assert ledger.unit("sn-2").state is State.PLANNED
    ledger.advance("sn-2", State.KEYED, spki_sha256="bb")


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE event SET body = replace(body, 'sn-1', 'sn-9') WHERE seq = 2",
        "DELETE FROM event WHERE seq = 2",
        "UPDATE event SET at = '2020' WHERE seq = 1",
        "UPDATE event SET seq = 9 WHERE seq = 3",
    ],
)
def test_the_chain_shows_tampering(ledger, tmp_path, tampering):
    ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,"))
    begin(ledger)
    ledger.advance("sn-1", State.KEYED)
    assert ledger.verify_chain().seq == 3
    conn = sqlite3.connect(ledger.path)
    conn.execute(tampering)
    conn.commit()
    conn.close()
    with pytest.raises(VerificationFailed, match="was altered"):
        ledger.verify_chain()


def test_two_runs_exclude_each_other(ledger, now):
    with ledger.exclusive(), Ledger(ledger.path, clock=lambda: now) as other:
        with pytest.raises(Locked) as caught, other.exclusive():
            pass
        assert caught.value.exit_code == 11
    with ledger.exclusive():
        pass


def test_a_birth_keeps_its_event_and_counts_its_sessions(ledger, tmp_path):
    ledger.open_batch(batch_of(tmp_path, "sn-1,A1,,,"))
    first = ledger.birth_event("sn-1", "id-1", "/device/sn-1")
    again = ledger.birth_event("sn-1", "id-2", "/device/sn-1")
    assert (first.id, first.sequence, first.time) == (again.id, again.sequence, again.time)
    assert again.session == first.session + 1
