"""`devicesim broker`: a broker set up for announcements."""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path

import click

from devicesim.errors import DeviceSimError, UsageProblem
from devicesim.mqtt.access import Access
from devicesim.mqtt.broker import (
    BrokerKind,
    BrokerSettings,
    MosquittoBroker,
    check_settings,
    find_mosquitto,
    free_port,
)
from devicesim.mqtt.connection import BrokerUrl

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def broker() -> None:
    """Run a message broker that takes names from certificates."""


@broker.command()
@click.option("--listen", default="127.0.0.1:8883", show_default=True, help="HOST:PORT; port 0 is any free one.")
@click.option("--cert", "certificate", type=FILE, required=True, help="The broker's certificate and chain, PEM.")
@click.option("--key", type=FILE, required=True, help="Its key, PEM.")
@click.option("--trust", type=FILE, required=True, help="The CA whose certificates are let in, PEM.")
@click.option("--crl", type=FILE, help="The revocation list of the CA that issues to clients, PEM; read at start.")
@click.option("--station", "stations", multiple=True, metavar="NAME", help="A station that may announce. Repeatable.")
@click.option("--announcer", "announcers", multiple=True, metavar="NAME", help="Speaks for the CA. Repeatable.")
@click.option("--reader", "readers", multiple=True, metavar="NAME", help="May read everything. Repeatable.")
@click.option("--domain", default="est", show_default=True, help="First level of all topics.")
@click.option("--kind", type=click.Choice(["auto", "mosquitto", "embedded"]), default="auto", show_default=True)
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), help="Where it keeps its files.")
def run(
    listen: str,
    certificate: Path,
    key: Path,
    trust: Path,
    crl: Path | None,
    stations: tuple[str, ...],
    announcers: tuple[str, ...],
    readers: tuple[str, ...],
    domain: str,
    kind: BrokerKind,
    directory: Path | None,
) -> None:
    """Run a broker until it is told to stop; prints `ready URL KIND` when it accepts connections.

    \b
    Example:
      devicesim broker run --cert broker.pem --key broker.key --trust root.pem \\
          --station s-07 --announcer estserver --reader registry
    """
    try:
        host, port = _address(listen)
        access = Access(stations, announcers, readers, domain)
    except ValueError as fault:
        raise UsageProblem(str(fault)) from fault
    if kind == "auto":
        kind = "mosquitto" if find_mosquitto() else "embedded"
    with tempfile.TemporaryDirectory(prefix="devicesim-broker-") as scratch:
        settings = BrokerSettings(
            directory or Path(scratch), certificate, key, trust, access, host, port or free_port(host), crl
        )
        check_settings(settings)
        if kind == "mosquitto":
            _run_mosquitto(settings)
        else:
            _run_embedded(settings)


def _run_mosquitto(settings: BrokerSettings) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with MosquittoBroker(settings) as running:
        click.echo(f"ready {running.url} {running.kind}")
        while running.process is not None and running.process.poll() is None:
            if stop.wait(0.2):
                return
    raise DeviceSimError(f"mosquitto ended by itself; its log is in {settings.directory}")


def _run_embedded(settings: BrokerSettings) -> None:
    try:
        from devicesim.mqtt import embedded
    except ImportError as fault:
        raise UsageProblem(
            "the embedded broker is not installed", advice="pip install 'estline[demo]', or install mosquitto"
        ) from fault

    def ready(url: BrokerUrl) -> None:
        click.echo(f"ready {url} embedded")

    embedded.serve(settings, ready)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text[:100]!r} is not an address: write HOST:PORT")
    return host.strip("[]"), int(port)
