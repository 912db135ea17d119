"""The loop scan → go: badges, units, labels, wrong scans, quit; slots run on while it hears."""

from __future__ import annotations

import os
import pty
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from devicesim.errors import ConfigInvalid, StorageError
from devicesim.labels.label import Label
from devicesim.labels.template import load_template
from devicesim.line.crew import Crew, Role
from devicesim.line.labelling import Labels
from devicesim.line.ledger import Ledger, Why
from devicesim.line.reasons import Reason
from devicesim.line.runner import Line
from devicesim.line.scanner import TEXT_MAX_BYTES, Hearing, open_scanner, scans
from devicesim.line.screen import Screen
from devicesim.line.shift import Notice, Shift
from devicesim.line.states import State
from tests.line_support import PaperLine

CREW = Crew(
    {
        "op-1": frozenset({Role.OPERATE}),
        "op-2": frozenset({Role.OPERATE, Role.REWORK}),
        "op-9": frozenset({Role.APPROVE}),
    }
)


@dataclass
class Loop:
    """A loop that runs, and what it has shown."""

    shift: Shift
    line: Line
    ledger: Ledger
    sticks: dict[str, str]
    notices: list[Notice] = field(default_factory=list)

    def hear(self, *texts: str) -> None:
        for text in texts:
            self.shift.hear(text)

    def until(self, what: str, text: str = "", *, count: int = 1) -> Notice:
        """Wait for a notice; a test that waits in vain fails with what was shown instead."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = [n for n in list(self.notices) if n.what == what and text in f"{n.text} {n.device_id} {n.code}"]
            if len(found) >= count:
                return found[count - 1]
            time.sleep(0.01)
        raise AssertionError(self.notices)

    @property
    def last(self) -> Notice:
        return self.notices[-1]

    def wrong(self) -> Notice:
        return [notice for notice in self.notices if notice.what == "wrong"][-1]


@contextmanager
def loop(
    paper: PaperLine, count: int = 3, *, slots: int = 2, crew: Crew = CREW, scan_back: bool = False
) -> Iterator[Loop]:
    batch, sticks = paper.batch(count), dict[str, str]()
    template = load_template(None)

    class Printer:
        def print(self, name: str, label: Label) -> None:
            sticks[name] = label.text

    labels = Labels(paper.settings.site, template, Printer(), 203) if scan_back else None
    with paper.session(labels=labels) as (line, ledger):
        ledger.open_batch(batch)
        notices: list[Notice] = []
        shape = template.qr.phrase.shape() if scan_back else None
        shift = Shift(ledger, batch, crew, shape, slots, notices.append, line.stop)
        ready = replace(line, labels=labels and replace(labels, scan=shift.scan_label))
        running = Loop(shift, ready, ledger, sticks, notices)
        shift.begin(births=False)
        thread = threading.Thread(target=ready.work, args=(shift,), kwargs={"slots": slots, "progress": shift})
        thread.start()
        try:
            yield running
        finally:
            shift.hear("quit")
            shift.hear("quit")
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


def test_badge_unit_pass_and_the_next_one(paper):
    with loop(paper) as running:
        assert running.last.text == "scan a badge"
        running.hear("sn-0001")
        assert (running.wrong().code, running.wrong().expected) == ("E-SCAN", "a badge")
        running.hear("B:op-1")
        assert (running.last.text, running.last.operator) == ("scan a unit", "op-1")
        running.hear("sn-0001")
        assert running.until("pass", "sn-0001").shift == {"passed": 1, "failed": 0, "under_way": 0, "to_go": 2}
        running.until("next", "scan a unit", count=3)
        running.hear("S0002", "S0003")  # by serial
        running.until("pass", "sn-0003")
        running.until("next", "batch b1 is closed here: nothing is left to go")
    with paper.session() as (_, ledger):
        assert all(row.passed for row in ledger.units("b1"))
        assert {attempt.operator for attempt in ledger.attempts("b1")} == {"op-1"}


@pytest.mark.parametrize(
    ("text", "said", "expected"),
    [
        ("xx-1", "xx-1 is no unit of batch b1", "a unit"),
        ("\x1b[2Jevil", "'\\x1b[2Jevil' is no unit of batch b1", "a unit"),
        ("x" * 500, "x" * 80 + " is no unit of batch b1", "a unit"),
    ],
)
def test_a_scan_that_is_nothing_says_what_was_expected(paper, text, said, expected):
    with loop(paper) as running:
        running.hear("op-1", text)
        assert (running.wrong().code, running.wrong().text, running.wrong().expected) == ("E-SCAN", said, expected)
        assert running.last.what == "next"


def test_a_unit_that_has_nothing_left_to_do_is_said(paper):
    paper.est.faults.append("refused")
    with loop(paper) as running:
        running.hear("op-1", "sn-0001")
        failed = running.until("fail", "sn-0001")
        assert (failed.code, "not on the list" in failed.text) == ("E-EST-DENY", True)
        running.hear("sn-0001")  # again
        running.until("pass", "sn-0001")
        running.hear("sn-0001")
        assert running.wrong().text == "sn-0001 has passed already"
        running.ledger.scrap("sn-0002", Why(Reason.DAMAGED), old="lapse", announce=None)
        running.hear("sn-0002")
        assert running.wrong().text == "sn-0002 was scrapped: take it off the line"
        assert running.last.shift == {"passed": 1, "failed": 1, "under_way": 0, "to_go": 1}


def test_a_badge_takes_over_and_a_stranger_does_not(paper):
    with loop(paper) as running:
        running.hear("B:nobody")
        assert running.wrong().code == "E-OPERATOR"
        running.hear("op-9")
        assert "has not the role operate" in running.wrong().text
        running.hear("B:Not An Id")
        assert running.last.text == "scan a badge"
        running.hear("op-1", "sn-0001")
        running.until("pass", "sn-0001")
        running.hear("B:op-2", "sn-0002")
        running.until("pass", "sn-0002")
        running.hear("B:nobody")
        assert running.ledger.duty.operator == "op-2"
    with paper.session() as (_, ledger):
        assert [attempt.operator for attempt in ledger.attempts("b1")] == ["op-1", "op-2"]


def test_where_nobody_is_listed_any_badge_names_who_works(paper):
    with loop(paper, crew=Crew()) as running:
        running.hear("B:somebody", "sn-0001")
        running.until("pass", "sn-0001")
        assert running.last.operator == "somebody"


def test_slots_run_on_while_units_are_scanned(paper):
    """The first unit hangs at the server; the second passes, the third waits for a slot that is free."""
    held, reached = threading.Event(), threading.Event()
    take = paper.est.take

    def slow(label: str, by: object, csr: object) -> object:
        if not reached.is_set():
            reached.set()
            assert held.wait(20)
        return take(label, by, csr)

    paper.est.take = slow
    with loop(paper, 4, slots=2) as running:
        running.hear("op-1", "sn-0001")
        assert reached.wait(20)
        running.hear("sn-0001")
        assert running.wrong().text == "sn-0001 is under way already"
        running.hear("sn-0002")
        running.until("pass", "sn-0002")
        running.hear("sn-0003")
        running.until("pass", "sn-0003")
        assert running.last.shift["under_way"] == 1
        held.set()
        running.until("pass", "sn-0001")


def test_more_units_than_slots_wait_their_turn(paper):
    with loop(paper, 3, slots=1, scan_back=True) as running:
        running.hear("op-1", "sn-0001", "sn-0002")
        running.until("info", "sn-0002 waits for a free slot")
        running.until("next", "scan the label of sn-0001 in slot 1")
        running.hear(running.sticks["sn-0001"])
        running.until("pass", "sn-0001")
        running.until("next", "scan the label of sn-0002 in slot 1")
        running.hear(running.sticks["sn-0002"])
        running.until("pass", "sn-0002")


def test_labels_that_were_swapped_do_not_pass_for_each_other(paper):
    with loop(paper, scan_back=True) as running:
        running.hear("op-1", "sn-0001")
        running.until("next", "scan the label of sn-0001")
        running.hear("sn-0002")  # the next unit is scanned while a label is asked for
        deadline = time.monotonic() + 20
        while "sn-0002" not in running.sticks and time.monotonic() < deadline:
            time.sleep(0.01)
        first, second = running.sticks["sn-0001"], running.sticks["sn-0002"]
        running.hear(second)
        failed = running.until("fail", "sn-0001")
        assert failed.code == "E-LABEL"
        assert f"the label says {second!r}, the device says {first!r}" in failed.text
        running.until("next", "scan the label of sn-0002")
        running.hear(first)
        assert running.until("fail", "sn-0002").code == "E-LABEL"
        for name in ("sn-0001", "sn-0002"):
            running.hear(name)
            wait_for(lambda: running.last.text.startswith(f"scan the label of {name}"))  # noqa: B023 - waited for here
            running.hear(running.sticks[name])
            running.until("pass", name)
        running.hear(first)
        assert running.wrong().text == "sn-0001 has passed already"


def test_a_label_that_cannot_be_read_is_a_scan_problem(paper):
    with loop(paper, scan_back=True) as running:
        running.hear("op-1", "sn-0001")
        running.until("next", "scan the label of sn-0001")
        running.hear("sn-00", "garbage")
        assert running.wrong().expected == "the label of sn-0001 in slot 1"
        running.hear("sn-0001")  # the unit's own code is no label
        assert running.wrong().text == "sn-0001 is under way already"
        running.hear("sn-0001 zz")
        failed = running.until("fail", "sn-0001")
        assert failed.code == "E-SCAN"
        assert "in 3 scans" in failed.text


def test_a_damaged_label_is_printed_again_for_who_may(paper):
    with loop(paper, scan_back=True) as running:
        running.hear("op-1", "reprint")
        assert running.wrong().code == "E-SCAN"
        running.hear("sn-0001")
        running.until("next", "scan the label of sn-0001")
        label = running.sticks.pop("sn-0001")
        running.hear("reprint")
        assert (running.wrong().code, running.sticks) == ("E-OPERATOR", {})
        running.hear("op-2", "REPRINT")
        running.until("info", "the label of sn-0001 is printed again")
        wait_for(lambda: running.last.expected == "the label of sn-0001 in slot 1" and "sn-0001" in running.sticks)
        running.hear(running.sticks["sn-0001"])
        running.until("pass", "sn-0001")
        (event,) = [event for event in running.ledger.story("sn-0001") if event.kind == "reprinted"]
        assert (event.by.operator, event.facts["reason"], event.facts["label"]) == ("op-2", "label-damaged", label)


def test_quit_lets_what_is_under_way_end(paper):
    with loop(paper, scan_back=True) as running:
        running.hear("op-1", "sn-0001")
        running.until("next", "scan the label of sn-0001")
        running.hear("quit", "sn-0002")
        assert running.wrong().text == "sn-0002 came after quit: it is left for the next time"
        running.hear(running.sticks["sn-0001"])
        running.until("pass", "sn-0001")
        assert running.until("next", "closed here").text == "batch b1 is closed here: run it again to go on"


def test_a_second_quit_leaves_the_label_for_the_next_time(paper):
    with loop(paper, 1, scan_back=True) as running:
        running.hear("op-1", "sn-0001")
        running.until("next", "scan the label of sn-0001")
        label = running.sticks["sn-0001"]
    with paper.session() as (_, ledger):
        row = ledger.unit("sn-0001")
        assert (row.state, row.failure, row.label) == (State.VERIFIED, None, label)
    with loop(paper, 1, scan_back=True) as running:
        running.hear("op-2", "sn-0001")
        running.until("next", "scan the label of sn-0001")
        assert running.sticks == {}, "it is not printed again"
        running.hear(label)
        running.until("pass", "sn-0001")
    with paper.session() as (_, ledger):
        assert ledger.unit("sn-0001").attempts == 1


def test_a_scanner_that_goes_away_ends_the_loop(paper):
    with loop(paper, scan_back=True) as running:
        running.hear("op-1", "sn-0001")
        running.until("next", "scan the label of sn-0001")
        running.shift.deaf()
        failed = running.until("fail", "sn-0001")
        assert (failed.code, "the scanner went away" in failed.text) == ("E-SCAN", True)


def test_a_server_that_is_away_is_seen_and_the_loop_goes_on(paper):
    paper.est.faults.extend(["down"] * 6)
    with loop(paper, slots=1) as running:
        running.hear("op-1", "sn-0001", "sn-0002", "sn-0003")
        assert running.until("fail", "sn-0002").code == "E-EST-NET"
        running.until("pass", "sn-0003")


def test_a_batch_that_is_done_ends_at_once(paper):
    with loop(paper, 1) as running:
        running.hear("op-1", "sn-0001")
        running.until("pass", "sn-0001")
    with loop(paper, 1) as running:
        assert running.notices[0].text == "batch b1: 1 units, 0 to go, 2 slots"
        assert running.shift.take() is None


# --- what is read, and what is seen ----------------------------------------------------------------------------------


def read_from(*writes: bytes) -> list[str]:
    reader, writer = os.pipe()
    for data in writes:
        os.write(writer, data)
    os.close(writer)
    try:
        return list(scans([reader], lambda: False))
    finally:
        os.close(reader)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n", b"\n\n"])
def test_a_code_ends_however_the_scanner_ends_it(end):
    assert read_from(b"sn-0001" + end + b" B:op-1 " + end + b"qu", b"it") == ["sn-0001", "B:op-1", "quit"]


def test_what_is_read_is_bounded_and_never_breaks():
    (long,) = read_from(b"x" * 60_000 + b"\n")
    assert len(long) == TEXT_MAX_BYTES
    assert read_from(b"\xff\xfe\n") == ["\ufffd\ufffd"]


def test_keyboard_and_scanner_are_heard_until_both_have_gone():
    keyboard, types = os.pipe()
    master, slave = pty.openpty()
    scanner = open_scanner_of(slave)
    heard, deaf = [], threading.Event()
    with Hearing([keyboard, scanner], hear=heard.append, deaf=deaf.set, stop=threading.Event()):
        os.write(master, b"sn-0001\r")
        os.write(types, b"B:op-1\n")
        os.close(types)
        wait_for(lambda: sorted(heard) == ["B:op-1", "sn-0001"])
        assert not deaf.is_set()
        os.write(master, b"quit\r")
        wait_for(lambda: "quit" in heard)
        os.close(slave)
        os.close(master)
        assert deaf.wait(10)
    os.close(keyboard)
    os.close(scanner)


def test_a_fault_behind_the_scanner_stops_the_line_and_is_told():
    reader, writer = os.pipe()
    stop = threading.Event()

    def full(text: str) -> None:
        raise StorageError(f"no room for {text}")

    def listen() -> None:
        with Hearing([reader], hear=full, deaf=stop.clear, stop=stop):
            os.write(writer, b"x\n")
            assert stop.wait(10)

    with pytest.raises(StorageError, match="no room"):
        listen()
    os.close(reader)
    os.close(writer)


def test_a_scanner_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigInvalid, match="cannot open the scanner"):
        open_scanner(tmp_path / "ttyACM9")


def open_scanner_of(slave: int) -> int:
    from pathlib import Path

    return open_scanner(Path(os.ttyname(slave)))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


COUNTS = {"passed": 1, "failed": 0, "under_way": 2, "to_go": 3}


@pytest.mark.parametrize("colour", [False, True])
def test_pass_and_fail_are_seen_from_afar(colour, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    said: list[str] = []
    screen = Screen(said.append, is_terminal=True, colour=colour, bell=True)
    screen.show(Notice("pass", device_id="sn-0001"))
    screen.show(Notice("fail", "why", "sn-0002", "E-LABEL"))
    screen.show(Notice("wrong", "x is no unit", code="E-SCAN", expected="a unit"))
    screen.show(Notice("next", "scan a unit", shift=COUNTS))
    screen.show(Notice("info", "hello"))
    text = "\n".join(said)
    assert ("\x1b[" in text) == colour
    assert [bar.count("\a") for bar in said] == [1, 2, 0, 2, 0, 0]
    import click

    plain = [click.unstyle(line).strip("\a") for line in text.splitlines()]
    assert [len(line) for line in plain[:6]] == [60] * 6
    assert "PASS  sn-0001" in plain[1]
    assert "FAIL  sn-0002  E-LABEL" in plain[4]
    assert plain[7] == "E-SCAN  x is no unit; expected: a unit"
    assert plain[8] == "NEXT  scan a unit  (1 passed, 0 failed, 2 under way, 3 to go)"


def test_without_a_terminal_each_is_one_plain_line():
    said: list[str] = []
    screen = Screen(said.append, is_terminal=False, colour=False)
    screen.show(Notice("pass", device_id="sn-0001"))
    screen.show(Notice("fail", "why", "sn-0002", "E-LABEL"))
    assert [len(line) for line in said] == [80, 80, 9]
    assert said[0].startswith("PASS  sn-0001  ==")
    assert said[1].startswith("FAIL  sn-0002  E-LABEL  !!")
