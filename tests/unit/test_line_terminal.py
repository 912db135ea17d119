"""What a person at the line sees, and what goes on behind it."""

from __future__ import annotations

import threading

import pytest

from devicesim.errors import StorageError
from devicesim.line.announcing import Announcing
from devicesim.line.report.times import percentile
from devicesim.line.terminal import BarProgress, PlainProgress, table
from devicesim.mqtt.announcer import DrainResult
from tests.line_support import PaperLine


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


def test_plain_progress_is_one_line_a_unit(paper):
    said: list[str] = []
    paper.est.faults.extend(["", "refused"])
    with paper.session() as (line, _), PlainProgress(said.append) as progress:
        line.run(paper.batch(2), slots=1, progress=progress)
        line.run(paper.batch(2), slots=1, progress=progress)
        line.run(paper.batch(2), slots=1, progress=progress)
    assert said[:2] == ["2 units, 2 to do", "[1/2] sn-0001 PASS"]
    assert said[2].startswith("[2/2] sn-0002 FAIL E-EST-DENY the server refused: not on the list")
    assert said[-1] == "2 units, nothing to do"


def test_the_bar_leaves_failures_on_the_screen(paper, capsys):
    paper.est.faults.append("refused")
    with paper.session() as (line, _), BarProgress() as progress:
        line.run(paper.batch(2), slots=2, progress=progress)
    assert "E-EST-DENY" in capsys.readouterr().err


def test_a_table_is_as_wide_as_what_stands_in_it():
    assert table(("a", "long"), [("xyz", "1")]) == "a    long\nxyz  1"


@pytest.mark.parametrize(("fraction", "value"), [(0.5, 2), (0.95, 4), (0.25, 1), (1.0, 4)])
def test_percentiles_are_values_that_were_measured(fraction, value):
    assert percentile([4, 1, 3, 2], fraction) == value


def test_what_is_owed_is_drained_while_the_line_works_and_once_more_at_the_end(paper):
    drained, seen = [], threading.Event()

    def drain(seconds: float) -> DrainResult:
        drained.append(seconds)
        seen.set()
        return DrainResult(0, 1, "the broker is away")

    with paper.session() as (line, ledger):
        with Announcing(ledger, drain, last_seconds=7.0) as running:
            line.run(paper.batch(1), slots=1, progress=PlainProgress(lambda _text: None))
            assert seen.wait(10)
        assert running.reason == "the broker is away"
        assert ledger.owed() == 1
    assert drained[-1] == 7.0
    assert len(drained) >= 2


def test_a_ledger_that_fails_behind_the_line_is_told(paper):
    failed = threading.Event()

    def drain(_seconds: float) -> DrainResult:
        failed.set()
        raise StorageError("the disk is full")

    def run() -> None:
        with paper.session() as (line, ledger), Announcing(ledger, drain, last_seconds=1.0):
            line.run(paper.batch(1), slots=1, progress=PlainProgress(lambda _text: None))
            assert failed.wait(10)

    with pytest.raises(StorageError):
        run()
