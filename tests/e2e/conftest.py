"""What several of these tests stand on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MiB: SQLite's journal alone may take 4."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small disk takes root")
    yield path
    subprocess.run(["umount", path], check=True)
