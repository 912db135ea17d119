"""The only Flask of the server: `create_app`, `create_status_app` and their blueprints."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from flask import Flask, request

from estserver.assembly import Rules, enrollment_of, inventory_of
from estserver.config import Settings
from estserver.inventory import Inventory
from estserver.records import RolloverRecord
from estserver.status_assembly import directory_of, responder_of
from estserver.web import errors
from estserver.web.est import est
from estserver.web.observe import Observed, Tell, routes, tell_nobody
from estserver.web.peer import establish_peer
from estserver.web.proxy import proxy_of
from estserver.web.status import status
from estserver.web.turn import Turn

__all__ = ["create_app", "create_status_app"]


def create_app(
    settings: Settings,
    *,
    inventory: Inventory | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC).replace(microsecond=0),
    random: Callable[[int], bytes] = os.urandom,
    tell: Tell = tell_nobody,
    rules: Rules | None = None,
) -> Flask:
    """Make the WSGI application of one home, to be served by `estserver.serving`, or behind a proxy by any WSGI server.

    Args:
        inventory: an open one; by default the one that the settings name is opened.
        clock, random: the instant it is, and as many random bytes as asked.
        tell: told of every request; it may not raise.
        rules: profiles and block list that were read before; by default they are read.

    Raises:
        ConfigError: the home is not whole.
    """
    store = inventory or inventory_of(settings)
    enrollment = enrollment_of(settings, store, clock=clock, random=random, rules=rules)
    app = _app(settings, store, clock, None if rules is None else rules.rollovers)
    app.extensions["estline.enrollment"] = enrollment
    app.extensions["estline.turn"] = Turn(enrollment.issue)
    proxy = proxy_of(settings.proxy)
    app.before_request(lambda: establish_peer(request.environ, proxy))
    app.register_blueprint(est)
    return _observed(app, settings, tell, random)


def create_status_app(
    settings: Settings,
    *,
    inventory: Inventory,
    clock: Callable[[], datetime],
    random: Callable[[int], bytes] = os.urandom,
    tell: Tell = tell_nobody,
) -> Flask:
    """Make an application that tells the status of certificates, over HTTP to anybody, and does nothing else.

    Raises:
        ConfigError: the home is not whole.
    """
    return _observed(_app(settings, inventory, clock), settings, tell, random)


def _app(
    settings: Settings,
    inventory: Inventory,
    clock: Callable[[], datetime],
    rollovers: Sequence[RolloverRecord] | None = None,
) -> Flask:
    """Make what both have: the status of certificates, and how errors are told."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.server.body_max_bytes
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # Flask would answer OPTIONS as HTML
    app.config["ESTLINE_REALM"] = settings.realm
    responder = responder_of(settings, inventory, rollovers)
    app.extensions["estline.directory"] = directory_of(settings, inventory, rollovers)
    app.extensions["estline.respond"] = lambda octets: responder.respond(octets, clock())
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.register_blueprint(status)
    errors.install(app)
    return app


def _observed(app: Flask, settings: Settings, tell: Tell, random: Callable[[int], bytes]) -> Flask:
    known = routes(app, settings.labels)
    app.wsgi_app = Observed(app.wsgi_app, known, tell, random)  # type: ignore[method-assign]  # Flask's own way to wrap
    return app
