"""The JSON Schemas of what a line reads, made from the very models that read it, so that they say nothing else.

A TOML file is checked as the data in it; a date in it counts as its text. A row of `units.csv` is checked as an object
of strings, as a CSV reader makes it, without the spaces around a value. What spans several rows or files is for the
linter alone: quantities, duplicates, ranges, check digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from devicesim.line.batch import Head
from devicesim.line.settings import Section, Settings
from devicesim.line.units_csv import row_schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def _of_model(model: type[Section], title: str) -> Schema:
    schema = model.model_json_schema()
    _tidy(schema)
    return {"$schema": DIALECT, **schema, "title": title}


def _tidy(node: Any) -> None:  # noqa: ANN401 - JSON
    """Take out what TOML has not (null) and what speaks of Python; let no name through that fits no pattern."""
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if not isinstance(node, dict):
        return
    for name in ("title", "description"):
        if isinstance(node.get(name), str):
            del node[name]
    node.pop("discriminator", None)
    if "default" in node and not _is_sayable(node, node["default"]):
        del node["default"]
    choices = [choice for choice in node.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del node["anyOf"]
        node |= choices[0]
    if "patternProperties" in node:
        node["additionalProperties"] = False
    for value in node.values():
        _tidy(value)


def _is_sayable(node: Schema, default: object) -> bool:
    """Tell whether a file could say the default: not where Python has another type for it."""
    fits = re.search(str(node.get("pattern", "")), str(default)) is not None
    return default is not None and fits and default in node.get("enum", [default])


def _row(title: str, *, numbered: bool) -> Schema:
    return {"$schema": DIALECT, "title": title, **row_schema(numbered=numbered)}


SCHEMAS: dict[str, Callable[[], Schema]] = {
    "batch": lambda: _of_model(Head, "batch.toml of devicesim line"),
    "units": lambda: _row("a row of units.csv of devicesim line", numbered=False),
    "units-numbered": lambda: _row("a row of units.csv where batch.toml has [serial]", numbered=True),
    "line": lambda: _of_model(Settings, "line.toml of devicesim line"),
}
"""Every published schema by its name, which is also its file's in docs/schemas."""
