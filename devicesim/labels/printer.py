"""Where labels come out: a printer on the network (raw ZPL, port 9100), a program, or a folder of files.

A printer that has taken a label has not yet shown that it is on the unit; that is for the scanner.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from devicesim import durable
from devicesim.errors import StorageError
from devicesim.labels.errors import LabelFailed
from devicesim.labels.label import Label

TIMEOUT_SECONDS = 10.0


class Printer(Protocol):
    """Takes labels, one after the other."""

    def print(self, name: str, label: Label) -> None:
        """Print a label, or raise LabelFailed; `name` is that of its unit."""


@dataclass(frozen=True, slots=True)
class NetworkPrinter:
    """A label printer that takes ZPL as it comes."""

    host: str
    port: int

    def print(self, name: str, label: Label) -> None:
        """Send it, whole."""
        data = label.zpl().encode()
        try:
            with socket.create_connection((self.host, self.port), TIMEOUT_SECONDS) as connection:
                connection.sendall(data)
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            text = f"the label printer tcp://{self.host}:{self.port} did not take the label of {name}: {why}"
            raise LabelFailed(text, advice="check its power, paper and cable") from error


@dataclass(frozen=True, slots=True)
class ProgramPrinter:
    """A program that prints the ZPL on its standard input, as `lp -o raw` does."""

    arguments: tuple[str, ...]

    def print(self, name: str, label: Label) -> None:
        """Run it and hear what it says."""
        try:
            done = subprocess.run(
                self.arguments, input=label.zpl().encode(), capture_output=True, timeout=TIMEOUT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = getattr(error, "strerror", None) or f"no answer within {TIMEOUT_SECONDS:.0f} s"
            raise LabelFailed(f"{self.arguments[0]} did not print the label of {name}: {why}") from error
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            last = f": {said[-1][:200]}" if said else ""
            raise LabelFailed(f"{self.arguments[0]} ended with {done.returncode} for the label of {name}{last}")


@dataclass(frozen=True, slots=True)
class FolderPrinter:
    """Writes `DEVICE.zpl` and `DEVICE.png`, readable by their owner alone."""

    directory: Path

    def print(self, name: str, label: Label) -> None:
        """Write both, each whole or not at all."""
        try:
            durable.write_whole(self.directory / f"{name}.zpl", label.zpl().encode())
            durable.write_whole(self.directory / f"{name}.png", label.png())
        except StorageError as error:
            raise LabelFailed(str(error)) from error


def open_printer(where: str | Sequence[str]) -> Printer:
    """Return the printer that `tcp://HOST:PORT`, `file:DIR` or a program with its arguments names, or a ValueError."""
    if not isinstance(where, str):
        return ProgramPrinter(tuple(where))
    if where.startswith("file:") and where != "file:":
        return FolderPrinter(Path(where.removeprefix("file:")))
    url = urlsplit(where)
    with suppress(ValueError):  # a port that is none
        if url.scheme == "tcp" and url.hostname and url.port and not (url.path or url.query or "@" in url.netloc):
            return NetworkPrinter(url.hostname, url.port)
    raise ValueError('is "tcp://HOST:PORT", "file:DIR", or a program with its arguments: ["lp", "-o", "raw"]')
