"""`estserver config show`: what is in force."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from estserver.cli.common import emit, home_option, json_option
from estserver.config import load_settings


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@home_option
@json_option
def show(home: Path, as_json: bool) -> None:
    """Print every setting with its effective value; what the file does not set is marked (default).

    \b
    estserver config show --home certs
    """
    settings = load_settings(home)
    values = settings.model_dump(exclude={"home"})
    given = settings.model_dump(exclude={"home"}, exclude_unset=True)
    if as_json:
        emit(values, as_json=True)
    else:
        emit(dict(_lines("", values, given)), as_json=False)


def _lines(prefix: str, values: dict[str, object], given: object) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = []
    for key, value in values.items():
        set_here = isinstance(given, dict) and key in given
        if isinstance(value, dict):
            lines += _lines(f"{prefix}{key}.", value, given[key] if isinstance(given, dict) and set_here else {})
        else:
            text = f"{value.total_seconds():g}s" if isinstance(value, timedelta) else str(value)
            lines.append((f"{prefix}{key}", text if set_here else f"{text}  (default)"))
    return lines
