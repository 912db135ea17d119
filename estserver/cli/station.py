"""`estserver station`: registration authorities (id-kp-cmcRA, RFC 7030 §3.7) and the devices they may enrol."""

from __future__ import annotations

from pathlib import Path

import click

from estserver.cli.arguments import DEVICE_ID, devices_from
from estserver.cli.common import actor, emit, home_option, json_option, now, open_inventory
from estserver.records import StationRecord

_SHOWN_MAX = 5
_COLUMNS = ("name", "devices", "total", "created_at")


@click.group()
def station() -> None:
    """Add, list and remove the stations that may enrol for devices."""


@station.command("add")
@click.argument("name", type=DEVICE_ID)
@click.option(
    "--devices", multiple=True, required=True, metavar="FILE|PATTERN", help="A pattern, or a file of them (repeat)."
)
@home_option
@json_option
def add(name: str, devices: tuple[str, ...], home: Path, as_json: bool) -> None:
    """Let the station NAME enrol for devices, with the certificate of profile `station` that has this name.

    \b
    estserver station add line-1 --devices units.txt
    estserver station add line-2 --devices 'sn-*' --devices 'gw-0?'
    """
    record = StationRecord(name, devices_from(devices), now())
    with open_inventory(home) as inventory:
        inventory.station_add(record, actor())
    emit(_row(record, as_json=as_json), as_json=as_json)


@station.command("list")
@home_option
@json_option
def list_(home: Path, as_json: bool) -> None:
    """List the stations.

    \b
    estserver station list --json
    """
    with open_inventory(home) as inventory:
        rows = [_row(record, as_json=as_json) for record in inventory.stations()]
    emit(rows, as_json=as_json, columns=_COLUMNS)


@station.command("remove")
@click.argument("name", type=DEVICE_ID)
@home_option
def remove(name: str, home: Path) -> None:
    """Let a station enrol no more; its own certificate stays until it is revoked.

    \b
    estserver station remove line-1 && estserver revoke --device line-1 --reason cessationOfOperation
    """
    with open_inventory(home) as inventory:
        inventory.station_remove(name, actor(), now())


def _row(record: StationRecord, *, as_json: bool) -> dict[str, object]:
    shown = record.devices if as_json else record.devices[:_SHOWN_MAX]
    more = () if len(shown) == len(record.devices) else ("…",)
    return {
        "name": record.name,
        "devices": (*shown, *more),
        "total": len(record.devices),
        "created_at": record.created_at,
    }
