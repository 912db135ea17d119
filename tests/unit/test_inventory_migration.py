"""A database of every earlier version opens with all that is in it, and ends as a new one begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import URL, create_engine, insert, inspect

import estserver.inventory
from estserver.ca import key_id
from estserver.errors import AwaitingApproval, ConfigError, RateLimited
from estserver.inventory import Inventory, issuance
from estserver.inventory.database import Database
from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import SCHEMA_VERSIONS, certificate
from estserver.limits import Bucket, Limits
from estserver.model import Der, Refusal, Reservation, Serial
from estserver.records import StationRecord
from tests.est_server import found_home
from tests.inventory_support import NOW, credential_record, enroll, event, grant_for, new_inventory, reserve

EARLIER = SCHEMA_VERSIONS[:-1]
REFUSAL = Refusal("policy-refused", ("because",), "simpleenroll", "", "certificate:sn-1", "192.0.2.1")


def database_of(version: str, path: Path) -> Inventory:
    """An inventory as a program of that version left it, and as this one would not open it."""
    path.touch(mode=0o600)
    url = URL.create("sqlite", database=str(path))
    config = Config()
    config.set_main_option("script_location", str(Path(estserver.inventory.__file__).parent / "migrations"))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    engine.dispose()
    return Inventory(Database(url, busy_seconds=1), "estserver")


def fill(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(), "operator:test")
    inventory.station_add(StationRecord("s-07", ("gw-*",), NOW), "operator:test")
    enroll(inventory, grant_for("sn-1", credential="sn-1"), 1, events=[event()])
    reserve(inventory, grant_for("sn-2"), 2)
    inventory.refuse(REFUSAL, NOW)


def told(inventory: Inventory) -> tuple[object, ...]:
    return (
        inventory.counters(),
        inventory.audit_verify(),
        inventory.list_certificates(),
        inventory.credentials(),
        inventory.stations(),
        inventory.outbox_pending(10),
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


@pytest.fixture
def _as_before_0006(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier programs did not write down which key signed."""
    columns = [column.name for column in certificate.c if column.name not in {"issuer", "superseded_by"}]
    columns = [name for name in columns if not name.startswith("revo")]
    monkeypatch.setattr(issuance, "_INSERT", Prepared(insert(certificate), columns))


@pytest.mark.usefixtures("_as_before_0006")
@pytest.mark.parametrize("version", EARLIER)
def test_which_key_signed_is_read_from_the_certificates(tmp_path: Path, version: str) -> None:
    home, path = found_home(tmp_path / "home", now=NOW), tmp_path / "old.db"
    with home.inventory() as founded:
        (leaf,) = [record.certificate for record in founded.list_certificates()]
    with database_of(version, path) as old:
        reservation = reserve(old, grant_for("sn-1"), 1)
        assert isinstance(reservation, Reservation)
        old.record(reservation, leaf, [], NOW)
    with Inventory.open(path) as inventory:
        issuing = Der(home.issuing.public_bytes(Encoding.DER))
        assert list(inventory.rollovers.issuers_in_use(NOW)) == [key_id(issuing)]


@pytest.mark.usefixtures("_as_before_0006")
@pytest.mark.parametrize("version", EARLIER)
def test_everything_in_an_earlier_database_is_there_after(tmp_path: Path, version: str) -> None:
    path = tmp_path / "old.db"
    with database_of(version, path) as old:
        fill(old)
        before = told(old)
    with Inventory.open(path) as inventory:
        assert told(inventory) == before
        assert [left.serial for left in inventory.leftovers_void(NOW)] == [2]
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
    database_of(version, tmp_path / "old.db").close()
    Inventory.open(tmp_path / "old.db").close()
    new_inventory(tmp_path / "new.db").close()
    assert shape(tmp_path / "old.db") == shape(tmp_path / "new.db")


@pytest.mark.parametrize("version", EARLIER)
def test_without_leave_nothing_is_changed(tmp_path: Path, version: str) -> None:
    path = tmp_path / "old.db"
    database_of(version, path).close()
    before = shape(path)
    with pytest.raises(ConfigError, match=f"schema {version}"):
        Inventory.open(path, migrate=False)
    assert shape(path) == before
