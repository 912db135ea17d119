"""`estserver revoke`: take certificates back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from estserver import events
from estserver.cli.arguments import DEVICE_ID, NAME, SerialType, certificate_row, devices_from
from estserver.cli.common import actor, emit, home_option, json_option, now, open_inventory
from estserver.config import Settings, load_settings
from estserver.errors import ConfigError, NotFound
from estserver.key_ids import subject_key_id
from estserver.model import CertificateRecord, DeviceId, Event, Serial, SpkiHash

if TYPE_CHECKING:
    from estserver.inventory import Inventory
    from estserver.inventory.revocation import Announce
    from estserver.inventory.takeback import Choice

REASON_CHOICES = (
    "unspecified",
    "keyCompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)
_COLUMNS = ("serial", "device", "profile", "status", "revoked_at", "revocation_reason")


class _KeyType(click.ParamType[SpkiHash]):
    """A key by the SHA-256 of its SubjectPublicKeyInfo, as the inventory shows it."""

    name = "spki"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> SpkiHash:
        """Parse, or fail as a usage error."""
        digits = str(value).lower().replace(":", "")
        if not re.fullmatch(r"[0-9a-f]{64}", digits):
            self.fail(f"{value!r} is not the SHA-256 of a SubjectPublicKeyInfo in hex", param, ctx)
        return SpkiHash(digits)


@click.command()
@click.argument("serial", type=SerialType(), required=False)
@click.option("--device", type=DEVICE_ID, help="All of this device that is in force; it is blocked besides.")
@click.option("--devices", metavar="FILE", help="The same for each device of a file, such as a batch.")
@click.option("--key", type=_KeyType(), metavar="SHA256", help="All with this key, by the hash of its SPKI.")
@click.option("--station", type=NAME, help="All that this station asked for.")
@click.option("--ca", metavar="NAME", help="All that this one of [cas] signed.")
@click.option("--reason", type=click.Choice(REASON_CHOICES), default="unspecified", show_default=True)
@home_option
@json_option
def revoke(
    serial: Serial | None,
    device: DeviceId | None,
    devices: str | None,
    key: SpkiHash | None,
    station: str | None,
    ca: str | None,
    reason: str,
    home: Path,
    as_json: bool,
) -> None:
    """Revoke certificates; the running server refuses them from then on, and publishes a new CRL at once.

    With the certificate SERIAL go those that it superseded: they would renew as it did. A device that is revoked is
    blocked: it gets no certificate until `estserver block remove`. Large numbers are revoked a page at a time; a run
    that was cut short is completed by the same command.

    \b
    estserver revoke 4f21a0… --reason keyCompromise
    estserver revoke --device sn-0001 --reason cessationOfOperation
    estserver revoke --devices batch-0042.txt --reason keyCompromise
    """
    named = (serial, device, devices, key, station, ca)
    if sum(one is not None for one in named) != 1:
        raise click.UsageError("name one: a SERIAL, --device, --devices, --key, --station or --ca")
    settings, at = load_settings(home), now()
    announce = _announce(settings, reason, at)
    with open_inventory(home, settings) as inventory:
        if serial is not None:
            revoked = inventory.revoke(serial, reason, actor(), at, announce)
        elif device is not None:
            revoked = inventory.revoke_device(device, reason, actor(), at, announce)
        elif devices is not None:
            revoked = list(_of_devices(inventory, devices, reason, at, announce))
        else:
            choice = _choice(settings, key, station, ca)
            revoked = list(_chosen(inventory, choice, reason, at, announce))
    emit([certificate_row(record) for record in revoked], as_json=as_json, columns=_COLUMNS)
    if not revoked:
        click.echo("there was no certificate in force", err=True)


def _of_devices(
    inventory: Inventory, file: str, reason: str, at: datetime, announce: Announce
) -> Iterator[CertificateRecord]:
    """Revoke and block each device of a file; one that never had a certificate is blocked all the same, and told."""
    names = devices_from([file])
    patterns = [name for name in names if set(name) & set("*?")]
    if patterns:
        raise ConfigError(f"{patterns[0]} is a pattern, and devices are revoked by name", advice="list them one a line")
    for name in names:
        try:
            yield from inventory.revoke_device(DeviceId(name), reason, actor(), at, announce)
        except NotFound as error:
            inventory.takeback.block(DeviceId(name), reason, actor(), at)
            click.echo(f"{error}; it is blocked", err=True)


def _chosen(
    inventory: Inventory, choice: Choice, reason: str, at: datetime, announce: Announce
) -> Iterator[CertificateRecord]:
    for page in inventory.takeback.chosen(choice, at):
        yield from inventory.takeback.revoke(_serials(page), reason, actor(), at, announce)


def _serials(records: Iterable[CertificateRecord]) -> list[Serial]:
    return [record.serial for record in records]


def _choice(settings: Settings, key: SpkiHash | None, station: str | None, ca: str | None) -> Choice:
    from estserver.assembly import load_certificates
    from estserver.inventory.takeback import Choice

    issuer = None
    if ca is not None:
        section = settings.cas.get(ca)
        if section is None:
            raise ConfigError(f"there is no CA {ca!r} in [cas]", advice=f"one of {', '.join(sorted(settings.cas))}")
        issuer = subject_key_id(load_certificates(settings.path(section.certificate))[0])
    return Choice(key, None if station is None else f"station:{station}", issuer)


def _announce(settings: Settings, reason: str, at: datetime) -> Announce:
    def announce(record: CertificateRecord) -> Sequence[Event]:
        section = settings.label(record.label) or settings.default_label
        return events.revoked(record, record.revocation_reason or reason, at, ca=section.ca, random=os.urandom)

    return announce
