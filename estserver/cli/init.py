"""`estserver init`: make a PKI home."""

from __future__ import annotations

import os
from pathlib import Path

import click

from estserver.cli.arguments import CA_KEY_KINDS
from estserver.cli.common import emit, json_option, now, read_secret


@click.command()
@click.argument("home", type=click.Path(path_type=Path, file_okay=False), default=Path("certs"))
@click.option("--name", default="Estline", show_default=True, help="Start of every CA's common name.")
@click.option("--host", "hosts", multiple=True, default=("localhost", "127.0.0.1"), show_default=True,
              help="DNS name or IP address of the server; repeat.")  # fmt: skip
@click.option("--key-type", type=click.Choice(CA_KEY_KINDS), default="P-256",
              show_default=True, help="Keys of root and issuing CA.")  # fmt: skip
@click.option("--root-key-out", type=click.Path(path_type=Path, file_okay=False), help="Write the root key there.")
@click.option("--passphrase-file", type=click.Path(path_type=Path, dir_okay=False), help="Encrypt the CA keys.")
@click.option("--idevid", is_flag=True, help="Also a manufacturer hierarchy for factory birth certificates.")
@click.option("--broker", default="", metavar="mqtts://HOST:PORT", help="MQTT broker to announce certificates to.")
@json_option
def init(
    home: Path,
    name: str,
    hosts: tuple[str, ...],
    key_type: str,
    root_key_out: Path | None,
    passphrase_file: Path | None,
    idevid: bool,
    broker: str,
    as_json: bool,
) -> None:
    """Make a PKI home: root, issuing CA, TLS certificate, profiles, configuration and an empty inventory.

    \b
    estserver init certs --name Acme --host est.acme.example --root-key-out /media/usb
    """
    from estserver.home import Plan, found

    plan = Plan(
        home=home,
        name=name,
        hosts=hosts,
        key_kind=key_type,
        root_key_out=root_key_out,
        passphrase=read_secret(str(passphrase_file)) if passphrase_file is not None else None,
        passphrase_file=passphrase_file.resolve() if passphrase_file is not None else None,
        idevid=idevid,
        broker=broker,
    )
    fingerprint = found(plan, now=now(), random=os.urandom)
    emit({"home": str(home), "root": str(home / "root.pem"), "root_sha256": fingerprint}, as_json=as_json)
