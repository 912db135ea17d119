"""How the loop of a station is shown: to a person, or to a program as one JSON object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import click

from devicesim.line.screen import Screen
from devicesim.line.shift import Notice
from devicesim.line.standing import Report
from devicesim.line.states import Failure


def screen(*, bell: bool, no_color: bool) -> Callable[[Notice], None]:
    """Return what shows notices to a person."""
    is_terminal = sys.stdout.isatty()
    return Screen(click.echo, is_terminal, colour=is_terminal and not no_color, bell=bell).show


def json_notice(notice: Notice) -> None:
    """Show a notice to a program."""
    _line({name: value for name, value in asdict(notice).items() if value not in ("", None)})


def show_end(report: Report, path: Path, code: int, stopped_by: Failure | None, *, as_json: bool) -> None:
    """Tell how it ended; how each unit is doing is for `line report`."""
    made = report.result
    if as_json:
        stopped = asdict(stopped_by) if stopped_by else None
        facts = {"batch": report.batch, "yield": asdict(made), "report": str(path), "exit_code": code}
        _line({"what": "end", **facts, "stopped_by": stopped})
        return
    counts = f"{made.passed} of {made.planned} have passed, {made.failed} failed, {made.scrapped} scrapped"
    click.echo(f"batch {report.batch}: {counts}\nreport {path}")
    if stopped_by is not None:
        click.echo(f"error: the line stopped: {stopped_by.text}; run it again: nothing is lost", err=True)


def _line(facts: Mapping[str, object]) -> None:
    click.echo(json.dumps(facts, ensure_ascii=False, separators=(",", ":")))
