"""`estserver credential`: secrets with which devices and stations enrol over HTTP Basic."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import click

from estserver.cli.arguments import DEVICE_ID, DEVICE_PATTERN, NAME, SAN_PATTERN
from estserver.cli.common import (
    DurationType,
    actor,
    credential_pepper,
    emit,
    home_option,
    json_option,
    now,
    open_inventory,
    read_secret,
)
from estserver.config import Settings, load_settings
from estserver.errors import ConfigError
from estserver.identity.credentials import (
    GENERATED_BYTES,
    SALT_BYTES,
    generate_secret,
    verifier_for_chosen,
    verifier_for_generated,
)
from estserver.records import CredentialRecord

_CHOSEN_MIN_BYTES = 12
_COLUMNS = ("name", "label", "devices", "names", "uses", "spent", "expires_at", "state")


class _Uses(click.ParamType[int]):
    """A number of requests, or `any`."""

    name = "n"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:  # type: ignore[override]  # None is `any`
        if value in {None, "any"}:
            return None
        try:
            uses = int(str(value))
        except ValueError:
            uses = 0
        if not 1 <= uses <= 10_000_000:
            self.fail(f"{value!r} is neither a number of requests nor `any`", param, ctx)
        return uses


@click.group()
def credential() -> None:
    """Make, list and remove credentials for enrolment over HTTP Basic."""


@credential.command("add")
@click.argument("name", type=NAME)
@click.option("--label", default="", help="The one label it opens; without it, the default label.")
@click.option("--devices", multiple=True, type=DEVICE_PATTERN, help="Device id or pattern (repeat). [default: NAME]")
@click.option("--name", "names", multiple=True, type=SAN_PATTERN, help="A further name, as dns:host.example (repeat).")
@click.option("--uses", type=_Uses(), default="1", show_default=True, help="Different requests it pays for, or `any`.")
@click.option("--expires", type=DurationType(), metavar="8h", help="From now; `any` uses need it.")
@click.option("--password-file", metavar="F", help="A secret of your own, from a file or - ; without it one is made.")
@click.option("--nameless", is_flag=True, help="Offered with an empty user name; NAME is for you alone.")
@home_option
@json_option
def add(
    name: str,
    label: str,
    devices: tuple[str, ...],
    names: tuple[str, ...],
    uses: int | None,
    expires: timedelta | None,
    password_file: str | None,
    nameless: bool,
    home: Path,
    as_json: bool,
) -> None:
    """Make a credential; a generated secret is printed once and not kept.

    \b
    estserver credential add sn-0001                                one device, one request
    estserver credential add line-1 --devices 'sn-*' --uses 500 --expires 8h
    estserver credential add shift-3 --devices 'sn-*' --uses 500 --expires 8h --nameless
    """
    if nameless and password_file is not None:
        raise click.UsageError("a credential without a name is found by its secret, which has to be a generated one")
    settings = load_settings(home)
    _require_label(settings, label)
    if uses is None and expires is None:
        raise click.UsageError("a credential for any number of requests needs --expires")
    at = now()
    secret, kept = _secret(home, password_file)
    record = CredentialRecord(
        name=name,
        scheme="hmac-sha256" if secret else "scrypt",
        verifier=kept.verifier,
        salt=kept.salt,
        label=label,
        devices=devices or (_own_device(name),),
        names=names,
        uses=uses,
        spent=0,
        created_at=at,
        expires_at=None if expires is None else at + expires,
        nameless=nameless,
    )
    with open_inventory(home, settings) as inventory:
        inventory.credential_add(record, actor())
    emit(_row(record, secret), as_json=as_json)
    if secret:
        click.echo("the secret is shown this once: only a hash of it is kept", err=True)


@credential.command("list")
@home_option
@json_option
def list_(home: Path, as_json: bool) -> None:
    """List the credentials; of their secrets nothing can be shown.

    \b
    estserver credential list --json
    """
    with open_inventory(home) as inventory:
        emit([_row(record) for record in inventory.credentials()], as_json=as_json, columns=_COLUMNS)


@credential.command("remove")
@click.argument("name", type=NAME)
@home_option
def remove(name: str, home: Path) -> None:
    """Remove a credential; what it enrolled stays.

    \b
    estserver credential remove line-1
    """
    with open_inventory(home) as inventory:
        inventory.credential_remove(name, actor(), now())


@dataclass(frozen=True, slots=True)
class _Kept:
    verifier: bytes = field(repr=False)
    salt: bytes = field(repr=False)


def _secret(home: Path, password_file: str | None) -> tuple[str, _Kept]:
    """Return a new secret, or no text for one the operator chose, and what is kept of it."""
    if password_file is None:
        secret = generate_secret(os.urandom(GENERATED_BYTES))
        return secret, _Kept(verifier_for_generated(secret.encode(), credential_pepper(home)), b"")
    chosen = read_secret(password_file)
    if len(chosen) < _CHOSEN_MIN_BYTES:
        raise ConfigError(
            f"the secret is shorter than {_CHOSEN_MIN_BYTES} bytes",
            advice="choose a longer one, or leave --password-file away and have one made",
        )
    salt = os.urandom(SALT_BYTES)
    return "", _Kept(verifier_for_chosen(chosen, salt), salt)


def _require_label(settings: Settings, label: str) -> None:
    if settings.label(label) is None:
        known = ", ".join(sorted(settings.labels)) or "none but the default"
        raise ConfigError(f"there is no label {label}", advice=f"labels in estserver.toml: {known}")


def _own_device(name: str) -> str:
    """Return the device of a credential that has no --devices: the one of its own name."""
    if not DEVICE_ID.fits(name):
        raise click.UsageError(f"{name} is not a device id: say with --devices which devices it may enrol")
    return name


def _row(record: CredentialRecord, secret: str = "") -> dict[str, object]:
    at = now()
    expired = record.expires_at is not None and record.expires_at <= at
    spent = record.uses is not None and record.spent >= record.uses
    return {
        "name": record.name,
        **({"secret": secret} if secret else {}),
        "nameless": record.nameless,
        "label": record.label,
        "devices": record.devices,
        "names": record.names,
        "uses": "any" if record.uses is None else record.uses,
        "spent": record.spent,
        "expires_at": record.expires_at,
        "state": "expired" if expired else "spent" if spent else "good",
    }
