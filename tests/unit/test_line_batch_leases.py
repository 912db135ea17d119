"""Leases: two lines that never hear of each other never make the same unit, and one that should not run does not."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from devicesim.cli import run
from devicesim.errors import Conflict, UsageProblem
from devicesim.line.batch import Batch, Span, load_batch
from devicesim.line.findings import InputInvalid
from devicesim.line.leases import allotted, load_lease, split
from devicesim.line.ledger import Ledger
from devicesim.line.standing import make_report
from tests.line_support import PaperLine


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


def ids(batch: Batch) -> list[str]:
    return [unit.device_id for unit in batch.units]


def test_a_split_leaves_no_unit_to_two_stations(paper, tmp_path):
    batch, book = paper.batch(10), tmp_path / "leases"
    files = split(batch, [("s-07", 4), ("s-08", 3)], book)
    files += split(batch, [("s-07", 2)], book)
    leases = [load_lease(path) for path in files]
    assert [(lease.station, str(lease.span)) for lease in leases] == [
        ("s-07", "1 to 4"),
        ("s-08", "5 to 7"),
        ("s-07", "8 to 9"),
    ]
    made = [unit for lease in leases for unit in ids(lease.part_of(batch, lease.station))]
    assert made == ids(batch)[:9]
    before = sorted(book.iterdir())
    with pytest.raises(Conflict, match="1 units left, not 2"):
        split(batch, [("s-08", 2)], book)
    with pytest.raises(Conflict, match="another content"):
        split(replace(batch, units=batch.units[:9]), [("s-08", 1)], book)
    assert sorted(book.iterdir()) == before


def test_two_offline_lines_make_the_whole_batch_and_nothing_twice(tmp_path, now):
    lines = [PaperLine(tmp_path / name, now) for name in ("a", "b")]
    batch = lines[0].batch(6)
    first, second = split(batch, [("s-07", 4), ("s-08", 2)], tmp_path / "leases")
    for line, lease, station in zip(lines, (first, second), ("s-07", "s-08"), strict=True):
        watching, stopped = line.run(load_lease(lease).part_of(batch, station))
        assert stopped is None
        assert {outcome for _, outcome in watching.ends} == {"pass"}
    made = [sorted(line.est.holders) for line in lines]
    assert sorted(made[0] + made[1]) == sorted(ids(batch))


def test_a_further_lease_adds_to_the_batch_and_run_again_is_resume(paper, tmp_path):
    batch = paper.batch(5)
    first, second = (
        load_lease(path).part_of(batch, "s-07") for path in split(batch, [("s-07", 2), ("s-07", 3)], tmp_path / "l")
    )
    for part in (second, first, first):
        paper.run(part)
    with paper.session() as (_, ledger):
        assert [row.device_id for row in ledger.units(batch.id)] == ids(batch)
        assert ledger.batches() == [(batch.id, 5)]
        assert make_report(ledger, batch.id, now=paper.at).result.passed == 5
        ledger.verify_chain()
    with closing(sqlite3.connect(paper.settings.ledger.path)) as conn:
        told = [
            json.loads(body)
            for (body,) in conn.execute("SELECT body FROM event WHERE kind = 'batch-opened' ORDER BY seq")
        ]
    assert [(body["first"], body["last"]) for body in told] == [(3, 5), (1, 2)]
    assert len(paper.est.issued) == 5


def test_a_lease_of_another_station_or_batch_or_content_is_refused(paper, tmp_path):
    batch = paper.batch(4)
    (path,) = split(batch, [("s-08", 4)], tmp_path / "leases")
    lease = load_lease(path)
    with pytest.raises(Conflict, match="that of station s-08"):
        lease.part_of(batch, "s-07")
    with pytest.raises(Conflict, match="one of batch b1"):
        lease.part_of(replace(batch, id="b2"), "s-08")
    with pytest.raises(Conflict, match="another content"):
        lease.part_of(replace(batch, units=batch.units[:2]), "s-08")


@pytest.mark.parametrize(
    "change", [{"last": 4}, {"station": "s-07"}, {"first": 3}, {"colour": 1}, {"lease": 2}, {"last": "2"}]
)
def test_an_altered_lease_is_noticed(paper, tmp_path, change):
    (path,) = split(paper.batch(4), [("s-08", 2)], tmp_path / "leases")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputInvalid):
        load_lease(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 10_000, "{}" + " " * 20_000])
def test_what_is_no_lease(tmp_path, text):
    path = tmp_path / "x.lease.json"
    path.write_text(text)
    with pytest.raises(InputInvalid):
        load_lease(path)


def test_parts_that_overlap_never_come_in(paper):
    batch = paper.batch(6)
    paper.run(batch.part(Span(1, 3)))
    for first, last in ((3, 4), (1, 6), (2, 2), (1, 2)):
        with pytest.raises(Conflict, match="overlaps"):
            paper.run(batch.part(Span(first, last)))
    with pytest.raises(Conflict, match="not the whole of it"):
        paper.run(batch)
    paper.run(batch.part(Span(4, 6)))
    assert len(paper.est.issued) == 6


def test_a_batch_that_is_there_as_a_whole_has_no_parts(paper):
    batch = paper.batch(3)
    paper.run(batch)
    with pytest.raises(Conflict, match="as a whole"):
        paper.run(batch.part(Span(1, 2)))


def test_a_leased_batch_is_never_run_as_a_whole(paper):
    batch = paper.batch(2)
    assert allotted(batch, None, "s-07") is batch
    with pytest.raises(UsageProblem, match="leased = true"):
        allotted(replace(batch, leased=True), None, "s-07")
    assert replace(batch, leased=True).sha256() == batch.sha256()


def test_a_rehearsed_intake_leaves_nothing(paper, now):
    path, batch = paper.settings.ledger.path, paper.batch(3)
    with Ledger(path, clock=lambda: now) as ledger:
        before = path.read_bytes()
        assert ledger.rehearse_batch(batch) is True
        assert path.read_bytes() == before
        assert ledger.batches() == []
        ledger.open_batch(batch)
        assert ledger.rehearse_batch(batch) is False
        with pytest.raises(Conflict, match="serial S0001"):
            ledger.rehearse_batch(replace(batch, id="b2"))


def numbered(directory: Path) -> Path:
    path = directory / "batch.toml"
    path.write_text('id = "w1"\nquantity = 9\nleased = true\n[serial]\ntemplate = "S{n:03}"\n[product.sensor]\n')
    return path


def test_the_commands(tmp_path, capsys):
    batch, book = numbered(tmp_path), tmp_path / "leases"
    assert run(["line", "lease", "split", str(batch), "--stations", "s-07:4,s-08:5", "--out", str(book), "--json"]) == 0
    files = [found["file"] for found in json.loads(capsys.readouterr().out)["leases"]]
    assert run(["line", "lease", "show", files[1]]) == 0
    assert "S005 to S009" in capsys.readouterr().out
    assert load_lease(Path(files[0])).part_of(load_batch(batch), "s-07").units[3].serial == "S004"
    assert run(["line", "lease", "split", str(batch), "--stations", "s-07:1", "--out", str(book)]) == 5
    for shares in ("s-07", "s-07:0", "S:1", "s-07:x", "s-07:1,", "s-07:99999999999"):
        assert run(["line", "lease", "split", str(batch), "--stations", shares, "--out", str(book)]) == 2
    assert sorted(map(str, book.iterdir())) == files


def test_a_book_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "leases").write_text("a file")
    args = [
        "line",
        "lease",
        "split",
        str(numbered(tmp_path)),
        "--stations",
        "s-07:4",
        "--out",
        str(tmp_path / "leases" / "x"),
    ]
    assert run(args) == 12
    assert capsys.readouterr().err.startswith("error: cannot use ")
