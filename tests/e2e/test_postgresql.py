"""The inventory on PostgreSQL: the same rules by another database, for several servers on one inventory."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from estserver.errors import BadCredentials, KeyReused, NotAuthorized, RateLimited
from estserver.inventory import Claim, Inventory, Signed
from estserver.inventory.crls import CrlRecord
from estserver.inventory.takeback import Choice
from estserver.limits import Bucket, Rate
from estserver.model import Der, DeviceId, Issued, Refusal, Reservation, Serial
from estserver.records import AnchorRecord
from tests.conftest import require_program
from tests.inventory_support import HOUR, NOW, SECONDS_30, credential_record, enroll, event, grant_for

pytestmark = pytest.mark.e2e
_databases = count(1)


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL server of our own, on loopback, thrown away afterwards."""

    port: int

    def new_database(self) -> str:
        """The URL of an empty database."""
        import psycopg

        name = f"inventory{next(_databases)}"
        with psycopg.connect(f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres", autocommit=True) as link:
            link.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"


def _as_its_user(*command: str) -> list[str]:
    """PostgreSQL does not run as root."""
    return [*(("runuser", "-u", "postgres", "--") if os.getuid() == 0 else ()), *command]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = found[-1] if found else Path(require_program("pg_ctl", "postgresql")).parent
    directory = tmp_path_factory.mktemp("postgresql")
    if os.getuid() == 0:
        shutil.chown(directory, "postgres")
        for parent in directory.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
    data = str(directory / "data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory} -c fsync=off"
    control = _as_its_user(str(programs / "pg_ctl"), "-D", data, "-w", "-s")
    log = ["-l", str(directory / "log")]
    initdb = _as_its_user(str(programs / "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync")
    subprocess.run(initdb, check=True, capture_output=True, timeout=SECONDS_30)
    subprocess.run([*control, *log, "-o", options, "start"], check=True, timeout=SECONDS_30)
    yield Cluster(port)
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, timeout=SECONDS_30)


@pytest.fixture
def url(cluster: Cluster) -> str:
    return cluster.new_database()


@pytest.fixture
def inventory(url: str) -> Iterator[Inventory]:
    with Inventory.open(url, create=True) as opened:
        yield opened


def test_a_certificate_is_issued_repeated_renewed_and_revoked(inventory: Inventory) -> None:
    inventory.credential_add(credential_record(), "operator:a")
    first = enroll(inventory, grant_for(credential="sn-1"), 1, events=[event()])
    again = enroll(inventory, grant_for(credential="sn-1"), 2)
    assert (again.certificate, again.repeated) == (first.certificate, True)
    with pytest.raises(BadCredentials):
        inventory.reserve(grant_for("sn-9", credential="sn-1"), Serial(3), NOW)
    renewed = enroll(inventory, grant_for(key="next", predecessor=Serial(1)), 4)
    found = inventory.by_serial(first.serial)
    assert found is not None
    assert found.superseded_by == renewed.serial
    revoked = inventory.revoke(renewed.serial, "keyCompromise", "operator:a", NOW)
    assert [(one.serial, one.status) for one in revoked] == [(4, "revoked"), (1, "revoked")]
    assert [row.event.id for row in inventory.outbox.pending(9)] == ["01EVENT"]
    assert inventory.audit_verify().ok


def test_one_of_a_group_that_is_refused_takes_none_along(inventory: Inventory) -> None:
    claims = [Claim(grant_for(f"sn-{n}", "shared" if n in (2, 3) else None), Serial(n)) for n in range(1, 5)]
    slots = inventory.reserve_all(claims, NOW)
    assert [type(slot) for slot in slots] == [Reservation, Reservation, KeyReused, Reservation]
    signed = [Signed(slot, Der(b"c%d" % slot.serial)) for slot in slots if isinstance(slot, Reservation)]
    twice = [*signed, signed[0]]
    results = inventory.record_all(twice, NOW)
    assert [isinstance(one, Issued) for one in results] == [True, True, True, False]
    assert inventory.counters()["issued"] == 3
    assert inventory.audit_verify().ok


def test_a_bucket_is_shared_and_a_refusal_is_counted(inventory: Inventory) -> None:
    refusal = Refusal("policy-refused", ("because",), "simpleenroll", "", "credential:a", "192.0.2.1")
    bucket = Bucket("device_rate", "certificate:sn-1", Rate(2, HOUR))
    for _ in range(2):
        inventory.refuse(refusal, NOW, payment=[bucket])
    with pytest.raises(RateLimited):
        inventory.refuse(refusal, NOW, payment=[bucket])
    assert inventory.counters()["refused"] == 2


def test_servers_agree_on_lists_and_blocks(url: str, inventory: Inventory) -> None:
    enroll(inventory, grant_for(), 1)
    inventory.revoke_device(DeviceId("sn-1"), "keyCompromise", "operator:a", NOW)
    with Inventory.open(url, server_id="other") as other:
        build = inventory.crls.begin("", NOW, regular=True)
        assert build is not None
        assert other.crls.begin("", NOW, regular=True) is None
        inventory.crls.put(build, [b"a list", b" in parts"], NOW)
        record = CrlRecord("", build.number, NOW, NOW + HOUR, 1, 15)
        assert inventory.crls.publish(build, record, NOW)
        assert other.crls.published("") == record
        assert b"".join(other.crls.parts(record)) == b"a list in parts"
        assert not other.crls.standing("").news
        another = other.crls.begin("", NOW, regular=False)
        assert another is not None
        assert another.number > build.number
        assert list(other.crls.entries(another)) == [(1, NOW, "keyCompromise")]
        with pytest.raises(NotAuthorized):
            other.reserve(grant_for(key="new"), Serial(2), NOW)
        status = other.takeback.status(Serial(1))
        assert status is not None
        assert (status.revoked_at, status.reason) == (NOW, "keyCompromise")
        other.takeback.unblock(DeviceId("sn-1"), "operator:a", NOW)
    enroll(inventory, grant_for(key="new"), 2)
    assert [[one.serial for one in page] for page in inventory.takeback.chosen(Choice(issuer=""), NOW)] == [[2]]


def test_manufacturers_lists_are_shared(url: str, inventory: Inventory) -> None:
    inventory.anchor_add(AnchorRecord("acme", Der(b"anchor"), "{serial}", ("*",), NOW), "operator:a")
    inventory.foreign.want("acme", "/acme.crl", "refuse", "operator:a", NOW)
    inventory.foreign.replace("acme", {1, 1 << 200}, NOW, NOW + HOUR, NOW)
    inventory.foreign.replace("acme", {2, 1 << 200}, NOW, NOW + HOUR, NOW)
    with Inventory.open(url, server_id="other") as other:
        found = [other.foreign.status("acme", serial) for serial in (1, 2, 1 << 200)]
    assert [one is not None and one.revoked for one in found] == [False, True, True]
    inventory.anchor_remove("acme", "operator:a", NOW)
    assert inventory.foreign.all() == []


def _server(url: str, name: str, start: Barrier, count: int) -> None:
    number = int(name[-1])
    with Inventory.open(url, server_id=name) as inventory:
        start.wait(SECONDS_30)
        for turn in range(count):
            grant = grant_for(f"sn-{turn}", credential="line-1", requester="credential:line-1")
            slot = inventory.reserve(grant, Serial(1 + turn * 10 + number), NOW)
            if not isinstance(slot, Issued):
                inventory.record(slot, Der(f"{number} {turn}".encode()), [event(f"{number}-{turn}")], NOW)
            assert inventory.reserve(grant, Serial(9_000_000 + turn), NOW).device == f"sn-{turn}"


def test_servers_that_answer_the_same_requests_at_once_agree(url: str, inventory: Inventory) -> None:
    servers, turns = 3, 15
    inventory.credential_add(credential_record("line-1", uses=turns), "operator:a")
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(servers)
    running = [context.Process(target=_server, args=(url, f"server-{n}", start, turns)) for n in range(servers)]
    for one in running:
        one.start()
    for one in running:
        one.join(60)
    assert [one.exitcode for one in running] == [0] * servers
    assert inventory.counters()["issued"] == turns
    current = [inventory.current(DeviceId(f"sn-{turn}"), "device") for turn in range(turns)]
    assert all(record is not None and record.status == "valid" for record in current)
    spent = inventory.credential("line-1")
    assert spent is not None
    assert spent.spent == turns
    for name in (f"server-{n}" for n in range(servers)):
        with Inventory.open(url, server_id=name) as of_server:
            assert of_server.audit_verify().ok
            assert of_server.leftovers_void(NOW) == []
