"""The outbox: owed until taken, under one id, in the caller's transaction."""

from __future__ import annotations

import sqlite3
from datetime import timedelta

import pytest

from devicesim.mqtt import outbox


@pytest.fixture
def conn(tmp_path):
    with sqlite3.connect(tmp_path / "line.db") as connection:
        connection.executescript(outbox.SCHEMA)
        yield connection
    connection.close()


def owe(conn, id_, now, *, topic="est/1/s/s-07/evt/provisioned", retain=False, payload=b"{}"):
    outbox.add(conn, id=id_, topic=topic, payload=payload, retain=retain, at=now)


def ids(conn, **kw):
    return [row.id for row in outbox.pending(conn, 100, **kw)]


def test_rows_are_owed_in_order_until_done(conn, now):
    for id_ in "abc":
        owe(conn, id_, now)
    outbox.mark_done(conn, ["a", "c"], now)
    assert ids(conn) == ["b"]
    assert outbox.pending_count(conn) == 1


def test_a_row_goes_with_the_callers_transaction(conn, now):
    conn.commit()
    owe(conn, "a", now)
    outbox.next_sequence(conn, "/device/a")
    conn.rollback()
    assert outbox.pending_count(conn) == 0
    assert outbox.next_sequence(conn, "/device/a") == 1


def test_one_id_is_owed_once(conn, now):
    owe(conn, "a", now)
    with pytest.raises(sqlite3.IntegrityError):
        owe(conn, "a", now, payload=b"{1}")


def test_a_refused_row_waits_for_its_time_and_keeps_the_reason(conn, now):
    owe(conn, "a", now)
    outbox.mark_failed(conn, "a", "Not authorized", now + timedelta(minutes=1))
    assert ids(conn, at=now) == []
    [row] = outbox.pending(conn, 1, at=now + timedelta(minutes=1))
    assert (row.tries, row.reason) == (1, "Not authorized")


def test_a_newer_state_closes_the_older_ones_of_its_topic_alone(conn, now):
    owe(conn, "a1", now, topic="est/1/d/a/identity", retain=True)
    owe(conn, "b1", now, topic="est/1/d/b/identity", retain=True)
    owe(conn, "e1", now)
    owe(conn, "a2", now, topic="est/1/d/a/identity", retain=True)
    owe(conn, "e2", now)
    outbox.mark_done(conn, ["a2", "e2"], now)
    assert ids(conn) == ["b1", "e1"]


def test_counters_count_per_source(conn):
    counts = [outbox.next_sequence(conn, source) for source in ("/device/a", "/device/a", "/device/b")]
    assert counts == [1, 2, 1]


def test_naive_times_are_refused(conn, now):
    with pytest.raises(ValueError, match="aware"):
        owe(conn, "a", now.replace(tzinfo=None))
