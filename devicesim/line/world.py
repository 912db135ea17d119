"""What the line takes from outside, so that a test can hand it something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class World:
    """Time, waiting and chance.

    Attributes:
        clock: aware UTC time.
        ticks: seconds that only grow, for durations.
        wait: sleep so long; True when the line is to stop instead.
        jitter: a number in [0, 1).
        randomness: n random bytes.
    """

    clock: Callable[[], datetime]
    ticks: Callable[[], float]
    wait: Callable[[float], bool]
    jitter: Callable[[], float]
    randomness: Callable[[int], bytes]


class Stopped(Exception):
    """The line is stopping; the unit goes on from here at the next run."""
