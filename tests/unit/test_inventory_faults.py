"""What goes wrong below: nothing is half-written, and the error says what to do."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from estserver.errors import ConfigError, EstError, StorageUnavailable
from estserver.inventory import Inventory
from estserver.model import Der, DeviceId, Issued, Serial
from tests.inventory_support import NOW, credential_record, dump, enroll, event, grant_for, new_inventory, reserve, run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "estserver.db"


@pytest.fixture
def inventory(path: Path) -> Iterator[Inventory]:
    with new_inventory(path, busy_seconds=0.05) as opened:
        yield opened


# --- between the statements of one transaction ----------------------------------------------------------------------

RESERVE_WRITES = ["INSERT ON device_key", "UPDATE ON credential", "INSERT ON credential_use", "INSERT ON reservation"]
RECORD_WRITES = [
    "INSERT ON certificate",
    "UPDATE ON reservation",
    "UPDATE ON device_key",
    "UPDATE ON device_certificate",
    "UPDATE ON certificate",
    "UPDATE ON counter",
    "INSERT ON audit",
    "UPDATE ON audit_head",
    "INSERT ON outbox",
]


def _with_fault(path: Path, write: str) -> list[str]:
    before = dump(path)
    run(path, f"CREATE TRIGGER fault BEFORE {write} BEGIN SELECT RAISE(ABORT, 'fault'); END")
    return before


def _without_fault(path: Path) -> list[str]:
    run(path, "DROP TRIGGER fault")
    return dump(path)


@pytest.mark.parametrize("write", RESERVE_WRITES)
def test_a_reservation_is_whole_or_not_there(inventory: Inventory, path: Path, write: str) -> None:
    inventory.credential_add(credential_record(), "operator:a")
    grant = grant_for(credential="sn-1")
    before = _with_fault(path, write)
    with pytest.raises(EstError):
        inventory.reserve(grant, Serial(1), NOW)
    assert _without_fault(path) == before
    assert enroll(inventory, grant, 1).serial == 1


@pytest.mark.parametrize("write", RECORD_WRITES)
def test_a_certificate_is_recorded_with_all_that_follows_or_not_at_all(
    inventory: Inventory, path: Path, write: str
) -> None:
    enroll(inventory, grant_for(), 1, events=[event("first")])
    reservation = reserve(inventory, grant_for(key="next"), 2)
    before = _with_fault(path, write)
    with pytest.raises(EstError):
        inventory.record(reservation, Der(b"next"), [event("next")], NOW)
    assert _without_fault(path) == before
    assert inventory.record(reservation, Der(b"next"), [event("next")], NOW) == Issued(
        Serial(2), Der(b"next"), DeviceId("sn-1")
    )
    assert inventory.audit_verify().ok
    assert [row.sequence for row in inventory.outbox.pending(9)] == [1, 2]


@pytest.mark.parametrize("write", ["UPDATE ON certificate", "INSERT ON audit", "INSERT ON outbox"])
def test_a_device_is_revoked_whole_or_not_at_all(inventory: Inventory, path: Path, write: str) -> None:
    enroll(inventory, grant_for(), 1)
    enroll(inventory, grant_for(key="tls", profile="server"), 2)
    before = _with_fault(path, f"{write}")
    with pytest.raises(EstError):
        inventory.revoke_device(
            DeviceId("sn-1"), "unspecified", "operator:a", NOW, lambda record: [event(f"r{record.serial}")]
        )
    assert _without_fault(path) == before


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_file_and_its_journals_are_the_owners_alone(inventory: Inventory, path: Path) -> None:
    enroll(inventory, grant_for(), 1)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("estserver.db", "estserver.db-wal", "estserver.db-shm"), 0o600)


def test_a_locked_database_is_said_to_be_one_and_works_again_after(inventory: Inventory, path: Path) -> None:
    reservation = reserve(inventory, grant_for(), 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable) as caught:
        inventory.record(reservation, Der(b"one"), [], NOW)
    assert caught.value.retry_after is not None
    assert "locked" in str(caught.value)
    assert inventory.by_serial(Serial(1)) is None
    other.execute("ROLLBACK")
    other.close()
    assert inventory.record(reservation, Der(b"one"), [], NOW).serial == 1


def test_a_full_disk_loses_nothing_that_was_recorded(inventory: Inventory, path: Path) -> None:
    enroll(inventory, grant_for(), 1)
    reservation = reserve(inventory, grant_for("sn-2"), 2)
    with inventory._database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageUnavailable) as caught:
        inventory.record(reservation, Der(b"x" * 100_000), [], NOW)
    assert "full" in str(caught.value)
    with Inventory.open(path) as after:
        assert after.audit_verify().ok
        assert after.by_serial(Serial(1)) is not None
        assert after.by_serial(Serial(2)) is None
        assert after.record(reservation, Der(b"x" * 100_000), [], NOW).serial == 2


def test_a_directory_that_cannot_be_written_is_unavailable(path: Path) -> None:
    Inventory.open(path, create=True).close()
    path.parent.chmod(0o500)
    path.chmod(0o400)
    code = (
        "import os, sys\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from estserver.errors import EstError\n"
        "from estserver.inventory import Inventory\n"
        "from tests.inventory_support import NOW, grant_for\n"
        "if os.getuid() == 0:\n"
        "    os.chown(os.path.dirname(sys.argv[1]), 65534, 65534)\n"
        "    os.chown(sys.argv[1], 65534, 65534)\n"
        "    os.chdir(os.path.dirname(sys.argv[1]))\n"
        "    os.setuid(65534)\n"
        "try:\n"
        "    Inventory.open(os.path.basename(sys.argv[1])).reserve(grant_for(), 1, NOW)\n"
        "except EstError as error:\n"
        "    print(error.code, '|', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), *sys.path],
        cwd=path.parent if os.getuid() else None,
        capture_output=True,
        text=True,
        check=False,
    )
    path.parent.chmod(0o700)
    assert done.stdout.startswith("storage-unavailable |"), done.stderr


def test_what_is_not_there_is_not_made_by_accident(path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Inventory.open(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(ConfigError, match="holds no inventory"):
        Inventory.open(path)
    with pytest.raises(ConfigError):
        Inventory.open(path.parent / "no" / "directory.db", create=True)
    with pytest.raises(ConfigError):
        Inventory.open("nonsense://host/db")
    with pytest.raises(ConfigError):
        Inventory.open(":memory:", create=True)


def test_a_damaged_or_foreign_file_is_told_in_one_line(path: Path) -> None:
    path.write_bytes(b"this is no database, however long it is " * 200)
    with pytest.raises(ConfigError, match="damaged"):
        Inventory.open(path)
    path.unlink()
    run(path, "CREATE TABLE somebody_elses (x)")
    with pytest.raises(ConfigError, match="is not an inventory"):
        Inventory.open(path, create=True)


def test_a_newer_database_is_left_alone(inventory: Inventory, path: Path) -> None:
    run(path, "UPDATE alembic_version SET version_num = '9999'")
    before = dump(path)
    with pytest.raises(ConfigError, match="newer") as caught:
        Inventory.open(path, create=True)
    assert caught.value.advice
    assert dump(path) == before


def test_a_schema_is_not_migrated_where_that_is_a_command(path: Path) -> None:
    with pytest.raises(ConfigError, match="schema"):
        Inventory.open(path, create=True, migrate=False)


def test_the_migrations_make_the_tables_that_the_code_describes(inventory: Inventory, path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from estserver.inventory.schema import metadata

    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


# --- several processes ----------------------------------------------------------------------------------------------


def _worker(path: Path, number: int, start: Barrier, count: int) -> None:
    with Inventory.open(path, busy_seconds=30) as inventory:
        start.wait(30)
        for turn in range(count):
            grant = grant_for(f"sn-{turn}", credential="line-1", requester="credential:line-1")
            slot = inventory.reserve(grant, Serial(1 + turn * 10 + number), NOW)
            if not isinstance(slot, Issued):
                slot = inventory.record(slot, Der(f"{number} {turn}".encode()), [event(f"{number}-{turn}")], NOW)
            assert inventory.reserve(grant, Serial(9_000_000 + turn), NOW) == Issued(
                slot.serial, slot.certificate, slot.device, repeated=True
            )


def test_processes_that_answer_the_same_requests_at_once_agree(path: Path) -> None:
    count, processes = 20, 3
    with Inventory.open(path, create=True) as inventory:
        inventory.credential_add(credential_record("line-1", uses=count), "operator:a")
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(processes)
    workers = [context.Process(target=_worker, args=(path, number, start, count)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * processes
    with Inventory.open(path) as inventory:
        counters = inventory.counters()
        assert counters["issued"] == count
        assert len({record.device for record in inventory.list_certificates(status="valid")}) == count
        assert inventory.audit_verify().ok
        assert [row.sequence for row in inventory.outbox.pending(1000)] == list(range(1, count + 1))
        assert inventory.leftovers_void(NOW) == []
        spent = inventory.credential("line-1")
        assert spent is not None
        assert spent.spent == count


def _enroll_for_ever(path: Path, told: Connection) -> None:
    with Inventory.open(path) as inventory:
        for serial in itertools.count(1):
            told.send(enroll(inventory, grant_for(f"sn-{serial}"), serial, events=[event(str(serial))]).serial)


def test_a_killed_process_loses_nothing_that_it_answered(path: Path) -> None:
    Inventory.open(path, create=True).close()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_enroll_for_ever, args=(path, sender))
    child.start()
    sender.close()
    answered = [receiver.recv() for _ in range(30)]
    child.kill()
    child.join(30)
    with suppress(EOFError):
        while True:
            answered.append(receiver.recv())
    receiver.close()
    with Inventory.open(path) as inventory:
        assert all(inventory.by_serial(serial) for serial in answered)
        assert inventory.audit_verify().ok
        counters = inventory.counters()
        assert counters["issued"] == counters["outbox_depth"] >= len(answered)
        assert len(inventory.leftovers_void(NOW)) <= 1


def test_an_inventory_that_crossed_a_fork_makes_its_own_connections(inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=enroll, args=(inventory, grant_for("sn-2"), 2))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    enroll(inventory, grant_for("sn-3"), 3)
    assert inventory.counters()["issued"] == 3
    assert inventory.audit_verify().ok
