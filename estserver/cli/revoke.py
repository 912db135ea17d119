"""`estserver revoke`: take certificates back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from estserver import events
from estserver.cli.arguments import DEVICE_ID, SerialType, certificate_row
from estserver.cli.common import actor, emit, home_option, json_option, now, open_inventory
from estserver.config import Settings, load_settings
from estserver.model import CertificateRecord, DeviceId, Event, Serial

if TYPE_CHECKING:
    from estserver.inventory.revocation import Announce

_REASONS = (
    "unspecified",
    "keyCompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)
_COLUMNS = ("serial", "device", "profile", "status", "revoked_at", "revocation_reason")


@click.command()
@click.argument("serial", type=SerialType(), required=False)
@click.option("--device", type=DEVICE_ID, help="Every certificate of this device that is in force.")
@click.option("--reason", type=click.Choice(_REASONS), default="unspecified", show_default=True)
@home_option
@json_option
def revoke(serial: Serial | None, device: DeviceId | None, reason: str, home: Path, as_json: bool) -> None:
    """Revoke the certificate SERIAL, or all of a device; the running server refuses it from then on.

    \b
    estserver revoke 4f21a0… --reason keyCompromise
    estserver revoke --device sn-0001 --reason cessationOfOperation
    """
    if (serial is None) == (device is None):
        raise click.UsageError("name one: a SERIAL or --device ID")
    settings, at = load_settings(home), now()
    announce = _announce(settings, reason, at)
    with open_inventory(home, settings) as inventory:
        if serial is not None:
            revoked = [inventory.revoke(serial, reason, actor(), at, announce)]
        else:
            assert device is not None
            revoked = inventory.revoke_device(device, reason, actor(), at, announce)
    emit([certificate_row(record) for record in revoked], as_json=as_json, columns=_COLUMNS)
    if not revoked:
        click.echo(f"{device} has no certificate in force", err=True)


def _announce(settings: Settings, reason: str, at: datetime) -> Announce:
    def announce(record: CertificateRecord) -> Sequence[Event]:
        section = settings.label(record.label) or settings.default_label
        return events.revoked(record, reason, at, ca=section.ca, random=os.urandom)

    return announce
