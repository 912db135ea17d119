"""A dry run: everything a run needs is tried on the real server and broker; nothing is written, nothing enrolled."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from devicesim.line.ledger import Ledger
from devicesim.mqtt.broker import free_port
from tests.e2e.test_line_run import Floor, manifest
from tests.est_server import Est, RunningServer, found_home, today
from tests.line_support import write_files
from tests.mqtt_pki import CLIENT, Pki

pytestmark = pytest.mark.e2e
NAMES = [
    *("batch", "settings", "lease", "ledger", "disk", "certificate", "credentials", "est server", "clock"),
    *("csr attributes", "broker", "labels"),
]


@pytest.fixture(scope="module")
def est(tmp_path_factory) -> Iterator[Est]:
    home = found_home(tmp_path_factory.mktemp("home"))
    gateway = home.path / "profiles" / "gateway.toml"
    gateway.write_text(re.sub(r"key_types = .*", 'key_types = ["P-384"]', gateway.read_text("utf-8")), "utf-8")
    with RunningServer(home) as server:
        yield Est(server)


@pytest.fixture
def floor(tmp_path, est) -> Floor:
    floor = Floor(tmp_path, est)
    assert floor.init("--mqtt", floor.broker_url).returncode == 0
    return floor


def rehearse(floor: Floor, batch: Path, *more: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = floor.line("run", str(batch), "--dry-run", "--json", *more)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.returncode
    assert told["ready"] is (done.returncode == 0)
    assert [check["name"] for check in told["checks"]] == NAMES
    for check in told["checks"]:
        if check["outcome"] == "FAIL":
            assert check["advice"], check
    return done.returncode, {check["name"]: check for check in told["checks"]}


def failed(checks: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {name: check["exit_code"] for name, check in checks.items() if check["outcome"] == "FAIL"}


def skipped(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if check["outcome"] == "SKIP"}


def files(directory: Path) -> dict[str, bytes]:
    """Every file but the lock, which says nothing."""
    found = (path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path): path.read_bytes() for path in found}


def certificates(floor: Floor) -> int:
    with closing(sqlite3.connect(floor.est.home.path / "estserver.db")) as conn:
        return int(conn.execute("SELECT count(*) FROM certificate").fetchone()[0])


def change(floor: Floor, old: str, new: str) -> None:
    text = floor.config.read_text()
    assert old in text
    floor.config.write_text(text.replace(old, new))


def without_broker(floor: Floor) -> None:
    text = floor.config.read_text()
    floor.config.write_text(text[: text.index("[mqtt]")])


def test_a_station_that_is_ready_is_told_so_and_nothing_happens(floor):
    batch = manifest(floor.directory / "batch", "sn-r", 3, batch_id="ready")
    with floor.broker("embedded"):
        before, issued = files(floor.directory), certificates(floor)
        code, checks = rehearse(floor, batch)
        assert (code, failed(checks), skipped(checks)) == (0, {}, set())
        assert "3 new units" in checks["ledger"]["text"]
        assert "EC-P256" in checks["csr attributes"]["text"]
        assert files(floor.directory) == before
        assert certificates(floor) == issued
        done = floor.line("run", str(batch), "--dry-run")
        assert done.stdout.splitlines()[-1].startswith("ready")
        assert sum(line.startswith("PASS") for line in done.stdout.splitlines()) == len(NAMES)
        assert floor.run(batch)[0] == 0
        code, checks = rehearse(floor, batch)
        assert (code, failed(checks)) == (0, {})
        assert "0 of 3 units" in checks["ledger"]["text"]


def test_what_is_down_is_named_and_the_rest_is_tried(floor):
    batch = manifest(floor.directory / "batch", "sn-n", 1, batch_id="down")
    code, checks = rehearse(floor, batch)
    assert (code, failed(checks), skipped(checks)) == (6, {"broker": 6}, set())
    change(floor, str(floor.est.server.port), str(free_port("127.0.0.1")))
    code, checks = rehearse(floor, batch)
    assert code == 6
    assert failed(checks) == {"est server": 6, "clock": 6, "csr attributes": 6, "broker": 6}


def test_files_that_are_wrong_are_named_with_their_rows(floor):
    bad = write_files(floor.directory / "bad", ["SN,A1,sensor,,\n", "sn-2,A1,,x,\n"])
    code, checks = rehearse(floor, bad)
    assert code == 3
    assert "units.csv:2: device_id" in checks["batch"]["text"]
    assert "units.csv:3: mac" in checks["batch"]["text"]
    assert skipped(checks) == {"lease", "ledger", "disk", "credentials", "csr attributes"}
    change(floor, "slots = 4", "slots = 0")
    code, checks = rehearse(floor, bad)
    assert failed(checks) == {"batch": 3, "settings": 3}
    assert skipped(checks) == set(NAMES) - {"batch", "settings"}


def test_what_the_ledger_has_already_is_a_conflict(floor):
    without_broker(floor)
    assert floor.run(manifest(floor.directory / "one", "sn-c", 2, batch_id="one"))[0] == 0
    code, checks = rehearse(floor, manifest(floor.directory / "two", "sn-c", 2, batch_id="two"))
    assert (code, failed(checks)) == (5, {"ledger": 5})
    assert "sn-c-0001" in checks["ledger"]["text"]
    assert checks["broker"]["outcome"] == "PASS"


def test_a_run_under_way_is_not_disturbed(floor):
    batch = manifest(floor.directory / "batch", "sn-w", 1, batch_id="busy")
    with Ledger(floor.config.with_name("line.db"), clock=today) as ledger, ledger.exclusive():
        code, checks = rehearse(floor, batch)
    assert (code, failed(checks)) == (11, {"ledger": 11})
    assert skipped(checks) == {"broker"}


def test_a_certificate_that_will_not_do_is_found_before_the_server_says_so(floor):
    batch = manifest(floor.directory / "batch", "sn-z", 1, batch_id="cert")
    pki = Pki(floor.directory / "pki", today())

    def use(cert: Path, key: Path) -> dict[str, int]:
        text = floor.config.read_text().splitlines()
        lines = [
            f'cert = "{cert}"' if t.startswith("cert =") else f'key = "{key}"' if t.startswith("key =") else t
            for t in text
        ]
        floor.config.write_text("\n".join(lines) + "\n")
        _, checks = rehearse(floor, batch)
        assert {"est server", "broker"} <= skipped(checks)
        return failed(checks)

    plain = pki.issue(floor.station, CLIENT).files
    assert use(plain.certificate_path, plain.key_path) == {"certificate": 10}
    old = pki.issue(floor.station, CLIENT, days=(-30, -1)).files
    assert use(old.certificate_path, old.key_path) == {"certificate": 10}
    assert use(floor.cert, plain.key_path) == {"certificate": 3}
    other = pki.station("s-other").files
    assert use(other.certificate_path, other.key_path) == {"certificate": 3}
    floor.key.chmod(0o644)
    assert use(floor.cert, floor.key) == {"certificate": 3}


def test_a_server_that_is_not_the_one_to_trust_is_named(floor):
    pki = Pki(floor.directory / "pki", today())
    floor.trust.write_bytes(pki.trust_path.read_bytes())
    code, checks = rehearse(floor, manifest(floor.directory / "batch", "sn-t", 1, batch_id="trust"))
    assert code == failed(checks)["est server"] == 10
    assert checks["certificate"]["outcome"] == "PASS"


def test_credentials_of_units_that_ask_for_themselves_are_looked_at(floor):
    secret = floor.directory / "password"
    secret.write_text("hunter2\n")
    secret.chmod(0o644)
    more = '[unit."gw-0001"]\nenrol = "otp"\npassword_file = "../password"\n'
    batch = manifest(floor.directory / "batch", "gw", 1, batch_id="otp", more=more)
    _, checks = rehearse(floor, batch)
    assert failed(checks)["credentials"] == 3
    assert "gw-0001" in checks["credentials"]["text"]
    assert "hunter2" not in json.dumps(checks)
    secret.chmod(0o600)
    _, checks = rehearse(floor, batch)
    assert checks["credentials"]["outcome"] == "PASS"


def test_the_kind_of_key_that_the_server_asks_for_is_said(floor):
    rows = ["sn-y1,Y1,sensor,,\n", "sn-y2,Y2,gateway,,\n"]
    more = 'profile = "device"\nkey_type = "Ed25519"\n[product.gateway]\nprofile = "gateway"\n'
    _, checks = rehearse(floor, write_files(floor.directory / "batch", rows, more=more))
    assert checks["csr attributes"]["text"] == "device: Ed25519; gateway: EC-P384 instead of EC-P256"


def test_a_leased_part_is_run_and_nothing_else(floor):
    without_broker(floor)
    directory = floor.directory / "leased"
    directory.mkdir()
    batch = directory / "batch.toml"
    batch.write_text(
        'id = "leased"\nquantity = 5\nleased = true\nprofile = "device"\n'
        '[serial]\ntemplate = "SN-{n:05}-{check}"\ncheck = "iso7064-37-36"\n[product.sensor]\n'
    )
    shares = f"{floor.station}:2,s-elsewhere:3"
    done = floor.line("lease", "split", str(batch), "--stations", shares, "--out", str(directory / "l"), config=False)
    assert done.returncode == 0, done.stderr
    mine, other = sorted((directory / "l").iterdir())
    code, checks = rehearse(floor, batch)
    assert (code, failed(checks)) == (2, {"lease": 2})
    code, checks = rehearse(floor, batch, "--lease", str(other))
    assert (code, failed(checks)) == (5, {"lease": 5})
    assert floor.line("run", str(batch)).returncode == 2
    assert floor.line("run", str(batch), "--lease", str(other)).returncode == 5
    code, checks = rehearse(floor, batch, "--lease", str(mine))
    assert (code, failed(checks)) == (0, {})
    code, report = floor.run(batch, "--lease", str(mine))
    assert code == 0, report
    assert [unit["device_id"][:8] for unit in report["units"]] == ["sn-00001", "sn-00002"]
    assert floor.run(batch, "--lease", str(mine))[0] == 0
