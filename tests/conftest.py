"""What every test may use. Real parts only: see the fixtures in `tests/support.py` and in each folder's conftest."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime

import pytest

REQUIRE_ALL = os.environ.get("ESTLINE_REQUIRE") == "all"


def require_program(name: str, package: str) -> str:
    """Return the path of an optional program; skip the test, saying what to install, or fail where all are required."""
    path = shutil.which(name)
    if path is None:
        text = f"{name} is not installed: apt-get install {package}"
        if REQUIRE_ALL:
            pytest.fail(text)
        pytest.skip(text)
    return path


@pytest.fixture
def now() -> datetime:
    """The instant at which unit tests happen."""
    return datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
