"""The line's announcements, on their way while the line works: a thread of their own drains the outbox.

A broker that is down costs the line nothing; what is owed stays owed, in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable

from devicesim.line.beside import Beside
from devicesim.line.ledger import Ledger
from devicesim.mqtt.announcer import DrainResult

IDLE_SECONDS = 0.5
DRAIN_SECONDS = 5.0

Drain = Callable[[float], DrainResult]


class Announcing(Beside):
    """Drains while its context lasts, then once more for as long as `last_seconds`."""

    def __init__(self, ledger: Ledger, drain: Drain, *, last_seconds: float) -> None:
        super().__init__("announcing")
        self._ledger, self._drain, self._last_seconds = ledger, drain, last_seconds
        self.reason: str | None = None

    def work(self) -> None:
        """Drain now and then."""
        while not self.ended.wait(IDLE_SECONDS):
            self._once(DRAIN_SECONDS)

    def finish(self) -> None:
        """Drain once more."""
        self._once(self._last_seconds)

    def _once(self, seconds: float) -> None:
        if self._ledger.owed():
            self.reason = self._drain(seconds).reason
        self._ledger.settle_announced()
