"""The line's announcements, on their way while the line works: a thread of their own drains the outbox.

A broker that is down costs the line nothing; what is owed stays owed, in the ledger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from devicesim.errors import DeviceSimError
from devicesim.line.ledger import Ledger
from devicesim.mqtt.announcer import DrainResult

IDLE_SECONDS = 0.5
DRAIN_SECONDS = 5.0

Drain = Callable[[float], DrainResult]


class Announcing:
    """Drains while its context lasts, then once more for as long as `last_seconds`."""

    def __init__(self, ledger: Ledger, drain: Drain, *, last_seconds: float) -> None:
        self._ledger, self._drain, self._last_seconds = ledger, drain, last_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="announcing", daemon=True)
        self._fault: DeviceSimError | None = None
        self.reason: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._fault is not None and error is None:
            raise self._fault
        if error is None:
            self._once(self._last_seconds)

    def _loop(self) -> None:
        try:
            while not self._ended.wait(IDLE_SECONDS):
                self._once(DRAIN_SECONDS)
        except DeviceSimError as fault:
            self._fault = fault

    def _once(self, seconds: float) -> None:
        if self._ledger.owed():
            self.reason = self._drain(seconds).reason
        self._ledger.settle_announced()
