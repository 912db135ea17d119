"""Lines without a network: a bundle carried over an air gap, a CA on the line's own machine; hooks, a full spool."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from devicesim.mqtt.broker import free_port
from estserver.errors import ConfigError
from estserver.home import Plan, found
from tests.e2e.test_line_run import Floor, fresh_id, manifest
from tests.est_server import Est, Home, RunningServer, found_home, today
from tests.unit.test_line_hooks import Mes

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def est(tmp_path_factory) -> Iterator[Est]:
    home = found_home(tmp_path_factory.mktemp("home"))
    with RunningServer(home) as server:
        yield Est(server)


@pytest.fixture
def floor(tmp_path, est) -> Floor:
    return Floor(tmp_path, est)


Done = subprocess.CompletedProcess[str]


def fill(floor: Floor, file: Path, out: Path, *more: str, cert: Path | None = None, key: Path | None = None) -> Done:
    identity = ("--cert", str(cert or floor.cert), "--key", str(key or floor.key))
    server = ("--server", floor.est.server.url, "--trust", str(floor.trust))
    return floor.line("bundle", "fill", str(file), *server, *identity, "--out", str(out), *more, config=False)


def offline(floor: Floor) -> None:
    """Nobody answers at the address that the line's settings name."""
    floor.config.write_text(
        floor.config.read_text().replace(floor.est.server.url, f"https://127.0.0.1:{free_port('127.0.0.1')}")
    )


def test_a_batch_crosses_an_air_gap(floor, tmp_path):
    assert floor.init().returncode == 0
    offline(floor)
    batch = manifest(floor.directory / "batch", fresh_id("sn"), 3, batch_id="gap")
    requests, back = tmp_path / "requests.bundle", tmp_path / "certificates.bundle"
    done = floor.line("bundle", "out", str(batch), "--out", str(requests))
    assert done.returncode == 0, done.stderr
    assert "3 requests of gap" in done.stdout
    assert "PASS" not in done.stdout + done.stderr

    done = fill(floor, requests, back)
    assert done.returncode == 0, done.stderr
    first = back.read_bytes()
    assert fill(floor, requests, back, "--json").returncode == 0
    assert answers(back.read_bytes()) == answers(first)

    broken = tmp_path / "broken.bundle"
    broken.write_bytes(first.replace(b'"payload":"e', b'"payload":"f', 1))
    assert floor.line("bundle", "in", str(broken)).returncode == 10
    assert floor.line("bundle", "in", str(requests)).returncode == 10

    done = floor.line("bundle", "in", str(back), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["yield"]["passed"] == report["yield"]["first_pass"] == 3
    assert floor.line("bundle", "in", str(back)).returncode == 0
    assert floor.line("verify", group="ledger").returncode == 0
    everything = requests.read_bytes() + back.read_bytes() + done.stdout.encode()
    assert b"PRIVATE KEY" not in everything


def answers(data: bytes) -> object:
    return json.loads(base64.b64decode(json.loads(data)["payload"]))["answers"]


def test_a_carrier_that_may_not_and_one_that_is_killed(floor, tmp_path):
    assert floor.init().returncode == 0
    offline(floor)
    batch = manifest(floor.directory / "batch", fresh_id("sn"), 12, batch_id="carrier")
    requests, back = tmp_path / "requests.bundle", tmp_path / "certificates.bundle"
    assert floor.line("bundle", "out", str(batch), "--out", str(requests)).returncode == 0
    cert, key = floor.enrol(fresh_id("s"), "station")  # one that the server lists for no device
    done = fill(floor, requests, back, cert=cert, key=key)
    assert done.returncode == 4, done.stdout + done.stderr
    assert done.stderr.count("REFUSED") == 12
    assert floor.line("bundle", "in", str(back)).returncode == 4

    command = [sys.executable, "-m", "devicesim", "line", "bundle", "fill", str(requests), "--out", str(back)]
    command += ["--server", floor.est.server.url, "--trust", str(floor.trust)]
    with subprocess.Popen([*command, "--cert", str(floor.cert), "--key", str(floor.key)]) as process:
        try:
            process.wait(1.5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    assert fill(floor, requests, back).returncode == 0
    done = floor.line("bundle", "in", str(back), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["yield"]["passed"] == 12
    assert floor.line("verify", group="ledger").returncode == 0


def test_a_ca_on_the_lines_own_machine_below_the_sites_root(tmp_path):
    site, usb, line = tmp_path / "site", tmp_path / "usb", tmp_path / "line2"
    names = ("localhost", "127.0.0.1")
    found(Plan(site, "Acme", names, "P-256", root_key_out=usb), now=today(), random=os.urandom)
    below = Plan(line, "Acme line 2", names, "P-256", root=site / "root.pem", root_key=usb / "root.key")
    wrong = replace(below, root_key=site / "private" / "issuing.key")
    with pytest.raises(ConfigError, match="is not the key of"):
        found(wrong, now=today(), random=os.urandom)
    with pytest.raises(ConfigError, match="is no root certificate"):
        found(replace(below, root=site / "issuing.pem"), now=today(), random=os.urandom)
    fingerprint = found(below, now=today(), random=os.urandom)
    (usb / "root.key").unlink()
    assert (line / "root.pem").read_bytes() == (site / "root.pem").read_bytes()
    assert sorted(path.name for path in (line / "private").iterdir()) == ["credential.key", "issuing.key", "tls.key"]

    with RunningServer(Home(line, fingerprint)) as server:
        floor = Floor(tmp_path, Est(server))
        floor.trust.write_bytes((site / "root.pem").read_bytes())
        assert floor.init().returncode == 0
        code, report = floor.run(manifest(tmp_path / "batch", fresh_id("sn"), 2, batch_id="own-ca"))
    assert code == 0, report
    issuing = x509.load_pem_x509_certificate((line / "issuing.pem").read_bytes())
    root = x509.load_pem_x509_certificate((site / "root.pem").read_bytes())
    issuing.verify_directly_issued_by(root)
    for unit in report["units"]:
        files = list((floor.config.parent / "devices" / unit["device_id"]).rglob("*.pem"))
        certificates = [
            certificate
            for path in files
            if b"BEGIN CERTIFICATE" in path.read_bytes()
            for certificate in x509.load_pem_x509_certificates(path.read_bytes())
        ]
        leaf = next(found for found in certificates if f"{found.serial_number:x}" == unit["cert_serial"])
        leaf.verify_directly_issued_by(issuing)


def test_hooks_at_the_command_line(floor):
    with Mes(lambda body: (403, b"blocked") if body["device_id"].endswith("2") else (200, b"")).serving() as mes:
        assert floor.init().returncode == 0
        before = floor.config.read_text()
        hooks = f'\n[hooks.allow]\ncall = "{mes.url}"\non_error = "deny"\ntimeout = "10s"\n'
        away = hooks + '[hooks.done]\ncall = "http://127.0.0.1:1/"\non_error = "queue"\n'
        floor.config.write_text(before + away)
        batch = manifest(floor.directory / "batch", fresh_id("sn"), 3, batch_id="hooks")
        done = floor.line("run", str(batch))
        assert done.returncode == 4
        assert "E-POLICY" in done.stderr
        assert "blocked" in done.stderr
        assert "warning: pushes to [hooks.done] wait: " in done.stderr
        mes.answer = lambda _body: (200, b"")
        assert floor.run(batch)[0] == 9
        floor.config.write_text(before + hooks + f'[hooks.done]\ncall = "{mes.url}"\non_error = "stop"\n')
        assert floor.run(batch)[0] == 0
    told = [body for body in mes.heard if body["event"] == "done"]
    assert len({body["id"] for body in told}) == len(told) == 3
    assert floor.line("verify", group="ledger").returncode == 0


def test_what_a_full_spool_leaves_is_flushed(floor):
    assert floor.init("--mqtt", floor.broker_url).returncode == 0
    text = floor.config.read_text().replace('drain = "20s"', 'drain = "200ms"').replace("10000", "2")
    floor.config.write_text(text.replace("birth = true", "birth = false"))
    batch = manifest(floor.directory / "batch", fresh_id("sn"), 4, batch_id="spool")
    code, report = floor.run(batch)
    assert code == 9
    assert report["yield"]["passed"] == report["announcements_owed"] == 2
    shown = floor.line("status", "--json", group="announce")
    assert (shown.returncode, json.loads(shown.stdout)["owed"]) == (9, 2)
    assert floor.line("dead", group="announce").stdout == "no dead letter\n"
    assert floor.line("dead", "--retry", "nobody", group="announce").returncode == 2
    with floor.broker("embedded"):
        flushed = floor.line("flush", "--json", group="announce")
        assert flushed.returncode == 0, flushed.stderr
        assert json.loads(flushed.stdout)["sent"] == 2
        assert floor.line("status", group="announce").returncode == 0
        floor.config.write_text(floor.config.read_text().replace('drain = "200ms"', 'drain = "20s"'))
        code, report = floor.run(batch)
        while code == 9 and report["yield"]["passed"] < 4:
            code, report = floor.run(batch)
    assert code == 0, report
    assert len({event["id"] for event in floor.events()}) == 4
