"""`devicesim line bundle`: certificates for a line without a network, carried over in sealed files."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from devicesim.cli import now
from devicesim.cli.line_files import BATCH, CONFIG, FILE, LEASE, every_finding, load_both
from devicesim.cli.line_people import OPERATOR
from devicesim.cli.line_running import finish, refuse_scan_back, shown, stopping_on_signals, warn
from devicesim.cli.options import echo_json, json_option
from devicesim.client import EstClient
from devicesim.durable import write_whole
from devicesim.line.airgap import (
    AgainstLedger,
    FileDoor,
    ask_for_all,
    fit_for_a_bundle,
    send_out,
    take_in,
    without_network,
)
from devicesim.line.assembly import announcing, open_ledger, open_line, telling
from devicesim.line.bundle import BUNDLE_MAX_BYTES, Answer, BundleAltered, open_answers, open_requests, seal_answers
from devicesim.line.crew import Act
from devicesim.line.findings import read_bounded
from devicesim.line.leases import allotted
from devicesim.line.pacing import Gate
from devicesim.line.settings import Est, load_settings
from devicesim.line.statements import sealing
from devicesim.line.states import State
from devicesim.line.station import Station, read_identity
from devicesim.line.world import World
from devicesim.mqtt.connection import common_name
from devicesim.mqtt.ulid import new_ulid
from devicesim.trust import TrustAnchors

SOME_FAILED = 4
SHOWN = 100
OUT = click.option("--out", type=FILE, required=True, metavar="FILE", help="The bundle to write.")


@click.group("bundle")
def bundle_group() -> None:
    """Provision behind an air gap: requests out in a sealed file, certificates back in another.

    \b
    devicesim line bundle out batch.toml --config station/line.toml --out requests.bundle
    devicesim line bundle fill requests.bundle --server https://est.example --trust root.pem
        --cert s-07.pem --key s-07.key --out certificates.bundle
    devicesim line bundle in certificates.bundle --config station/line.toml
    """


@bundle_group.command("out")
@BATCH
@CONFIG
@OUT
@OPERATOR
@LEASE
@json_option
def out_command(
    batch_file: Path, config: Path, out: Path, operator: str, lease_file: Path | None, as_json: bool
) -> int:
    """Have every unit of a batch make its key and its request, and seal the requests; again at any time.

    \b
    Example:
      devicesim line bundle out batch.toml --config station/line.toml --out requests.bundle
    """
    with every_finding():
        batch, settings = load_both(batch_file, config)
        batch = allotted(batch, lease_file, settings.site.station)
        settings.crew().admit(Act.RUN, operator)
        fit_for_a_bundle(batch)
        station = Station.load(settings, file=config)
    caught: list[int] = []
    stop = threading.Event()
    world = _world(stop)
    own = open_ledger(settings, world, operator=operator)
    with own as ledger, ledger.exclusive(), stopping_on_signals(stop, caught):
        ready = without_network(open_line(station, ledger, world, stop), FileDoor(station.trust))
        ledger.open_batch(batch)
        with shown() as progress:
            stopped_by = ready.walk(
                batch.id, batch.units, slots=settings.site.slots, progress=progress, until=State.DRAFTED
            )
        if stopped_by is not None or caught:
            return finish(ledger, settings, batch.id, stopped_by, caught, as_json=as_json)
        bundle = new_ulid(world.clock(), world.randomness)
        data, count = send_out(ledger, batch.id, bundle, now())
        write_whole(out, data)
        ledger.checkpoint()
        failed = sum(row.failure is not None for row in ledger.units(batch.id))
    if as_json:
        echo_json({"bundle": bundle, "batch": batch.id, "requests": count, "failed": failed, "file": str(out)})
    else:
        click.echo(f"bundle {bundle}: {count} requests of {batch.id} in {out}, {failed} units failed")
    return SOME_FAILED if failed else 0


@bundle_group.command()
@click.argument("file", type=FILE)
@click.option("--server", required=True, metavar="URL", help="The EST server.")
@click.option("--label", default="", metavar="LABEL", help="EST label for units whose product names none.")
@click.option("--trust", type=FILE, required=True, help="The trust anchor of server and stations, PEM.")
@click.option("--cert", type=FILE, required=True, help="The carrier's certificate: a registration authority's.")
@click.option("--key", type=FILE, required=True, help="Its key, PEM, readable by its owner alone.")
@OUT
@json_option
def fill(file: Path, server: str, label: str, trust: Path, cert: Path, key: Path, out: Path, as_json: bool) -> int:
    """Get the certificates for a bundle, where there is a network; again at any time, for the same ones.

    \b
    Example:
      devicesim line bundle fill requests.bundle --server https://est.example --trust root.pem
          --cert s-07.pem --key s-07.key --out certificates.bundle
    """
    anchors, identity = TrustAnchors.from_file(trust), read_identity(cert, key)
    with _every_problem():
        requests = open_requests(read_bounded(file, BUNDLE_MAX_BYTES), anchors)
    est = Est.model_construct(url=server, trust=trust, cert=cert, key=key)

    def door(name: str) -> EstClient:
        return EstClient(server, trust=anchors, label=name or label, identity=identity)

    def told(answer: Answer) -> None:
        if answer.refused:
            click.echo(f"REFUSED {answer.device_id}: {answer.refused}", err=True)

    gate = Gate(est, _world(threading.Event()), lambda text: click.echo(f"-- {text}", err=True))
    answers, cacerts = ask_for_all(requests, door, gate, told)
    place = {**requests.place, "station": common_name(identity.certificates[0]) or ""}
    write_whole(out, seal_answers(requests, answers, cacerts, sealing(identity, place), now()))
    refused = sum(answer.certificate is None for answer in answers)
    if as_json:
        made = len(answers) - refused
        echo_json({"bundle": requests.bundle, "certificates": made, "refused": refused, "file": str(out)})
    else:
        click.echo(f"bundle {requests.bundle}: {len(answers) - refused} certificates, {refused} refused, in {out}")
    return SOME_FAILED if refused else 0


@bundle_group.command("in")
@click.argument("file", type=FILE)
@CONFIG
@OPERATOR
@json_option
def in_command(file: Path, config: Path, operator: str, as_json: bool) -> int:
    """Check everything that came back, then install it and let the line go on; again at any time.

    \b
    Example:
      devicesim line bundle in certificates.bundle --config station/line.toml
    """
    with every_finding():
        settings = load_settings(config)
        refuse_scan_back(settings)
        settings.crew().admit(Act.RUN, operator)
        station = Station.load(settings, file=config)
    caught: list[int] = []
    stop = threading.Event()
    world = _world(stop)
    own = open_ledger(settings, world, operator=operator)
    with own as ledger, ledger.exclusive(), stopping_on_signals(stop, caught):
        line = open_line(station, ledger, world, stop)
        with _every_problem():
            check = AgainstLedger(ledger, station.trust, now())
            answers = open_answers(read_bounded(file, BUNDLE_MAX_BYTES), station.trust, check.objections)
        ready, units = take_in(line, answers)
        with shown() as progress, announcing(settings, ledger, world) as voice, telling(ready) as told:
            stopped_by = ready.walk(answers.batch, units, slots=settings.site.slots, progress=progress)
        warn("announcements", voice.reason if voice else None)
        warn("pushes to [hooks.done]", told.reason if told else None)
        ledger.checkpoint()
        return finish(ledger, settings, answers.batch, stopped_by, caught, as_json=as_json)


@contextmanager
def _every_problem() -> Iterator[None]:
    """List what is wrong with a bundle, one problem a line, where the error itself has room for the first alone."""
    try:
        yield
    except BundleAltered as error:
        for problem in error.problems[:SHOWN] if len(error.problems) > 1 else ():
            click.echo(problem, err=True)
        raise


def _world(stop: threading.Event) -> World:
    return World(now, time.monotonic, stop.wait, random.SystemRandom().random, secrets.token_bytes)
