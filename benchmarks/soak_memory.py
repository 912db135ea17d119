"""Memory and descriptors of a server's processes over time, by worker, because a replaced worker begins anew."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rig import Server, resident_megabytes

WARM_SECONDS = 10
"""How long a worker lives before its memory counts."""


class Sample(NamedTuple):
    """How one process stood at a moment."""

    at: float
    megabytes: float
    descriptors: int


class Span(NamedTuple):
    """A figure in the first and in the last quarter of a time, and that time."""

    first: float
    last: float
    seconds: float

    @property
    def growth(self) -> float:
        """Return by how much it rose."""
        return self.last - self.first


class Memory:
    """What was seen of a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._workers: dict[int, list[Sample]] = defaultdict(list)
        self._sums: list[Sample] = []
        self.at_rest: list[int] = []

    def sample(self) -> None:
        """See how every worker stands, and all processes together."""
        now, pids = time.monotonic(), self._server.tree()
        seen = []
        for pid in pids:
            with contextlib.suppress(OSError, StopIteration):  # just killed
                seen.append(Sample(now, resident_megabytes(pid), _descriptors(pid)))
                if pid != pids[0]:
                    self._workers[pid].append(seen[-1])
        self._sums.append(Sample(now, sum(one.megabytes for one in seen), sum(one.descriptors for one in seen)))

    def rest(self, patience_seconds: float) -> None:
        """Wait until no worker gives back any more descriptors, and note how many the one with most has left."""
        until, counts = time.monotonic() + patience_seconds, [0]
        while time.monotonic() < until and (len(counts) < 20 or max(counts[-20:]) > min(counts[-20:])):
            counts.append(max(_descriptors(pid) for pid in self._server.tree()[1:]))
            time.sleep(0.2)
        self.at_rest.append(counts[-1])

    def longest(self) -> list[Sample]:
        """Return what was seen of the worker that lived longest."""
        return max(self._workers.values(), key=lambda life: life[-1].at - life[0].at)

    def of_longest(self) -> Span:
        """Return the memory of the worker that lived longest, once it was warm."""
        life = self.longest()
        return _span([one for one in life if one.at >= life[0].at + WARM_SECONDS] or life)

    def of_all(self) -> Span:
        """Return the memory of all processes together."""
        return _span(self._sums)

    def most_descriptors(self) -> int:
        """Return how many a worker ever had open."""
        return max(one.descriptors for life in self._workers.values() for one in life)


def _span(samples: Sequence[Sample]) -> Span:
    quarter = max(1, len(samples) // 4)
    first, last = (statistics.median(s.megabytes for s in part) for part in (samples[:quarter], samples[-quarter:]))
    return Span(first, last, samples[-1].at - samples[0].at)


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
