"""`estserver pending`: the requests that wait for an operator, and what the operator says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.cli.arguments import DEVICE_ID
from estserver.cli.common import actor, emit, home_option, json_option, now, open_inventory
from estserver.config import load_settings
from estserver.events import serial_text
from estserver.model import DeviceId
from estserver.policy.names import attribute_name
from estserver.records import PendingRecord

_COLUMNS = ("id", "state", "device", "requester", "operation", "profile", "asked_at", "expires_at")
_REASON_MAX = 200
State = Literal["waiting", "approved", "denied"]


@click.group()
def pending() -> None:
    """List, show, approve and deny the requests of profiles that ask for approval."""


@pending.command("list")
@click.option("--state", type=click.Choice(["waiting", "approved", "denied"]), help="Only those.")
@click.option("--device", type=DEVICE_ID, help="Only of this device.")
@click.option(
    "--after", type=click.IntRange(0), default=0, metavar="ID", help="Go on after the last of the page before."
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@home_option
@json_option
def list_(state: State | None, device: DeviceId | None, after: int, limit: int, home: Path, as_json: bool) -> None:
    """List what waits, and what was decided and not fetched yet, oldest first.

    \b
    estserver pending list --state waiting --json
    """
    with open_inventory(home) as inventory:
        page = inventory.pending.page(now(), state=state, device=device, after=after, limit=limit + 1)
    shown = page[:limit]
    emit([_row(record) for record in shown], as_json=as_json, columns=_COLUMNS)
    if len(page) > limit:
        click.echo(f"there are more: --after {shown[-1].id}", err=True)


@pending.command("show")
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.option("--csr", is_flag=True, help="Print the request itself as PEM.")
@home_option
@json_option
def show(number: int, csr: bool, home: Path, as_json: bool) -> None:
    """Show one request: who asks for what, with which key.

    \b
    estserver pending show 7 --csr | openssl req -text -noout
    """
    with open_inventory(home) as inventory:
        record = inventory.pending.find(number, now())
    if csr:
        click.echo(x509.load_der_x509_csr(record.csr).public_bytes(Encoding.PEM).decode(), nl=False)
    else:
        emit(_row(record), as_json=as_json)


@pending.command("approve")
@click.argument("numbers", metavar="ID...", type=click.IntRange(1), nargs=-1, required=True)
@home_option
@json_option
def approve(numbers: tuple[int, ...], home: Path, as_json: bool) -> None:
    """Approve requests, all or none: each is issued when its requester asks again.

    \b
    estserver pending approve 7
    """
    settings = load_settings(home)
    with open_inventory(home, settings) as inventory:
        records = inventory.pending.approve(numbers, actor(), now(), settings.limits.pending_lifetime)
    emit([_row(record) for record in records], as_json=as_json, columns=_COLUMNS)


@pending.command("deny")
@click.argument("numbers", metavar="ID...", type=click.IntRange(1), nargs=-1, required=True)
@click.option("--reason", metavar="TEXT", help="What the requester is told.")
@home_option
@json_option
def deny(numbers: tuple[int, ...], reason: str | None, home: Path, as_json: bool) -> None:
    """Deny requests, all or none, approved ones too as long as they are not issued.

    \b
    estserver pending deny 7 --reason 'not on the delivery note'
    """
    if reason is not None and not (reason.isprintable() and len(reason) <= _REASON_MAX):
        raise click.UsageError(f"--reason takes one line of at most {_REASON_MAX} characters")
    settings = load_settings(home)
    with open_inventory(home, settings) as inventory:
        records = inventory.pending.deny(numbers, reason, actor(), now(), settings.limits.pending_lifetime)
    emit([_row(record) for record in records], as_json=as_json, columns=_COLUMNS)


def _row(record: PendingRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "state": record.state,
        "device": record.device,
        "requester": record.requester,
        "operation": record.operation,
        "label": record.label,
        "profile": record.profile,
        "key": record.key_name,
        "subject": ", ".join(f"{attribute_name(name.oid)}={name.value}" for name in record.subject),
        "san": tuple(map(str, record.san)),
        "predecessor": None if record.predecessor is None else serial_text(record.predecessor),
        "peer_address": record.peer_address,
        "asked_at": record.asked_at,
        "expires_at": record.expires_at,
        "decided_at": record.decided_at,
        "decided_by": record.decided_by,
        "reason": record.reason,
        "spki_sha256": record.spki_sha256,
    }
