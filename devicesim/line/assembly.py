"""A line put together from a station's settings: real connections, real broker, real disk."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from devicesim.errors import ConfigInvalid
from devicesim.line.announcing import Announcing
from devicesim.line.birth import Midwife
from devicesim.line.crew import Duty
from devicesim.line.known import load_sets
from devicesim.line.labelling import Scan, open_labels
from devicesim.line.ledger import Ledger
from devicesim.line.runner import Line
from devicesim.line.settings import Mqtt, Settings
from devicesim.line.statements import sealing
from devicesim.line.station import Station
from devicesim.line.steps import World
from devicesim.line.voice import Voice
from devicesim.mqtt.announcer import Announcer
from devicesim.mqtt.connection import BrokerUrl, MqttIdentity


def open_ledger(settings: Settings, world: World, *, operator: str = "", second: str = "") -> Ledger:
    """Open the station's ledger for who is on duty; one that belongs to another station is refused."""
    every = settings.ledger.checkpoint_every
    ledger = Ledger(settings.ledger.path, clock=world.clock, way=settings.way(), checkpoint_every=every)
    ledger.duty = Duty(operator, second, settings.site.calendar())
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


def take_the_seal(ledger: Ledger, station: Station) -> None:
    """Let the ledger sign its checkpoints as this station."""
    ledger.seal = sealing(station.identity, ledger.place())


def open_voice(station: Station, world: World) -> Voice | None:
    """Return what announces for this station, or None when it has no broker."""
    settings = station.settings
    if settings.mqtt is None:
        return None
    url, domain = settings.est.url, settings.mqtt.domain
    return Voice(settings.site, station.identity, domain, url, world.clock, world.randomness)


def open_line(
    station: Station,
    ledger: Ledger,
    world: World,
    stop: threading.Event,
    *,
    known_sets: Iterable[Path] = (),
    scan: Scan | None = None,
) -> Line:
    """Return a line that enrols with the EST server of the settings and announces to their broker.

    What other lines have used up, by the settings and by `known_sets`, is refused from here on.
    `scan` reads labels back, where the settings want that.
    """
    settings = station.settings
    take_the_seal(ledger, station)
    ledger.others = load_sets((*settings.ledger.known_sets, *known_sets), station.trust, ledger.place())
    voice, midwife = open_voice(station, world), None
    if settings.mqtt is not None and settings.mqtt.birth:
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
        labels=open_labels(settings.label, settings.site, scan) if settings.label else None,
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
