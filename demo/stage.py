"""What a demonstration needs: a temporary place, programs that end and programs that stay, and told progress."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
READY_SECONDS = 30.0
COMMAND_SECONDS = 120.0


class DemoFailed(Exception):
    """A step did not do what it should; the text says which."""


class Stage:
    """One run of the demonstration.

    Args:
        keep: leave directory and background programs behind.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.place = Path(tempfile.mkdtemp(prefix="estline-demo-"))
        self.background: dict[str, subprocess.Popen[str]] = {}
        self._step = 0
        self._started = time.monotonic()

    def step(self, text: str) -> None:
        """Announce the next step."""
        self._step += 1
        print(f"\n{self._bold(f'{self._step}. {text}')}  [{time.monotonic() - self._started:.1f} s]", flush=True)

    def say(self, text: str) -> None:
        """Tell a result."""
        print(f"   {text}", flush=True)

    def run(self, program: str, *arguments: str | Path, expect: int = 0, show: bool = False) -> str:
        """Run a command of the project to its end and return what it printed.

        Raises:
            DemoFailed: it ended with another code than `expect`.
        """
        command = [str(BIN / program), *map(str, arguments)]
        done = subprocess.run(
            command,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
            cwd=self.place,
            env=self._environment(),
        )
        if done.returncode != expect:
            told = f"\n{done.stdout or ''}{done.stderr or ''}"
            raise DemoFailed(f"{' '.join([program, *command[1:]])} ended with {done.returncode}, not {expect}{told}")
        return (done.stdout or "") + (done.stderr or "" if expect else "")

    def json(self, program: str, *arguments: str | Path) -> Any:  # noqa: ANN401 - JSON is any value
        """Run a command with `--json` and return what it printed."""
        return json.loads(self.run(program, *arguments, "--json"))

    def start(self, name: str, program: str, *arguments: str | Path) -> str:
        """Start a program that stays; return the line with which it said that it is ready."""
        log = (self.place / f"{name}.log").open("w")
        process = subprocess.Popen(
            [str(BIN / program), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=self.place,
            env=self._environment(),
            start_new_session=True,
        )
        self.background[name] = process
        line = _first_line(process)
        if not line.startswith("ready"):
            raise DemoFailed(f"{name} did not start: {line}{(self.place / f'{name}.log').read_text()}")
        return line.removeprefix("ready").strip()

    def result(self, name: str) -> list[str]:
        """Wait for a background program to end by itself; return what it printed after it was ready."""
        process = self.background.pop(name)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        if process.wait(COMMAND_SECONDS) != 0:
            raise DemoFailed("\n".join([f"{name} ended with {process.returncode}", *lines]))
        return lines

    def stop(self, name: str) -> int:
        """End a background program and return its exit code."""
        process = self.background.pop(name)
        if process.poll() is None:
            process.terminate()
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    @staticmethod
    def secret(path: Path, text: str) -> None:
        """Write a secret into a file that only this user can read."""
        path.touch(mode=0o600)
        path.write_text(text)

    @staticmethod
    def _environment() -> dict[str, str]:
        return {**os.environ, "PYTHONUNBUFFERED": "1"}

    @staticmethod
    def _bold(text: str) -> str:
        return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], READY_SECONDS)
    return process.stdout.readline() if readable else ""
