"""`devicesim line export` and `devicesim line manifest`: what a line made, for those who take it over."""

from __future__ import annotations

import random
import secrets
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import click

from devicesim.cli import now
from devicesim.cli.line_files import CONFIG, FILE, every_finding
from devicesim.cli.options import echo_json, json_option
from devicesim.errors import ConfigInvalid, UsageProblem, VerificationFailed
from devicesim.exports.export import Exported, export
from devicesim.exports.format import Format, Judged, Occasion
from devicesim.exports.ledger import Issuers, Snapshot, snapshot
from devicesim.exports.registry import format_named, formats_known
from devicesim.line.assembly import open_ledger
from devicesim.line.settings import load_settings
from devicesim.line.station import Station
from devicesim.line.terminal import table
from devicesim.line.world import World
from devicesim.trust import TrustAnchors, load_certificates

SOME_LEFT_OUT = 4
PROBLEMS_MAX = 100


@click.command("export")
@click.argument("name", metavar="[FORMAT]", required=False)
@click.option("--list", "listing", is_flag=True, help="Show every format, what it is for, and what it cannot hold.")
@click.option("--batch", metavar="ID", help="Which batch.")
@CONFIG
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="It comes into DIR/BATCH.")
@click.option("--ca", type=FILE, help="The issuing CA's certificates, PEM, where the station's own chain has others.")
@json_option
def export_command(
    name: str | None, listing: bool, batch: str | None, config: Path, out: Path | None, ca: Path | None, as_json: bool
) -> int:
    """Write what a batch came to in a form that others take; read back and compared before it is said to be done.

    Units that have not passed are left out, and the exit code is 4 then. Nothing is written over.

    \b
    Example:
      devicesim line export --list
      devicesim line export jsonl --batch 2026w48-a --config station/line.toml --out out
    """
    if listing:
        return _list(as_json=as_json)
    if name is None or batch is None or out is None:
        raise UsageProblem("FORMAT, --batch and --out belong together", advice="see `devicesim line export --list`")
    form = format_named(name)
    with every_finding():
        settings = load_settings(config)
        station = Station.load(settings, file=config)
        world = World(now, time.monotonic, lambda _seconds: True, random.random, secrets.token_bytes)
        issuers = Issuers((*station.identity.certificates[1:], *(load_certificates(ca) if ca else ())), station.trust)
        with open_ledger(settings, world) as ledger, snapshot(ledger, batch, issuers) as held:
            occasion = Occasion(batch, held.passed, station.identity)
            done = export(form, held.units, occasion, out, trust=station.trust, now=now())
            return _told(form, held, done, as_json=as_json)


def _told(form: Format, held: Snapshot, done: Exported, *, as_json: bool) -> int:
    left_out = held.planned - held.passed
    if as_json:
        echo_json(
            {
                "batch": held.batch,
                "format": form.name,
                "units": done.units,
                "left_out": left_out,
                "does_not_hold": list(form.missing()),
                "paths": [str(path) for path in done.paths[:PROBLEMS_MAX]],
            }
        )
        return SOME_LEFT_OUT if left_out else 0
    click.echo(f"{done.units} units of batch {held.batch} written, read back and compared")
    if form.missing():
        click.echo(f"{form.name} does not hold: {', '.join(form.missing())}")
    for path in done.paths[:3]:
        click.echo(str(path))
    if len(done.paths) > 3:
        click.echo(f"… and {len(done.paths) - 3} more beside them")
    if left_out:
        click.echo(f"warning: {left_out} units have not passed and are left out", err=True)
    return SOME_LEFT_OUT if left_out else 0


def _list(*, as_json: bool) -> int:
    known = formats_known().values()
    if as_json:
        facts = [
            {
                "name": form.name,
                "title": form.title,
                "signed": form.verify is not None,
                "does_not_hold": list(form.missing()),
                "limits": list(form.limits),
            }
            for form in known
        ]
        echo_json({"formats": facts})
        return 0
    click.echo(table(("format", "what it is"), [(form.name, form.title) for form in known]))
    for form in known:
        if form.missing():
            click.echo(f"{form.name} does not hold: {', '.join(form.missing())}")
        for limit in form.limits:
            click.echo(f"{form.name}: {limit}")
    return 0


@click.group("manifest")
def manifest_group() -> None:
    """Verify signed manifests."""


@manifest_group.command("verify")
@click.argument("file", type=FILE)
@click.option("--trust", type=FILE, required=True, help="The trust anchor of the stations, PEM.")
@click.option(
    "--at",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%SZ"]),
    help="When the signers' certificates are to have been valid, UTC.  [default: now]",
)
@json_option
def verify_manifest(file: Path, trust: Path, at: datetime | None, as_json: bool) -> int:
    """Verify a manifest of jsonl or microchip: every unit that was changed is named. Ends with 10 when one was.

    \b
    Example:
      devicesim line manifest verify out/2026w48-a/manifest.jsonl --trust root.pem
    """
    form = _signed_format(file)
    assert form.verify is not None
    moment = at.replace(tzinfo=UTC) if at else now()
    units, refused, signers, problems = 0, 0, set[str](), list[Judged]()
    for judged in form.verify(file, TrustAnchors.from_file(trust), moment):
        units += 1
        if judged.problem:
            refused += 1
            problems += [judged] if refused <= PROBLEMS_MAX else []
        else:
            signers.add(judged.signer)
    if not units:
        raise VerificationFailed(f"{file} holds no unit", advice="an empty manifest says nothing")
    if as_json:
        found = [{"entry": j.position, "device_id": j.device_id, "problem": j.problem} for j in problems]
        echo_json({"format": form.name, "verified": units - refused, "signers": sorted(signers), "problems": found})
    else:
        for judged in problems:
            click.echo(_printable(f"entry {judged.position}: {judged.device_id or 'unnamed'}: {judged.problem}"))
        signed_by = f", signed by {', '.join(sorted(signers))}" if signers else ""
        click.echo(_printable(f"{units - refused} units verified{signed_by}; {refused} problems"))
    return VerificationFailed.exit_code if refused else 0


def _signed_format(file: Path) -> Format:
    """Tell by its first character what a manifest is: a list, or an object a line."""
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            begins = "".join(islice(opened.read(64).lstrip("\ufeff \t\r\n"), 1))
    except OSError as error:
        raise ConfigInvalid(f"cannot read {file}: {error.strerror}") from error
    name = {"[": "microchip", "{": "jsonl"}.get(begins)
    if name is None:
        raise ConfigInvalid(f"{file} is no signed manifest", advice="jsonl and microchip are signed")
    return format_named(name)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
