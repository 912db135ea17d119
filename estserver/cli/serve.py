"""`estserver serve`: answer EST."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from estserver.cli.common import home_option, now
from estserver.config import Settings, load_settings
from estserver.errors import ConfigError, EstError

if TYPE_CHECKING:
    from estserver.assembly import Rules
    from estserver.inventory import Condition
    from estserver.observe import Wire
    from estserver.serving.options import ServeOptions, WsgiApp

_log = logging.getLogger("estserver")

CLOCK_TOLERANCE = timedelta(minutes=1)
"""By how much a clock may go back without a word."""


@click.command()
@home_option
@click.option("--listen", metavar="HOST:PORT", help="Instead of [server] listen; port 0 lets the system choose.")
@click.option("--workers", type=click.IntRange(1, 64), help="Instead of [server] workers.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How the lines on stderr are written.",
)
@click.option("--behind-proxy", is_flag=True, help="Plain HTTP, for the proxy of [proxy] addresses alone.")
def serve(
    home: Path, listen: str | None, workers: int | None, log_format: Literal["text", "json"], *, behind_proxy: bool
) -> None:
    """Serve EST over TLS until SIGTERM; prints one line `ready https://…` when it accepts.

    Behind a proxy that ends TLS it believes what that proxy says in headers (docs/proxy.md), and is `ready http://…`.

    SIGTERM finishes what is in flight; SIGHUP reads certificate, configuration and profiles again.

    \b
    estserver serve --home certs --listen 0.0.0.0:8443
    estserver serve --home certs --listen 127.0.0.1:8080 --behind-proxy
    """
    from estserver.observe import Wire, log_to
    from estserver.serving import CannotServe, serve

    log_to(sys.stderr.fileno(), log_format)
    found = _Found.at(home)
    settings = found.settings
    workers = workers or settings.server.workers
    wire = Wire(workers)
    options = _options(found, listen or settings.server.listen, workers, wire)
    if behind_proxy:
        _require_proxy(settings)
        options = _without_tls(options, home)
    _look_first(found)
    try:
        with _metrics_listener(settings) as listener:
            status = serve(partial(_load_app, found, wire, listener), options)
    except CannotServe as error:
        raise ConfigError(str(error), advice=f"see [server] and [tls] in {home / 'estserver.toml'}") from None
    _close(settings)
    raise click.exceptions.Exit(status)


@dataclass(slots=True)
class _Found:
    """Configuration and rules as they were last found sound.

    The master has them, and every worker begins with them: a file that is half written, or wrong, when a worker has
    to be replaced neither takes effect nor ends the server.
    """

    settings: Settings
    rules: Rules

    @classmethod
    def at(cls, home: Path) -> _Found:
        from estserver.assembly import rules_of

        settings = load_settings(home)
        return cls(settings, rules_of(settings))


def _look_first(found: _Found) -> None:
    """Check the whole home before anything is served; say how an earlier run left it, and settle that."""
    from estserver.assembly import enrollment_of, inventory_of

    with inventory_of(found.settings) as inventory:
        found.rules = replace(found.rules, rollovers=inventory.rollovers.all())
        enrollment_of(found.settings, inventory, clock=now, random=os.urandom, rules=found.rules).check_clock()
        _tell(inventory.condition())
        for left in inventory.leftovers_void(now()):
            _log.warning("void: serial %x was reserved for %s and never recorded", left.serial, left.device)


def _tell(found: Condition) -> None:
    """Say how an earlier run left the inventory, where that is not as it should be."""
    at = now()
    if found.left_open:
        _log.warning("an earlier run did not close the inventory; every page was read, and it is sound")
    if found.written_at is not None and found.written_at > at + CLOCK_TOLERANCE:
        text = "the clock says %s, and the inventory was last written at %s: it is behind, or was ahead then"
        _log.warning(text, at, found.written_at)


def _close(settings: Settings) -> None:
    """Leave the inventory as one file without a journal: workers end without closing it, and may have been killed."""
    from estserver.assembly import inventory_of

    with suppress(EstError), inventory_of(settings) as inventory:
        inventory.counters()


def _metrics_listener(settings: Settings) -> AbstractContextManager[socket.socket | None]:
    """Bind where Prometheus may ask, for all workers; a reload does not move it."""
    if not settings.metrics.listen:
        return nullcontext()
    from estserver.observe import metrics

    return metrics.listen(settings.metrics.listen)


def _load_app(found: _Found, wire: Wire, listener: socket.socket | None) -> WsgiApp:
    """Make the application, once in each worker."""
    from estserver.assembly import inventory_of
    from estserver.status import start
    from estserver.status_assembly import keepers_of
    from estserver.web import create_app

    wire.begin()
    with _serving_errors():
        settings = found.settings
        inventory = inventory_of(settings)
        app: WsgiApp = create_app(settings, inventory=inventory, clock=now, tell=wire.exchange, rules=found.rules)
    if listener is not None:
        from estserver.observe import metrics

        asked = inventory_of(settings)
        metrics.start(listener, wire.tally, lambda: {**asked.counters(), "pending": asked.pending.waiting(now())})
    for keeper in keepers_of(settings, inventory_of(settings), clock=now, random=os.urandom):
        start(keeper)
    if settings.mqtt.broker:
        from estserver.announce import start_announcer

        start_announcer(settings, inventory_of(settings), clock=now)
    return app


def _look_again(found: _Found) -> None:
    """Check the home before a reload: what is wrong now leaves the server as it was."""
    from estserver.assembly import enrollment_of, inventory_of

    with _serving_errors():
        new = _Found.at(found.settings.home)
        with inventory_of(new.settings) as inventory:
            new.rules = replace(new.rules, rollovers=inventory.rollovers.all())
            enrollment_of(new.settings, inventory, clock=now, random=os.urandom, rules=new.rules)
    found.settings, found.rules = new.settings, new.rules


@contextmanager
def _serving_errors() -> Iterator[None]:
    """Say what is wrong with a home in the words of the front, which ends or goes on in one line."""
    from estserver.serving import CannotServe

    try:
        yield
    except EstError as error:
        raise CannotServe("; ".join(error.reasons)) from None


def _options(found: _Found, listen: str, workers: int, wire: Wire) -> ServeOptions:
    from estserver.serving import ServeOptions

    settings = found.settings
    host, _, port = listen.rpartition(":")
    server = settings.server
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--listen {listen!r} is not HOST:PORT")
    return ServeOptions(
        host=host.strip("[]"),
        port=int(port),
        workers=workers,
        certificate_path=settings.path(settings.tls.certificate),
        private_key=settings.path(settings.tls.key),
        handshake_deadline_seconds=server.handshake_deadline.total_seconds(),
        head_deadline_seconds=server.head_deadline.total_seconds(),
        body_deadline_seconds=server.body_deadline.total_seconds(),
        idle_deadline_seconds=server.idle_deadline.total_seconds(),
        head_max_bytes=server.head_max_bytes,
        body_max_bytes=server.body_max_bytes,
        connections_max=server.connections_max,
        connections_per_address_max=server.connections_per_address_max or None,
        graceful_seconds=server.graceful_deadline.total_seconds(),
        on_ready=_say_ready,
        before_reload=partial(_look_again, found),
        observe=wire.front,
    )


def _without_tls(options: ServeOptions, home: Path) -> ServeOptions:
    """Serve the proxy instead: many clients on its connections, all of one address, and no TLS."""

    def look_again() -> None:
        with _serving_errors():
            _require_proxy(load_settings(home))
        options.before_reload()

    return replace(
        options,
        plain=True,
        connections_per_address_max=None,
        on_ready=partial(_say_ready, scheme="http"),
        before_reload=look_again,
    )


def _require_proxy(settings: Settings) -> None:
    """Serve without TLS only for a proxy that is named, and promise no more than it can give."""
    if not settings.proxy.addresses:
        raise ConfigError(
            "[proxy] addresses is empty, so there is no proxy to be behind",
            advice="name the addresses it connects from; docs/proxy.md has samples",
        )
    labels = {"": settings.default_label, **settings.labels}
    bound = [name or "default_label" for name, section in labels.items() if section.channel_binding == "required"]
    if bound and not settings.proxy.tls_unique_header:
        raise ConfigError(
            f"the channel binding is required by {', '.join(bound)}, and [proxy] tls_unique_header is empty",
            advice="a proxy that cannot give it can serve no such label: serve it with TLS of our own",
        )


def _say_ready(host: str, port: int, scheme: str = "https") -> None:
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"ready {scheme}://{shown}:{port}/.well-known/est")
    sys.stdout.flush()
