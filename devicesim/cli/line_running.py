"""What every command that runs units has in common: it is watched, can be stopped, and ends with a report."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from devicesim.cli import now
from devicesim.cli.options import echo_json
from devicesim.errors import UsageProblem
from devicesim.line.assembly import report_path
from devicesim.line.ledger import Ledger
from devicesim.line.settings import Settings
from devicesim.line.standing import Report, exit_code, make_report, write_report
from devicesim.line.states import Failure
from devicesim.line.terminal import BarProgress, PlainProgress, report_text


def refuse_scan_back(settings: Settings) -> None:
    """Refuse to run where every label is to be scanned and nobody scans."""
    if settings.label is not None and settings.label.scan_back:
        raise UsageProblem(
            "[label] scan_back wants every label scanned, and this command has no scanner",
            advice="use `devicesim line open`, or set scan_back = false",
        )


def warn(what: str, reason: str | None) -> None:
    """Say that something is still owed, and why."""
    if reason is not None:
        click.echo(f"warning: {what} wait: {reason}", err=True)


def shown() -> BarProgress | PlainProgress:
    """Return what shows a run: a bar to a person, lines to a file."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress(lambda text: click.echo(text, err=True))


def written(
    ledger: Ledger, settings: Settings, batch_id: str, stopped_by: Failure | None, caught: list[int]
) -> tuple[Report, Path, int]:
    """Write the report of a batch, and return it, where it is, and what the command ends with."""
    report, path = make_report(ledger, batch_id, now=now()), report_path(settings, batch_id)
    write_report(report, path)
    code = 128 + caught[0] if caught else exit_code(report, stopped_by) or (9 if ledger.pushes_owed() else 0)
    return report, path, code


def finish(
    ledger: Ledger, settings: Settings, batch_id: str, stopped_by: Failure | None, caught: list[int], *, as_json: bool
) -> int:
    """Write the report of a batch, show it, and return what the command ends with."""
    report, path, code = written(ledger, settings, batch_id, stopped_by, caught)
    if as_json:
        echo_json({**report.to_dict(), "report": str(path), "exit_code": code})
    else:
        click.echo(report_text(report))
        click.echo(f"\nledger {ledger.path}\nreport {path}")
    if stopped_by is not None:
        click.echo(f"error: the line stopped: {stopped_by.text}; run it again: nothing is lost", err=True)
    return code


@contextmanager
def stopping_on_signals(stop: threading.Event, caught: list[int]) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM stop the line between two steps; a second one ends it at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        stop.set()
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
