"""`estserver rollover`: move root or issuing CA to a new key without losing a device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from estserver.cli.arguments import CA_KEY_KINDS
from estserver.cli.common import actor, emit, home_option, json_option, now, open_inventory, read_secret
from estserver.config import load_settings
from estserver.records import Stage, Tier

if TYPE_CHECKING:
    from estserver.key_update import KeyUpdate
    from estserver.records import RolloverRecord

F = TypeVar("F", bound=Callable[..., Any])
_REASON_MAX = 200
_RELOAD = "a running server goes on as before until it is reloaded (SIGHUP), or started anew"


@click.group()
def rollover() -> None:
    """Move root or issuing CA to a new key: start, switch, retire, each when the fleet has followed."""


def _ca_option(command: F) -> F:
    return click.option("--ca", metavar="NAME", help="Which of [cas]. [default: that of the default label]")(command)


def _override_options(command: F) -> F:
    override = click.option("--override", is_flag=True, help="Do it though the fleet has not followed.")
    reason = click.option("--reason", metavar="TEXT", help="Why; written into the audit. Goes with --override.")
    return override(reason(command))


@rollover.command("start")
@click.argument("tier", type=click.Choice([tier.value for tier in Tier]))
@click.option("--key-type", type=click.Choice(CA_KEY_KINDS), help="Kind of the new key. [default: as the old one]")
@click.option("--root-key", type=click.Path(path_type=Path, dir_okay=False), help="Where the root's key is.")
@click.option("--root-passphrase-file", metavar="FILE", help="If not that of the CA's other keys.")
@_ca_option
@home_option
@json_option
def start(
    tier: str,
    key_type: str | None,
    root_key: Path | None,
    root_passphrase_file: str | None,
    ca: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Make a new key for the root or the issuing CA, and publish its certificates besides the old ones.

    It takes the root's key, and nothing later does. Where that is not at hand the rollover is announced; give the
    command again when it is.

    \b
    estserver rollover start issuing --key-type ML-DSA-65 --root-key /media/usb/root.key
    """
    from estserver.key_update import RootKey

    passphrase = None if root_passphrase_file is None else read_secret(root_passphrase_file)
    with _key_update(home, ca) as update:
        record = update.start(Tier(tier), key_type, RootKey(root_key, passphrase))
        emit(_row(update, record), as_json=as_json)
    click.echo(_RELOAD, err=True)


@rollover.command("status")
@_ca_option
@home_option
@json_option
def status(ca: str | None, home: Path, as_json: bool) -> None:
    """Show each rollover: how far it is, how much of the fleet has followed, and what is missing for the next step.

    \b
    estserver rollover status --json
    """
    with _key_update(home, ca) as update:
        rows = [_row(update, record) for record in update.records()]
    if as_json:
        emit(rows, as_json=True)
        return
    for row in rows:
        emit(row, as_json=False)
        click.echo()
    if not rows:
        click.echo("no rollover was started", err=True)


@rollover.command("switch")
@_override_options
@_ca_option
@home_option
@json_option
def switch(override: bool, reason: str | None, ca: str | None, home: Path, as_json: bool) -> None:
    """Let the new key sign; 14 when too few devices were given the new certificates.

    \b
    estserver rollover switch
    estserver rollover switch --override --reason 'the rest is in the warehouse'
    """
    _step(home, ca, as_json, lambda update: update.switch(_reason(override, reason)))


@rollover.command("retire")
@_override_options
@_ca_option
@home_option
@json_option
def retire(override: bool, reason: str | None, ca: str | None, home: Path, as_json: bool) -> None:
    """Publish the old CA no more; 14 when too many devices still depend on it.

    \b
    estserver rollover retire
    """
    _step(home, ca, as_json, lambda update: update.retire(_reason(override, reason)))


def _step(home: Path, ca: str | None, as_json: bool, step: Callable[[KeyUpdate], RolloverRecord]) -> None:
    with _key_update(home, ca) as update:
        emit(_row(update, step(update)), as_json=as_json)
    click.echo(_RELOAD, err=True)


def _reason(override: bool, reason: str | None) -> str | None:
    """Take --override and --reason together, or neither."""
    if override != bool(reason and reason.strip()):
        raise click.UsageError("--override and --reason TEXT go together")
    if reason is not None and len(reason) > _REASON_MAX:
        raise click.UsageError(f"--reason is longer than {_REASON_MAX} characters")
    return reason


@contextmanager
def _key_update(home: Path, ca: str | None) -> Iterator[KeyUpdate]:
    from estserver.key_update import KeyUpdate

    settings = load_settings(home)
    with open_inventory(home, settings) as inventory:
        name = ca or settings.default_label.ca
        yield KeyUpdate(settings, inventory, name, actor=actor(), now=now(), random=os.urandom)


def _row(update: KeyUpdate, record: RolloverRecord) -> dict[str, object]:
    from estserver.rollover import NEXT, problems

    row: dict[str, object] = {
        "ca": record.ca,
        "tier": record.tier.value,
        "stage": record.stage.value,
        "key_type": record.key_kind,
        "key": record.key,
        "started_at": record.started_at,
        "stage_at": record.stage_at,
    }
    if record.stage is Stage.RETIRE:
        return row
    reach = update.reach(record)
    return {
        **row,
        "live_devices": reach.live,
        "fetched": reach.fetched,
        "renewed": reach.renewed,
        "next": NEXT[record.stage].value,
        "missing": problems(record, reach),
    }
