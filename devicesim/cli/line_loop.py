"""`devicesim line open`: the loop of a station, shown to a person, or to a program as one JSON object a line."""

from __future__ import annotations

import json
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import click

from devicesim.cli import now
from devicesim.cli.line_files import BATCH, CONFIG, FILE, LEASE, every_finding, load_both
from devicesim.cli.line_people import OPERATOR
from devicesim.cli.line_running import stopping_on_signals, warn, written
from devicesim.cli.options import json_option
from devicesim.line.assembly import announcing, open_ledger, open_line, telling
from devicesim.line.crew import Act
from devicesim.line.labelling import label_shape
from devicesim.line.leases import allotted
from devicesim.line.scanner import Hearing, open_scanner
from devicesim.line.screen import Screen
from devicesim.line.shift import Notice, Shift
from devicesim.line.standing import Report
from devicesim.line.states import Failure
from devicesim.line.station import Station
from devicesim.line.world import World


@click.command("open")
@BATCH
@CONFIG
@click.option("--slots", type=click.IntRange(1, 64), help="Units worked on at the same time.  [default: site.slots]")
@click.option("--scanner", type=FILE, metavar="TTY", help="A scanner beside the keyboard, as /dev/ttyACM0.")
@OPERATOR
@LEASE
@click.option("--known-set", "known_sets", type=FILE, multiple=True, help="What another line has used up; repeatable.")
@click.option("--bell", is_flag=True, help="Ring once for PASS, twice for what went wrong.")
@click.option("--no-color", is_flag=True, help="No colours, on a terminal either.")
@json_option
def open_loop(
    batch_file: Path,
    config: Path,
    slots: int | None,
    scanner: Path | None,
    operator: str,
    lease_file: Path | None,
    known_sets: tuple[Path, ...],
    bell: bool,
    no_color: bool,
    as_json: bool,
) -> int:
    """Provision units as they are scanned: a badge, then unit after unit; `quit` ends it.

    What is scanned or typed is read from standard input, one code a line: `B:op-113` or a badge of [operators], a
    unit's device id, serial, MAC or secure element, a label that is asked for. With --json each notice is one object
    a line, the last one the report.

    \b
    Example:
      devicesim line open batch.toml --config station/line.toml --scanner /dev/ttyACM0
    """
    with every_finding():
        batch, settings = load_both(batch_file, config)
        batch = allotted(batch, lease_file, settings.site.station)
        if operator:
            settings.crew().admit(Act.RUN, operator)
        station = Station.load(settings, file=config)
        shape = label_shape(settings)
    keyboard = [sys.stdin.fileno()] if sys.stdin else []  # none when it is closed
    handles = [*keyboard, *([open_scanner(scanner)] if scanner else [])]
    caught: list[int] = []
    stop = threading.Event()
    world = World(now, time.monotonic, stop.wait, random.SystemRandom().random, secrets.token_bytes)
    count, show = slots or settings.site.slots, json_notice if as_json else screen(bell=bell, no_color=no_color)
    own = open_ledger(settings, world, operator=operator)
    with own as ledger, ledger.exclusive(), stopping_on_signals(stop, caught):
        shift = Shift(ledger, batch, settings.crew(), shape, count, show, stop)
        ready = open_line(station, ledger, world, stop, known_sets=known_sets, scan=shift.scan_label)
        with announcing(settings, ledger, world) as voice, telling(ready) as told:
            ledger.open_batch(batch)
            shift.begin(births=ready.midwife is not None)
            with Hearing(handles, hear=shift.hear, deaf=shift.deaf, stop=stop):
                stopped_by = ready.work(shift, slots=count, progress=shift)
        warn("announcements", voice.reason if voice else None)
        warn("pushes to [hooks.done]", told.reason if told else None)
        warn("births", ready.midwife.reason if ready.midwife else None)
        ledger.checkpoint()
        report, path, code = written(ledger, settings, batch.id, stopped_by, caught)
        show_end(report, path, code, stopped_by, as_json=as_json)
        return code


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
