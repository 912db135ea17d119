"""The subscriber: listens to everything a domain announces, believes what is proven, and says what does not fit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Self

from devicesim.errors import DeviceSimError, Unreachable
from devicesim.mqtt import topics
from devicesim.mqtt.collector import Collector, Match, Presence, Report, Verdict
from devicesim.mqtt.connection import BrokerUrl, MqttConnection, MqttIdentity, Received
from devicesim.mqtt.topics import DOMAIN
from devicesim.trust import TrustAnchors

RECONNECT_SECONDS = 1.0


class Watcher:
    """Listens in a thread of its own from `start()` to `close()`; connects again whenever the broker comes back.

    Attributes:
        fault: why there is no connection at the moment, or None.
    """

    def __init__(
        self,
        broker: BrokerUrl,
        identity: MqttIdentity,
        trust: TrustAnchors,
        announcer: str = "estserver",
        *,
        domain: str = DOMAIN,
        session_seconds: int = 0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_verdict: Callable[[Verdict], None] | None = None,
    ) -> None:
        self.fault: str | None = None
        self._broker, self._identity, self._domain = broker, identity, domain
        self._session_seconds, self._clock, self._on_verdict = session_seconds, clock, on_verdict
        self._collector = Collector(trust, announcer=announcer, domain=domain)
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Connect, subscribe and begin to listen; raise when that is not possible at once."""
        link = self._open()
        self._thread = threading.Thread(target=self._listen, args=(link,), name="mqtt-watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def matched(self, device_id: str) -> Match:
        """Compare what the station, the device and the server say about a device."""
        with self._changed:
            return self._collector.matched(device_id)

    def presence(self, name: str) -> Presence | None:
        """Return the last word about the connection of a device or station."""
        with self._changed:
            return self._collector.presence.get(name)

    def report(self) -> Report:
        """Return everything heard so far."""
        with self._changed:
            return self._collector.report()

    def wait(self, device_ids: Iterable[str], deadline_seconds: float) -> bool:
        """Wait until all these devices match, or give up; `matched` says what is missing."""
        names = tuple(device_ids)
        return self.wait_for(lambda seen: all(seen.matched(name).ok for name in names), deadline_seconds)

    def wait_for(self, ready: Callable[[Collector], bool], deadline_seconds: float) -> bool:
        """Wait until `ready(collector)`, which is asked again after every message."""
        with self._changed:
            return self._changed.wait_for(lambda: ready(self._collector), deadline_seconds)

    def _open(self) -> MqttConnection:
        link = MqttConnection(
            self._broker, self._identity, session_seconds=self._session_seconds, on_message=self._heard
        )
        if not link.subscribe(topics.everything(domain=self._domain), time.monotonic() + 10):
            link.close()
            raise Unreachable(
                f"the broker denies {self._identity.name!r} to read {topics.everything(domain=self._domain)}",
                advice="name it as a reader: devicesim broker run --reader NAME",
            )
        return link

    def _listen(self, link: MqttConnection | None) -> None:
        while not self._closing.is_set():
            try:
                link = link or self._open()
                self.fault = None
                link.step(0.2)
            except DeviceSimError as fault:
                self.fault = fault.line
                if link is not None:
                    link.abandon()
                link = None
                self._closing.wait(RECONNECT_SECONDS)
        if link is not None:
            link.close()

    def _heard(self, message: Received) -> None:
        with self._changed:
            verdict = self._collector.take(message, self._clock())
            self._changed.notify_all()
        if self._on_verdict is not None:
            self._on_verdict(verdict)
