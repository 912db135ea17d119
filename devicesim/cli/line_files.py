"""The files that commands of the line are given, read so that every problem with them is told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click

from devicesim.line.batch import Batch, load_batch
from devicesim.line.findings import Finding, InputInvalid
from devicesim.line.settings import Settings, load_settings

T = TypeVar("T")
FILE = click.Path(path_type=Path, dir_okay=False)
BATCH = click.argument("batch_file", metavar="BATCH.TOML", type=FILE)
CONFIG = click.option(
    "--config", "config", type=FILE, default=Path("line.toml"), show_default=True, help="The station's configuration."
)


def load_both(batch_file: Path, config: Path) -> tuple[Batch, Settings]:
    """Read both files and report the problems of both at once."""
    findings: list[Finding] = []
    batch = _read(lambda: load_batch(batch_file), findings)
    settings = _read(lambda: load_settings(config), findings)
    if batch is None or settings is None:
        raise InputInvalid(findings)
    return batch, settings


def _read(load: Callable[[], T], findings: list[Finding]) -> T | None:
    try:
        return load()
    except InputInvalid as error:
        findings += error.findings
        return None


@contextmanager
def every_finding() -> Iterator[None]:
    """List what is wrong with the files, one problem a line, where the error itself has room for the first alone."""
    try:
        yield
    except InputInvalid as error:
        for finding in error.findings if len(error.findings) > 1 else ():
            click.echo(str(finding), err=True)
        raise
