"""The yield as a page and as a signed file: whole, escaped, and no change to it goes unseen."""

from __future__ import annotations

import base64
import json
import re
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from devicesim.errors import VerificationFailed
from devicesim.line.report.markup import Markup, tag
from devicesim.line.report.page import yield_page
from devicesim.line.report.sealed import sealed_json, sealed_page, verify_report
from devicesim.line.statements import sealing
from devicesim.line.states import FailureCode, State
from devicesim.transport import ClientIdentity
from tests.line_support import PaperLine
from tests.yield_support import PLACE, HandLedger

EVIL = "<script>alert(1)</script>\"'&<!-- -->"


class Wellformed(HTMLParser):
    """Every element is closed, in order, and nothing of the page is anywhere else."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []
        self.feed(page.decode())
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.seen.append(name)
        assert not {key for key, _ in attributes if key.startswith("on") or key in {"src", "href", "style"}}, name
        if name not in {"meta", "br"}:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def hand(tmp_path, now) -> HandLedger:
    hand = HandLedger(tmp_path, now)
    hand.plan("b1", 3)
    hand.passes("sn-0001")
    hand.fails("sn-0002", FailureCode.EST_DENY, State.ENROLLED)
    return hand


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path / "paper", now)


@pytest.fixture
def seal(paper):
    return sealing(ClientIdentity((paper.station.certificate,), paper.station.key), PLACE)


def test_the_page_is_well_formed_and_loads_and_runs_nothing(hand):
    page = yield_page(hand.count("b1"))
    found = Wellformed(page)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(found.seen)
    assert not re.search(rb"https?://|url\(|@import", page)
    assert "Content-Security-Policy" in page.decode()
    words = " ".join(found.text)
    for shown in ("First-pass yield", "50.0%", "E-EST-DENY", "sn-0002", FailureCode.EST_DENY.advice, "op-1"):
        assert shown in words


@pytest.mark.parametrize("batches", [("b1",), ("b2",), ()])
def test_a_page_of_little_or_nothing_is_a_page(hand, batches):
    hand.plan("b2", 1, first=9)
    Wellformed(yield_page(hand.count(*batches)))
    Wellformed(yield_page(hand.count(since=hand.at.replace(year=2030))))


def test_whatever_a_ledger_holds_comes_out_as_text(hand):
    report = hand.count("b1")
    evil = replace(
        report,
        place=dict.fromkeys(report.place, EVIL),
        units=tuple(replace(unit, device_id=EVIL, serial=EVIL, reason=EVIL, next=EVIL) for unit in report.units),
        failures=tuple(replace(fault, code=EVIL, step=EVIL, advice=EVIL) for fault in report.failures),
        by={name: {EVIL: report.total} for name in report.by},
    )
    page = yield_page(evil)
    found = Wellformed(page)
    assert "script" not in found.seen
    assert b"<script" not in page
    assert EVIL in "".join(found.text)


def test_only_markup_is_markup():
    assert tag("p", "<b>", Markup("<b></b>"), class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;<b></b></p>'


def test_a_sealed_report_is_verified_with_the_anchor_alone(hand, paper, seal):
    report = hand.count("b1")
    for form, data in (("json", sealed_json(report, seal)), ("html", sealed_page(report, seal))):
        found = verify_report(data, paper.pki.trust)
        assert (found.form, found.title, found.station) == (form, "batches b1", PLACE)
        assert found.fields["ledger"]["head"] == report.head.head
    assert verify_report(sealed_json(report, seal), paper.pki.trust).fields == json.loads(json.dumps(report.to_dict()))
    Wellformed(sealed_page(report, seal))


def test_the_checkpoint_goes_with_the_report(hand, paper, seal):
    hand.ledger.seal = seal
    hand.ledger.checkpoint()
    report = hand.count("b1")
    assert report.signed_up_to == report.head.seq
    assert report.checkpoint == json.loads(hand.ledger.checkpoints()[-1].envelope)


@pytest.mark.filterwarnings("ignore:Parsed a")  # a certificate in the envelope that is none any more
def test_any_changed_byte_of_a_page_is_found(hand, paper, seal):
    page = sealed_page(hand.count("b1"), seal)
    begin = page.rindex(b"<!-- estline seal ")
    for place in [*range(0, begin, 97), begin - 1, begin, len(page) - 1]:
        with pytest.raises(VerificationFailed):
            verify_report(flipped(page, place), paper.pki.trust)
    true = verify_report(page, paper.pki.trust)
    for place in range(begin, len(page), 13):  # in the envelope a bit may carry nothing, but none says something else
        with suppress(VerificationFailed):
            assert verify_report(flipped(page, place), paper.pki.trust) == true


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda page: page + b"<p>100%</p>",
        lambda page: page + page,
        lambda page: page[: page.rindex(b"<!--")],
        lambda page: page.replace(b"50.0%", b"99.9%"),
        lambda page: b" " + page,
        lambda page: b"",
        lambda page: b"<!-- estline seal  -->\n",
        lambda page: page[: page.rindex(b"<!--")] + b"<!-- estline seal ???? -->\n",
    ],
)
def test_a_page_that_was_added_to_or_stripped_is_refused(hand, paper, seal, change):
    with pytest.raises(VerificationFailed):
        verify_report(change(sealed_page(hand.count("b1"), seal)), paper.pki.trust)


def test_a_changed_or_foreign_json_is_refused(hand, paper, seal, tmp_path, now):
    report = hand.count("b1")
    envelope = json.loads(sealed_json(report, seal))
    payload = base64.b64decode(envelope["payload"])
    forged = {**envelope, "payload": base64.b64encode(payload.replace(b'"passed":1', b'"passed":9')).decode()}
    foreign = PaperLine(tmp_path / "foreign", now).station
    other = sealing(ClientIdentity((foreign.certificate,), foreign.key), PLACE)
    page = sealed_page(report, seal)
    seal_of_page = base64.b64decode(page[page.rindex(b"seal ") + 5 : page.rindex(b" -->")])
    bad = (json.dumps(forged).encode(), sealed_json(report, other), sealed_page(report, other), b"{}", seal_of_page)
    for data in bad:
        with pytest.raises(VerificationFailed):
            verify_report(data, paper.pki.trust)
    with pytest.raises(VerificationFailed, match="no yield report"):
        verify_report(seal("application/vnd.estline.line-yield.v1+json", {"report": {}}, now), paper.pki.trust)


def test_the_style_holds_nothing_that_would_end_it():
    from devicesim.line import report

    style = (Path(report.__file__).parent / "page.css").read_text("utf-8")
    assert "<" not in style
