"""The pace at which a station asks its EST server, shared by all its slots.

Rules:
- A request is repeated after a growing pause with chance in it (`devicesim.retry`), never at once.
- Enrolments are let through at `[est] rate`: each takes its place in time, and waits for it.
- After `[est] breaker` failures in a row nobody asks for a while; then one slot tries, and the others wait for what
  becomes of it: let through again, or a longer pause. A server that says `Retry-After` has that pause from all.
- A server that asks for more than a unit may wait fails the unit, not the line's patience.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

from devicesim.errors import EstRefused, Pending, Unreachable, VerificationFailed
from devicesim.line.settings import Est
from devicesim.line.world import Stopped, World
from devicesim.retry import Patience, retrying

T = TypeVar("T")
WAIT_MAX_SECONDS = 120.0
"""How long a unit waits for one answer, in all; a server that asks for more patience has it at the next run."""
LOOK_AGAIN_SECONDS = 0.2


class Bucket:
    """A token bucket as the places in time it gives out: a token every `every_seconds`, at most `burst` saved up."""

    def __init__(self, every_seconds: float, burst: int) -> None:
        self._every, self._saved = every_seconds, every_seconds * (burst - 1)
        self._next: float | None = None

    def take(self, ticks: float) -> float:
        """Take the next token; return how many seconds it is away."""
        due = max(self._next if self._next is not None else 0.0, ticks - self._saved)
        self._next = due + self._every
        return max(due - ticks, 0.0)


class Breaker:
    """A circuit breaker as what it knows; every method takes the moment it is about.

    Attributes:
        opened: how often it has opened; names the pause that is on.
        until: when the pause that is on ends; None while everybody is let through.
        probing: whether somebody is trying for all.
    """

    def __init__(self, after: int, patience: Patience) -> None:
        self._after, self._patience = after, patience
        self._failures = self._pauses = 0
        self.opened = 0
        self.until: float | None = None
        self.probing = False

    def succeeded(self) -> bool:
        """Hear of an answer; True when that lets everybody through again."""
        was_open, self.until, self.probing = self.until is not None, None, False
        self._failures = self._pauses = 0
        return was_open

    def failed(self, ticks: float, asked_seconds: float | None, chance: float) -> float | None:
        """Hear of a failure; return how long nobody is to ask, when a pause begins with it."""
        self._failures += 1
        was_probe, self.probing = self.probing, False
        if asked_seconds is None and self._failures < self._after and not was_probe:
            return None
        if self.until is not None and not was_probe and asked_seconds is None:
            return None  # a request that was under way when the pause began
        self._pauses += 1
        pause = self._patience.wait_seconds(self._pauses, asked_seconds, chance)
        self.until = max(self.until or 0.0, ticks + pause)
        self.opened += 1
        return self.until - ticks


class Gate:
    """The way to the EST server for all slots of a station.

    Args:
        tell: hears when all slots begin to wait, and when they no longer do.
    """

    def __init__(self, est: Est, world: World, tell: Callable[[str], None] = lambda _text: None) -> None:
        self._world, self._tell, self._mutex = world, tell, Lock()
        self._patience = Patience(
            attempts=est.retries + 1,
            total_seconds=WAIT_MAX_SECONDS,
            first_seconds=est.backoff.total_seconds(),
            longest_seconds=est.backoff_max.total_seconds(),
        )
        self._breaker = Breaker(est.breaker, self._patience)
        self._bucket = Bucket(est.rate.every_seconds, est.burst) if est.rate else None

    def patiently(self, ask: Callable[[], T], *, enrols: bool = False) -> T:
        """Ask the server, again after a lost answer or a "not now", then give up.

        `enrols` says that it costs the CA a signature, and so a token.
        """

        def once() -> T:
            with self._passed():
                if enrols:
                    self._take_a_token()
                return ask()

        return retrying(once, sleep=self._pause, random=self._world.jitter, patience=self._patience)

    @contextmanager
    def _passed(self) -> Iterator[None]:
        """Wait until the breaker lets one through, and tell it what became of it."""
        probe = self._wait_for_the_breaker()
        try:
            yield
        except Pending:  # an answer like any other: the server is there
            self._succeeded()
            raise
        except Unreachable as error:
            self._failed(error)
            raise
        except (EstRefused, VerificationFailed):
            self._succeeded()
            raise
        except BaseException:
            with self._mutex:
                self._breaker.probing = self._breaker.probing and not probe
            raise
        self._succeeded()

    def _wait_for_the_breaker(self) -> bool:
        """Return once one may ask: True for the one who tries for all."""
        waited_for = 0
        while True:
            with self._mutex:
                breaker, now = self._breaker, self._world.ticks()
                if breaker.until is None:
                    return False
                left = breaker.until - now
                if not breaker.probing and (left <= 0 or waited_for == breaker.opened):
                    breaker.probing = True
                    return True
                pause, waited_for = (LOOK_AGAIN_SECONDS, 0) if breaker.probing else (left, breaker.opened)
            if pause > WAIT_MAX_SECONDS:
                raise Unreachable(f"the EST server asked to be left alone for another {pause:.0f} s")
            self._pause(pause)

    def _take_a_token(self) -> None:
        if self._bucket is None:
            return
        with self._mutex:
            seconds = self._bucket.take(self._world.ticks())
        if seconds > 0:
            self._pause(seconds)

    def _succeeded(self) -> None:
        with self._mutex:
            opened = self._breaker.succeeded()
        if opened:
            self._tell("the EST server answers again: all slots go on")

    def _failed(self, error: Unreachable) -> None:
        with self._mutex:
            pause = self._breaker.failed(self._world.ticks(), error.retry_after_seconds, self._world.jitter())
        if pause is not None:
            self._tell(f"all slots wait {pause:.1f} s for the EST server, then one tries: {error}")

    def _pause(self, seconds: float) -> None:
        if self._world.wait(seconds):
            raise Stopped
