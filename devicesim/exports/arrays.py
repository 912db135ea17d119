"""Lists of JSON objects, one object a line, so that neither writing nor reading holds more than one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from devicesim.errors import VerificationFailed
from devicesim.exports.files import new_file

LINE_MAX_CHARS = 1 << 20
WHOLE_MAX_CHARS = 64 << 20


def compact(value: object) -> str:
    """Write JSON in one line, always alike."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def write_lines(path: Path, items: Iterable[str]) -> None:
    """Write a new file of JSON texts, one a line."""
    with new_file(path) as file:
        file.writelines(f"{item}\n" for item in items)


def write_array(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Write a new file that is one JSON array, each object on a line of its own."""
    with new_file(path) as file:
        before = "[\n"
        for item in items:
            file.write(before + compact(item))
            before = ",\n"
        file.write("\n]\n" if before == ",\n" else "[]\n")


def read_lines(path: Path) -> Iterator[str]:
    """Read the lines of a file that are not empty; one too long to be a unit is a VerificationFailed."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        while line := file.readline(LINE_MAX_CHARS + 1):
            if len(line) > LINE_MAX_CHARS:
                raise VerificationFailed(f"{path.name} has a line that is too long to be a unit")
            if line.strip():
                yield line.strip()


def read_array(path: Path) -> Iterator[Any]:
    """Read the items of a JSON array: line by line as it was written here, or as a whole if it was laid out anew."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        by_line = file.read(3) == "[\n{"
    try:
        if by_line:
            yield from _items(path)
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(WHOLE_MAX_CHARS + 1)
        found = json.loads(text) if len(text) <= WHOLE_MAX_CHARS else None
        if not isinstance(found, list):
            raise VerificationFailed(f"{path.name} is not a JSON array of units, or is too large to be read as a whole")
        yield from found
    except (ValueError, RecursionError) as error:
        raise VerificationFailed(f"{path.name} is not JSON: {error}") from error


def _items(path: Path) -> Iterator[Any]:
    """Read `[`, then an object and a comma a line, an object, and `]`: every line must be one of them, in its place."""
    lines = read_lines(path)
    next(lines)
    more = True
    for line in lines:
        if not more:
            if line != "]" or next(lines, None) is not None:
                raise ValueError("the array does not end as it should")
            return
        more = line.endswith(",")
        yield json.loads(line.removesuffix(","))
    raise ValueError("the array has no end")
