"""`manifest.csv`: one row a unit, for people and spreadsheets. RFC 4180; formulas are made harmless (`tables`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from devicesim.exports.format import Format, Occasion
from devicesim.exports.provisioned import Facts, Provisioned
from devicesim.exports.tables import guarded, read_table, unguarded, write_table

FILE = "manifest.csv"
COLUMNS = (
    *("device_id", "serial", "batch", "model", "hw_rev", "cert_serial", "cert_sha256", "spki_sha256", "issuer"),
    *("not_before", "not_after", "key_alg", "key_store", "station", "operator", "provisioned_at", "attempts"),
    *("outcome", "label", "ledger_seq", "ledger_head"),
)
NUMBERS = ("attempts", "ledger_seq")


def write(units: Iterator[Provisioned], directory: Path, _: Occasion) -> None:
    """Write the table."""
    rows = ([guarded(str(getattr(unit, name))) for name in COLUMNS] for unit in units)
    write_table(directory / FILE, COLUMNS, rows)


def read(directory: Path) -> Iterator[Facts]:
    """Read the table."""
    for row in read_table(directory / FILE, COLUMNS):
        cells = dict(zip(COLUMNS, map(unguarded, row), strict=True))
        yield {name: int(cell) if name in NUMBERS else cell for name, cell in cells.items()}


FORMAT = Format(
    name="csv",
    title="one row a unit, for people and spreadsheets",
    holds=frozenset(COLUMNS),
    write=write,
    read=read,
    limits=("a cell that a spreadsheet would run as a formula stands behind an apostrophe",),
)
