"""`estserver block`: devices that get no certificate, whoever vouches for them."""

from __future__ import annotations

from pathlib import Path

import click

from estserver.cli.arguments import DEVICE_ID
from estserver.cli.common import actor, emit, home_option, json_option, now, open_inventory
from estserver.cli.revoke import REASON_CHOICES
from estserver.model import DeviceId

_COLUMNS = ("device", "at", "reason", "actor")


@click.group()
def block() -> None:
    """Add, list and remove devices that get no certificate; `estserver revoke --device` adds them too."""


@block.command("add")
@click.argument("device", type=DEVICE_ID)
@click.option("--reason", type=click.Choice(REASON_CHOICES), default="unspecified", show_default=True)
@home_option
def add(device: DeviceId, reason: str, home: Path) -> None:
    """Let a device get no certificate, whether or not it ever had one; those that it has stay.

    \b
    estserver block add sn-0001 --reason cessationOfOperation
    """
    with open_inventory(home) as inventory:
        inventory.takeback.block(device, reason, actor(), now())


@block.command("list")
@click.option("--after", default="", metavar="DEVICE", help="Go on after the last of the page before.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@home_option
@json_option
def list_(after: str, limit: int, home: Path, as_json: bool) -> None:
    """List blocked devices, by name.

    \b
    estserver block list --json
    """
    with open_inventory(home) as inventory:
        page = inventory.takeback.blocked(after=after, limit=limit + 1)
    shown = [{column: getattr(record, column) for column in _COLUMNS} for record in page[:limit]]
    emit(shown, as_json=as_json, columns=_COLUMNS)
    if len(page) > limit:
        click.echo(f"there are more: --after {shown[-1]['device']}", err=True)


@block.command("remove")
@click.argument("device", type=DEVICE_ID)
@home_option
def remove(device: DeviceId, home: Path) -> None:
    """Let a device enrol again; what was revoked stays revoked.

    \b
    estserver block remove sn-0001
    """
    with open_inventory(home) as inventory:
        inventory.takeback.unblock(device, actor(), now())
