"""The page of the yield in a real browser: it is drawn, wide and narrow, and its policy lets its own style through."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from devicesim.line.report.page import yield_page
from devicesim.line.states import FailureCode, State
from tests.conftest import require_program
from tests.yield_support import HandLedger


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page; the profile is its own, and no sandbox is to be had for root."""
    return subprocess.run(
        [
            require_program("chromium", "chromium"),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            f"--user-data-dir={page.parent}/profile",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )


@pytest.mark.e2e
def test_a_browser_draws_the_page(tmp_path, now):
    hand = HandLedger(tmp_path, now)
    hand.plan("b1", 6)
    for n in range(1, 5):
        hand.passes(f"sn-000{n}", slot=n)
    hand.fails("sn-0005", FailureCode.EST_DENY, State.ENROLLED)
    page = tmp_path / "yield.html"
    page.write_bytes(yield_page(hand.count("b1")))
    drawn = browse(page, "--dump-dom", "--window-size=1280,2400")
    for shown in ("First-pass yield", "80.0%", 'class="plot hours"', 'class="plot cycles"', "E-EST-DENY", "</footer>"):
        assert shown in drawn.stdout

    for width in (1280, 500):
        picture = tmp_path / f"{width}.png"
        browse(page, f"--screenshot={picture}", f"--window-size={width},2400")
        plain = tmp_path / f"{width}-plain.png"
        unstyled = tmp_path / "plain.html"
        unstyled.write_bytes(page.read_bytes().replace(b"<style>", b"<style>/**/"))
        browse(unstyled, f"--screenshot={plain}", f"--window-size={width},2400")
        # the policy holds: its own style is applied, and one that it does not name is not
        assert picture.read_bytes() != plain.read_bytes()
