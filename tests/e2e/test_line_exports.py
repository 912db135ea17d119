"""Exports at the command line, of ledgers that a line made with a real server."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509

from devicesim.exports.registry import formats_known
from tests.e2e.test_line_run import Floor, fresh_id, manifest
from tests.est_server import Est, RunningServer, found_home

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def est(tmp_path_factory) -> Iterator[Est]:
    home = found_home(tmp_path_factory.mktemp("home"))
    with RunningServer(home) as server:
        yield Est(server)


@pytest.fixture(scope="module")
def made(tmp_path_factory, est) -> tuple[Floor, str]:
    """A floor with a batch of three that has passed."""
    floor, batch = Floor(tmp_path_factory.mktemp("floor"), est), fresh_id("b")
    floor.init()
    code, _ = floor.run(manifest(floor.directory / batch, fresh_id("sn"), 3, batch_id=batch))
    assert code == 0
    return floor, batch


@pytest.mark.parametrize("name", sorted(formats_known()))
def test_every_format_of_a_real_batch(made, name, tmp_path):
    floor, batch = made
    done = floor.line("export", name, "--batch", batch, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert f"3 units of batch {batch} written, read back and compared" in done.stdout
    missing = formats_known()[name].missing()
    assert (f"{name} does not hold: {', '.join(missing)}" in done.stdout) is bool(missing)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0o600}
    again = floor.line("export", name, "--batch", batch, "--out", str(tmp_path / "out"), "--json")
    assert (again.returncode, again.stdout) == (5, "")
    assert "exists — an export writes over nothing" in again.stderr


def test_the_chain_is_the_one_openssl_verifies(made, tmp_path):
    floor, batch = made
    floor.line("export", "tree", "--batch", batch, "--out", str(tmp_path))
    folders = [path for path in (tmp_path / batch).iterdir() if path.is_dir()]
    assert len(folders) == 3
    for folder in folders:
        chain = folder / "chain.pem"
        assert len(x509.load_pem_x509_certificates(chain.read_bytes())) == 2
        verified = subprocess.run(
            ["openssl", "verify", "-CAfile", floor.trust, "-untrusted", chain, folder / "cert.pem"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert verified.returncode == 0, verified.stderr
        request = subprocess.run(
            ["openssl", "req", "-inform", "DER", "-in", folder / "csr.der", "-verify", "-noout"],
            capture_output=True,
            check=False,
        )
        assert request.returncode == 0


@pytest.mark.parametrize("name", ["jsonl", "microchip"])
def test_a_tampered_manifest_is_found_and_the_unit_named(made, name, tmp_path):
    floor, batch = made
    said = floor.line("export", name, "--batch", batch, "--out", str(tmp_path), "--json")
    path = Path(json.loads(said.stdout)["paths"][0])
    verify = ("manifest", "verify", str(path), "--trust", str(floor.trust))
    sound = floor.line(*verify, config=False)
    assert (sound.returncode, sound.stdout) == (0, f"3 units verified, signed by {floor.station}; 0 problems\n")
    lines = path.read_text("utf-8").splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if line.startswith("{"))
    entry = json.loads(lines[at].strip().removesuffix(","))
    middle = len(entry["payload"]) // 2
    other = "A" if entry["payload"][middle] != "A" else "B"
    entry["payload"] = entry["payload"][:middle] + other + entry["payload"][middle + 1 :]
    lines[at] = json.dumps(entry, separators=(",", ":")) + (",\n" if name == "microchip" else "\n")
    path.write_text("".join(lines), "utf-8")
    found = floor.line(*verify, "--json", config=False)
    assert found.returncode == 10
    answer = json.loads(found.stdout)
    assert (answer["verified"], len(answer["problems"])) == (2, 1)
    assert "does not fit" in answer["problems"][0]["problem"]
    assert floor.line(*verify, config=False).stdout.startswith("entry 1: ")


def test_a_tampered_ledger_exports_nothing(made, tmp_path):
    floor, batch = made
    ledger, kept = floor.config.with_name("line.db"), tmp_path / "kept.db"
    shutil.copy(ledger, kept)
    with closing(sqlite3.connect(ledger)) as conn:
        conn.execute("UPDATE event SET body = replace(body, 'batch', 'botch') WHERE seq = 1")
        conn.commit()
    try:
        done = floor.line("export", "csv", "--batch", batch, "--out", str(tmp_path / "out"))
    finally:
        kept.replace(ledger)
    assert done.returncode == 10
    assert "the ledger was altered" in done.stderr
    assert not (tmp_path / "out").exists()


def test_units_that_did_not_pass_are_left_out_and_the_exit_code_says_so(est, tmp_path):
    floor, batch, stem = Floor(tmp_path, est), fresh_id("b"), fresh_id("sn")
    floor.init()
    path = manifest(tmp_path / batch, stem, 2, batch_id=batch)
    units = path.with_name("units.csv")
    units.write_text(units.read_text("utf-8").replace(f"{stem}-0002", "zz-0002"), "utf-8")
    code, _ = floor.run(path)
    assert code == 4
    done = floor.line("export", "csv", "--batch", batch, "--out", str(tmp_path / "out"))
    assert done.returncode == 4
    assert "warning: 1 units have not passed and are left out" in done.stderr


def test_mistakes_are_one_line(made, tmp_path):
    floor, batch = made
    out = ("--out", str(tmp_path / "out"))
    for arguments, code in (
        (("export", "xml", "--batch", batch, *out), 2),
        (("export", "csv", "--batch", "nothing", *out), 2),
        (("export", "csv", *out), 2),
    ):
        done = floor.line(*arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    (tmp_path / "none.txt").write_text("hello")
    for file in (tmp_path / "none.txt", tmp_path / "absent.json"):
        done = floor.line("manifest", "verify", str(file), "--trust", str(floor.trust), config=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
    assert not (tmp_path / "out").exists()


def test_every_format_is_listed(made):
    floor, _ = made
    listed = json.loads(floor.line("export", "--list", "--json", config=False).stdout)["formats"]
    assert [form["name"] for form in listed] == sorted(formats_known())
    assert {form["name"] for form in listed if form["signed"]} == {"jsonl", "microchip"}
    assert "aws-bulk does not hold: hw_rev, mac, se_id" in floor.line("export", "--list", config=False).stdout
