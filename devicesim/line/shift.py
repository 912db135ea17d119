"""The loop of a station, scan → go: who works, which unit goes next, which label is on it.

Rules:
- What is scanned is, in this order: a word, a badge, the label that is asked for, a unit. Everything else is E-SCAN,
  and what was expected is said.
- Nobody works without a badge; another badge takes over from the one before.
- Slots run on while units are scanned; a unit that finds none free waits for one.
- One label is asked for at a time, by its unit and slot. So two labels that were swapped are found, and not taken for
  each other.
- `reprint` prints the label that is asked for once more, for who may rework.
- `quit` lets what was scanned end; a second one leaves labels for the next time.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from devicesim.labels.errors import ScanFailed
from devicesim.line.batch import Batch, Unit
from devicesim.line.crew import Act, Crew, OperatorRefused
from devicesim.line.ledger import Ledger, UnitRow
from devicesim.line.states import Failure, FailureCode, State
from devicesim.line.steps import Stopped
from devicesim.mqtt.topics import identifier

BADGE_PREFIX = "B:"
QUIT = frozenset({"quit", "q", "exit"})
REPRINT = "reprint"
SCANS_PER_LABEL = 3
TICK_SECONDS = 0.2
SHOWN_MAX = 80


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that is shown at the station.

    Attributes:
        what: `next` is what the operator does now; `wrong` is about a scan, `pass` and `fail` are about a unit.
        expected: what should have been scanned.
        shift: how many units have passed and failed here since the loop was opened, are under way, and are still to go.
    """

    what: Literal["next", "info", "wrong", "pass", "fail"]
    text: str = ""
    device_id: str = ""
    code: str = ""
    expected: str = ""
    operator: str = ""
    shift: dict[str, int] | None = None


@dataclass(eq=False)
class _Asked:
    """A label that is to be scanned."""

    slot: int
    device_id: str
    misses: int = 0
    text: str | None = None
    is_to_be_printed: bool = False


@dataclass
class Shift:
    """Hears what is scanned, and is to the line what it takes units, labels and progress from.

    Args:
        shape: what the text of a label looks like; None where none is scanned back.
        show: shows a notice; called by one thread at a time.
        stop: set when the line stops.
    """

    ledger: Ledger
    batch: Batch
    crew: Crew
    shape: re.Pattern[str] | None
    slots: int
    show: Callable[[Notice], None]
    stop: threading.Event
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _index: dict[str, Unit] = field(default_factory=dict, init=False)
    _open: set[str] = field(default_factory=set, init=False)
    _births: deque[Unit] = field(default_factory=deque, init=False)
    _queue: deque[Unit] = field(default_factory=deque, init=False)
    _running: set[str] = field(default_factory=set, init=False)
    _asked: deque[_Asked] = field(default_factory=deque, init=False)
    _counts: dict[str, int] = field(default_factory=lambda: {"passed": 0, "failed": 0}, init=False)
    _is_over: bool = field(default=False, init=False)
    _is_left: bool = field(default=False, init=False)
    _is_deaf: bool = field(default=False, init=False)

    def begin(self, *, births: bool) -> None:
        """Begin with a batch the ledger has; `births`: devices that did not announce themselves yet do so first."""
        rows = {row.device_id: row for row in self.ledger.units(self.batch.id)}
        with self._changed:
            for unit in self.batch.units:
                names = (unit.device_id, unit.serial, unit.mac, unit.se_id)
                self._index.update((name, unit) for name in names if name)
                if not rows[unit.device_id].ended:
                    self._open.add(unit.device_id)
                elif births and rows[unit.device_id].birth == "pending":
                    self._births.append(unit)
            self._index.update((unit.device_id, unit) for unit in self.batch.units)  # an id is never another's serial
            self._is_over = not self._open
            self._info(f"batch {self.batch.id}: {len(rows)} units, {len(self._open)} to go, {self.slots} slots")
            self._show_next()

    # --- what the line takes from it --------------------------------------------------------------------------------

    def take(self) -> Unit | None:
        """Return the next unit, waiting until one is scanned; None when there will be no more."""
        with self._changed:
            while not self._queue:
                if self._births:
                    return self._births.popleft()
                if self._is_over or self.stop.is_set():
                    return None
                self._changed.wait(TICK_SECONDS)
            unit = self._queue.popleft()
            self._running.add(unit.device_id)
            return unit

    def is_there_more(self) -> bool:
        """Say no: an operator who sees why a unit failed decides whether the next one is scanned."""
        return False

    def scan_label(self, slot: int, device_id: str) -> str | None:
        """Wait for what is read on the label of the unit in a slot; None when it is to be printed once more."""
        asked = _Asked(slot, device_id)
        with self._changed:
            self._asked.append(asked)
            if self._asked[0] is asked:
                self._show_next()
            try:
                while asked.text is None and not asked.is_to_be_printed:
                    self._give_up(asked)
                    self._changed.wait(TICK_SECONDS)
            finally:
                if asked in self._asked:
                    self._asked.remove(asked)
            return asked.text

    def _give_up(self, asked: _Asked) -> None:
        if self.stop.is_set() or self._is_left:
            raise Stopped
        if self._is_deaf:
            raise ScanFailed(f"the scanner went away before the label of {asked.device_id} was scanned")
        if asked.misses >= SCANS_PER_LABEL:
            raise ScanFailed(f"no label of {asked.device_id} could be read in {asked.misses} scans")

    def step(self, slot: int, device_id: str, state: State) -> None:
        """Keep quiet about single steps."""

    def ended(self, unit: UnitRow, failure: Failure | None) -> None:
        """Show PASS or FAIL: the ledger has it."""
        with self._changed:
            self._running.discard(unit.device_id)
            self._counts["failed" if failure else "passed"] += 1
            if failure:
                self._tell("fail", failure.text, device_id=unit.device_id, code=failure.code)
            else:
                self._open.discard(unit.device_id)
                self._tell("pass", device_id=unit.device_id)
            if not self._open:
                self._is_over = True
            self._show_next()
            self._changed.notify_all()

    # --- what is scanned --------------------------------------------------------------------------------------------

    def hear(self, text: str) -> None:
        """Take one text from a scanner or a keyboard."""
        with self._changed:
            self._hear(text)
            self._show_next()
            self._changed.notify_all()

    def deaf(self) -> None:
        """Hear that nothing more can be scanned; what needs no scan ends in order."""
        with self._changed:
            self._is_over = self._is_deaf = True
            self._changed.notify_all()

    def _hear(self, text: str) -> None:
        if text.lower() in QUIT:
            self._quit()
        elif text.lower() == REPRINT and self._asked:
            self._reprint()
        elif (badge := self._badge(text)) is not None:
            self._take_over(badge)
        elif not self.ledger.duty.operator:
            self._wrong(text, "is no badge")
        elif self._asked and self._is_label(text):
            self._asked.popleft().text = text
        elif (unit := self._unit(text)) is not None:
            self._go(unit)
        else:
            if self._asked:
                self._asked[0].misses += 1
            self._wrong(text, f"is no unit of batch {self.batch.id}" if not self._asked else "is no such label")

    def _quit(self) -> None:
        if self._is_over:
            self._is_left = True
            self._queue.clear()
        self._is_over = True

    def _reprint(self) -> None:
        try:
            self.crew.admit(Act.REPRINT, self.ledger.duty.operator)
        except OperatorRefused as error:
            self._tell("wrong", str(error), code=FailureCode.OPERATOR, expected=self._expected())
            return
        asked = self._asked.popleft()
        asked.is_to_be_printed = True
        self._info(f"the label of {asked.device_id} is printed again", device_id=asked.device_id)

    def _badge(self, text: str) -> str | None:
        if text.startswith(BADGE_PREFIX):
            return text.removeprefix(BADGE_PREFIX)
        return text if text in self.crew.roles else None

    def _take_over(self, badge: str) -> None:
        try:
            self.crew.admit(Act.RUN, identifier(badge))
        except (OperatorRefused, ValueError) as error:
            self._tell(
                "wrong", f"{_shown(badge)}: {error}", code=FailureCode.OPERATOR, expected="a badge of this station"
            )
            return
        self.ledger.duty = replace(self.ledger.duty, operator=badge)
        self._info(f"{badge} works at this station now")

    def _is_label(self, text: str) -> bool:
        return self.shape is not None and self.shape.fullmatch(text) is not None

    def _unit(self, text: str) -> Unit | None:
        """Find a unit by whatever names it: device id, serial, MAC, secure element, or the label that is on it."""
        found = self.shape.fullmatch(text) if self.shape is not None else None
        return self._index.get(text) or (self._index.get(found[1]) if found and found.re.groups else None)

    def _go(self, unit: Unit) -> None:
        name, row = unit.device_id, self.ledger.unit(unit.device_id)
        if name in self._running or unit in self._queue:
            self._wrong(name, "is under way already")
        elif row.ended:
            self._open.discard(name)  # scrapped while the loop is open
            self._wrong(name, "has passed already" if row.passed else "was scrapped: take it off the line")
        elif self._is_over:
            self._wrong(name, "came after quit: it is left for the next time")
        else:
            self._queue.append(unit)
            waits = len(self._running) + len(self._queue) > self.slots
            self._info(f"{name} waits for a free slot" if waits else f"{name} goes", device_id=name)

    # --- what is shown ----------------------------------------------------------------------------------------------

    def _wrong(self, text: str, what: str) -> None:
        self._tell("wrong", f"{_shown(text)} {what}", code=FailureCode.SCAN, expected=self._expected())

    def _info(self, text: str, *, device_id: str = "") -> None:
        self._tell("info", text, device_id=device_id)

    def _tell(
        self,
        what: Literal["next", "info", "wrong", "pass", "fail"],
        text: str = "",
        *,
        device_id: str = "",
        code: str = "",
        expected: str = "",
    ) -> None:
        shift = {**self._counts, "under_way": len(self._running) + len(self._queue), "to_go": len(self._open)}
        operator = self.ledger.duty.operator
        self.show(Notice(what, text, device_id, code, expected, operator, shift))

    def _expected(self) -> str:
        if not self.ledger.duty.operator:
            return "a badge"
        if self._asked:
            return f"the label of {self._asked[0].device_id} in slot {self._asked[0].slot}"
        return "nothing more" if self._is_over else "a unit"

    def _show_next(self) -> None:
        """Say what the operator does now."""
        if self._asked or not self._is_over:
            self._tell("next", f"scan {self._expected()}", expected=self._expected())
        elif self._running or self._queue:
            self._tell("next", "wait: what is under way ends")
        else:
            done = "nothing is left to go" if not self._open else "run it again to go on"
            self._tell("next", f"batch {self.batch.id} is closed here: {done}")


def _shown(text: str) -> str:
    return text[:SHOWN_MAX] if text.isprintable() and text else repr(text[:SHOWN_MAX])
