"""`estserver crl`: the revocation lists that the server publishes by itself, by hand."""

from __future__ import annotations

import base64
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from cryptography import x509

from estserver.cli.common import DurationType, emit, home_option, json_option, now, open_inventory, read_secret
from estserver.config import Settings, load_settings
from estserver.errors import ConfigError, NotFound, StateError
from estserver.key_ids import subject_key_id

if TYPE_CHECKING:
    from estserver.ca import IssuingCa
    from estserver.inventory import Inventory
    from estserver.inventory.crls import CrlRecord
    from estserver.rollover import Hierarchy

_ROOT_LIFETIME = timedelta(days=365)


@click.group()
def crl() -> None:
    """Publish and show certificate revocation lists (RFC 5280 §5)."""


@crl.command("publish")
@click.option("--ca", "name", metavar="NAME", help="Which of [cas]; by default the default label's.")
@click.option(
    "--root-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Publish the list of the CA's root, with this key, which the server itself never opens.",
)
@click.option("--passphrase-file", metavar="FILE", help="Passphrase of the root key, or - for standard input.")
@click.option("--lifetime", type=DurationType(), help="Of the root's list.  [default: 365d]")
@home_option
@json_option
def publish(
    name: str | None,
    root_key: Path | None,
    passphrase_file: str | None,
    lifetime: timedelta | None,
    home: Path,
    as_json: bool,
) -> None:
    """Publish a list now; a running server publishes by itself whatever it has the key for.

    \b
    estserver crl publish
    estserver crl publish --root-key /media/safe/root.key --lifetime 180d
    """
    from estserver.assembly import hierarchy_of, load_ca
    from estserver.status import Publisher

    if root_key is None and (passphrase_file or lifetime):
        raise click.UsageError("--passphrase-file and --lifetime go with --root-key")
    settings = load_settings(home)
    name = _known(settings, name)
    passphrase = None if passphrase_file is None else read_secret(passphrase_file)
    with open_inventory(home, settings) as inventory:
        hierarchy = hierarchy_of(settings, name, inventory.rollovers.all())
        if root_key is None:
            ca, life = load_ca(settings, name, hierarchy), settings.status.crl_lifetime
        else:
            ca, life = _root(hierarchy, root_key, passphrase), lifetime or _ROOT_LIFETIME
        record = Publisher([ca], inventory.crls, lifetime=life).publish(ca, now())
    if record is None:
        raise StateError("another server publishes this list at this moment", advice="see: estserver crl show")
    emit(_row(record), as_json=as_json)


@crl.command("show")
@click.option("--ca", "name", metavar="NAME", help="Which of [cas]; by default the default label's.")
@click.option("--root", is_flag=True, help="The list of the CA's root.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the list itself there.")
@click.option("--pem", is_flag=True, help="As PEM instead of DER.")
@home_option
@json_option
def show(name: str | None, root: bool, out: Path | None, pem: bool, home: Path, as_json: bool) -> None:
    """Show the newest list: its number, until when it holds, how many are on it.

    \b
    estserver crl show --out issuing.crl && openssl crl -inform DER -in issuing.crl -noout -text
    """
    settings = load_settings(home)
    with open_inventory(home, settings) as inventory:
        record, octets = _published(settings, inventory, _known(settings, name), root=root)
    if out is not None:
        _write(out, _pem(octets) if pem else octets)
    emit(_row(record), as_json=as_json)


def _published(settings: Settings, inventory: Inventory, name: str, *, root: bool) -> tuple[CrlRecord, bytes]:
    from estserver.assembly import hierarchy_of

    hierarchy = hierarchy_of(settings, name, inventory.rollovers.all())
    record = inventory.crls.published(subject_key_id(hierarchy.root if root else hierarchy.issuing))
    if record is None:
        raise NotFound("no list of this CA is published yet", advice="publish it with: estserver crl publish")
    return record, b"".join(inventory.crls.parts(record))


def _known(settings: Settings, name: str | None) -> str:
    name = name or settings.default_label.ca
    if name not in settings.cas:
        raise ConfigError(f"there is no CA {name!r} in [cas]", advice=f"one of {', '.join(sorted(settings.cas))}")
    return name


def _root(hierarchy: Hierarchy, key: Path, passphrase: bytes | None) -> IssuingCa:
    """Open a root of the CA, whichever of those there were has this key."""
    from estserver.ca import IssuingCa, spki_of
    from estserver.keys import FileSigner

    signer = FileSigner.load(key, passphrase)
    for root in hierarchy.anchors:
        if spki_of(x509.load_der_x509_certificate(root)) == signer.spki:
            return IssuingCa(root, [], signer)
    raise ConfigError(f"{key} is not the key of this CA's root")


def _pem(octets: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(octets).decode(), 64)
    return "\n".join(["-----BEGIN X509 CRL-----", *lines, "-----END X509 CRL-----", ""]).encode()


def _write(path: Path, octets: bytes) -> None:
    """Replace a file as a whole: a broker may read it at any time."""
    work = path.with_name(f".{path.name}.new")
    try:
        work.write_bytes(octets)
        work.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _row(record: CrlRecord) -> dict[str, object]:
    return {
        "issuer": record.issuer,
        "number": record.number,
        "this_update": record.this_update,
        "next_update": record.next_update,
        "entries": record.entries,
        "size_bytes": record.size_bytes,
    }
