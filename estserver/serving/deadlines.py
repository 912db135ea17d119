"""Who has been waiting too long: one queue for each phase.

Every connection in a phase has the same time for it, so the queue of a phase is ordered by deadline as it is filled:
filing, removing and finding the next to expire cost the same however many connections are open.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import takewhile
from typing import Generic, TypeVar

PhaseT = TypeVar("PhaseT")
ItemT = TypeVar("ItemT")


class Deadlines(Generic[PhaseT, ItemT]):
    """Items, each in one phase since some instant; phases without a limit have no queue."""

    def __init__(self, seconds: Mapping[PhaseT, float]) -> None:
        self._seconds = dict(seconds)
        self._queues: dict[PhaseT, OrderedDict[ItemT, float]] = {phase: OrderedDict() for phase in seconds}
        self._filed: dict[ItemT, tuple[PhaseT, int]] = {}

    def file(self, item: ItemT, phase: PhaseT, now: float, progress: int = 0) -> None:
        """Note that the item is in this phase; its time starts now unless it has got no further since."""
        if self._filed.get(item) == (phase, progress):
            return
        self.remove(item)
        self._filed[item] = (phase, progress)
        if phase in self._queues:
            self._queues[phase][item] = now + self._seconds[phase]

    def remove(self, item: ItemT) -> None:
        """Forget the item."""
        phase, _ = self._filed.pop(item, (None, 0))
        if phase in self._queues:
            del self._queues[phase][item]

    def is_in(self, item: ItemT, phase: PhaseT) -> bool:
        """Tell whether the item was last filed in this phase."""
        return item in self._filed and self._filed[item][0] is phase

    def first(self, phase: PhaseT) -> ItemT | None:
        """Give the item that has been in this phase the longest."""
        return next(iter(self._queues[phase]), None)

    def expired(self, now: float) -> list[ItemT]:
        """Give every item whose time is over; the caller moves or removes each."""
        return [
            item
            for queue in self._queues.values()
            for item, _ in takewhile(lambda entry: entry[1] <= now, queue.items())
        ]

    def wait_seconds(self, now: float, longest: float) -> float:
        """Say for how long nothing expires, at most `longest`."""
        nearest = min((next(iter(queue.values())) for queue in self._queues.values() if queue), default=now + longest)
        return max(0.0, min(longest, nearest - now))
