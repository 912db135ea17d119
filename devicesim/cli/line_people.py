"""A station's ledger opened for somebody: the options that say who it is, and the records in their name."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from devicesim.cli import now
from devicesim.cli.line_files import every_finding
from devicesim.errors import UsageProblem
from devicesim.line.assembly import open_ledger
from devicesim.line.ledger import Ledger
from devicesim.line.settings import Settings, load_settings
from devicesim.line.world import World
from devicesim.mqtt.topics import identifier


def _badge(_context: click.Context, option: click.Parameter, value: str) -> str:
    if not value:
        return ""
    try:
        return identifier(value)
    except ValueError as error:
        raise UsageProblem(f"{option.opts[0]}: {error}", advice="give the id of a badge, as op-113") from error


OPERATOR = click.option("--operator", default="", metavar="BADGE", callback=_badge, help="Who does it.")
SECOND = click.option("--second", default="", metavar="BADGE", callback=_badge, help="Who has seen it: another person.")


def world() -> World:
    """Return this machine's clock and chance, for commands that wait for nothing."""
    return World(now, time.monotonic, lambda _seconds: True, random.random, secrets.token_bytes)


@contextmanager
def opened(config: Path, *, operator: str = "", second: str = "") -> Iterator[tuple[Settings, Ledger]]:
    """Open a station's ledger, to read it or to write in somebody's name."""
    with every_finding():
        settings = load_settings(config)
        with open_ledger(settings, world(), operator=operator, second=second) as ledger:
            yield settings, ledger
