"""No certificate is asked for by a clock that cannot be right.

Rules, held before each enrolment:
- The clock is after the floor.
- It agrees with the EST server's own, which every answer tells anew (`Date`, RFC 9110 §6.6.1): beyond `warn_skew` it
  is told once, beyond `max_skew` the line stops.
- It has gone on as time does since it was last looked at: a jump of more than `warn_skew` stops the line, whatever the
  server says, because what is being written down just now is dated by it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from threading import Lock

from devicesim.errors import ClockUntrustworthy
from devicesim.line.settings import Clock
from devicesim.line.world import World


class ClockCheck:
    """The clock of one run, watched by all its slots.

    Args:
        tell: hears of a skew that is worth a look, once.
    """

    def __init__(self, limits: Clock, world: World, tell: Callable[[str], None] = lambda _text: None) -> None:
        self._limits, self._world, self._tell = limits, world, tell
        self._server: tuple[datetime, float] | None = None
        self._last: tuple[datetime, float] | None = None
        self._told = False
        self._mutex = Lock()

    @property
    def knows_server(self) -> bool:
        """Whether the EST server has said what time it has."""
        return self._server is not None

    def hear(self, server_at: datetime | None) -> None:
        """Hear what an answer that just came says of the server's clock."""
        if server_at is not None:
            self._server = server_at, self._world.ticks()

    def check(self) -> None:
        """Raise ClockUntrustworthy unless the clock can be right."""
        with self._mutex:
            now, ticks = self._world.clock(), self._world.ticks()
            if now < self._limits.floor:
                raise ClockUntrustworthy(
                    f"the clock says {now:%Y-%m-%d %H:%M} UTC, before {self._limits.floor:%Y-%m-%d}"
                )
            self._check_jump(now, ticks)
            self._check_skew(now, ticks)

    def _check_jump(self, now: datetime, ticks: float) -> None:
        last, self._last = self._last, (now, ticks)
        if last is None:
            return
        jump = (now - last[0]).total_seconds() - (ticks - last[1])
        if abs(jump) > self._limits.warn_seconds:
            where = "forward" if jump > 0 else "back"
            raise ClockUntrustworthy(
                f"the clock jumped {abs(jump):.0f} s {where} during the run",
                advice="see that it is right and stays so, then run it again",
            )

    def _check_skew(self, now: datetime, ticks: float) -> None:
        if self._server is None:
            return
        skew = abs((now - self._server[0]).total_seconds() - (ticks - self._server[1]))
        if skew > self._limits.max_skew.total_seconds():
            raise ClockUntrustworthy(f"the clock is {skew:.0f} s away from the EST server's")
        if skew > self._limits.warn_seconds and not self._told:
            self._told = True
            self._tell(f"the clock is {skew:.0f} s away from the EST server's: have it set after this run")
