"""What is wrong with the files a line is given: every problem at once, each with its place.

A person mends a manifest in one go or not at all, so no reader here stops at the first problem.
"""

from __future__ import annotations

import codecs
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from devicesim.errors import ConfigInvalid

TOML_MAX_BYTES = 1 << 20
_PLACE = re.compile(r"^(?P<what>.*) \(at line (?P<row>\d+), column \d+\)$")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One problem in a file.

    Attributes:
        file: the file's name as the user gave it.
        row: line in the file, the header being row 1; 0 when the problem has no single line.
        column: the column or key; empty when it is about the whole row or file.
        text: what is wrong and what would be right.
        severity: a warning is worth a look and refuses nothing.
    """

    file: str
    row: int
    column: str
    text: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.row}" if self.row else self.file
        text = f"warning: {self.text}" if self.severity == "warning" else self.text
        return f"{place}: {self.column}: {text}" if self.column else f"{place}: {text}"


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that refuse a file."""
    return [finding for finding in findings if finding.severity == "error"]


class InputInvalid(ConfigInvalid):
    """Files of the line's are not what they should be; nothing was done. `findings` holds every problem."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        errors = errors_of(self.findings)
        count = f"{len(errors)} problems, the first: " if len(errors) > 1 else ""
        super().__init__(f"{count}{errors[0]}", advice="correct it and run it again; nothing was done")


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a file of the user's, at most so many bytes; a problem is an InputInvalid."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputInvalid([Finding(str(path), 0, "", f"cannot be read: {error.strerror}")]) from error
    if len(data) > max_bytes:
        raise InputInvalid([Finding(str(path), 0, "", f"is larger than {max_bytes} bytes")])
    return data


def decode_utf8(path: Path, data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark; a bad byte is found with its row."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputInvalid([Finding(str(path), 1, "", 'is UTF-16 (a spreadsheet\'s "Unicode text"); save it as UTF-8')])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise InputInvalid([Finding(str(path), row, "", "is not UTF-8; save it as UTF-8")]) from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a syntax error is found with its row."""
    text = decode_utf8(path, read_bounded(path, TOML_MAX_BYTES))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.match(str(error))
        what, row = (place["what"], int(place["row"])) if place else (str(error), 0)
        raise InputInvalid([Finding(str(path), row, "", f"is not TOML: {what}")]) from error


def findings_of(path: Path, error: ValidationError) -> list[Finding]:
    """Turn a model's complaints into findings: the key as it stands in the file, never the value."""
    return [
        Finding(str(path), 0, ".".join(str(part) for part in problem["loc"]), _plain(problem["type"], problem["msg"]))
        for problem in error.errors(include_input=False, include_url=False, include_context=False)
    ]


def _plain(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "is required"
    return message.removeprefix("Value error, ")
