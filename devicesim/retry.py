"""Trying again, without becoming the reason why it does not work.

Only "not now" is repeated (`Unreachable` and `Pending`), never a refusal. The wait is what the server asked for, at
least; without its word it doubles from attempt to attempt and a random part of it is taken, so that a thousand devices
do not come back together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from devicesim.errors import Pending, Unreachable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on.

    Attributes:
        attempts: how often at most; answers of "pending" do not count.
        total_seconds: how long to wait in all.
        first_seconds: the longest first wait without a word of the server's.
        longest_seconds: the longest wait without a word of the server's.
    """

    attempts: int = 5
    total_seconds: float = 300.0
    first_seconds: float = 1.0
    longest_seconds: float = 60.0

    def wait_seconds(self, failures: int, asked_seconds: float | None, chance: float) -> float:
        """Return the wait after so many failures; `chance` is in [0, 1)."""
        backoff = min(self.first_seconds * 2.0 ** (failures - 1), self.longest_seconds) if failures else 0.0
        if asked_seconds is None:
            return backoff * (0.5 + chance / 2)
        return asked_seconds + min(self.first_seconds, asked_seconds / 10) * chance


def retrying(
    action: Callable[[], T],
    *,
    sleep: Callable[[float], None],
    random: Callable[[], float],
    patience: Patience | None = None,
    tell: Callable[[Unreachable, float], None] = lambda _error, _seconds: None,
) -> T:
    """Do it until it succeeds, is refused, or patience ends; then the last error is raised.

    `tell` hears of every error that is waited for, and for how long (RFC 7030 §4.2.3).
    """
    patience = patience or Patience()
    failures, left_seconds = 0, patience.total_seconds
    while True:
        try:
            return action()
        except Unreachable as error:
            failures += not isinstance(error, Pending)
            wait = patience.wait_seconds(failures, error.retry_after_seconds, random())
            if failures >= patience.attempts or left_seconds <= 0 or wait > left_seconds:
                raise
            tell(error, wait)
        left_seconds -= max(wait, 0.1)
        sleep(wait)
