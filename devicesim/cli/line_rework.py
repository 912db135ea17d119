"""`devicesim line rework` and `trace`: what is done about a unit by hand, and everything that was done about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from devicesim.cli.line_files import CONFIG
from devicesim.cli.line_people import OPERATOR, SECOND, opened, world
from devicesim.cli.options import echo_json, json_option
from devicesim.errors import UsageProblem
from devicesim.line.assembly import open_voice, take_the_seal
from devicesim.line.crew import Act
from devicesim.line.ledger import RevocationRow, UnitRow, Why
from devicesim.line.reasons import Reason
from devicesim.line.station import Station
from devicesim.line.trace import make_trace, trace_text

NOTE_MAX = 500
DEVICE = click.argument("device", metavar="DEVICE")
Command = Callable[..., Any]


def _why(command: Command) -> Command:
    reason = click.option(
        "--reason",
        required=True,
        type=click.Choice([reason.value for reason in Reason]),
        metavar="CODE",
        help=f"One of {', '.join(Reason)}.",
    )
    note = click.option("--note", default="", metavar="TEXT", help="What else there is to say; needed for `other`.")
    return reason(note(command))


@click.group()
def rework() -> None:
    """Do something about a unit by hand: try it again, give it a new identity, take it off the line.

    \b
    devicesim line rework retry sn-0001 --reason station-fault --operator op-113
    devicesim line rework reissue sn-0001 --reason component-replaced --operator op-113 --second op-007
    """


@rework.command()
@DEVICE
@_why
@OPERATOR
@CONFIG
@json_option
def retry(device: str, reason: str, note: str, operator: str, config: Path, as_json: bool) -> None:
    """Answer a unit's failure; the next run of its batch tries it again.

    \b
    Example:
      devicesim line rework retry sn-0001 --reason station-fault --operator op-113 --config station/line.toml
    """
    with opened(config, operator=operator) as (settings, ledger):
        settings.crew().admit(Act.RETRY, operator)
        _show(ledger.retry(device, reason_of(reason, note)), as_json=as_json)


@rework.command()
@DEVICE
@_why
@OPERATOR
@SECOND
@CONFIG
@json_option
def reissue(device: str, reason: str, note: str, operator: str, second: str, config: Path, as_json: bool) -> None:
    """End a unit's identity; the next run of its batch gives it a new key and a new certificate.

    \b
    Example:
      devicesim line rework reissue sn-0001 --reason component-replaced --operator op-113 --second op-007
          --config station/line.toml
    """
    with opened(config, operator=operator, second=second) as (settings, ledger):
        settings.crew().admit(Act.REISSUE, operator, second)
        made = ledger.reissue(device, reason_of(reason, note), old=settings.rework.old_certificate)
        _show(made, as_json=as_json)


@rework.command()
@DEVICE
@_why
@OPERATOR
@SECOND
@CONFIG
@json_option
def scrap(device: str, reason: str, note: str, operator: str, second: str, config: Path, as_json: bool) -> None:
    """Take a unit off the line for ever: its id, serial numbers and keys are not used again.

    \b
    Example:
      devicesim line rework scrap sn-0001 --reason damaged --operator op-113 --second op-007
          --config station/line.toml
    """
    with opened(config, operator=operator, second=second) as (settings, ledger):
        settings.crew().admit(Act.SCRAP, operator, second)
        why, station = reason_of(reason, note), Station.load(settings, file=config)
        take_the_seal(ledger, station)
        voice = open_voice(station, world())
        announce = voice.scrapped(ledger.unit(device), why) if voice else None
        _show(ledger.scrap(device, why, old=settings.rework.old_certificate, announce=announce), as_json=as_json)


@rework.command()
@DEVICE
@OPERATOR
@CONFIG
@json_option
def revoked(device: str, operator: str, config: Path, as_json: bool) -> None:
    """Confirm that a unit's old certificates, whose revocation was owed, are revoked at the CA.

    \b
    Example:
      devicesim line rework revoked sn-0001 --operator op-113 --config station/line.toml
    """
    with opened(config, operator=operator) as (settings, ledger):
        settings.crew().admit(Act.REVOKED, operator)
        count = ledger.confirm_revoked(device)
    if as_json:
        echo_json({"device_id": device, "confirmed": count})
    else:
        click.echo(f"{device}: {count} revocations confirmed" if count else f"{device}: no revocation was owed")


@click.command()
@DEVICE
@CONFIG
@json_option
def trace(device: str, config: Path, as_json: bool) -> None:
    """Tell the whole story of a unit: every attempt and step, who and when, what failed and why, what to do next.

    \b
    Example:
      devicesim line trace sn-0001 --config station/line.toml
    """
    with opened(config) as (_, ledger):
        told = make_trace(ledger, device)
    if as_json:
        echo_json(told.to_dict())
    else:
        click.echo(trace_text(told))


def order_dict(order: RevocationRow) -> dict[str, object]:
    """Return what `--json` shows of a revocation that is owed."""
    return {
        "device_id": order.device_id,
        "generation": order.generation,
        "cert_serial": order.cert_serial and order.cert_serial.partition(":")[2],
        "spki_sha256": order.spki_sha256,
        "reason": order.reason,
    }


def order_text(order: RevocationRow) -> str:
    """Say what is to be revoked, and how that is confirmed."""
    serial = order.cert_serial.partition(":")[2] if order.cert_serial else "of unknown serial number"
    return (
        f"certificate {serial} of {order.device_id} (generation {order.generation}, key {order.spki_sha256[:16]}…,"
        f" {order.reason}); then: devicesim line rework revoked {order.device_id}"
    )


def reason_of(reason: str, note: str) -> Why:
    """Return the reason of a rework; one that says nothing needs a note that does."""
    if len(note) > NOTE_MAX or not note.isprintable():
        raise UsageProblem(f"--note is one line of at most {NOTE_MAX} characters")
    if reason == Reason.OTHER and not note:
        raise UsageProblem("the reason `other` needs a --note", advice="say in a few words what it is")
    return Why(Reason(reason), note)


def _show(unit: UnitRow, *, as_json: bool) -> None:
    if as_json:
        echo_json({"device_id": unit.device_id, "state": unit.state, "generation": unit.generation})
        return
    then = "" if unit.ended else f"; next: run batch {unit.batch}"
    click.echo(f"{unit.device_id}: {unit.state}, generation {unit.generation}{then}")
