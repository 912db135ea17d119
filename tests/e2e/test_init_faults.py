"""`estserver init` with what it cannot do: one line that says so, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from estserver.errors import ConfigError
from estserver.home import Plan, found

pytestmark = pytest.mark.e2e


def estserver(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "estserver", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--name", ""),
        ("--name", " "),
        ("--name", "x" * 60),
        ("--name", "two\nlines"),
        ("--broker", "mqtt://127.0.0.1:1883"),
        ("--broker", 'mqtts://x:1"'),
        ("--host", "no_host"),
    ],
)
def test_what_no_certificate_or_configuration_can_hold_is_refused(tmp_path: Path, option: str, value: str) -> None:
    done = estserver("init", str(tmp_path / "home"), option, value)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists() or not any((tmp_path / "home").iterdir())


def test_a_passphrase_file_may_have_any_name(tmp_path: Path) -> None:
    passphrase = tmp_path / 'the "pass\\phrase'
    passphrase.write_text("correct horse battery staple\n", "utf-8")
    done = estserver("init", str(tmp_path / "home"), "--passphrase-file", str(passphrase))
    assert done.returncode == 0, done.stderr
    assert str(passphrase) in estserver("config", "show", "--home", str(tmp_path / "home")).stdout


def test_a_root_key_elsewhere_is_private_from_its_first_octet(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir(mode=0o755)
    done = estserver("init", str(tmp_path / "home"), "--root-key-out", str(stick))
    assert done.returncode == 0, done.stderr
    assert (stick / "root.key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "home" / "private" / "root.key").exists()


def test_a_move_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration goes last: all the rest was in place already."""
    plan = Plan(tmp_path / "home", "Acme", ("localhost",), "P-256", root_key_out=tmp_path / "stick")
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name == "estserver.toml":
            raise OSError(28, os.strerror(28), str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(ConfigError, match="No space left"):
        found(plan, now=datetime.now(UTC).replace(microsecond=0), random=os.urandom)
    monkeypatch.undo()
    assert not list((tmp_path / "home").iterdir())
    assert not list((tmp_path / "stick").iterdir())
    assert found(plan, now=datetime.now(UTC).replace(microsecond=0), random=os.urandom)


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert estserver("init", str(home)).returncode == 0
    (home / "estserver.db").write_bytes(b"this is no database, however long it is " * 200)
    done = estserver("inventory", "list", "--home", str(home))
    assert done.returncode == 3
    assert f"error: {home / 'estserver.db'} is damaged" in done.stderr
