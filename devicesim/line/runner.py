"""The run of a batch: slots that take one unit after the other, each at its own pace.

Rules:
- Slots never wait for each other; each keeps its own connection to the EST server.
- A unit that fails leaves the line going. What would fail every unit stops it: the ledger's disk, the clock, and two
  units in a row that could not reach the EST server or whose station it turned away.
- Run again is resume: what has passed is left alone, what has failed is tried again, what was under way goes on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from devicesim.errors import ClockUntrustworthy, DeviceSimError, StorageError, Unreachable
from devicesim.line.batch import Batch, ByStation, Unit
from devicesim.line.birth import Midwife
from devicesim.line.labelling import Labels
from devicesim.line.ledger import Ledger, UnitRow
from devicesim.line.settings import Settings
from devicesim.line.states import Failure, FailureCode, State, failure_of
from devicesim.line.station import Door, OpenEst
from devicesim.line.steps import STEPS, ClockCheck, Stopped, Work, World, open_device, patiently
from devicesim.line.voice import Voice
from devicesim.mqtt.ulid import new_ulid
from devicesim.trust import TrustAnchors

STOP_AFTER = 2
_STATION_CODES = frozenset({FailureCode.EST_NET, FailureCode.EST_AUTH})
_STOPPING = (StorageError, ClockUntrustworthy)


class Watcher(Protocol):
    """Who watches units; called from several threads."""

    def step(self, slot: int, device_id: str, state: State) -> None:
        """Hear that a slot's unit has come to a state."""

    def ended(self, unit: UnitRow, failure: Failure | None) -> None:
        """Hear that a unit has passed, or failed."""


class Progress(Watcher, Protocol):
    """Who watches the run of a batch."""

    def begin(self, total: int, to_do: int) -> None:
        """Hear that the run begins, with so many of the batch's units to work on."""


class Units(Protocol):
    """Where the slots of a run take their units from; asked from several threads."""

    def take(self) -> Unit | None:
        """Return the next unit, waiting until there is one; None when there will be no more."""

    def is_there_more(self) -> bool:
        """Tell whether more units wait than those that were taken."""


class Planned:
    """The units of a plan, in its order."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._units = deque(units)

    def take(self) -> Unit | None:
        """Return the next unit, or None when all were taken."""
        try:
            return self._units.popleft()
        except IndexError:
            return None

    def is_there_more(self) -> bool:
        """Tell whether any is left."""
        return bool(self._units)


@dataclass(frozen=True, slots=True)
class Line:
    """A line, ready to run.

    Attributes:
        open_est: the way to the EST server.
        server_time: the EST server's own clock, or None when it does not say.
        voice: announces; None when there is no broker.
        midwife: lets devices announce themselves; None when they do not.
        labels: prints labels and has them read back; None when units get none.
        stop: set to have every slot stop after its current step.
    """

    settings: Settings
    ledger: Ledger
    trust: TrustAnchors
    open_est: OpenEst
    server_time: Callable[[], datetime | None]
    voice: Voice | None
    midwife: Midwife | None
    world: World
    stop: threading.Event
    labels: Labels | None = None

    def run(self, batch: Batch, *, slots: int, progress: Progress) -> Failure | None:
        """Work on every unit of a batch that has not passed; return why the line stopped early, if it did."""
        self.ledger.open_batch(batch)
        rows = {row.device_id: row for row in self.ledger.units(batch.id)}
        to_do = [unit for unit in batch.units if self._is_open(rows[unit.device_id])]
        progress.begin(len(batch.units), len(to_do))
        if not to_do:
            return None
        enrols = any(not rows[unit.device_id].ended for unit in to_do)
        return self.work(Planned(to_do), slots=min(slots, len(to_do)), enrols=enrols, progress=progress)

    def work(self, units: Units, *, slots: int, enrols: bool = True, progress: Watcher) -> Failure | None:
        """Have slots take units of an open batch until there are no more; return why the line stopped early."""
        try:
            check = self._check_clock(enrols=enrols)
        except Unreachable as error:
            return failure_of(error, State.KEYED)
        run = _Run(self, units, check, progress)
        with ThreadPoolExecutor(slots, thread_name_prefix="slot") as pool:
            futures = [pool.submit(run.slot, number) for number in range(1, slots + 1)]
        for future in futures:
            future.result()
        return run.stopped_by

    def _is_open(self, row: UnitRow) -> bool:
        return not row.ended or (row.birth == "pending" and self.midwife is not None)

    def _check_clock(self, *, enrols: bool) -> ClockCheck:
        """Ask the EST server for its time, which also shows that it is there; only births need no server."""
        clock = self.settings.clock
        server_at = patiently(self.settings.est, self.world, self.server_time) if enrols else None
        check = ClockCheck(clock.floor, clock.max_skew.total_seconds(), server_at, self.world.ticks())
        check.check(self.world.clock(), self.world.ticks())
        return check


@dataclass
class _Run:
    """What the slots of one run share."""

    line: Line
    units: Units
    clock_check: ClockCheck
    progress: Watcher
    stopped_by: Failure | None = None
    _in_a_row: int = 0
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def slot(self, number: int) -> None:
        """Take one unit after the other until there is none, or the line stops."""
        doors: dict[str, Door] = {}
        try:
            while not self.line.stop.is_set():
                unit = self.units.take()
                if unit is None:
                    return
                self._provision(unit, number, doors)
        except Stopped:
            return
        except BaseException:
            self.line.stop.set()
            raise
        finally:
            for door in doors.values():
                door.est.close()

    def _provision(self, unit: Unit, slot: int, doors: dict[str, Door]) -> None:
        row = self.line.ledger.unit(unit.device_id)
        if not row.ended:
            row = self._work(unit, slot, doors)
        if row.birth == "pending" and self.line.midwife is not None:
            self.line.midwife.attend(row)

    def _work(self, unit: Unit, slot: int, doors: dict[str, Door]) -> UnitRow:
        """Walk a unit along its states until it has passed or failed."""
        world, ledger = self.line.world, self.line.ledger
        row = ledger.begin_attempt(unit.device_id, attempt_id=new_ulid(world.clock(), world.randomness), slot=slot)
        door: Door | None = None
        try:
            door = self._door(unit, doors)
            work = self._prepare(unit, slot, door)
            while not row.passed:
                if self.line.stop.is_set():
                    raise Stopped
                row = STEPS[ledger.way.after(row.state)](work, row, world.ticks())
                self.progress.step(slot, unit.device_id, row.state)
        except _STOPPING:
            raise
        except DeviceSimError as error:
            return self._fail(unit, row, error)
        finally:
            if door is not None and door not in doors.values():
                door.est.close()
        self._count(None)
        self.progress.ended(row, None)
        return row

    def _door(self, unit: Unit, doors: dict[str, Door]) -> Door:
        """Return the slot's own way to the server, or for a unit that asks for itself, one of its own."""
        if not isinstance(unit.enrol_by, ByStation):
            return Door(self.line.open_est(unit.label, unit.enrol_by))
        if unit.label not in doors:
            doors[unit.label] = Door(self.line.open_est(unit.label, unit.enrol_by))
        return doors[unit.label]

    def _prepare(self, unit: Unit, slot: int, door: Door) -> Work:
        line = self.line
        device, store = open_device(line.settings, unit.device_id, line.world.clock)
        return Work(
            unit=unit,
            slot=slot,
            door=door,
            device=device,
            store=store,
            settings=line.settings,
            ledger=line.ledger,
            trust=line.trust,
            clock_check=self.clock_check,
            voice=line.voice,
            labels=line.labels,
            world=line.world,
        )

    def _fail(self, unit: Unit, row: UnitRow, error: DeviceSimError) -> UnitRow:
        voice, ledger = self.line.voice, self.line.ledger
        step = ledger.way.after(row.state)
        failure = failure_of(error, step)
        announce = voice.failed(row, failure, step) if voice else None
        failed = ledger.fail(unit.device_id, failure, step=step, announce=announce)
        self._count(failure if isinstance(unit.enrol_by, ByStation) else None)
        self.progress.ended(failed, failure)
        return failed

    def _count(self, failure: Failure | None) -> None:
        """Stop the line when units in a row fail for a reason that is not theirs."""
        with self._mutex:
            if failure is None or failure.code not in _STATION_CODES:
                self._in_a_row = 0
                return
            self._in_a_row += 1
            if self._in_a_row >= STOP_AFTER and self.units.is_there_more():
                self.stopped_by = failure
                self.line.stop.set()
