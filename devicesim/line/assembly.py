"""A line put together from a station's settings: real connections, real broker, real disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devicesim.errors import ConfigInvalid
from devicesim.line.announcing import Announcing
from devicesim.line.birth import Midwife
from devicesim.line.ledger import Ledger
from devicesim.line.runner import Line
from devicesim.line.settings import Mqtt, Settings
from devicesim.line.station import Station
from devicesim.line.steps import World
from devicesim.line.voice import Voice
from devicesim.mqtt.announcer import Announcer
from devicesim.mqtt.connection import BrokerUrl, MqttIdentity


def open_ledger(settings: Settings, world: World) -> Ledger:
    """Open the station's ledger; one that belongs to another station is refused."""
    ledger = Ledger(settings.ledger.path, clock=world.clock)
    if ledger.place() != place(settings):
        ledger.close()
        raise ConfigInvalid(
            f"{settings.ledger.path} is the ledger of another station",
            advice="check [site]: id, line and station stay as they were at 'devicesim line init'",
        )
    return ledger


def place(settings: Settings) -> dict[str, str]:
    """Return what ties a ledger to its station."""
    site = settings.site
    return {"site": site.id, "line": site.line, "station": site.station}


def open_line(station: Station, ledger: Ledger, world: World, stop: threading.Event) -> Line:
    """Return a line that enrols with the EST server of the settings and announces to their broker."""
    settings = station.settings
    voice = midwife = None
    if settings.mqtt is not None:
        url, domain = settings.est.url, settings.mqtt.domain
        voice = Voice(settings.site, station.identity, domain, url, world.clock, world.randomness)
        if settings.mqtt.birth:
            midwife = Midwife(settings, settings.mqtt, ledger, world.clock, world.randomness)
    return Line(
        settings=settings,
        ledger=ledger,
        trust=station.trust,
        open_est=station.open_est,
        server_time=station.server_time,
        voice=voice,
        midwife=midwife,
        world=world,
        stop=stop,
    )


@contextmanager
def announcing(settings: Settings, ledger: Ledger, world: World) -> Iterator[Announcing | None]:
    """Drain the outbox while the context lasts and once at its end; without a broker there is nothing to drain."""
    if settings.mqtt is None:
        yield None
        return
    identity = mqtt_identity(settings, settings.mqtt)
    last_seconds = settings.mqtt.drain.total_seconds()
    with (
        Announcer(ledger.connect, BrokerUrl.parse(settings.mqtt.url), identity, clock=world.clock) as announcer,
        Announcing(ledger, announcer.drain, last_seconds=last_seconds) as running,
    ):
        yield running


def report_path(settings: Settings, batch_id: str) -> Path:
    """Return where a batch's report is written: beside the ledger."""
    return settings.ledger.path.parent / "out" / batch_id / "report.json"


def mqtt_identity(settings: Settings, mqtt: Mqtt) -> MqttIdentity:
    """Return who the station is to the broker."""
    est = settings.est
    return MqttIdentity(est.cert, est.key, mqtt.trust or est.trust, settings.site.station)
