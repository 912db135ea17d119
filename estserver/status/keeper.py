"""What is kept up to date beside the requests, by one worker of a server: lists, and who signs OCSP answers.

Rules:
- Of all workers of a server one keeps, the one that holds the lock file; when it dies, another takes over.
- What went wrong is said once, and again when it changes; then it is tried again.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from estserver.errors import EstError

POLL_SECONDS = 0.5
BACKOFF_SECONDS = 5.0

_log = logging.getLogger(__name__)

Duty: TypeAlias = Callable[[datetime], Iterable[str]]


class Keeper:
    """Keeps what one server tells up to date for as long as it runs.

    Args:
        duties: each is done again and again, handed the time; it tells what it did, a line each.
        lock: a file that only who keeps has locked.
    """

    def __init__(self, duties: Sequence[Duty], *, lock: Path, clock: Callable[[], datetime]) -> None:
        self._duties = duties
        self._lock = lock
        self._clock = clock
        self._said = dict[int, str]()

    def run(self) -> None:
        """Wait for the lock, then keep until the process ends, whatever goes wrong meanwhile."""
        with self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            while True:
                time.sleep(POLL_SECONDS if self.step() else BACKOFF_SECONDS)

    def step(self) -> bool:
        """Do what is due; False when something went wrong."""
        done = [self._do(number, duty) for number, duty in enumerate(self._duties)]
        return all(done)

    def _do(self, number: int, duty: Duty) -> bool:
        try:
            for line in duty(self._clock()):
                _log.info("%s", line)
        except (EstError, OSError) as error:
            return self._say(number, str(error))
        except Exception as error:  # noqa: BLE001 - a thread that ends says nothing more, and nothing is kept
            if repr(error) != self._said.get(number):
                _log.exception("keeping what is told of certificates failed")
            self._said[number] = repr(error)
            return False
        self._said.pop(number, None)
        return True

    def _say(self, number: int, what: str) -> bool:
        if what != self._said.get(number):
            _log.warning("what is told of certificates waits: %s", what)
        self._said[number] = what
        return False


def start(keeper: Keeper) -> None:
    """Keep lists up to date beside the requests of this process; it ends with it."""
    threading.Thread(target=keeper.run, name="keeper", daemon=True).start()
