"""Looking up, paging, revoking, the registry, the outbox, the audit chain."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from estserver.errors import NotFound, StateError
from estserver.inventory import Inventory
from estserver.model import (
    CertificateRecord,
    Der,
    DeviceId,
    Event,
    GeneralName,
    NameAttribute,
    Refusal,
    Serial,
    SpkiHash,
)
from estserver.records import AnchorRecord, StationRecord
from tests.inventory_support import DAY, NOW, credential_record, enroll, event, grant_for, new_inventory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "estserver.db"


@pytest.fixture
def inventory(path: Path) -> Iterator[Inventory]:
    with new_inventory(path) as opened:
        yield opened


def _serials(records: list[CertificateRecord]) -> list[int]:
    return [record.serial for record in records]


# --- certificates ---------------------------------------------------------------------------------------------------


def test_what_does_not_exist_is_none(inventory: Inventory) -> None:
    assert inventory.by_serial(Serial(1)) is None
    assert inventory.certificate("0" * 64) is None
    assert inventory.csr(Serial(1)) is None
    assert inventory.current(DeviceId("sn-1"), "device") is None
    assert inventory.key_device(SpkiHash("0" * 64)) is None


def test_the_certificate_to_renew_is_found_by_its_names_in_any_order(inventory: Inventory) -> None:
    names = (GeneralName("dns", "a.example"), GeneralName("uri", "urn:dev:1"))
    grant = grant_for(san=names)
    enroll(inventory, grant, 1)
    enroll(inventory, grant_for("sn-2"), 2)
    found = inventory.current_by_names(grant.subject, reversed(names), DeviceId("sn-1"))
    assert found is not None
    assert found.serial == 1
    assert inventory.current_by_names(grant.subject, names[:1], DeviceId("sn-1")) is None
    assert inventory.current_by_names((NameAttribute("2.5.4.3", "sn"),), names, DeviceId("sn-1")) is None
    assert inventory.current_by_names(grant.subject, names, DeviceId("sn-2")) is None


def test_pages_follow_each_other_without_gap_or_repeat(inventory: Inventory) -> None:
    for number in range(1, 8):
        enroll(inventory, grant_for(f"sn-{number}"), 100 - number)
    seen, page = [], inventory.list_certificates(limit=3)
    while page:
        seen += _serials(page)
        page = inventory.list_certificates(after=page[-1].serial, limit=3)
    assert seen == [99, 98, 97, 96, 95, 94, 93]
    with pytest.raises(NotFound):
        inventory.list_certificates(after=Serial(1))


def test_what_expires_first_comes_first(inventory: Inventory) -> None:
    for number, days in enumerate((30, 10, 20, 10, 90), 1):
        enroll(inventory, grant_for(f"sn-{number}", not_after=NOW + days * DAY), number)
    first = inventory.list_certificates(expiring_before=NOW + 60 * DAY, limit=2)
    rest = inventory.list_certificates(expiring_before=NOW + 60 * DAY, after=first[-1].serial, limit=9)
    assert (_serials(first), _serials(rest)) == ([2, 4], [3, 1])


def test_filters_narrow_the_page(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    enroll(inventory, grant_for(key="second"), 2)
    enroll(inventory, grant_for("sn-2", profile="server"), 3)
    inventory.revoke(Serial(3), "superseded", "operator:a", NOW)
    assert _serials(inventory.list_certificates(device=DeviceId("sn-1"))) == [1, 2]
    assert _serials(inventory.list_certificates(profile="server")) == [3]
    for status, serials in {"valid": [2], "superseded": [1], "revoked": [3]}.items():
        page = inventory.list_certificates(status=status)  # type: ignore[arg-type]  # the literal is the dict's key
        assert (_serials(page), {record.status for record in page}) == (serials, {status})


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM certificate WHERE device = ? ORDER BY id LIMIT 9", "ix_certificate_device"),
        ("SELECT * FROM certificate WHERE not_after < ? ORDER BY not_after, id LIMIT 9", "ix_certificate_not_after"),
        ("SELECT * FROM certificate WHERE revoked_at IS NOT NULL ORDER BY id LIMIT 9", "ix_certificate_revoked"),
        ("SELECT * FROM certificate WHERE sha256 = ?", "ix_certificate_sha256"),
        ("SELECT * FROM reservation WHERE server_id = ? AND state = 'open'", "ix_reservation_open"),
        ("SELECT * FROM reservation WHERE fingerprint = ?", "ix_reservation_fingerprint"),
        ("SELECT * FROM pending WHERE fingerprint = ? AND expires_at > ?", "sqlite_autoindex_pending_1"),
        ("SELECT * FROM pending WHERE credential = ? AND expires_at > ?", "ix_pending_credential"),
        ("SELECT * FROM pending WHERE expires_at > ? AND id > ? ORDER BY id LIMIT 9", "INTEGER PRIMARY KEY"),
        ("DELETE FROM pending WHERE expires_at <= ?", "ix_pending_expires_at"),
        ("SELECT * FROM outbox WHERE server_id = ? AND done_at IS NULL ORDER BY id LIMIT 9", "ix_outbox_pending"),
    ],
)
def test_every_page_is_found_by_an_index(inventory: Inventory, path: Path, query: str, index: str) -> None:
    connection = sqlite3.connect(path)
    plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", ("x",) * query.count("?")).fetchall()
    connection.close()
    assert index in plan[0][3]
    assert not any("TEMP B-TREE" in row[3] for row in plan)


# --- revocation -----------------------------------------------------------------------------------------------------


def _told(record: CertificateRecord) -> list[Event]:
    return [event(f"revoked-{record.serial}", record.device)]


def test_a_revocation_is_written_told_and_audited_once(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    (revoked,) = inventory.revoke(Serial(1), "keyCompromise", "operator:a", NOW, _told)
    assert (revoked.status, revoked.revoked_at, revoked.revocation_reason) == ("revoked", NOW, "keyCompromise")
    assert inventory.by_serial(Serial(1)) == revoked
    assert inventory.revoke(Serial(1), "unspecified", "operator:b", NOW + DAY, _told) == [revoked]
    assert [row.event.id for row in inventory.outbox.pending(9)] == ["revoked-1"]
    assert [(row.actor, row.action) for row in inventory.audit_rows()][1:] == [("operator:a", "revoke")]
    assert inventory.counters()["revoked"] == 1


def test_revoking_a_device_takes_all_that_is_in_force(inventory: Inventory) -> None:
    enroll(inventory, grant_for(not_after=NOW + DAY), 1)
    enroll(inventory, grant_for(key="k2"), 2)
    enroll(inventory, grant_for(key="k3", profile="server"), 3)
    enroll(inventory, grant_for("sn-2"), 4)
    revoked = inventory.revoke_device(DeviceId("sn-1"), "unspecified", "operator:a", NOW + 2 * DAY, _told)
    assert _serials(revoked) == [2, 3]
    assert inventory.revoke_device(DeviceId("sn-1"), "unspecified", "operator:a", NOW + 2 * DAY) == []
    other = inventory.by_serial(Serial(4))
    assert other is not None
    assert other.status == "valid"


def test_only_what_exists_is_revoked_and_only_for_a_reason_of_the_rfc(inventory: Inventory) -> None:
    with pytest.raises(NotFound):
        inventory.revoke(Serial(1), "unspecified", "operator:a", NOW)
    with pytest.raises(NotFound):
        inventory.revoke_device(DeviceId("sn-1"), "unspecified", "operator:a", NOW)
    enroll(inventory, grant_for(), 1)
    for reason in ("removeFromCRL", "certificateHold", "because"):
        with pytest.raises(StateError):
            inventory.revoke(Serial(1), reason, "operator:a", NOW)


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_credentials_come_and_go(inventory: Inventory) -> None:
    record = credential_record("line-1", uses=None, expires_at=NOW + DAY)
    inventory.credential_add(record, "operator:a")
    with pytest.raises(StateError):
        inventory.credential_add(record, "operator:a")
    assert inventory.credentials() == [record]
    assert inventory.credential("line-1") == record
    enroll(inventory, grant_for(credential="line-1"), 1)
    inventory.credential_remove("line-1", "operator:a", NOW)
    assert inventory.credentials() == []
    with pytest.raises(NotFound):
        inventory.credential_remove("line-1", "operator:a", NOW)


def test_stations_and_anchors_come_and_go(inventory: Inventory) -> None:
    station = StationRecord("line-1", ("sn-*", "gw-1"), NOW)
    anchor = AnchorRecord("acme", Der(b"certificate"), "acme-{serial}", ("acme-*",), NOW)
    inventory.station_add(station, "operator:a")
    inventory.anchor_add(anchor, "operator:a")
    assert (inventory.station("line-1"), inventory.stations()) == (station, [station])
    assert inventory.anchors() == [anchor]
    with pytest.raises(StateError):
        inventory.station_add(station, "operator:a")
    with pytest.raises(StateError):
        inventory.anchor_add(anchor, "operator:a")
    inventory.station_remove("line-1", "operator:a", NOW)
    inventory.anchor_remove("acme", "operator:a", NOW)
    assert (inventory.station("line-1"), inventory.stations(), inventory.anchors()) == (None, [], [])
    for remove in (inventory.station_remove, inventory.anchor_remove):
        with pytest.raises(NotFound):
            remove("line-1", "operator:a", NOW)
    assert [row.action for row in inventory.audit_rows()] == [
        "station-add",
        "trust-add",
        "station-remove",
        "trust-remove",
    ]


# --- outbox ---------------------------------------------------------------------------------------------------------


def test_announcements_keep_their_order_and_number_until_they_arrived(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1, events=[event("a"), event("b")])
    enroll(inventory, grant_for("sn-2"), 2, events=[event("c")])
    pending = inventory.outbox.pending(10)
    assert [(row.sequence, row.event.id) for row in pending] == [(1, "a"), (2, "b"), (3, "c")]
    assert pending[0].event == event("a")
    inventory.outbox.failed("a", "the broker said no")
    inventory.outbox.done(["b", "b", "unknown"], NOW)
    inventory.outbox.done(["b"], NOW)
    assert [(row.event.id, row.attempts, row.last_error) for row in inventory.outbox.pending(10)] == [
        ("a", 1, "the broker said no"),
        ("c", 0, None),
    ]
    assert inventory.counters()["outbox_depth"] == 2
    assert len(inventory.outbox.pending(1)) == 1


def test_only_what_arrived_is_pruned(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1, events=[event("a"), event("b")])
    inventory.outbox.done(["a"], NOW)
    assert inventory.outbox.prune(NOW) == 0
    assert inventory.outbox.prune(NOW + timedelta(seconds=1)) == 1
    assert [row.event.id for row in inventory.outbox.pending(10)] == ["b"]
    enroll(inventory, grant_for("sn-2"), 2, events=[event("c")])
    assert [row.sequence for row in inventory.outbox.pending(10)] == [2, 3]


# --- audit ----------------------------------------------------------------------------------------------------------


def _history(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    enroll(inventory, grant_for(), 2)
    refusal = Refusal("key-reused", ("no",), "simpleenroll", "", "station:x", "192.0.2.1", "sn-2", SpkiHash("0" * 64))
    inventory.refuse(refusal, NOW, [event("finding")])
    inventory.revoke(Serial(1), "unspecified", "operator:ä", NOW)


def test_the_chain_tells_everything_in_order(inventory: Inventory) -> None:
    _history(inventory)
    rows = list(inventory.audit_rows())
    assert [(row.seq, row.action, row.outcome) for row in rows] == [
        (1, "issue", "ok"),
        (2, "repeat", "ok"),
        (3, "refuse", "key-reused"),
        (4, "revoke", "ok"),
    ]
    detail = rows[0].detail
    assert (detail["serial"], detail["device"], detail["profile"]) == ("1", "sn-1", "device")
    assert (detail["binding"], detail["peer_address"]) == ("verified", "192.0.2.7")
    assert rows[2].detail["spki_sha256"] == "0" * 64
    report = inventory.audit_verify()
    assert (report.ok, report.rows, report.head) == (True, 4, rows[-1].hash)
    assert list(inventory.audit_rows(after=3)) == rows[3:]
    assert inventory.counters()["refused"] == 1


def test_an_empty_chain_is_whole(inventory: Inventory) -> None:
    assert inventory.audit_verify().ok


def test_anybody_can_compute_the_chain_from_its_export(inventory: Inventory) -> None:
    _history(inventory)
    previous = "0" * 64
    for line in inventory.audit_lines():
        row = json.loads(line)
        assert row.pop("previous_hash") == previous
        previous = row.pop("hash")
        body = json.dumps(row, sort_keys=True, separators=(",", ":"))
        before = bytes.fromhex(json.loads(line)["previous_hash"])
        assert hashlib.sha256(before + body.encode()).hexdigest() == previous
    assert previous == inventory.audit_verify().head


@pytest.mark.parametrize(
    ("tampering", "first_bad"),
    [
        ("UPDATE audit SET detail = replace(detail, 'sn-2', 'sn-3') WHERE seq = 3", 3),
        ("UPDATE audit SET actor = 'operator:b' WHERE seq = 4", 4),
        ("UPDATE audit SET at = at + 1 WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 2", 2),
        ("DELETE FROM audit WHERE seq = 4", 4),
        ("DELETE FROM audit", 1),
        ("UPDATE audit SET hash = '" + "1" * 64 + "' WHERE seq = 2", 2),
        ("UPDATE audit SET seq = CASE seq WHEN 2 THEN 30 ELSE seq END", 2),
    ],
)
def test_whatever_is_done_to_the_rows_is_seen(inventory: Inventory, path: Path, tampering: str, first_bad: int) -> None:
    _history(inventory)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(tampering)
    connection.close()
    report = inventory.audit_verify()
    assert (report.ok, report.first_bad) == (False, first_bad)
    assert report.reason


def test_what_a_stranger_sends_does_not_make_rows_long(inventory: Inventory) -> None:
    reasons = tuple("x" * 10_000 for _ in range(1000))
    inventory.refuse(Refusal("no", reasons, "o", "l", "r" * 10_000, "a"), NOW)
    (line,) = inventory.audit_lines()
    assert len(line) < 30_000
