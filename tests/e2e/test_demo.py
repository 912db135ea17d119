"""The demonstration does what the README says, over both brokers, and its exit status tells the truth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require_program

ROOT = Path(__file__).parents[2]


def run_demo(broker: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "demo" / "run.py", "--broker", broker],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_the_main_job_runs_end_to_end(broker: str, tmp_path: Path) -> None:
    if broker == "mosquitto":
        require_program("mosquitto", "mosquitto")
    done = run_demo(broker, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "25 planned, 25 attempted, 25 passed, 0 failed" in done.stdout
    assert "25 of 25 devices match" in done.stdout
    assert "three requests" in done.stdout
    assert "revoked" in done.stdout
    assert "still 33 certificates" in done.stdout
    [place] = tmp_path.glob("estline-demo-*")
    for log in place.glob("*.log"):
        assert "Traceback" not in log.read_text(), log


@pytest.mark.e2e
def test_a_demonstration_that_fails_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "demo"
    broken.mkdir()
    for name in ("run.py", "stage.py", "batch.toml", "units.csv"):
        text = (ROOT / "demo" / name).read_text("utf-8")
        (broken / name).write_text(re.sub("^sn-0003,", "sn-0002,", text, flags=re.MULTILINE), "utf-8")
    done = subprocess.run(
        [sys.executable, broken / "run.py", "--broker", "embedded"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 1
    assert "units.csv" in done.stderr
