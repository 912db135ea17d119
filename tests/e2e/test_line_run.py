"""A batch on a real line: the server as a process, a broker, the command line; nothing twice, nothing lost."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from devicesim.line.ledger import Ledger
from devicesim.mqtt.access import Access
from devicesim.mqtt.broker import BrokerSettings, EmbeddedBroker, MosquittoBroker, free_port
from devicesim.mqtt.connection import BrokerUrl, MqttIdentity
from devicesim.mqtt.subscriber import Watcher
from devicesim.trust import TrustAnchors
from tests.conftest import require_program
from tests.est_server import Est, Holder, RunningServer, found_home, fresh_id, today
from tests.line_support import write_files
from tests.mqtt_pki import Pki

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def est(tmp_path_factory) -> Iterator[Est]:
    home = found_home(tmp_path_factory.mktemp("home"))
    with RunningServer(home) as server:
        yield Est(server)


@dataclass
class Floor:
    """A factory floor: a station's folder, its certificate enrolled over EST, and the command line."""

    directory: Path
    est: Est
    broker_port: int = 0

    def __post_init__(self) -> None:
        self.trust = self.directory / "root.pem"
        self.trust.write_bytes((self.est.home.path / "root.pem").read_bytes())
        self.station, self.reader = fresh_id("s"), fresh_id("registry")
        self.cert, self.key = self.enrol(self.station, "station")
        self.est.home.station(self.station, "sn-*", "gw-*")
        self.broker_port = free_port("127.0.0.1")
        self.config = self.directory / "station" / "line.toml"

    def enrol(self, name: str, label: str, **request: Any) -> tuple[Path, Path]:
        return self.est.device(name, label=label, **request).write(self.directory, name)

    def init(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.line(
            *(
                "init",
                str(self.config.parent),
                "--site",
                "hh1",
                "--station",
                self.station,
                "--est",
                self.est.server.url,
            ),
            *("--trust", str(self.trust), "--cert", str(self.cert), "--key", str(self.key), *more),
            config=False,
        )

    def line(self, *arguments: str, config: bool = True, group: str = "line") -> subprocess.CompletedProcess[str]:
        with_config = ("--config", str(self.config)) if config else ()
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "devicesim", group, *arguments, *with_config],
            check=False,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def run(self, batch: Path, *more: str) -> tuple[int, dict[str, Any]]:
        done = self.line("run", str(batch), "--json", *more)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    @property
    def broker_url(self) -> str:
        return f"mqtts://localhost:{self.broker_port}"

    def broker(self, kind: str) -> EmbeddedBroker | MosquittoBroker:
        pem, key = self.enrol(fresh_id("broker"), "server", san=("dns:localhost",))
        names = Access(stations=(self.station,), announcers=("estserver",), readers=(self.reader,))
        settings = BrokerSettings(self.directory / "broker", pem, key, self.trust, names, port=self.broker_port)
        return EmbeddedBroker(settings) if kind == "embedded" else MosquittoBroker(settings)

    def events(self) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.config.with_name("line.db"))) as conn:
            return [json.loads(row[0]) for row in conn.execute("SELECT payload FROM outbox ORDER BY seq")]


def manifest(directory: Path, prefix: str, count: int, *, batch_id: str, more: str = "") -> Path:
    rows = [f"{prefix}-{n:04d},{prefix.upper()}{n:04d},sensor,,\n" for n in range(1, count + 1)]
    return write_files(directory, rows, more='profile = "device"\n' + more, batch_id=batch_id)


@pytest.fixture
def floor(tmp_path, est) -> Floor:
    return Floor(tmp_path, est)


def idevid(pki: Pki, serial: str) -> Holder:
    """What a device was born with: its manufacturer's name for it, as serialNumber."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, serial)]))
        .issuer_name(pki.root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today() - timedelta(days=1))
        .not_valid_after(today() + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(pki.key.public_key()), critical=False)
        .sign(pki.key, hashes.SHA256())
    )
    return Holder(key, certificate)


@pytest.mark.parametrize("kind", ["embedded", "mosquitto"])
def test_a_batch_enrols_installs_announces_and_is_heard(floor, kind):
    if kind == "mosquitto":
        require_program("mosquitto", "mosquitto")
    prefix = f"sn-{kind[0]}"
    assert floor.init("--mqtt", floor.broker_url).returncode == 0
    batch = manifest(floor.directory / "batch", prefix, 4, batch_id="b1")
    ears = floor.enrol(floor.reader, "service")
    with floor.broker(kind):
        trust = TrustAnchors.from_file(floor.trust)
        identity = MqttIdentity(*ears, floor.trust, floor.reader)
        with Watcher(BrokerUrl.parse(floor.broker_url), identity, trust) as watcher:
            code, report = floor.run(batch)
            assert code == 0, report
            assert report["yield"]["passed"] == report["yield"]["first_pass"] == 4
            assert {unit["state"] for unit in report["units"]} == {"announced"}
            assert {unit["birth"] for unit in report["units"]} == {"done"}
            devices = [unit["device_id"] for unit in report["units"]]
            assert watcher.wait_for(
                lambda heard: all(heard.matched(d).provisioned and heard.matched(d).birth for d in devices), 20
            )
            for device in devices:
                match = watcher.matched(device)
                assert match.provisioned is not None
                assert match.birth is not None
                assert match.birth.data["cert_sha256"] == match.provisioned.data["cert"]["sha256"]
                assert match.birth.data["answers"] == match.provisioned.id
            assert not watcher.report().refused

        before = floor.events()
        code, report = floor.run(batch)
        assert code == 0
        assert floor.events() == before


def test_three_ways_to_ask(floor, tmp_path):
    assert floor.init().returncode == 0
    name, secret = floor.est.home.credential("gw-0001", label="device")
    (tmp_path / "password").touch(0o600)
    (tmp_path / "password").write_text(secret + "\n")
    maker = Pki(tmp_path / "maker", today(), "Acme Devices")
    floor.est.home.anchor("acme", maker.root, devices="gw-*")
    idevid(maker, "gw-0002").write(tmp_path, "born")
    more = (
        f'[unit."gw-0001"]\nenrol = "otp"\nuser = "{name}"\npassword_file = "../password"\n'
        '[unit."gw-0002"]\nenrol = "idevid"\ncert = "../born.pem"\nkey = "../born.key"\n'
    )
    batch = manifest(floor.directory / "batch", "gw", 3, batch_id="three", more=more)
    done = floor.line("run", str(batch), "--slots", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "[3/3]" in done.stderr
    everything = done.stdout + done.stderr + (floor.config.parent / "out/three/report.json").read_text()
    assert secret not in everything
    assert "PRIVATE KEY" not in everything
    assert b"PRIVATE KEY" not in floor.config.with_name("line.db").read_bytes()


def test_a_broker_that_is_down_costs_nothing_but_time(floor):
    assert floor.init("--mqtt", floor.broker_url).returncode == 0
    floor.config.write_text(floor.config.read_text().replace('drain = "20s"', 'drain = "1s"'))
    batch = manifest(floor.directory / "batch", "sn-d", 3, batch_id="down")
    code, report = floor.run(batch)
    assert code == 9, report
    assert report["yield"]["passed"] == 3
    assert report["announcements_owed"] == 3
    assert report["births_pending"] == 3
    told = floor.line("run", str(batch)).stderr
    assert "warning: announcements wait: " in told
    assert "warning: births wait: " in told
    before = floor.events()

    floor.config.write_text(floor.config.read_text().replace('drain = "1s"', 'drain = "20s"'))
    with floor.broker("embedded"):
        code, report = floor.run(batch)
    assert code == 0, report
    assert {unit["state"] for unit in report["units"]} == {"announced"}
    assert [event["id"] for event in floor.events()] == [event["id"] for event in before]


def test_killed_in_the_middle_and_run_again(floor):
    assert floor.init().returncode == 0
    batch = manifest(floor.directory / "batch", "sn-k", 12, batch_id="kill")
    command = [
        sys.executable,
        "-m",
        "devicesim",
        "line",
        "run",
        str(batch),
        "--config",
        str(floor.config),
        "--slots",
        "2",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "PASS" in line:
                process.send_signal(signal.SIGKILL)
                break
        process.wait(30)
    code, report = floor.run(batch)
    assert code == 0, report
    assert report["yield"]["passed"] == report["yield"]["first_pass"] == 12
    assert len({unit["cert_serial"] for unit in report["units"]}) == 12


def test_a_signal_stops_between_two_steps(floor):
    assert floor.init().returncode == 0
    batch = manifest(floor.directory / "batch", "sn-s", 30, batch_id="signal")
    command = [
        sys.executable,
        "-m",
        "devicesim",
        "line",
        "run",
        str(batch),
        "--config",
        str(floor.config),
        "--slots",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "PASS" in line:
                process.send_signal(signal.SIGTERM)
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "waiting" in out
    assert floor.run(batch)[1]["yield"]["passed"] == 30


def test_mistakes_are_one_line_and_the_right_code(floor):
    assert floor.init().returncode == 0
    again = floor.init()
    assert again.returncode == 5
    assert again.stderr.startswith("error: ")

    batch = manifest(floor.directory / "batch", "sn-m", 1, batch_id="mistakes")
    bad = write_files(floor.directory / "bad", ["SN,A1,sensor,,\n", "sn-2,A1,,x,\n"])
    done = floor.line("check", str(bad), config=False)
    assert done.returncode == 3
    assert f"{bad.parent / 'units.csv'}:2: device_id:" in done.stderr
    assert f"{bad.parent / 'units.csv'}:3: mac:" in done.stderr
    assert floor.line("run", str(bad)).returncode == 3
    assert floor.line("report", "none").returncode == 2

    text = floor.config.read_text()
    floor.config.write_text(
        text.replace(str(floor.est.server.port), str(free_port("127.0.0.1"))).replace("retries = 5", "retries = 0")
    )
    done = floor.line("run", str(batch))
    assert done.returncode == 6, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")

    floor.config.write_text(text.replace(f'station = "{floor.station}"', 'station = "s-other"'))
    done = floor.line("run", str(batch))
    assert done.returncode == 3
    assert "s-other" in done.stderr


def test_a_station_asks_only_for_its_own_devices(floor):
    assert floor.init().returncode == 0
    batch = manifest(floor.directory / "batch", "xx", 1, batch_id="foreign")
    code, report = floor.run(batch)
    assert code == 4
    assert report["failures"] == {"E-EST-DENY": 1}
    assert report["units"][0]["failure_text"]


def test_two_runs_on_one_ledger_exclude_each_other(floor):
    assert floor.init().returncode == 0
    batch = manifest(floor.directory / "batch", "sn-x", 1, batch_id="locked")
    with Ledger(floor.config.with_name("line.db"), clock=lambda: datetime.now(UTC)) as ledger, ledger.exclusive():
        done = floor.line("run", str(batch))
    assert done.returncode == 11
    status = floor.line("status", "--json")
    assert status.returncode == 0
    assert json.loads(status.stdout) == {"batches": [], "announcements_owed": 0, "revocations_owed": []}


def test_a_unit_is_reissued_scrapped_proven_and_traced(floor, tmp_path):
    assert floor.init("--mqtt", floor.broker_url).returncode == 0
    people = (
        '\n[rework]\nold_certificate = "revoke"\n[operators]\n"op-1" = ["operate", "rework"]\n"op-2" = ["approve"]\n'
    )
    floor.config.write_text(floor.config.read_text().replace('drain = "20s"', 'drain = "1s"') + people)
    batch = manifest(floor.directory / "batch", "sn-w", 2, batch_id="rework")
    assert floor.line("run", str(batch)).returncode == 2
    assert floor.run(batch, "--operator", "op-1")[0] == 9
    because = ("--reason", "component-replaced", "--operator", "op-1")
    refused = floor.line("rework", "reissue", "sn-w-0001", *because)
    assert refused.returncode == 2
    assert "second person" in refused.stderr
    assert floor.line("rework", "reissue", "sn-w-0001", *because, "--second", "op-2").returncode == 0
    code, report = floor.run(batch, "--operator", "op-1")
    assert code == 9, report
    assert report["yield"]["passed"] == 2
    assert floor.line("rework", "scrap", "sn-w-0002", *because, "--second", "op-2").returncode == 0

    (first,) = [order for order in status(floor)["revocations_owed"] if order["device_id"] == "sn-w-0001"]
    text = floor.line("status").stdout
    assert f"revocation owed: certificate {first['cert_serial']} of sn-w-0001" in text
    assert floor.line("rework", "revoked", "sn-w-0001", "--operator", "op-1").returncode == 0
    assert [order["device_id"] for order in status(floor)["revocations_owed"]] == ["sn-w-0002"]

    by_type = [event["type"].split(".")[-2] for event in floor.events()]
    assert by_type == ["provisioned", "provisioned", "reprovisioned", "scrapped"]
    told = floor.events()[2]["data"]
    assert (told["operator"], told["supersedes"]["cert"]["serial"]) == ("op-1", first["cert_serial"])

    story = json.loads(floor.line("trace", "sn-w-0001", "--json").stdout)
    assert [event["what"] for event in story["events"]].count("reissue") == 1
    assert "reissue" in floor.line("trace", "sn-w-0001").stdout

    point, proof = str(tmp_path / "checkpoint.json"), str(tmp_path / "proof.json")
    assert ledger(floor, "checkpoint", "--out", point).returncode == 0
    assert ledger(floor, "verify", "--seen", point).returncode == 0
    assert ledger(floor, "prove", "sn-w-0001", "--out", proof).returncode == 0
    assert "sn-w-0001" in ledger(floor, "show", "sn-w-0001").stdout
    checked = ledger(floor, "check", proof, "--trust", str(floor.trust), config=False)
    assert checked.returncode == 0, checked.stderr
    assert "op-1" in checked.stdout
    text = Path(proof).read_text()
    Path(proof).write_text(text.replace("component-replaced", "operator-error"))
    assert ledger(floor, "check", proof, "--trust", str(floor.trust), config=False).returncode == 10
    with closing(sqlite3.connect(floor.config.with_name("line.db"))) as conn:
        conn.execute("UPDATE event SET at = '2020' WHERE seq = 4")
        conn.commit()
    broken = ledger(floor, "verify")
    assert broken.returncode == 10
    assert "event 4" in broken.stderr


def test_another_line_refuses_what_this_one_made(floor, tmp_path, est):
    assert floor.init().returncode == 0
    batch = manifest(floor.directory / "batch", "sn-y", 2, batch_id="first")
    assert floor.run(batch)[0] == 0
    known = str(tmp_path / "known.set")
    assert ledger(floor, "export-set", known).returncode == 0
    assert floor.line("run", str(batch), "--known-set", known).returncode == 3  # its own
    (tmp_path / "other").mkdir()
    other = Floor(tmp_path / "other", est)
    assert other.init().returncode == 0
    done = other.line("run", str(batch), "--known-set", known)
    assert done.returncode == 5
    assert f"of station {floor.station}" in done.stderr
    Path(known).write_text(Path(known).read_text().replace("a", "b", 1))
    assert other.line("run", str(batch), "--known-set", known).returncode == 10


def status(floor: Floor) -> dict[str, Any]:
    return dict(json.loads(floor.line("status", "--json").stdout))


def ledger(floor: Floor, *arguments: str, config: bool = True) -> subprocess.CompletedProcess[str]:
    return floor.line(*arguments, config=config, group="ledger")
