"""`devicesim line`: provision a batch of devices, once each, and keep the record."""

from __future__ import annotations

import os
import random
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from devicesim.cli import now
from devicesim.cli.line_batch import check, lease, rehearsed, schema
from devicesim.cli.line_export import export_command, manifest_group
from devicesim.cli.line_files import BATCH, CONFIG, FILE, LEASE, every_finding, load_both
from devicesim.cli.line_labels import label_group
from devicesim.cli.line_loop import json_notice, screen, show_end
from devicesim.cli.line_people import OPERATOR, opened
from devicesim.cli.line_report import report
from devicesim.cli.line_rework import order_dict, order_text, rework, trace
from devicesim.cli.options import echo_json, json_option
from devicesim.errors import Conflict, StorageError, UsageProblem
from devicesim.line.assembly import announcing, open_ledger, open_line, place, report_path
from devicesim.line.batch import Batch
from devicesim.line.crew import Act
from devicesim.line.findings import InputInvalid
from devicesim.line.labelling import label_shape
from devicesim.line.leases import allotted
from devicesim.line.ledger import Ledger
from devicesim.line.scanner import Hearing, open_scanner
from devicesim.line.settings import Settings, load_settings, template
from devicesim.line.shift import Shift
from devicesim.line.standing import Report, exit_code, make_report, write_report
from devicesim.line.states import Failure
from devicesim.line.station import Station
from devicesim.line.steps import World
from devicesim.line.terminal import BarProgress, PlainProgress, report_text, table


@click.group()
def line() -> None:
    """Provision a batch of devices.

    \b
    devicesim line init station --site hh1 --station s-07 --est https://est.example --trust root.pem
        --cert s-07.pem --key s-07.key --mqtt mqtts://broker.example:8883
    devicesim line check batch.toml
    devicesim line run batch.toml --config station/line.toml --slots 4
    """


for command in (check, export_command, label_group, lease, manifest_group, report, rework, schema, trace):
    line.add_command(command)


@line.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--site", required=True, metavar="ID", help="Where the station stands.")
@click.option("--line", "line_id", default="l1", show_default=True, metavar="ID", help="On which line.")
@click.option("--station", required=True, metavar="ID", help="Which station: the CN of its certificate.")
@click.option("--est", required=True, metavar="URL", help="The EST server.")
@click.option("--label", default="", metavar="LABEL", help="EST label for units whose product names none.")
@click.option("--trust", type=FILE, required=True, help="The trust anchor of EST server and broker, PEM.")
@click.option("--cert", type=FILE, required=True, help="The station's certificate, PEM.")
@click.option("--key", type=FILE, required=True, help="Its key, PEM, readable by its owner alone.")
@click.option("--mqtt", metavar="URL", help="The broker to announce to, mqtts://HOST:PORT.")
@json_option
def init(
    directory: Path,
    site: str,
    line_id: str,
    station: str,
    est: str,
    label: str,
    trust: Path,
    cert: Path,
    key: Path,
    mqtt: str | None,
    as_json: bool,
) -> None:
    """Make a station: DIR/line.toml, commented, and an empty ledger.

    \b
    Example:
      devicesim line init station --site hh1 --station s-07 --est https://est.example --trust root.pem
          --cert s-07.pem --key s-07.key
    """
    paths = {name: os.path.relpath(path, directory) for name, path in (("trust", trust), ("cert", cert), ("key", key))}
    text = template(site=site, line=line_id, station=station, est=est, label=label, mqtt=mqtt, **paths)
    settings = _write_config(directory / "line.toml", text)
    Ledger.create(settings.ledger.path, clock=now, place=place(settings)).close()
    made = {"config": str(directory / "line.toml"), "ledger": str(settings.ledger.path)}
    if as_json:
        echo_json(made)
        return
    click.echo(f"made {made['config']} and {made['ledger']}")
    click.echo(f"next: devicesim line run BATCH.TOML --config {made['config']}")


def _write_config(path: Path, text: str) -> Settings:
    """Write the configuration where there is none; one that would not be read back is not left behind."""
    if path.exists() or path.with_name("line.db").exists():
        raise Conflict(f"{path.parent} already holds a station", advice="choose another folder; nothing was changed")
    beside = path.with_name("line.toml.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.chmod(0o600)
        try:
            settings = load_settings(beside)
        except InputInvalid as error:
            beside.unlink()
            raise UsageProblem(f"{error.findings[0].column}: {error.findings[0].text}") from error
        beside.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    return settings


@line.command()
@BATCH
@CONFIG
@click.option("--slots", type=click.IntRange(1, 64), help="Units worked on at the same time.  [default: site.slots]")
@OPERATOR
@LEASE
@click.option("--known-set", "known_sets", type=FILE, multiple=True, help="What another line has used up; repeatable.")
@click.option("--dry-run", is_flag=True, help="Try everything a run needs; write nothing, enrol nothing.")
@json_option
def run(
    batch_file: Path,
    config: Path,
    slots: int | None,
    operator: str,
    lease_file: Path | None,
    known_sets: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
) -> int:
    """Provision every unit of a batch that has not passed yet; run it again to resume.

    \b
    Example:
      devicesim line run demo/batch.toml --config station/line.toml --slots 4 --operator op-113
    """
    if dry_run:
        return rehearsed(batch_file, config, lease_file, as_json=as_json)
    with every_finding():
        batch, settings = load_both(batch_file, config)
        if settings.label is not None and settings.label.scan_back:
            raise UsageProblem(
                "[label] scan_back wants every label scanned, and `line run` has no scanner",
                advice="use `devicesim line open`, or set scan_back = false",
            )
        batch = allotted(batch, lease_file, settings.site.station)
        settings.crew().admit(Act.RUN, operator)
        station = Station.load(settings, file=config)
    caught: list[int] = []
    stop = threading.Event()
    world = World(now, time.monotonic, stop.wait, random.SystemRandom().random, secrets.token_bytes)
    own = open_ledger(settings, world, operator=operator)
    with own as ledger, ledger.exclusive(), _stopping_on_signals(stop, caught):
        with _progress() as progress, announcing(settings, ledger, world) as voice:
            ready = open_line(station, ledger, world, stop, known_sets=known_sets)
            stopped_by = ready.run(batch, slots=slots or settings.site.slots, progress=progress)
        _warn("announcements", voice.reason if voice else None)
        _warn("births", ready.midwife.reason if ready.midwife else None)
        ledger.checkpoint()
        return _finish(ledger, settings, batch, stopped_by, caught, as_json=as_json)


@line.command("open")
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
    with own as ledger, ledger.exclusive(), _stopping_on_signals(stop, caught):
        shift = Shift(ledger, batch, settings.crew(), shape, count, show, stop)
        with announcing(settings, ledger, world) as voice:
            ready = open_line(station, ledger, world, stop, known_sets=known_sets, scan=shift.scan_label)
            ledger.open_batch(batch)
            shift.begin(births=ready.midwife is not None)
            with Hearing(handles, hear=shift.hear, deaf=shift.deaf, stop=stop):
                stopped_by = ready.work(shift, slots=count, progress=shift)
        _warn("announcements", voice.reason if voice else None)
        _warn("births", ready.midwife.reason if ready.midwife else None)
        ledger.checkpoint()
        report, path, code = _written(ledger, settings, batch, stopped_by, caught)
        show_end(report, path, code, stopped_by, as_json=as_json)
        return code


def _warn(what: str, reason: str | None) -> None:
    if reason is not None:
        click.echo(f"warning: {what} wait: {reason}", err=True)


def _progress() -> BarProgress | PlainProgress:
    return BarProgress() if sys.stderr.isatty() else PlainProgress(lambda text: click.echo(text, err=True))


def _finish(
    ledger: Ledger, settings: Settings, batch: Batch, stopped_by: Failure | None, caught: list[int], *, as_json: bool
) -> int:
    made, path, code = _written(ledger, settings, batch, stopped_by, caught)
    if as_json:
        echo_json({**made.to_dict(), "report": str(path), "exit_code": code})
    else:
        click.echo(report_text(made))
        click.echo(f"\nledger {ledger.path}\nreport {path}")
    if stopped_by is not None:
        click.echo(f"error: the line stopped: {stopped_by.text}; run it again: nothing is lost", err=True)
    return code


def _written(
    ledger: Ledger, settings: Settings, batch: Batch, stopped_by: Failure | None, caught: list[int]
) -> tuple[Report, Path, int]:
    """Write the report of a batch, and return it, where it is, and what the command ends with."""
    report, path = make_report(ledger, batch.id, now=now()), report_path(settings, batch.id)
    write_report(report, path)
    return report, path, 128 + caught[0] if caught else exit_code(report, stopped_by)


@line.command()
@CONFIG
@json_option
def status(config: Path, as_json: bool) -> int:
    """Show every batch of a station: passed, failed, waiting, and what is owed to the broker.

    \b
    Example:
      devicesim line status --config station/line.toml
    """
    with opened(config) as (_, ledger):
        reports = [make_report(ledger, batch_id, now=now()) for batch_id, _ in ledger.batches()]
        owed, revocations = ledger.owed(), ledger.revocations_owed()
    if as_json:
        keys = ("batch", "yield", "failures", "births_pending")
        found = [{key: value for key, value in report.to_dict().items() if key in keys} for report in reports]
        orders = [order_dict(order) for order in revocations]
        echo_json({"batches": found, "announcements_owed": owed, "revocations_owed": orders})
        return 0
    counts = ("planned", "passed", "failed", "scrapped", "waiting")
    header = ("batch", *counts, "births pending")
    rows = [(r.batch, *(str(getattr(r.result, name)) for name in counts), str(r.births_pending)) for r in reports]
    click.echo(table(header, rows) if rows else "no batch yet")
    click.echo(f"{owed} announcements owed to the broker")
    for order in revocations:
        click.echo(f"revocation owed: {order_text(order)}")
    return 0


@contextmanager
def _stopping_on_signals(stop: threading.Event, caught: list[int]) -> Iterator[None]:
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
