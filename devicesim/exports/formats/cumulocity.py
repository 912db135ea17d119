"""`cumulocity.csv`: bulk registration of Cumulocity for devices that have their certificate.

Columns of `POST /devicecontrol/bulkNewDeviceRequests` (Cumulocity OpenAPI, "Bulk device credentials"): the separator is
found by the server, `;` here; `com_cumulocity_model_Agent.active` has to be there and `true`; `PATH` makes groups and
needs `TYPE` and `NAME`. `AUTH_TYPE` is CERTIFICATES without ENROLLMENT_OTP: the tenant trusts the issuing CA, and no
one-time password leaves the line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from devicesim.exports.format import Format, Occasion, Problem
from devicesim.exports.provisioned import Facts, Provisioned
from devicesim.exports.tables import read_table, runnable, write_table

FILE = "cumulocity.csv"
COLUMNS = ("ID", "AUTH_TYPE", "TYPE", "NAME", "IDTYPE", "PATH", "com_cumulocity_model_Agent.active")


def write(units: Iterator[Provisioned], directory: Path, _: Occasion) -> None:
    """Write the table."""
    rows = (
        (unit.device_id, "CERTIFICATES", unit.model, unit.serial, "c8y_Serial", unit.group, "true") for unit in units
    )
    write_table(directory / FILE, COLUMNS, rows, delimiter=";")


def read(directory: Path) -> Iterator[Facts]:
    """Read the table."""
    for device_id, _auth, model, serial, _idtype, group, _active in read_table(
        directory / FILE, COLUMNS, delimiter=";"
    ):
        yield {"device_id": device_id, "model": model, "serial": serial, "group": group}


def check(unit: Provisioned) -> Iterator[Problem]:
    """Refuse what could not be registered, or would be run."""
    yield from runnable(unit, "serial", "group")
    if not unit.model:
        yield Problem("model", "is empty; TYPE is required")


FORMAT = Format(
    name="cumulocity",
    title="Cumulocity bulk registration, certificate devices",
    holds=frozenset({"device_id", "model", "serial", "group"}),
    write=write,
    read=read,
    check=check,
    limits=("no value that a spreadsheet would run as a formula", "the tenant must trust the issuing CA"),
)
