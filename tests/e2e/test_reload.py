"""Profiles that change beside a running server: a sound one counts after SIGHUP, another never; nobody is stranded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.codec import parse_csrattrs
from tests.csr_maker import new_key, request
from tests.e2e.test_serve import wait_until, worker_pids
from tests.est_server import Est, Holder, Home, RunningServer, found_home, fresh_id

pytestmark = pytest.mark.e2e
ALL_KEYS = '["P-256", "P-384", "P-521", "RSA", "Ed25519", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87"]'


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home")


def profile(home: Home, *changes: tuple[str, str]) -> None:
    """Write the profile `device` anew, with these changes."""
    file = home.path / "profiles" / "device.toml"
    text = file.read_text("utf-8")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    file.write_text(text, "utf-8")


def reloaded(running: RunningServer, words: str) -> None:
    """SIGHUP, and wait for what the server says."""
    already = running.stderr.count(words)
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: running.stderr.count(words) > already)


def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def renewed(est: Est, device: Holder) -> int:
    return est.reenroll(request(new_key(), device.device), device).status


def test_a_stricter_profile_counts_after_a_reload_in_every_voice_and_strands_nobody(home: Home, tmp_path: Path) -> None:
    with RunningServer(home) as running:
        est = Est(running)
        device = est.device("sn-fleet")
        profile(home, (ALL_KEYS, '["P-384"]'))
        assert est.enroll(request(new_key(), fresh_id())).status == 200, "until it is read, nothing changes"
        reloaded(running, "read again")
        refused = est.enroll(request(new_key(), fresh_id()))
        assert (refused.status, "P-256 offered; profile device takes P-384" in refused.text) == (400, True)
        assert est.enroll(request(p384(), fresh_id())).status == 200
        wish = parse_csrattrs(est.get("csrattrs").der).key
        assert wish is not None
        assert wish.curve == "1.3.132.0.34"
        assert renewed(est, device) == 200
        wait_until(lambda: "renews at par" in running.stderr)
        assert re.search(r'WARNING .*"?sn-fleet renews at par, request [0-9a-f]+: P-256 offered', running.stderr)
        told = [row["detail"]["tolerated"] for row in home.audit() if "tolerated" in row["detail"]]
        assert told == [["P-256 offered; profile device takes P-384"]]
        tried(home, device, tmp_path, "granted at par by profile device", "P-256 offered")
        profile(home, ("[renewal]", "[renewal]\nat_par = false"))
        reloaded(running, "read again")
        assert renewed(est, device) == 400
        tried(home, device, tmp_path, "refused by profile device", "P-256 offered")


def tried(home: Home, device: Holder, tmp_path: Path, *words: str) -> None:
    """What `estserver policy test` says to the renewal of a device."""
    pem, csr = tmp_path / "old.pem", tmp_path / "new.csr"
    pem.write_bytes(device.certificate.public_bytes(Encoding.PEM))
    csr.write_bytes(request(new_key(), device.device))
    command = [sys.executable, "-m", "estserver", "policy", "test", str(csr), "--renews", str(pem), "--home"]
    done = subprocess.run([*command, str(home.path)], capture_output=True, text=True, check=False)
    assert all(word in done.stdout for word in words), done
    as_json = subprocess.run([*command, str(home.path), "--json"], capture_output=True, text=True, check=False)
    told = json.loads(as_json.stdout)
    assert told["granted"] is (done.returncode == 0)
    assert bool(told["tolerated"]) is told["granted"]


@pytest.mark.parametrize(
    ("bad", "line", "words"),
    [('lifetime = "soon"', 20, "certificate.lifetime"), ("lifetime = ", 20, "not TOML"), ("x = 1", 20, "Extra inputs")],
)
def test_an_invalid_profile_never_takes_effect_and_is_reported_with_file_line_and_reason(
    home: Home, bad: str, line: int, words: str
) -> None:
    """Neither at a reload nor when a worker has to be replaced: the rules that were valid go on."""
    with RunningServer(home) as running:
        est = Est(running)
        device = est.device()
        profile(home, (ALL_KEYS, '["P-384"]'), ('lifetime = "365d"', bad))
        reloaded(running, "not reloaded: ")
        assert f"profiles/device.toml:{line}: " in running.stderr
        assert words in running.stderr
        assert est.enroll(request(new_key(), fresh_id())).status == 200
        lose_the_worker(running)
        assert est.enroll(request(new_key(), fresh_id())).status == 200
        assert renewed(est, device) == 200
        profile(home, (bad, 'lifetime = "365d"'))
        lose_the_worker(running)
        assert est.enroll(request(new_key(), fresh_id())).status == 200, "a change counts when it is read, not before"
        reloaded(running, "read again")
        assert est.enroll(request(new_key(), fresh_id())).status == 400


def lose_the_worker(running: RunningServer) -> None:
    """Kill it, and wait for the one that replaces it."""
    before = set(worker_pids(running).split())
    for pid in before:
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: bool(set(worker_pids(running).split()) - before))


def test_the_mistakes_of_several_profiles_stop_a_start_in_one_go(home: Home) -> None:
    profile(home, ('lifetime = "365d"', 'lifetime = "soon"'), ("renew_at = 0.66", "renew_at = 66"))
    (home.path / "profiles" / "gateway.toml").write_text("[")
    command = [sys.executable, "-m", "estserver", "serve", "--home", str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert [place in done.stderr for place in ("device.toml:20:", "device.toml:21:", "gateway.toml:1:")] == [True] * 3


def test_a_key_is_blocked_after_a_reload_and_wrong_lines_never_count(home: Home) -> None:
    key = new_key()
    home.configure('[keys]\nblocked = "blocked.txt"\n')
    blocked = home.path / "blocked.txt"
    blocked.write_text("# none yet\n")
    with RunningServer(home) as running:
        est = Est(running)
        spki = home.audit()
        device = est.device(key=key)
        (digest,) = {row["detail"]["spki_sha256"] for row in home.audit()[len(spki) :] if row["action"] == "issue"}
        blocked.write_text(f"{digest}\nnonsense\n")
        reloaded(running, "not reloaded: ")
        assert "blocked.txt:2: 'nonsense' is not a SHA-256" in running.stderr
        blocked.write_text(f"{digest}  # found on the web\n")
        reloaded(running, "read again")
        refused = est.reenroll(request(key, device.device), device)
        assert (refused.status, "block list" in refused.text) == (400, True)
        assert renewed(est, device) == 200
