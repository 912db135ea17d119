"""`estserver serve` that dies on command: its parts are wrapped so that a worker ends itself by SIGKILL at one stage.

    python -m tests.kill_server LEVERS serve --home HOME --listen 127.0.0.1:0 …

LEVERS is a directory. Every enrolment is numbered by the octet it adds to `requests`, whichever worker serves it. A
line `NUMBER STAGE` in `plan` kills the worker that serves this number when it reaches the stage, and `kills` notes it.
`clock_seconds`, when there is one, is how far the server's clock is off.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from estserver.assembly import Rules, inventory_of
from estserver.cli import main
from estserver.cli import serve as command
from estserver.config import Settings
from estserver.inventory import Inventory
from estserver.model import Der, Reservation
from estserver.web import create_app

STAGES = (
    "before-reserve",
    "before-reserve-commit",
    "after-reserve",
    "before-sign",
    "after-sign",
    "before-record-commit",
    "after-record",
    "before-answer",
)
"""In the order in which one enrolment passes them."""

ENROLMENTS = ("/simpleenroll", "/simplereenroll")


class Levers:
    """What the tests hold in their hands; one for each worker."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._requests = os.open(directory / "requests", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        self._stages: set[str] = set()

    def begin(self) -> set[str]:
        """Number an enrolment and return its stages; the position after an append is the same for no two of them."""
        with suppress(OSError):  # no more room
            os.write(self._requests, b".")
        number = os.lseek(self._requests, 0, os.SEEK_CUR)
        lines = (line.split() for line in self._read("plan").splitlines())
        planned = {stage for at, stage in lines if int(at) == number}
        self._stages |= planned
        return planned

    def end(self, planned: set[str]) -> None:
        """Forget the stages that a request did not come to."""
        self._stages -= planned

    def reach(self, stage: str) -> None:
        """Die here, if this is the stage of a request of this turn."""
        if stage in self._stages:
            with (self._directory / "kills").open("a") as kills:
                kills.write(f"{stage}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def clock(self, now: datetime) -> datetime:
        return now + timedelta(seconds=int(self._read("clock_seconds") or 0))

    def _read(self, name: str) -> str:
        with suppress(FileNotFoundError):
            return (self._directory / name).read_text()
        return ""


class DyingInventory(Inventory):
    """An inventory that may be the last thing its process sees."""

    levers: Levers

    def reserve_all(self, *arguments: Any) -> Any:
        self.levers.reach("before-reserve")
        slots = super().reserve_all(*arguments)
        self.levers.reach("after-reserve")
        return slots

    def record_all(self, *arguments: Any) -> Any:
        issued = super().record_all(*arguments)
        self.levers.reach("after-record")
        return issued

    @contextmanager
    def _write(self, now: datetime, *, durable: bool) -> Iterator[Any]:
        with super()._write(now, durable=durable) as transaction:
            yield transaction
            self.levers.reach("before-record-commit" if durable else "before-reserve-commit")


class DyingCa:
    """A CA that may not live to see its signature."""

    def __init__(self, ca: Any, levers: Levers) -> None:
        self._ca, self._levers = ca, levers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ca, name)

    def issue(self, reservation: Reservation) -> Der:
        self._levers.reach("before-sign")
        certificate: Der = self._ca.issue(reservation)
        self._levers.reach("after-sign")
        return certificate


def load_app(directory: Path, settings: Settings, rules: Rules) -> Callable[..., Any]:
    """Make the application of one worker, as `serve` does, of parts that can die."""
    levers = Levers(directory)
    inventory = inventory_of(settings)
    inventory.__class__, DyingInventory.levers = DyingInventory, levers
    clock = command.now
    app = create_app(settings, inventory=inventory, clock=lambda: levers.clock(clock()), rules=rules)
    enrollment = app.extensions["estline.enrollment"]
    doors = enrollment._doors.items()
    enrollment._doors = {label: replace(door, ca=DyingCa(door.ca, levers)) for label, door in doors}

    def dying(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        planned = levers.begin() if environ["PATH_INFO"].endswith(ENROLMENTS) else set()
        return collected(app(environ, start_response), planned)

    def collected(answer: Iterable[bytes], planned: set[str]) -> Iterator[bytes]:
        yield from answer
        levers.reach("before-answer")
        levers.end(planned)

    return dying


if __name__ == "__main__":
    levers_directory = Path(sys.argv.pop(1))
    command._load_app = lambda found, *_: load_app(levers_directory, found.settings, found.rules)
    main()
