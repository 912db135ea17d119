"""A home whose certificates say where their status is, and the program that tells it over plain HTTP."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from estserver.assembly import hierarchy_of, load_ca
from estserver.ca import IssuingCa
from estserver.keys import FileSigner
from estserver.status import Publisher
from tests.est_server import DAY, Home, found_home, today

T = TypeVar("T")
BASE = "http://status.acme.example/pki"


def status_home(directory: Path, *, key_kind: str = "P-256", base: str = BASE) -> Home:
    """Make a home with `status_url`, and publish the list of its root as `estserver crl publish --root-key` does."""
    home = found_home(directory, key_kind=key_kind)
    file = home.path / "estserver.toml"
    text = file.read_text("utf-8")
    key = 'key = "private/issuing.key"\n'
    assert key in text
    file.write_text(text.replace(key, f'{key}status_url = "{base}"\n'), "utf-8")
    root = IssuingCa(ca_of(home).chain[-1], [], FileSigner.load(home.path / "private" / "root.key"))
    with home.inventory() as inventory:
        assert Publisher([root], inventory.crls, lifetime=365 * DAY).publish(root, today()) is not None
    return home


def ca_of(home: Home) -> IssuingCa:
    return load_ca(home.settings, "acme", hierarchy_of(home.settings, "acme", ()))


def eventually(look: Callable[[], T | None]) -> T:
    """Ask again until something is there; a test that waits for ever fails."""
    for _ in range(600):
        found = look()
        if found is not None:
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


class RunningResponder:
    """`estserver responder` as its own process; a traceback on stderr fails the test."""

    def __init__(self, home: Home) -> None:
        command = [sys.executable, "-W", "error", "-m", "estserver", "responder", "--home", str(home.path)]
        self.process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        ready = re.fullmatch(r"ready http://127\.0\.0\.1:(\d+)/\n", self.process.stdout.readline())
        if ready is None:
            raise AssertionError(self.process.communicate(timeout=30))
        self.url = f"http://127.0.0.1:{ready[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        _, stderr = self.process.communicate(timeout=30)
        assert "Traceback" not in stderr, stderr
        assert self.process.returncode == 0, stderr
