"""What every command shares: where the home is, how rows are printed, how an error ends the program.

The command line is the only reader of clock, environment and argv; every room below is handed what it needs.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from estserver.config import Settings, load_settings, parse_duration
from estserver.errors import ConfigError, EstError
from estserver.events import time_text

if TYPE_CHECKING:
    from estserver.inventory import Inventory

F = TypeVar("F", bound=Callable[..., Any])


class Exit(IntEnum):
    """Exit codes of both programs (docs/operator.md)."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    CONFIG = 3
    SOME_FAILED = 4
    CONFLICT = 5
    UNREACHABLE = 6
    REFUSED = 7
    KEY_STORE = 8
    PENDING = 9
    NOT_VERIFIED = 10
    LOCKED = 11
    STORAGE = 12
    CLOCK = 13
    NO = 14


def home_option(command: F) -> F:
    """Add `--home`, passed as `home: Path`."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("certs"),
        show_default=True,
        envvar="ESTLINE_HOME",
        help="PKI home made by `estserver init`; also ESTLINE_HOME.",
    )(command)


def json_option(command: F) -> F:
    """Add `--json`, passed as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def now() -> datetime:
    """Read the clock: aware UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def actor() -> str:
    """Name the operator, for audit rows."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"operator:uid-{os.getuid()}"


def open_inventory(home: Path, settings: Settings | None = None) -> Inventory:
    """Open the inventory of a home.

    Raises:
        ConfigError: no home there, or a database this program cannot use.
    """
    from estserver.assembly import inventory_of

    return inventory_of(settings or load_settings(home))


def credential_pepper(home: Path) -> bytes:
    """Read the key under which generated secrets are hashed."""
    path = home / "private" / "credential.key"
    return read_file(path, advice="restore it from a backup: without it no generated credential can be checked")


def read_file(path: Path, *, advice: str = "", max_bytes: int = 1_048_576) -> bytes:
    """Read a small file the operator named.

    Raises:
        ConfigError: missing, unreadable or too large, in one line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", advice=advice) from None
    if len(data) > max_bytes:
        raise ConfigError(f"{path} is larger than {max_bytes} bytes", advice=advice)
    return data


def read_secret(path: str) -> bytes:
    """Read a secret from a file, or from standard input for `-`; one trailing newline is not part of it."""
    data = sys.stdin.buffer.read(4097) if path == "-" else read_file(Path(path), max_bytes=4096)
    secret = re.sub(rb"\r?\n\Z", b"", data)
    if not secret or len(secret) > 4096:
        raise ConfigError(f"{'standard input' if path == '-' else path} holds no secret of 1 to 4096 bytes")
    return secret


class DurationType(click.ParamType[timedelta]):
    """`90s`, `15m`, `8h`, `30d` on the command line."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Parse, or fail as a usage error."""
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


def emit(
    data: Mapping[str, object] | Sequence[Mapping[str, object]], *, as_json: bool, columns: Sequence[str] = ()
) -> None:
    """Print rows as a table (or one mapping as `key: value` lines), or everything as JSON."""
    if as_json:
        click.echo(json.dumps(data, indent=2, default=_plain))
    elif isinstance(data, Mapping):
        width = max((len(key) for key in data), default=0)
        for key, value in data.items():
            click.echo(f"{key:<{width}}  {_text(value)}")
    else:
        _table(data, columns or (list(data[0]) if data else ()))


def _table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    if not rows:
        return
    cells = [[column.replace("_", " ").upper() for column in columns]]
    cells += [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, (tuple, list)):
        return " ".join(map(_text, value))
    text = value if isinstance(value, str) else str(value)
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return _text(value)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    return str(value)


def fail(error: EstError) -> int:
    """Print an error as one line each reason, then the advice; return the exit code that belongs to it."""
    for reason in error.reasons:
        click.echo(f"error: {_text(reason)}", err=True)
    if error.advice:
        click.echo(f"  {_text(error.advice)}", err=True)
    return _EXIT_OF.get(error.code, Exit.UNEXPECTED)


_EXIT_OF = {
    "config-error": Exit.CONFIG,
    "bad-request": Exit.REFUSED,
    "malformed-request": Exit.REFUSED,
    "proof-of-possession-failed": Exit.REFUSED,
    "weak-key": Exit.REFUSED,
    "policy-refused": Exit.REFUSED,
    "too-early": Exit.NO,
    "not-found": Exit.CONFLICT,
    "conflict": Exit.CONFLICT,
    "key-reused": Exit.CONFLICT,
    "storage-unavailable": Exit.STORAGE,
    "not-verified": Exit.NOT_VERIFIED,
    "locked": Exit.LOCKED,
}
