"""A database of every earlier version opens with all that is in it, and ends as a new one begins."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import URL, create_engine, inspect

import estserver.inventory
from estserver.errors import AwaitingApproval, ConfigError, RateLimited
from estserver.inventory import Inventory
from estserver.inventory.schema import SCHEMA_VERSIONS
from estserver.key_ids import subject_key_id
from estserver.limits import Bucket, Limits
from estserver.model import Der, Refusal, Reservation, Serial
from estserver.records import StationRecord
from tests.est_server import found_home
from tests.inventory_support import NOW, credential_record, enroll, event, grant_for, new_inventory, reserve

EARLIER = SCHEMA_VERSIONS[:-1]
REFUSAL = Refusal("policy-refused", ("because",), "simpleenroll", "", "certificate:sn-1", "192.0.2.1")


def database_of(version: str, path: Path, filled: Path | None = None) -> None:
    """An inventory as a program of that version left it; with the rows of `filled` that it had tables for."""
    path.touch(mode=0o600)
    url = URL.create("sqlite", database=str(path))
    config = Config()
    config.set_main_option("script_location", str(Path(estserver.inventory.__file__).parent / "migrations"))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    engine.dispose()
    if filled is None:
        return
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("ATTACH ? AS filled", (str(filled),))
        for (table,) in database.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
            if table not in ("alembic_version", "sqlite_sequence"):
                columns = ", ".join(row[1] for row in database.execute(f"PRAGMA main.table_info({table})"))
                database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM filled.{table}")


def fill(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(), "operator:test")
    inventory.station_add(StationRecord("s-07", ("gw-*",), NOW), "operator:test")
    enroll(inventory, grant_for("sn-1", credential="sn-1"), 1, events=[event()])
    enroll(inventory, grant_for("sn-0"), 10)
    inventory.revoke(Serial(10), "keyCompromise", "operator:test", NOW)
    reserve(inventory, grant_for("sn-2"), 2)
    inventory.refuse(REFUSAL, NOW)


def told(inventory: Inventory) -> tuple[object, ...]:
    return (
        inventory.counters(),
        inventory.audit_verify(),
        inventory.list_certificates(),
        inventory.stations(),
        inventory.outbox.pending(10),
    )


def shape(path: Path) -> dict[str, object]:
    engine = create_engine(URL.create("sqlite", database=str(path)))
    with engine.connect() as connection:
        found = inspect(connection)
        tables = {
            name: ([(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)])
            for name in found.get_table_names()
        }
    engine.dispose()
    return dict(tables)


@pytest.mark.parametrize("version", EARLIER)
def test_which_key_signed_is_read_from_the_certificates(tmp_path: Path, version: str) -> None:
    home, path = found_home(tmp_path / "home", now=NOW), tmp_path / "old.db"
    with home.inventory() as founded:
        (leaf,) = [record.certificate for record in founded.list_certificates()]
    with new_inventory(tmp_path / "filled.db") as filled:
        reservation = reserve(filled, grant_for("sn-1"), 1)
        assert isinstance(reservation, Reservation)
        filled.record(reservation, leaf, [], NOW)
    database_of(version, path, tmp_path / "filled.db")
    with Inventory.open(path) as inventory:
        issuing = Der(home.issuing.public_bytes(Encoding.DER))
        assert list(inventory.rollovers.issuers_in_use(NOW)) == [subject_key_id(issuing)]


@pytest.mark.parametrize("version", EARLIER)
def test_everything_in_an_earlier_database_is_there_after(tmp_path: Path, version: str) -> None:
    path = tmp_path / "old.db"
    with new_inventory(tmp_path / "filled.db") as filled:
        fill(filled)
        before = told(filled)
    database_of(version, path, tmp_path / "filled.db")
    with Inventory.open(path) as inventory:
        assert told(inventory) == before
        assert inventory.credentials() == [replace(credential_record(), spent=1)]
        assert [left.serial for left in inventory.leftovers_void(NOW)] == [2]
        build = inventory.crls.begin("", NOW, regular=True)
        assert build is not None
        assert list(inventory.crls.entries(build)) == [(10, NOW, "keyCompromise")]
        enroll(inventory, grant_for("sn-3"), 3)
        with pytest.raises(AwaitingApproval):
            inventory.reserve(grant_for("sn-4", approval=True), Serial(4), NOW)
        assert [entry.device for entry in inventory.pending.page(NOW)] == ["sn-4"]
        bucket = Bucket("device_rate", "certificate:sn-1", Limits().device_rate)
        for _ in range(bucket.rate.count):
            inventory.refuse(REFUSAL, NOW, payment=[bucket])
        with pytest.raises(RateLimited):
            inventory.refuse(REFUSAL, NOW, payment=[bucket])
        assert inventory.audit_verify().ok


@pytest.mark.parametrize("version", EARLIER)
def test_it_has_the_shape_of_a_new_one(tmp_path: Path, version: str) -> None:
    database_of(version, tmp_path / "old.db")
    Inventory.open(tmp_path / "old.db").close()
    new_inventory(tmp_path / "new.db").close()
    assert shape(tmp_path / "old.db") == shape(tmp_path / "new.db")


@pytest.mark.parametrize("version", EARLIER)
def test_without_leave_nothing_is_changed(tmp_path: Path, version: str) -> None:
    path = tmp_path / "old.db"
    database_of(version, path)
    before = shape(path)
    with pytest.raises(ConfigError, match=f"schema {version}"):
        Inventory.open(path, migrate=False)
    assert shape(path) == before
