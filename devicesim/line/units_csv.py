"""`units.csv`: one row a unit, read strictly.

Rules: UTF-8 with or without a byte order mark; comma; RFC 4180 quoting; a header row of known columns, each once;
`device_id` and `serial` required unless the batch makes them; as many fields in every row as in the header. Values come
out normalised (a MAC address in lower case with colons), or as a finding with row and column. Nothing here knows what a
batch is.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from devicesim.line.findings import Finding, InputInvalid, decode_utf8, read_bounded
from devicesim.mqtt.topics import IDENTIFIER

FILE_MAX_BYTES = 32 << 20
UNITS_MAX = 100_000
TEXT_MAX_CHARS = 128
ATTRS_MAX_CHARS = 2048

_MANGLED = r"(?:'.*|=\".*|[0-9](?:[.,][0-9]+)?[Ee][+-][0-9]+)"
"""What a spreadsheet leaves of a value it took for a number, or of one somebody kept it from taking for one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One unit as the file has it: checked column by column, empty where nothing is said; number 0: no row."""

    number: int
    device_id: str = ""
    serial: str = ""
    model: str = ""
    hw_rev: str = ""
    profile: str = ""
    mac: str = ""
    se_id: str = ""
    group: str = ""
    otp_file: str = ""
    attrs_json: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: what its values look like, in words and as the pattern that the published schema shows too.

    Attributes:
        normal: brings a value that fits into its one form; may raise ValueError.
    """

    pattern: re.Pattern[str]
    what: str
    normal: Callable[[str], str] = str
    max_chars: int = TEXT_MAX_CHARS

    def check(self, value: str) -> str:
        """Return the value in its one form, or raise ValueError that says what is wrong with it."""
        if _MANGLED_VALUE.fullmatch(value) is not None:
            raise ValueError(
                f"{value[:80]!r} was made by a spreadsheet, of a number or a text: import the column as text"
            )
        if len(value) > self.max_chars:
            raise ValueError(f"is at most {self.max_chars} characters")
        if self.pattern.fullmatch(value) is None:
            raise ValueError(f"{value[:80]!r} is not {self.what}")
        return self.normal(value)


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"is at most {TEXT_MAX_CHARS} printable characters")
    return value


def _mac(value: str) -> str:
    digits = value.lower().replace(":", "").replace("-", "")
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))


def _attrs(value: str) -> str:
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError('is not a JSON object such as {"colour": "grey"}')  # noqa: TRY004 - a value, not a type, of the user's
    return json.dumps(parsed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


_MANGLED_VALUE = re.compile(_MANGLED)
_TEXT = Column(re.compile(r"[^\x00-\x1f\x7f]+"), f"at most {TEXT_MAX_CHARS} printable characters", _printable)
_NAME = Column(
    re.compile(IDENTIFIER), "an identifier: 1 to 64 of a-z 0-9 - _, beginning and ending with a letter or digit"
)
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-]?)[0-9A-Fa-f]{2}(?:\1[0-9A-Fa-f]{2}){4}")
_SE_ID = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z._:-]{0,62}[0-9A-Za-z])?")
COLUMNS: dict[str, Column] = {
    "device_id": _NAME,
    "serial": _TEXT,
    "model": _NAME,
    "hw_rev": _TEXT,
    "profile": Column(re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}"), "an EST label"),
    "mac": Column(_MAC, "a MAC address such as 02:00:5e:10:00:01", _mac),
    "se_id": Column(_SE_ID, "a secure-element id: 1 to 64 letters, digits . _ : -"),
    "group": _TEXT,
    "otp_file": _TEXT,
    "attrs_json": Column(re.compile(r"\{.*\}"), 'a JSON object such as {"colour": "grey"}', _attrs, ATTRS_MAX_CHARS),
}
REQUIRED = ("device_id", "serial")
UNIQUE = ("device_id", "serial", "mac", "se_id")


def row_schema(*, numbered: bool) -> dict[str, object]:
    """Return the JSON Schema of a row as an object of strings; in a `numbered` batch ids and serials can be made."""
    properties = {
        name: {
            "type": "string",
            "description": column.what,
            "maxLength": column.max_chars,
            "pattern": f"^{column.pattern.pattern}$"
            if name in REQUIRED and not numbered
            else f"^(?:{column.pattern.pattern})?$",
            "not": {"pattern": f"^{_MANGLED}$"},
        }
        for name, column in COLUMNS.items()
    }
    required = [] if numbered else list(REQUIRED)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def read_units(path: Path, findings: list[Finding], *, numbered: bool = False) -> list[Row]:
    """Read all rows that can be read, adding every problem to `findings`.

    Args:
        numbered: the batch makes the ids and serials that a row leaves out.
    """
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
    required = () if numbered else REQUIRED
    if not _check_header(path, names, required, findings):
        return []
    reader = _Reader(path, names, required, findings)
    rows = [row for number, fields in records if (row := reader.row(number, fields)) is not None]
    reader.summarise(rows)
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


def _check_header(path: Path, names: list[str], required: tuple[str, ...], findings: list[Finding]) -> bool:
    if len(names) == 1 and names[0].count(";") + names[0].count("\t"):
        findings.append(Finding(str(path), 1, "", "is separated by semicolons or tabs; save it with commas"))
        return False
    problems = [f"unknown column {name!r}" + _hint(name) for name in names if name not in COLUMNS]
    problems += [f"column {name!r} stands twice" for name in sorted({n for n in names if names.count(n) > 1})]
    problems += [f"column {name!r} is missing" for name in required if name not in names]
    findings.extend(Finding(str(path), 1, "", problem) for problem in problems)
    return not problems


def _hint(name: str) -> str:
    if name == "otp":
        return "; a password does not belong into a manifest: name a file that holds it in 'otp_file'"
    return f"; the columns are {', '.join(COLUMNS)}"


@dataclass(slots=True)
class _Reader:
    """Reads rows under a header that is in order."""

    path: Path
    names: list[str]
    required: tuple[str, ...]
    findings: list[Finding]
    padded: list[tuple[int, str]] = field(default_factory=list)

    def row(self, number: int, fields: list[str]) -> Row | None:
        """Check one row, column by column."""
        if len(fields) != len(self.names):
            self._find(number, "", f"has {len(fields)} fields where the header has {len(self.names)}")
            return None
        values: dict[str, str] = {}
        for name, text in zip(self.names, fields, strict=True):
            value = text.strip()
            if value != text:
                self.padded.append((number, name))
            try:
                values[name] = COLUMNS[name].check(value) if value else ""
            except ValueError as error:
                self._find(number, name, str(error))
                values[name] = ""
                continue
            if not value and name in self.required:
                self._find(number, name, "is required")
        return Row(number, **values)

    def summarise(self, rows: list[Row]) -> None:
        """Warn, once, of what no single row is wrong for."""
        if self.padded:
            number, name = self.padded[0]
            more = f", and {len(self.padded) - 1} more such values" if len(self.padded) > 1 else ""
            self._warn(number, name, f"has spaces around it, which were passed over{more}")
        shortest = min(rows, key=lambda row: len(row.serial), default=None)
        longest = max(rows, key=lambda row: len(row.serial), default=None)
        if (
            shortest
            and longest
            and len(shortest.serial) < len(longest.serial)
            and all(r.serial.isdecimal() for r in rows)
        ):
            text = f"is shorter than that of row {longest.number}: has a spreadsheet taken its leading zeros away?"
            self._warn(shortest.number, "serial", text)

    def _find(self, number: int, column: str, text: str) -> None:
        self.findings.append(Finding(str(self.path), number, column, text))

    def _warn(self, number: int, column: str, text: str) -> None:
        self.findings.append(Finding(str(self.path), number, column, text, "warning"))


def check_unique(path: Path, rows: list[Row], findings: list[Finding]) -> None:
    """Find what two units of the batch share."""
    for name in UNIQUE:
        first: dict[str, int] = {}
        for row in rows:
            value = str(getattr(row, name))
            if value and first.setdefault(value, row.number) != row.number:
                text = f"{value!r} is already the one of row {first[value]}"
                findings.append(Finding(str(path), row.number, name, text))
