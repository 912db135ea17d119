"""`estserver trust crl`: the revocation lists of manufacturers, and what counts without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from estserver.cli.arguments import NAME
from estserver.cli.common import actor, emit, home_option, json_option, now, open_inventory
from estserver.errors import NotFound
from estserver.records import AnchorCrlRecord, Missing

if TYPE_CHECKING:
    from estserver.inventory import Inventory

_COLUMNS = ("anchor", "source", "missing", "entries", "this_update", "next_update", "tried_at", "problem")


@click.group("crl")
def trust_crl() -> None:
    """Want, refresh and list manufacturers' revocation lists; a running server fetches them by itself."""


@trust_crl.command("set")
@click.argument("name", type=NAME)
@click.argument("source")
@click.option(
    "--missing",
    type=click.Choice(["refuse", "accept"]),
    required=True,
    help="What counts without a valid list: refuse its devices, or accept them unchecked.",
)
@home_option
@json_option
def set_(name: str, source: str, missing: Missing, home: Path, as_json: bool) -> None:
    """Want a list of the manufacturer NAME from SOURCE, a file or an http or https URL, and fetch it now.

    It is to be complete and signed by the very CA that is trusted. Where an intermediate CA signs the factory
    certificates, trust that one: `estserver trust add`.

    \b
    estserver trust crl set acme https://pki.acme.example/idevid.crl --missing refuse
    """
    if "://" in source and not source.startswith(("http://", "https://")):
        raise click.UsageError(f"{source!r} is neither a file nor an http or https URL")
    where = source if "://" in source else str(Path(source).absolute())
    with open_inventory(home) as inventory:
        inventory.foreign.want(name, where, missing, actor(), now())
        _refresh(inventory, [name])
        emit(_rows(inventory, name), as_json=as_json, columns=_COLUMNS)


@trust_crl.command("refresh")
@click.argument("names", metavar="[NAME]...", type=NAME, nargs=-1)
@home_option
@json_option
def refresh(names: tuple[str, ...], home: Path, as_json: bool) -> None:
    """Fetch lists now: those of NAME, or all.

    \b
    estserver trust crl refresh acme
    """
    with open_inventory(home) as inventory:
        _refresh(inventory, names or [record.anchor for record in inventory.foreign.all()])
        emit(_rows(inventory, *names), as_json=as_json, columns=_COLUMNS)


@trust_crl.command("list")
@home_option
@json_option
def list_(home: Path, as_json: bool) -> None:
    """List what is wanted, and how old it is.

    \b
    estserver trust crl list --json
    """
    with open_inventory(home) as inventory:
        emit(_rows(inventory), as_json=as_json, columns=_COLUMNS)


@trust_crl.command("remove")
@click.argument("name", type=NAME)
@home_option
def remove(name: str, home: Path) -> None:
    """Want no list of the manufacturer NAME any more: none of its devices counts as revoked by it.

    \b
    estserver trust crl remove acme
    """
    with open_inventory(home) as inventory:
        inventory.foreign.want_no_more(name, actor(), now())


def _refresh(inventory: Inventory, names: tuple[str, ...] | list[str]) -> None:
    from estserver.status.foreign import refresh

    anchors = {one.name: one.certificate for one in inventory.anchors()}
    records = {one.anchor: one for one in inventory.foreign.all()}
    for name in names:
        if name not in records:
            raise NotFound(f"no list is wanted of the anchor {name}", advice="see: estserver trust crl list")
        refresh(records[name], anchors[name], inventory.foreign, now())


def _rows(inventory: Inventory, *names: str) -> list[dict[str, object]]:
    return [_row(one) for one in inventory.foreign.all() if not names or one.anchor in names]


def _row(record: AnchorCrlRecord) -> dict[str, object]:
    return {column: getattr(record, column) for column in _COLUMNS}
