"""`estserver responder`: tell the status of certificates over plain HTTP, and do nothing else."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from estserver.cli.common import home_option, now
from estserver.config import Settings, load_settings
from estserver.errors import ConfigError, EstError

if TYPE_CHECKING:
    from estserver.observe import Wire
    from estserver.serving.options import ServeOptions, WsgiApp


@click.command()
@home_option
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8080", show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How the lines on stderr are written.",
)
def responder(home: Path, listen: str, workers: int, log_format: Literal["text", "json"]) -> None:
    """Serve CRLs, CA certificates and OCSP answers over HTTP until SIGTERM, at the paths that certificates name.

    Whoever checks a TLS certificate cannot fetch its status over TLS. What is served is signed and secret to nobody;
    no CA key is opened. `estserver serve` of the same home keeps it up to date.

    \b
    estserver responder --home certs --listen 0.0.0.0:80
    """
    from estserver.observe import Wire, log_to
    from estserver.serving import CannotServe, serve

    log_to(sys.stderr.fileno(), log_format)
    settings, wire = load_settings(home), Wire(workers)
    _load_app(settings, None)
    try:
        status = serve(partial(_load_app, settings, wire), _options(settings, listen, workers, wire))
    except CannotServe as error:
        raise ConfigError(str(error)) from None
    raise click.exceptions.Exit(status)


def _load_app(settings: Settings, wire: Wire | None) -> WsgiApp:
    """Make the application, once in each worker, and once before any to see that it can be made."""
    from estserver.assembly import inventory_of
    from estserver.serving import CannotServe
    from estserver.web import create_status_app

    if wire is None:
        with inventory_of(settings) as inventory:
            app: WsgiApp = create_status_app(settings, inventory=inventory, clock=now)
            return app
    wire.begin()
    try:
        app = create_status_app(settings, inventory=inventory_of(settings), clock=now, tell=wire.exchange)
    except EstError as error:
        raise CannotServe("; ".join(error.reasons)) from None
    return app


def _options(settings: Settings, listen: str, workers: int, wire: Wire) -> ServeOptions:
    from estserver.serving import ServeOptions

    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--listen {listen!r} is not HOST:PORT")
    server = settings.server
    return ServeOptions(
        host=host.strip("[]"),
        port=int(port),
        workers=workers,
        plain=True,
        certificate_path=settings.path(settings.tls.certificate),
        private_key=settings.path(settings.tls.key),
        head_max_bytes=server.head_max_bytes,
        body_max_bytes=server.body_max_bytes,
        connections_max=server.connections_max,
        graceful_seconds=server.graceful_deadline.total_seconds(),
        on_ready=_say_ready,
        observe=wire.front,
    )


def _say_ready(host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"ready http://{shown}:{port}/")
    sys.stdout.flush()
