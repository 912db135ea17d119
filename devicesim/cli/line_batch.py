"""`devicesim line check`, `schema` and `lease`, and the dry run: what is done with a batch before a unit is touched."""

from __future__ import annotations

import dataclasses
import json
import random
import secrets
import time
from contextlib import nullcontext
from pathlib import Path

import click

from devicesim.cli import now
from devicesim.cli.line_files import BATCH, FILE, every_finding
from devicesim.cli.options import echo_json, json_option
from devicesim.errors import UsageProblem
from devicesim.line.batch import load_batch
from devicesim.line.findings import Finding, InputInvalid
from devicesim.line.leases import Share, load_lease, split
from devicesim.line.rehearsal import Checked, Outcome, Rehearsal
from devicesim.line.schemas import SCHEMAS
from devicesim.line.world import World
from devicesim.mqtt.topics import identifier


@click.command()
@BATCH
@json_option
def check(batch_file: Path, as_json: bool) -> int:
    """Check a batch without doing anything: every problem, with its file, row and column.

    Warnings are worth a look and refuse nothing.

    \b
    Example:
      devicesim line check demo/batch.toml
    """
    try:
        with nullcontext() if as_json else every_finding():
            batch = load_batch(batch_file)
    except InputInvalid as error:
        if not as_json:
            raise
        echo_json({"valid": False, "findings": _plain(error.findings)})
        return error.exit_code
    if as_json:
        facts = {"batch": batch.id, "units": len(batch.units), "content_sha256": batch.sha256()}
        echo_json({"valid": True, "findings": _plain(batch.warnings), **facts})
        return 0
    for warning in batch.warnings:
        click.echo(str(warning), err=True)
    found = f"{len(batch.warnings)} warnings" if batch.warnings else "no problems"
    made = f", {batch.units[0].serial} to {batch.units[-1].serial}" if batch.units else ""
    click.echo(f"{batch_file}: batch {batch.id}, {len(batch.units)} units{made}, {found}")
    return 0


def _plain(findings: tuple[Finding, ...]) -> list[dict[str, object]]:
    return [dataclasses.asdict(finding) for finding in findings]


@click.command()
@click.argument("name", type=click.Choice([*SCHEMAS]))
def schema(name: str) -> None:
    """Print the JSON Schema of batch.toml, of a row of units.csv, or of line.toml.

    `units-numbered` is a row where batch.toml has [serial]: ids and serials may be left out.

    \b
    Example:
      devicesim line schema batch > batch.schema.json
    """
    click.echo(schema_text(name), nl=False)


def schema_text(name: str) -> str:
    """Return a schema as it is published."""
    return json.dumps(SCHEMAS[name](), indent=2, ensure_ascii=False) + "\n"


@click.group()
def lease() -> None:
    """Share a batch out to stations, so that lines that never hear of each other never collide.

    \b
    devicesim line lease split batch.toml --stations s-07:200,s-08:300 --out leases
    devicesim line run batch.toml --lease leases/2026w48-a.000001-000200.s-07.lease.json
    """


def _shares(_context: click.Context, _option: click.Parameter, text: str) -> list[Share]:
    shares = []
    for part in text.split(","):
        station, _, count = part.strip().partition(":")
        try:
            shares.append((identifier(station), int(count) if count.isascii() and count.isdigit() else 0))
        except ValueError as error:
            raise UsageProblem(f"--stations: {error}") from error
        if not 1 <= shares[-1][1] <= 100_000:
            raise UsageProblem(f"--stations: {part[:80]!r} is not STATION:UNITS", advice="write s-07:200,s-08:300")
    return shares


@lease.command("split")
@BATCH
@click.option(
    "--stations", "shares", required=True, metavar="STATION:UNITS,…", callback=_shares, help="Who makes how many."
)
@click.option(
    "--out",
    "book",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="The lease book: one folder for all leases of a batch.",
)
@json_option
def lease_split(batch_file: Path, shares: list[Share], book: Path, as_json: bool) -> None:
    """Lease the next units of a batch to stations; what the book has leased already stays leased.

    Set `leased = true` in batch.toml, and no station makes the whole batch by mistake.

    \b
    Example:
      devicesim line lease split batch.toml --stations s-07:200,s-08:300 --out leases
    """
    with every_finding():
        made = split(load_batch(batch_file), shares, book)
    if as_json:
        echo_json({"leases": [{"file": str(path), **load_lease(path).facts()} for path in made]})
        return
    for path in made:
        found = load_lease(path)
        click.echo(f"{found.station}: units {found.span} ({found.first_serial} to {found.last_serial}), {path}")


@lease.command("show")
@click.argument("lease_file", metavar="FILE", type=FILE)
@json_option
def lease_show(lease_file: Path, as_json: bool) -> None:
    """Show a lease, if it is as it was written.

    \b
    Example:
      devicesim line lease show leases/2026w48-a.000001-000200.s-07.lease.json
    """
    found = load_lease(lease_file)
    if as_json:
        echo_json(found.facts())
        return
    click.echo(f"batch {found.batch} (content {found.content_sha256}), station {found.station}")
    click.echo(f"units {found.span}: {found.first_serial} to {found.last_serial}")


def rehearsed(batch_file: Path, config: Path, lease_file: Path | None, *, as_json: bool) -> int:
    """Try everything a run needs and tell it line by line; return what the run would end with."""
    world = World(now, time.monotonic, lambda _seconds: True, random.random, secrets.token_bytes)
    done: list[Checked] = []
    for found in Rehearsal(batch_file, config, lease_file, world).checks():
        done.append(found)
        if not as_json:
            advice = f" — {found.advice}" if found.advice else ""
            click.echo(f"{found.outcome}  {found.name:<14}  {found.text}{advice}")
    failed = [found for found in done if found.outcome is Outcome.FAIL]
    code = failed[0].exit_code if failed else 0
    if as_json:
        echo_json({"ready": not failed, "checks": [dataclasses.asdict(found) for found in done], "exit_code": code})
    else:
        click.echo("ready: nothing was written, nothing enrolled" if not failed else f"not ready: {len(failed)} failed")
    return code
