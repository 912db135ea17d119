"""CSV as RFC 4180 has it, written and read by the same rules.

A cell that begins with = + - @ or a tab or carriage return is run as a formula by spreadsheets. A file that people open
(`guarded`) has such a cell behind an apostrophe, as it has a cell that begins with an apostrophe itself: reading takes
exactly one away, so nothing is lost. A file that a program imports would carry the apostrophe into the cloud; there
such a value is refused (`runnable`), and the unit and field are named.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from devicesim.errors import VerificationFailed
from devicesim.exports.files import new_file
from devicesim.exports.format import Problem
from devicesim.exports.provisioned import Provisioned

_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], *, delimiter: str = ",") -> None:
    """Write a new CSV file; an empty header writes none."""
    with new_file(path) as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\r\n")
        if header:
            writer.writerow(header)
        writer.writerows(rows)


def read_table(path: Path, header: Sequence[str], *, delimiter: str = ",") -> Iterator[list[str]]:
    """Read the rows of a CSV file, a row at a time; another header is a VerificationFailed."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        if header and next(reader, None) != list(header):
            raise VerificationFailed(f"{path.name} does not have the header it should have")
        yield from reader


def guarded(cell: str) -> str:
    """Write a cell so that no spreadsheet runs it."""
    return f"'{cell}" if cell.startswith((*_STARTS_A_FORMULA, "'")) else cell


def unguarded(cell: str) -> str:
    """Read a cell that `guarded` wrote."""
    return cell.removeprefix("'")


def runnable(unit: Provisioned, *names: str) -> Iterator[Problem]:
    """Find the fields of a unit that a spreadsheet would run."""
    for name in names:
        value = getattr(unit, name)
        if value.startswith(_STARTS_A_FORMULA):
            text = f"begins with {value[0]!r}, which a spreadsheet runs as a formula; jsonl and csv hold it"
            yield Problem(name, text)
