"""What is kept up to date beside the requests, by one worker of a server: its revocation lists.

Rules:
- Of all workers of a server one keeps, the one that holds the lock file; when it dies, another takes over.
- What went wrong is said once, and again when it changes; then it is tried again.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from estserver.errors import EstError
from estserver.status.publish import Publisher

POLL_SECONDS = 0.5
BACKOFF_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps one server's lists up to date for as long as it runs."""

    def __init__(self, publisher: Publisher, *, lock: Path, clock: Callable[[], datetime]) -> None:
        self._publisher = publisher
        self._lock = lock
        self._clock = clock
        self._said = ""

    def run(self) -> None:
        """Wait for the lock, then keep until the process ends, whatever goes wrong meanwhile."""
        with self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            while True:
                time.sleep(POLL_SECONDS if self.step() else BACKOFF_SECONDS)

    def step(self) -> bool:
        """Do what is due; False when something went wrong."""
        try:
            for record in self._publisher.publish_due(self._clock()):
                _log.info("CRL %d of %s is published: %d entries", record.number, record.issuer, record.entries)
        except (EstError, OSError) as error:
            return self._say(str(error))
        except Exception as error:  # noqa: BLE001 - a thread that ends says nothing more, and nothing is published
            if repr(error) != self._said:
                _log.exception("publishing failed")
            self._said = repr(error)
            return False
        self._said = ""
        return True

    def _say(self, what: str) -> bool:
        if what != self._said:
            _log.warning("revocation lists wait: %s", what)
        self._said = what
        return False


def start(keeper: Keeper) -> None:
    """Keep lists up to date beside the requests of this process; it ends with it."""
    threading.Thread(target=keeper.run, name="keeper", daemon=True).start()
