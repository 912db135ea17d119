"""Where in a TOML file a key stands: the reason why a value is wrong is worth little without its line.

The text was read by `tomllib` before. What is one statement is found by reading ever more lines until one is whole; of
arrays of tables, which no file of ours has, only the first is known.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping

KeyPath = tuple[str | int, ...]
"""Keys and array indexes from the top of a file to a value, as pydantic counts them."""

STATEMENT_MAX_LINES = 1000


def key_lines(text: str) -> dict[KeyPath, int]:
    """Map the keys of a sound TOML text to the lines their statements begin in."""
    lines, table = dict[KeyPath, int](), KeyPath()
    for number, statement in _statements(text):
        is_header = statement.lstrip().startswith("[")
        paths = list(_paths(tomllib.loads(statement)))
        for path in paths:
            lines.setdefault(path if is_header else (*table, *path), number)
        table = paths[-1] if is_header else table
    return lines


def line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    """Return the line of a key; of what is missing, the line of the table it is missing in."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each statement with the number of its first line."""
    begun = list[str]()
    for number, line in enumerate(text.split("\n"), 1):
        begun.append(line)
        try:
            values = tomllib.loads("\n".join(begun))
        except tomllib.TOMLDecodeError:
            if len(begun) > STATEMENT_MAX_LINES:
                return
            continue
        if values:
            yield number - len(begun) + 1, "\n".join(begun)
        begun.clear()


def _paths(values: object) -> Iterator[KeyPath]:
    """Yield the path of everything in a value, outer ones first."""
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in entries:
        yield (key,)
        yield from ((key, *rest) for rest in _paths(value))
