"""Labels on the line: printed once, scanned back against the device, printed again with a reason; killed anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from devicesim.errors import Conflict
from devicesim.labels.errors import LabelFailed, ScanFailed
from devicesim.labels.label import Label
from devicesim.labels.template import load_template, parse_template
from devicesim.line.audit import audit
from devicesim.line.crew import Act, Crew, OperatorRefused, Role
from devicesim.line.labelling import Labels
from devicesim.line.ledger import UnitRow, Why
from devicesim.line.reasons import Reason
from devicesim.line.runner import STOP_AFTER
from devicesim.line.states import FailureCode, State
from devicesim.line.steps import Stopped
from devicesim.line.trace import make_trace
from tests.line_support import PaperLine, Watching
from tests.unit.test_line_crash import Killed, dying

WRITES = ("open_batch", "begin_attempt", "advance", "printed", "record")
TO_PASS = 1 + 1 + 5 + 1 + 1 + 1
"""A batch, an attempt, five states, the print, the label, PASS."""
DAMAGED = Why(Reason.LABEL_DAMAGED)


@dataclass
class Bench:
    """A label printer and an operator with a scanner: what is printed sticks on the unit and is scanned."""

    sticks: dict[str, str] = field(default_factory=dict)
    printed: list[tuple[str, str]] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)
    before_scan: Callable[[str], None] = lambda device: None
    is_out_of_paper: bool = False

    def print(self, name: str, label: Label) -> None:
        if self.is_out_of_paper:
            raise LabelFailed("no paper")
        self.printed.append((name, label.zpl()))
        self.sticks[name] = label.text

    def scan(self, slot: int, device_id: str) -> str:
        self.scans.append(device_id)
        self.before_scan(device_id)
        return self.sticks[device_id]


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def labels(paper: PaperLine, bench: Bench, *, scan_back: bool = True) -> Labels:
    return Labels(paper.settings.site, load_template(None), bench, 203, bench.scan if scan_back else None)


def run(paper: PaperLine, made: Labels, count: int = 1, *, slots: int = 1) -> Watching:
    watching = Watching()
    with paper.session(labels=made) as (line, _):
        line.run(paper.batch(count), slots=slots, progress=watching)
    return watching


def unit(paper: PaperLine, device_id: str = "sn-0001") -> UnitRow:
    with paper.session() as (_, ledger):
        return ledger.unit(device_id)


def kinds(paper: PaperLine, device_id: str = "sn-0001") -> list[str]:
    with paper.session() as (_, ledger):
        return [event.kind for event in ledger.story(device_id)]


@pytest.mark.parametrize("scan_back", [True, False])
def test_every_unit_passes_with_a_label_that_says_what_the_device_says(paper, bench, scan_back):
    watching = run(paper, labels(paper, bench, scan_back=scan_back), 3, slots=2)
    assert sorted(watching.ends) == [(f"sn-000{n}", "pass") for n in (1, 2, 3)]
    assert sorted(bench.scans) == (["sn-0001", "sn-0002", "sn-0003"] if scan_back else [])
    for name, text in bench.sticks.items():
        row = unit(paper, name)
        assert (row.state, row.label) == (State.RECORDED, text)
        assert row.cert_serial is not None
        assert text == f"{name} {row.cert_serial.partition(':')[2]}"
    told = kinds(paper)
    assert told[told.index("verified") :] == ["verified", "printed", "labelled", "recorded"]


def test_a_wrong_label_blocks_pass_and_both_are_named(paper, bench):
    run(paper, labels(paper, bench, scan_back=False), 2)
    other = bench.sticks["sn-0002"]
    batch = paper.batch(1, batch_id="b2", first=3)
    bench.before_scan = lambda device: bench.sticks.__setitem__(device, other)
    with paper.session(labels=labels(paper, bench)) as (line, _):
        line.run(batch, slots=1, progress=Watching())
    row = unit(paper, "sn-0003")
    assert row.state is State.VERIFIED
    assert row.failure is not None
    assert row.failure.code is FailureCode.LABEL
    assert repr(other) in row.failure.text
    assert repr(row.label) in row.failure.text
    assert row.failure.code.exit_code == 10

    bench.before_scan = lambda device: bench.sticks.__setitem__(device, str(row.label))
    with paper.session(labels=labels(paper, bench)) as (line, _):
        line.run(batch, slots=1, progress=Watching())
    assert unit(paper, "sn-0003").passed
    assert Counter(name for name, _ in bench.printed)["sn-0003"] == 1, "the right label was there all the time"


def test_the_label_is_held_against_the_device_and_not_against_the_order(paper, bench):
    """Two boards change places between print and scan: the order and the ledger still agree, the device does not."""
    run(paper, labels(paper, bench, scan_back=False), 1)
    devices = paper.settings.key.devices

    def swap(device: str) -> None:
        (devices / device).rename(devices / "away")
        (devices / "sn-0001").rename(devices / device)

    bench.before_scan = swap
    with paper.session(labels=labels(paper, bench)) as (line, _):
        line.run(paper.batch(1, batch_id="b2", first=2), slots=1, progress=Watching())
    row = unit(paper, "sn-0002")
    assert row.failure is not None
    assert row.failure.code is FailureCode.LABEL
    assert f"the label says {row.label!r}, the device says 'sn-0001 " in row.failure.text
    assert not row.passed


def test_what_goes_wrong_has_its_code_and_stops_no_other_unit(paper, bench):
    bench.is_out_of_paper = True
    watching = run(paper, labels(paper, bench), STOP_AFTER + 1)
    assert [code for _, code in watching.ends] == ["E-LABEL"] * (STOP_AFTER + 1)
    assert unit(paper).label is None
    bench.is_out_of_paper = False

    def unreadable(device: str) -> None:
        raise ScanFailed("no label could be read")

    bench.before_scan = unreadable
    assert run(paper, labels(paper, bench), STOP_AFTER + 1).ends[0] == ("sn-0001", "E-SCAN")
    bench.before_scan = lambda device: None
    assert {code for _, code in run(paper, labels(paper, bench), STOP_AFTER + 1).ends} == {"pass"}
    assert len(bench.printed) == STOP_AFTER + 1


def test_a_unit_stopped_at_the_scan_goes_on_at_the_scan(paper, bench):
    def leave(device: str) -> None:
        raise Stopped

    bench.before_scan = leave
    assert run(paper, labels(paper, bench)).ends == []
    assert (unit(paper).state, unit(paper).failure) == (State.VERIFIED, None)
    bench.before_scan = lambda device: None
    assert run(paper, labels(paper, bench)).ends == [("sn-0001", "pass")]
    assert (len(bench.printed), unit(paper).attempts) == (1, 1)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, TO_PASS + 1))
def test_killed_at_any_transition_a_unit_has_one_label(paper, bench, at, after):
    batch, made = paper.batch(1), labels(paper, bench)
    with pytest.raises(Killed), paper.session(dying(at, after=after, writes_at=WRITES), labels=made) as (line, _):
        line.run(batch, slots=1, progress=Watching())
    printed = len(bench.printed)
    row = unit(paper) if at > 1 or after else None
    with paper.session(labels=made) as (line, ledger):
        line.run(batch, slots=1, progress=Watching())
        row_now = ledger.unit("sn-0001")
        assert row_now.passed
        assert [value for kind, value in ledger.guards() if kind == "label"] == [row_now.label]
        audit(ledger, paper.pki.trust)
    assert len(set(bench.printed)) == 1, "printed twice, it is the same label"
    if row is not None and row.label is not None:
        assert len(bench.printed) == printed, "once written down it is not printed again"
    assert kinds(paper).count("printed") == 1


def test_killed_while_the_operator_holds_the_scanner(paper, bench):
    def cut(device: str) -> None:
        raise Killed

    bench.before_scan = cut
    with pytest.raises(Killed):
        run(paper, labels(paper, bench))
    bench.before_scan = lambda device: None
    assert run(paper, labels(paper, bench)).ends == [("sn-0001", "pass")]
    assert (bench.scans, len(bench.printed)) == (["sn-0001"] * 2, 1)


def test_a_reprint_is_a_row_of_the_chain_with_who_and_why(paper, bench):
    run(paper, labels(paper, bench))
    with paper.session() as (_, ledger):
        text = str(ledger.unit("sn-0001").label)
        ledger.duty = replace(ledger.duty, operator="op-113")
        with pytest.raises(Conflict, match="printed already"):
            ledger.printed("sn-0001", text)
        ledger.printed("sn-0001", text, DAMAGED)
        event = ledger.story("sn-0001")[-1]
        assert (event.kind, event.by.operator) == ("reprinted", "op-113")
        assert (event.facts["reason"], event.facts["label"]) == ("label-damaged", text)
        with pytest.raises(Conflict, match="would now say 'another'"):
            ledger.printed("sn-0001", "another", DAMAGED)
        assert "reprinted" in [moment.what for moment in make_trace(ledger, "sn-0001").moments]
        audit(ledger, paper.pki.trust)


def test_before_it_is_scanned_a_label_may_be_printed_by_another_template(paper, bench):
    def leave(device: str) -> None:
        raise Stopped

    bench.before_scan = leave
    run(paper, labels(paper, bench))
    bench.before_scan = lambda device: None
    template = parse_template("new", "size 40 40\nqr 1 1 38 | {device_id}/{spki_sha256}")
    made = replace(labels(paper, bench), template=template)
    assert run(paper, made).ends == [("sn-0001", "E-LABEL")], "what sticks on it is of the old template"
    text = f"sn-0001/{unit(paper).spki_sha256}"
    with paper.session() as (_, ledger):
        was = ledger.unit("sn-0001").label
        ledger.printed("sn-0001", text, DAMAGED)
        assert ledger.story("sn-0001")[-1].facts["was"] == was
    bench.sticks["sn-0001"] = text
    assert run(paper, made).ends == [("sn-0001", "pass")]
    with paper.session() as (_, ledger):
        audit(ledger, paper.pki.trust)
        assert {value for kind, value in ledger.guards() if kind == "label"} == {was, text}


def test_what_a_label_says_belongs_to_one_unit(paper, bench):
    run(paper, labels(paper, bench), 2)
    with paper.session() as (_, ledger):
        ledger.open_batch(paper.batch(1, batch_id="b2", first=7))
        with pytest.raises(Conflict, match="sn-0007 has no label: it is planned"):
            ledger.printed("sn-0007", "x")
    replaced = replace(labels(paper, bench), template=parse_template("t", "size 9 9\nqr 1 1 8 | {device_id}"))
    with paper.session(labels=replaced) as (line, ledger):
        ledger.reissue("sn-0001", Why(Reason.COMPONENT_REPLACED), old="lapse")
        assert ledger.unit("sn-0001").label is None
        line.run(paper.batch(2), slots=1, progress=Watching())
        assert ledger.unit("sn-0001").label == "sn-0001"
        assert ledger.superseded("sn-0001")[0].label is not None
        audit(ledger, paper.pki.trust)


def test_a_ledger_whose_label_was_changed_is_found(paper, bench):
    run(paper, labels(paper, bench))
    with paper.session() as (_, ledger):
        ledger._conn.execute("UPDATE unit SET label = 'sn-0001 00'")
        with pytest.raises(Exception, match="unit sn-0001 is not what its events say"):
            audit(ledger, paper.pki.trust)


def test_a_reprint_is_for_who_may_rework():
    crew = Crew({"op-1": frozenset({Role.OPERATE}), "op-2": frozenset({Role.REWORK})})
    crew.admit(Act.REPRINT, "op-2")
    with pytest.raises(OperatorRefused):
        crew.admit(Act.REPRINT, "op-1")


def test_the_table_of_transitions_is_complete(paper, bench):
    never = dying(TO_PASS + 1, after=False, writes_at=WRITES)
    with paper.session(never, labels=labels(paper, bench)) as (line, _):
        assert line.run(paper.batch(1), slots=1, progress=Watching()) is None
