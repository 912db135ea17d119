"""What is owed to the world, sent: outbox → MQTT, at least once, and never in the transaction of a request.

Rules:
- Of all workers of a server one announces, the one that holds the lock file; when it dies, another takes over.
- A row is done when the broker is known to have it; a broker that is away costs nothing but time.
- What went wrong is said once, and again when it changes.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from estserver.announce.cloudevent import Speaker, signed_event
from estserver.announce.publisher import WINDOW, Publisher
from estserver.assembly import load_certificates
from estserver.config import Settings
from estserver.errors import EstError
from estserver.inventory import Inventory
from estserver.keys import FileSigner

__all__ = ["Announcer", "start_announcer"]

IDLE_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
KEEP_SENT = timedelta(days=30)

_log = logging.getLogger(__name__)


class Announcer:
    """Drains one inventory's outbox for as long as it runs."""

    def __init__(self, settings: Settings, inventory: Inventory, *, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._inventory = inventory
        self._clock = clock
        self._said = ""

    def run(self) -> None:
        """Wait for the lock, then announce until the process ends, whatever goes wrong meanwhile."""
        lock: IO[str] | None = None
        backoff_seconds = 0.5
        while True:
            try:
                lock = lock or self._lock()
                self._announce()
            except (EstError, OSError) as error:
                self._say(str(error))
            except Exception as error:  # noqa: BLE001 - a thread that ends says nothing more, and nothing is announced
                if repr(error) != self._said:
                    _log.exception("announcing failed")
                self._say(repr(error))
            time.sleep(backoff_seconds)
            backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS) if self._said else 0.5

    def _lock(self) -> IO[str]:
        """Wait until no other worker announces; the lock lasts as long as the file is open."""
        lock = self._settings.path(Path("announce.lock")).open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def _announce(self) -> None:
        """Connect and drain until something fails."""
        publisher = Publisher(self._settings.mqtt, self._settings.path)
        try:
            speaker = self._speaker()
            self._inventory.outbox.prune(self._clock() - KEEP_SENT)
            self._say("")
            while True:
                if not self.drain(publisher, speaker):
                    publisher.step(IDLE_SECONDS)
        finally:
            publisher.close()

    def drain(self, publisher: Publisher, speaker: Speaker) -> int:
        """Send one window of what is owed; return how many arrived."""
        rows = self._inventory.outbox.pending(WINDOW)
        for row in rows:
            payload = signed_event(row, speaker)
            publisher.publish(row.event.topic, payload, event_id=row.event.id, retain=row.event.retain)
        if not rows:
            return 0
        done, denied = publisher.settle()
        self._inventory.outbox.done(done, self._clock())
        for event_id, reason in denied.items():
            self._inventory.outbox.failed(event_id, reason)
            self._say(f"the broker did not take an event: {reason}")
        if denied and not done:
            time.sleep(BACKOFF_MAX_SECONDS)
        return len(done)

    def _speaker(self) -> Speaker:
        mqtt = self._settings.mqtt
        chain = load_certificates(self._settings.path(mqtt.certificate))
        return Speaker(FileSigner.load(self._settings.path(mqtt.key)), chain)

    def _say(self, what: str) -> None:
        if what and what != self._said:
            _log.warning("announcements wait: %s", what)
        elif self._said and not what:
            _log.info("announcements go out again")
        self._said = what


def start_announcer(settings: Settings, inventory: Inventory, *, clock: Callable[[], datetime]) -> None:
    """Run an announcer beside the requests of this process; it ends with it."""
    announcer = Announcer(settings, inventory, clock=clock)
    threading.Thread(target=announcer.run, name="announcer", daemon=True).start()
