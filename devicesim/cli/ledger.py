"""`devicesim ledger`: prove what a station has recorded, to itself, to another line, to an auditor."""

from __future__ import annotations

import json
from pathlib import Path

import click

from devicesim.cli import now
from devicesim.cli.line_files import CONFIG, FILE
from devicesim.cli.line_people import opened
from devicesim.cli.options import echo_json, json_option
from devicesim.durable import write_whole
from devicesim.line.assembly import take_the_seal
from devicesim.line.audit import audit, read_seen
from devicesim.line.findings import read_bounded
from devicesim.line.known import write_set
from devicesim.line.ledger import EventRow
from devicesim.line.ledger.disk import stamp
from devicesim.line.proof import PROOF_MAX_BYTES, Prover, check_proof
from devicesim.line.statements import sealing
from devicesim.line.station import Station
from devicesim.trust import TrustAnchors


@click.group()
def ledger() -> None:
    """Prove what a station has recorded.

    \b
    devicesim ledger verify --config station/line.toml
    devicesim ledger prove sn-0001 --out sn-0001.proof.json --config station/line.toml
    devicesim ledger check sn-0001.proof.json --trust root.pem
    """


@ledger.command()
@click.option("--seen", multiple=True, metavar="SEEN", help="SEQ:HASH or a file with a checkpoint; repeatable.")
@CONFIG
@json_option
def verify(seen: tuple[str, ...], config: Path, as_json: bool) -> None:
    """Check every event, checkpoint and unit; with --seen also that nothing was cut off or told otherwise since.

    \b
    Example:
      devicesim ledger verify --seen checkpoint.json --config station/line.toml
    """
    with opened(config) as (settings, book):
        trust = TrustAnchors.from_file(settings.est.trust)
        found = audit(book, trust, [read_seen(text, book, trust) for text in seen])
    if as_json:
        told = {"seq": found.head.seq, "head": found.head.head, "checkpoints": found.checkpoints}
        echo_json({**told, "signed_up_to": found.signed_up_to, "units": found.units})
        return
    click.echo(f"{found.head.seq} events, {found.units} units, {found.checkpoints} checkpoints: as they were written")
    click.echo(f"head {found.head.seq}:{found.head.head}, signed up to event {found.signed_up_to}")


@ledger.command()
@click.argument("device", metavar="[DEVICE]", default="")
@CONFIG
@json_option
def show(device: str, config: Path, as_json: bool) -> None:
    """Show the events of the ledger, or those of one device, oldest first: one line each, with --json one object each.

    \b
    Example:
      devicesim ledger show sn-0001 --config station/line.toml
    """
    with opened(config) as (_, book):
        if device:
            book.unit(device)
        for event in book.story(device) if device else book.events():
            click.echo(json.dumps(_event(event)) if as_json else _line(event))


@ledger.command()
@click.option("--out", type=FILE, help="Also write the newest checkpoint to a file, to be kept elsewhere.")
@CONFIG
@json_option
def checkpoint(out: Path | None, config: Path, as_json: bool) -> None:
    """Sign the ledger as it stands with the station's key.

    \b
    Example:
      devicesim ledger checkpoint --out checkpoint.json --config station/line.toml
    """
    with opened(config) as (settings, book):
        take_the_seal(book, Station.load(settings, file=config))
        made = book.checkpoint()
        newest = book.checkpoints()[-1:]
    if out is not None and newest:
        write_whole(out, newest[0].envelope + b"\n")
    seq = newest[0].seq if newest else 0
    if as_json:
        echo_json({"seq": seq, "made": made is not None})
    else:
        click.echo(f"signed up to event {seq}" + ("" if made else ": nothing is new since the last checkpoint"))


@ledger.command()
@click.argument("device", metavar="DEVICE")
@click.option("--out", type=FILE, required=True, help="Where to write the proof.")
@CONFIG
@json_option
def prove(device: str, out: Path, config: Path, as_json: bool) -> None:
    """Write the proof of one device: its events, and what joins them to the last checkpoint.

    \b
    Example:
      devicesim ledger prove sn-0001 --out sn-0001.proof.json --config station/line.toml
    """
    with opened(config) as (_, book):
        proof = Prover(book).prove(device)
    write_whole(out, json.dumps(proof, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    if as_json:
        echo_json({"device_id": device, "events": len(proof["events"]), "proof": str(out)})
    else:
        click.echo(f"{out}: {len(proof['events'])} events of {device}")


@ledger.command()
@click.argument("proof", metavar="PROOF", type=FILE)
@click.option("--trust", type=FILE, required=True, help="The trust anchor of the station's certificate.")
@json_option
def check(proof: Path, trust: Path, as_json: bool) -> None:
    """Check a proof, with nothing but the trust anchor: no ledger, no network.

    \b
    Example:
      devicesim ledger check sn-0001.proof.json --trust root.pem
    """
    shown = check_proof(read_bounded(proof, PROOF_MAX_BYTES), TrustAnchors.from_file(trust))
    station, head = shown.checkpoint.station, shown.checkpoint
    if as_json:
        told = {"device_id": shown.device_id, "station": station, "signed_at": stamp(head.at), "seq": head.place.seq}
        echo_json({**told, "events": [_event(event) for event in shown.events]})
        return
    click.echo(f"{shown.device_id}: {len(shown.events)} events, as station {'/'.join(station.values())} signed them")
    click.echo(f"at {stamp(head.at)}, over {head.place.seq} events")
    for event in shown.events:
        click.echo(_line(event))


@ledger.command("export-set")
@click.argument("out", metavar="OUT", type=FILE)
@CONFIG
@json_option
def export_set(out: Path, config: Path, as_json: bool) -> None:
    """Write what this line has used up, as signed hashes: another line refuses it (`line run --known-set`).

    \b
    Example:
      devicesim ledger export-set l2.set --config station/line.toml
    """
    with opened(config) as (settings, book):
        station = Station.load(settings, file=config)
        count = write_set(out, book.guards(), sealing(station.identity, book.place()), now())
    if as_json:
        echo_json({"set": str(out), "count": count})
    else:
        click.echo(f"{out}: {count} hashes")


def _event(event: EventRow) -> dict[str, object]:
    told = {"seq": event.seq, "at": event.at, "kind": event.kind, "by": json.loads(event.by.text())}
    return {**told, "facts": event.facts, **({"hash": event.hash} if event.hash else {})}


def _line(event: EventRow) -> str:
    facts = " ".join(f"{name}={value}" for name, value in event.facts.items())
    who = event.by.operator or event.by.station
    return f"{event.seq:>6}  {event.at}  {event.kind:<12}  {who}  {facts}"
