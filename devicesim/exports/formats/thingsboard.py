"""`thingsboard.csv`: bulk provisioning of ThingsBoard, devices with X.509 credentials.

The column types of its import (org.thingsboard.server.common.data.sync.ie.importing.csv.BulkImportColumnType): NAME,
TYPE, LABEL, X509 with the certificate in PEM, and SERVER_ATTRIBUTE for the rest; the header names are what the import
asks to map. A label is at most 255 characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from devicesim.exports.format import Format, Occasion, Problem
from devicesim.exports.provisioned import Facts, Provisioned, pem, unpem
from devicesim.exports.tables import read_table, runnable, write_table

FILE = "thingsboard.csv"
COLUMNS = {
    "name": "device_id",
    "type": "model",
    "label": "serial",
    "x509": "certificate",
    "batch": "batch",
    "hw_rev": "hw_rev",
    "mac": "mac",
    "se_id": "se_id",
    "group": "group",
}


def write(units: Iterator[Provisioned], directory: Path, _: Occasion) -> None:
    """Write the table."""
    rows = (
        [pem(unit.certificate) if field == "certificate" else getattr(unit, field) for field in COLUMNS.values()]
        for unit in units
    )
    write_table(directory / FILE, tuple(COLUMNS), rows)


def read(directory: Path) -> Iterator[Facts]:
    """Read the table."""
    for row in read_table(directory / FILE, tuple(COLUMNS)):
        cells = dict(zip(COLUMNS.values(), row, strict=True))
        yield {**cells, "certificate": unpem(cells["certificate"])[0]}


def check(unit: Provisioned) -> Iterator[Problem]:
    """Refuse what would be run, or is too long."""
    yield from runnable(unit, "serial", "hw_rev", "group")
    if len(unit.serial) > 255:
        yield Problem("serial", "is longer than the 255 characters of a label")


FORMAT = Format(
    name="thingsboard",
    title="ThingsBoard bulk provisioning, X.509 credentials",
    holds=frozenset(COLUMNS.values()),
    write=write,
    read=read,
    check=check,
    limits=("no value that a spreadsheet would run as a formula", "a label has at most 255 characters"),
)
