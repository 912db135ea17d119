"""`devicesim line`: provision a batch of devices, once each, and keep the record."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from pathlib import Path

import click

from devicesim.cli import now
from devicesim.cli.line_batch import check, lease, rehearsed, schema
from devicesim.cli.line_bundle import bundle_group
from devicesim.cli.line_export import export_command, manifest_group
from devicesim.cli.line_files import BATCH, CONFIG, FILE, LEASE, every_finding, load_both
from devicesim.cli.line_labels import label_group
from devicesim.cli.line_loop import open_loop
from devicesim.cli.line_people import OPERATOR, opened
from devicesim.cli.line_report import report
from devicesim.cli.line_rework import order_dict, order_text, rework, trace
from devicesim.cli.line_running import finish, refuse_scan_back, shown, stopping_on_signals, warn
from devicesim.cli.options import echo_json, json_option
from devicesim.errors import Conflict, StorageError, UsageProblem
from devicesim.line.assembly import announcing, open_ledger, open_line, place, telling
from devicesim.line.crew import Act
from devicesim.line.findings import InputInvalid
from devicesim.line.leases import allotted
from devicesim.line.ledger import Ledger
from devicesim.line.settings import Settings, load_settings
from devicesim.line.standing import make_report
from devicesim.line.station import Station
from devicesim.line.template import template
from devicesim.line.terminal import table
from devicesim.line.world import World


@click.group()
def line() -> None:
    """Provision a batch of devices.

    \b
    devicesim line init station --site hh1 --station s-07 --est https://est.example --trust root.pem
        --cert s-07.pem --key s-07.key --mqtt mqtts://broker.example:8883
    devicesim line check batch.toml
    devicesim line run batch.toml --config station/line.toml --slots 4
    """


for command in (
    *(bundle_group, check, export_command, label_group, lease, manifest_group),
    *(open_loop, report, rework, schema, trace),
):
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
        refuse_scan_back(settings)
        batch = allotted(batch, lease_file, settings.site.station)
        settings.crew().admit(Act.RUN, operator)
        station = Station.load(settings, file=config)
    caught: list[int] = []
    stop = threading.Event()
    world = World(now, time.monotonic, stop.wait, random.SystemRandom().random, secrets.token_bytes)
    own = open_ledger(settings, world, operator=operator)
    with own as ledger, ledger.exclusive(), stopping_on_signals(stop, caught):
        ready = open_line(station, ledger, world, stop, known_sets=known_sets)
        with shown() as progress, announcing(settings, ledger, world) as voice, telling(ready) as told:
            stopped_by = ready.run(batch, slots=slots or settings.site.slots, progress=progress)
        warn("announcements", voice.reason if voice else None)
        warn("pushes to [hooks.done]", told.reason if told else None)
        warn("births", ready.midwife.reason if ready.midwife else None)
        ledger.checkpoint()
        return finish(ledger, settings, batch.id, stopped_by, caught, as_json=as_json)


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
