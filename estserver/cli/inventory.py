"""`estserver inventory`: the certificates that were issued."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.cli.arguments import DEVICE_ID, SerialType, certificate_row
from estserver.cli.common import DurationType, emit, home_option, json_option, now, open_inventory
from estserver.errors import NotFound
from estserver.events import time_text
from estserver.model import CertificateRecord, DeviceId, Serial

if TYPE_CHECKING:
    from estserver.inventory import Inventory

_PAGE = 500
_COLUMNS = ("serial", "device", "profile", "status", "not_after", "subject")
Status = Literal["valid", "revoked", "superseded"]
_FIELDS = (
    "serial",
    "device",
    "profile",
    "label",
    "operation",
    "requester",
    "status",
    "key",
    "subject",
    "san",
    "not_before",
    "not_after",
    "renew_after",
    "issued_at",
    "predecessor",
    "superseded_by",
    "revoked_at",
    "revocation_reason",
    "spki_sha256",
    "sha256",
)


@click.group()
def inventory() -> None:
    """List, show and export the certificates that were issued."""


@inventory.command("list")
@click.option("--device", type=DEVICE_ID, help="Only of this device.")
@click.option("--profile", help="Only of this profile.")
@click.option("--status", type=click.Choice(["valid", "revoked", "superseded"]), help="Expired ones keep their status.")
@click.option(
    "--expiring", type=DurationType(), metavar="30d", help="Only those that end within this time, soonest first."
)
@click.option("--after", type=SerialType(), metavar="SERIAL", help="Go on after this one, the last of the page before.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@home_option
@json_option
def list_(
    device: DeviceId | None,
    profile: str | None,
    status: Status | None,
    expiring: timedelta | None,
    after: Serial | None,
    limit: int,
    home: Path,
    as_json: bool,
) -> None:
    """List certificates in the order of issue.

    \b
    estserver inventory list --status valid --expiring 30d
    estserver inventory list --device sn-0001 --json
    """
    before = None if expiring is None else now() + expiring
    with open_inventory(home) as records:
        page = records.list_certificates(
            device=device, profile=profile, status=status, expiring_before=before, after=after, limit=limit + 1
        )
    shown = page[:limit]
    emit([certificate_row(record) for record in shown], as_json=as_json, columns=_COLUMNS)
    if len(page) > limit:
        click.echo(f"there are more: --after {shown[-1].serial:x}", err=True)


@inventory.command("show")
@click.argument("serial", type=SerialType())
@click.option("--pem", is_flag=True, help="Print the certificate instead of its facts.")
@click.option("--csr", is_flag=True, help="Print the request that it answered instead.")
@home_option
@json_option
def show(serial: Serial, pem: bool, csr: bool, home: Path, as_json: bool) -> None:
    """Show one certificate.

    \b
    estserver inventory show 4f21…  --pem | openssl x509 -text
    """
    with open_inventory(home) as records:
        record = records.by_serial(serial)
        request = records.csr(serial) if csr else None
    if record is None:
        raise NotFound(f"no certificate has the serial {serial:x}", advice="see: estserver inventory list")
    if request is not None:
        click.echo(x509.load_der_x509_csr(request).public_bytes(Encoding.PEM).decode(), nl=False)
    elif pem:
        click.echo(x509.load_der_x509_certificate(record.certificate).public_bytes(Encoding.PEM).decode(), nl=False)
    else:
        emit(certificate_row(record), as_json=as_json)


@inventory.command("export")
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
@home_option
def export(form: str, home: Path) -> None:
    """Print every certificate's facts, a page at a time, while the server goes on.

    \b
    estserver inventory export --format csv > certificates.csv
    """
    with open_inventory(home) as records:
        _EXPORTS[form](certificate_row(record) for record in _all(records))


def _all(records: Inventory) -> Iterator[CertificateRecord]:
    page = records.list_certificates(limit=_PAGE)
    while page:
        yield from page
        page = records.list_certificates(after=page[-1].serial, limit=_PAGE)


def _export_csv(rows: Iterator[dict[str, object]]) -> None:
    """Write RFC 4180; a cell that a spreadsheet would run as a formula gets an apostrophe."""
    writer = csv.writer(sys.stdout)
    writer.writerow(_FIELDS)
    for row in rows:
        cells = (_cell(row[field]) for field in _FIELDS)
        writer.writerow([f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell for cell in cells])


def _export_json(rows: Iterator[dict[str, object]]) -> None:
    opening = "["
    for row in rows:
        click.echo(opening + "\n" + json.dumps(row, default=_cell), nl=False)
        opening = ","
    click.echo("[]" if opening == "[" else "\n]")


_EXPORTS = {"csv": _export_csv, "json": _export_json}


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
