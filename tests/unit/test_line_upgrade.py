"""A ledger of the first schema, as its SQL made it: opened by this program, it goes on where it stood."""

from __future__ import annotations

import json
import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest

from devicesim.errors import ConfigInvalid, Locked
from devicesim.line.batch import content_sha256
from devicesim.line.ledger import ChainPlace, Ledger
from devicesim.line.ledger.disk import exclusive
from devicesim.line.ledger.schema import VERSION
from devicesim.line.states import State

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE batch (
  id TEXT PRIMARY KEY, content_sha256 TEXT NOT NULL, quantity INTEGER NOT NULL, opened_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE unit (
  device_id TEXT PRIMARY KEY, batch TEXT NOT NULL REFERENCES batch (id), position INTEGER NOT NULL, facts TEXT NOT NULL,
  state TEXT NOT NULL, failure_code TEXT, failure_text TEXT, attempts INTEGER NOT NULL DEFAULT 0, attempt_id TEXT,
  spki_sha256 TEXT, csr BLOB, certificate BLOB, event_id TEXT UNIQUE,
  birth TEXT NOT NULL DEFAULT 'none' CHECK (birth IN ('none', 'pending', 'done')), birth_event TEXT,
  UNIQUE (batch, position)
) WITHOUT ROWID;
CREATE INDEX unit_unannounced ON unit (event_id) WHERE state = 'recorded';
CREATE TABLE attempt (
  id TEXT PRIMARY KEY, device_id TEXT NOT NULL REFERENCES unit (device_id), number INTEGER NOT NULL,
  slot INTEGER NOT NULL, started_at TEXT NOT NULL, ended_at TEXT, outcome TEXT, failure_code TEXT,
  timing_ms TEXT NOT NULL DEFAULT '{}', UNIQUE (device_id, number)
) WITHOUT ROWID;
CREATE TABLE guard (
  kind TEXT NOT NULL, value TEXT NOT NULL, device_id TEXT NOT NULL, PRIMARY KEY (kind, value)
) WITHOUT ROWID;
CREATE TABLE event (
  seq INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
  prev_hash TEXT NOT NULL, hash TEXT NOT NULL UNIQUE
);
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, topic TEXT NOT NULL, payload BLOB NOT NULL,
  retain INTEGER NOT NULL CHECK (retain IN (0, 1)), created_at TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0,
  next_at TEXT NOT NULL DEFAULT '', done_at TEXT, reason TEXT
);
CREATE TABLE event_counter (source TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
"""
AT = "2027-03-01T11:00:00.000+00:00"
KINDS = ("keyed", "drafted", "enrolled", "installed", "verified", "recorded")


def facts(n: int) -> dict[str, str]:
    given = {"device_id": f"sn-{n}", "serial": f"S{n}", "product": "sensor"}
    return {**dict.fromkeys(("hw_rev", "label", "key_type", "mac", "se_id", "group"), ""), **given, "attrs_json": "{}"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """One unit that passed, one that waits."""
    path = tmp_path / "line.db"
    conn = sqlite3.connect(path)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.executescript(TABLES)
    meta = {"schema": "1", "site": "hh1", "line": "l2", "station": "s-07"}
    conn.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    digest = content_sha256("b1", [facts(1), facts(2)])
    conn.execute("INSERT INTO batch VALUES ('b1', ?, 2, ?)", (digest, AT))
    insert = "INSERT INTO unit (device_id, batch, position, facts, state) VALUES (?, 'b1', ?, ?, 'planned')"
    conn.executemany(insert, [(f"sn-{n}", n, json.dumps(facts(n), sort_keys=True)) for n in (1, 2)])
    conn.execute(
        "UPDATE unit SET state = 'recorded', attempts = 1, spki_sha256 = 'aa', csr = x'01', certificate = x'02'"
        " WHERE device_id = 'sn-1'"
    )
    guards = [("device_id", "sn-1"), ("serial", "S1"), ("spki_sha256", "aa"), ("cert_serial", "ca:7")]
    conn.executemany("INSERT INTO guard VALUES (?, ?, 'sn-1')", guards)
    conn.execute("INSERT INTO attempt VALUES ('A1', 'sn-1', 1, 3, ?, ?, 'pass', NULL, '{\"keyed\":1.5}')", (AT, AT))
    learned = {
        "keyed": {"spki_sha256": "aa"},
        "drafted": {"csr_sha256": sha256(b"\x01").hexdigest()},
        "enrolled": {"certificate_sha256": sha256(b"\x02").hexdigest(), "cert_serial": "ca:7"},
    }
    told = [("batch-opened", {"batch": "b1", "content_sha256": digest, "quantity": 2})]
    told += [("attempt", {"device_id": "sn-1", "attempt": 1, "attempt_id": "A1", "slot": 3})]
    told += [(kind, {"device_id": "sn-1", **learned.get(kind, {})}) for kind in KINDS]
    head = "0" * 64
    for seq, (kind, body) in enumerate(told, start=1):
        fields = (seq, AT, "s-07", kind, json.dumps(body, sort_keys=True, separators=(",", ":")), head)
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        head = sha256(text.encode()).hexdigest()
        conn.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)", (*fields, head))
    conn.commit()
    conn.close()
    return path


def version(path: Path) -> str:
    conn = sqlite3.connect(path)
    try:
        return str(conn.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()[0])
    finally:
        conn.close()


def test_what_was_there_is_there_and_has_its_place(old, now):
    with Ledger(old, clock=lambda: now) as ledger:
        row = ledger.unit("sn-1")
        assert (row.state, row.generation, row.cert_serial) == (State.RECORDED, 1, "ca:7")
        assert isinstance(row.recorded, ChainPlace)
        assert row.recorded.seq == 8
        (attempt,) = ledger.attempts("b1")
        assert (attempt.site, attempt.line, attempt.station, attempt.slot) == ("hh1", "l2", "s-07", 3)
        assert (attempt.operator, attempt.shift) == ("", "")
        story = ledger.story("sn-1")
        assert [event.kind for event in story] == ["attempt", *KINDS]
        assert {event.by.station for event in story} == {"s-07"}
        assert ledger.verify_chain().seq == 9
        assert [event.kind for event in ledger.events()][-1] == "upgraded"
    assert version(old) == str(VERSION)
    with Ledger(old, clock=lambda: now) as again:
        assert again.verify_chain().seq == 9


def test_it_goes_on(old, now):
    with Ledger(old, clock=lambda: now) as ledger:
        ledger.begin_attempt("sn-2", attempt_id="A2", slot=1)
        for state in ledger.way.states[1:6]:
            ledger.advance("sn-2", state)
        assert ledger.record("sn-2", took_ms=1, announce=None, birth=False).passed
        ledger.verify_chain()


def test_not_while_an_older_program_runs_on_it(old, now):
    with pytest.raises(Locked), exclusive(old):
        Ledger(old, clock=lambda: now)
    assert version(old) == "1"


def test_an_upgrade_that_fails_changes_nothing(old, now):
    def broken():
        raise RuntimeError("the process is gone")

    with pytest.raises(RuntimeError):
        Ledger(old, clock=broken)
    assert version(old) == "1"
    with Ledger(old, clock=lambda: now) as ledger:
        assert ledger.unit("sn-1").generation == 1


def test_a_ledger_of_a_later_version_is_left_alone(old, now):
    conn = sqlite3.connect(old)
    conn.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    conn.commit()
    conn.close()
    with pytest.raises(ConfigInvalid, match="another version"):
        Ledger(old, clock=lambda: now)
