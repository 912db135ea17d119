"""`units.csv`: one row a unit, read strictly.

Rules: UTF-8 with or without a byte order mark; comma; RFC 4180 quoting; a header row of known columns, each once;
`device_id` and `serial` required; as many fields in every row as in the header. Values come out normalised (a MAC
address in lower case with colons), or as a finding with row and column. Nothing here knows what a batch is.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from devicesim.line.findings import Finding, InputInvalid, decode_utf8, read_bounded
from devicesim.mqtt.topics import identifier

FILE_MAX_BYTES = 32 << 20
UNITS_MAX = 100_000
TEXT_MAX_CHARS = 128
ATTRS_MAX_CHARS = 2048

_HEX_PAIR = re.compile(r"[0-9a-f]{12}")
_TOKEN = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z._:-]{0,62}[0-9A-Za-z])?")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}")


@dataclass(frozen=True, slots=True)
class Row:
    """One unit as the file has it: checked column by column, the empty string where nothing is said."""

    number: int
    device_id: str
    serial: str
    model: str = ""
    hw_rev: str = ""
    profile: str = ""
    mac: str = ""
    se_id: str = ""
    group: str = ""
    otp_file: str = ""
    attrs_json: str = ""


def _text(value: str) -> str:
    if len(value) > TEXT_MAX_CHARS or not value.isprintable():
        raise ValueError(f"is at most {TEXT_MAX_CHARS} printable characters")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if pattern.fullmatch(value) is None:
            raise ValueError(f"{value[:80]!r} is not {what}")
        return value

    return check


def _mac(value: str) -> str:
    digits = value.lower().replace(":", "").replace("-", "")
    if _HEX_PAIR.fullmatch(digits) is None:
        raise ValueError(f"{value[:80]!r} is not a MAC address such as 02:00:5e:10:00:01")
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))


def _attrs(value: str) -> str:
    if len(value) > ATTRS_MAX_CHARS:
        raise ValueError(f"is at most {ATTRS_MAX_CHARS} characters")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError('is not a JSON object such as {"colour": "grey"}')  # noqa: TRY004 - a value, not a type, of the user's
    return json.dumps(parsed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


COLUMNS: dict[str, Callable[[str], str]] = {
    "device_id": identifier,
    "serial": _text,
    "model": identifier,
    "hw_rev": _text,
    "profile": _matching(_LABEL, "an EST label"),
    "mac": _mac,
    "se_id": _matching(_TOKEN, "a secure-element id: 1 to 64 letters, digits . _ : -"),
    "group": _text,
    "otp_file": _text,
    "attrs_json": _attrs,
}
REQUIRED = ("device_id", "serial")
UNIQUE = ("device_id", "serial", "mac", "se_id")


def read_units(path: Path, findings: list[Finding]) -> list[Row]:
    """Read all rows that can be read, adding every problem to `findings`."""
    try:
        text = decode_utf8(path, read_bounded(path, FILE_MAX_BYTES))
    except InputInvalid as error:
        findings.extend(error.findings)
        return []
    records = _records(path, text, findings)
    header = next(records, None)
    if header is None:
        findings.append(Finding(str(path), 1, "", "has no header row"))
        return []
    names = [name.strip() for name in header[1]]
    if not _check_header(path, names, findings):
        return []
    rows = [row for number, fields in records if (row := _row(path, number, names, fields, findings)) is not None]
    _check_unique(path, rows, findings)
    return rows


def _records(path: Path, text: str, findings: list[Finding]) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line it begins on; empty lines are passed over."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begins, count = 1, 0
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                count += 1
                yield begins, fields
            if count > UNITS_MAX + 1:
                findings.append(
                    Finding(str(path), begins, "", f"has more than {UNITS_MAX} units; make several batches")
                )
                return
            begins = reader.line_num + 1
    except csv.Error as error:
        findings.append(Finding(str(path), begins, "", f"is not CSV: {error}"))


def _check_header(path: Path, names: list[str], findings: list[Finding]) -> bool:
    problems = [f"unknown column {name!r}" + _hint(name) for name in names if name not in COLUMNS]
    problems += [f"column {name!r} stands twice" for name in sorted({n for n in names if names.count(n) > 1})]
    problems += [f"column {name!r} is missing" for name in REQUIRED if name not in names]
    findings.extend(Finding(str(path), 1, "", problem) for problem in problems)
    return not problems


def _hint(name: str) -> str:
    if name == "otp":
        return "; a password does not belong into a manifest: name a file that holds it in 'otp_file'"
    return f"; the columns are {', '.join(COLUMNS)}"


def _row(path: Path, number: int, names: list[str], fields: list[str], findings: list[Finding]) -> Row | None:
    if len(fields) != len(names):
        findings.append(Finding(str(path), number, "", f"has {len(fields)} fields where the header has {len(names)}"))
        return None
    values: dict[str, str] = {}
    for name, field in zip(names, fields, strict=True):
        value = field.strip()
        try:
            values[name] = COLUMNS[name](value) if value else ""
        except ValueError as error:
            findings.append(Finding(str(path), number, name, str(error)))
            values[name] = ""
            continue
        if not value and name in REQUIRED:
            findings.append(Finding(str(path), number, name, "is required"))
    return Row(number, **values)


def _check_unique(path: Path, rows: list[Row], findings: list[Finding]) -> None:
    for name in UNIQUE:
        first: dict[str, int] = {}
        for row in rows:
            value = str(getattr(row, name))
            if value and first.setdefault(value, row.number) != row.number:
                text = f"{value!r} is already the one of row {first[value]}"
                findings.append(Finding(str(path), row.number, name, text))
