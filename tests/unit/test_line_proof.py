"""Checkpoints, audits, proofs and known sets: what a station signed, held against what somebody made of it."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicesim.errors import ConfigInvalid, Conflict, UsageProblem, VerificationFailed
from devicesim.line.audit import Audit, audit, read_seen
from devicesim.line.known import load_sets, write_set
from devicesim.line.ledger import Ledger, Why
from devicesim.line.merkle import Frontier, Tree, leaf_hash, node_hash, root_of
from devicesim.line.proof import Prover, check_proof
from devicesim.line.reasons import Reason
from devicesim.line.statements import KNOWN_SET, sealing
from devicesim.transport import ClientIdentity
from tests.line_support import PaperLine, Watching
from tests.mqtt_pki import Party, Pki

# --- the tree ---


def plain_root(leaves: list[bytes]) -> bytes:
    """RFC 9162 §2.1.1, as it is written there."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(plain_root(leaves[:k]), plain_root(leaves[k:]))


@given(st.integers(1, 70), st.data())
def test_the_tree_is_that_of_rfc_9162(size, data):
    leaves = [leaf_hash(bytes([number])) for number in range(size)]
    frontier = Frontier()
    for number, leaf in enumerate(leaves):
        if number % 7 == 3:
            frontier = Frontier(frontier.size, frontier.subtrees())
        frontier.push(leaf)
    root = plain_root(leaves)
    assert frontier.root() == root
    wanted = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    proof = Tree(leaves).prove(wanted)
    assert root_of(size, {index: leaves[index] for index in wanted}, proof) == root
    if len(wanted) == 1:
        assert len(proof) <= size.bit_length()


def test_a_proof_with_too_few_or_too_many_hashes_proves_nothing():
    leaves = [leaf_hash(bytes([number])) for number in range(10)]
    proof = Tree(leaves).prove([3])
    for wrong in (proof[:-1], [*proof, proof[0]]):
        with pytest.raises(ValueError, match="hashes"):
            root_of(10, {3: leaves[3]}, wrong)
    with pytest.raises(ValueError, match="not in the tree"):
        root_of(10, {10: leaves[3]}, proof)
    assert Frontier().root() == sha256().digest()


# --- the audit ---


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


def signing(paper: PaperLine, *, every: int = 10) -> Callable[..., Ledger]:
    """A ledger that signs its checkpoints as the paper line's station."""

    def make(path: Path, **more: Any) -> Ledger:
        ledger = Ledger(path, checkpoint_every=every, **more)
        ledger.seal = seal_of(paper.station, ledger.place())
        return ledger

    return make


def seal_of(party: Party, place: dict[str, str]) -> Any:
    return sealing(ClientIdentity((party.certificate,), party.key), place)


def worked(paper: PaperLine, count: int = 3, *, batch_id: str = "b1", first: int = 1) -> None:
    with paper.session(signing(paper)) as (line, ledger):
        line.run(paper.batch(count, batch_id=batch_id, first=first), slots=1, progress=Watching())
        ledger.checkpoint()


def audited(paper: PaperLine, *seen: str) -> Audit:
    with Ledger(paper.settings.ledger.path, clock=paper.clock) as ledger:
        return audit(ledger, paper.pki.trust, [read_seen(text, ledger, paper.pki.trust) for text in seen])


def tamper(paper: PaperLine, sql: str) -> None:
    with closing(sqlite3.connect(paper.settings.ledger.path)) as conn:
        conn.executescript(sql)


def test_checkpoints_come_by_themselves_and_at_the_end(paper):
    worked(paper)
    found = audited(paper)
    assert found.head.seq == 1 + 3 * 7
    assert found.signed_up_to == found.head.seq
    assert found.checkpoints == 3
    assert found.units == 3
    with paper.session(signing(paper)) as (_, ledger):
        assert ledger.checkpoint() is None
        ledger.reissue("sn-0001", Why(Reason.KEY_LOST), old="lapse")
        ledger.scrap("sn-0002", Why(Reason.LOST), old="revoke", announce=None)
    assert audited(paper).units == 3


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("UPDATE event SET body = replace(body, 'sn-0001', 'sn-0009') WHERE seq = 5", "event 5 is not"),
        ("DELETE FROM event WHERE seq = 5", "event 5 is not"),
        ("UPDATE event SET seq = 99 WHERE seq = 5; UPDATE event SET seq = 5 WHERE seq = 6", "event 5 is not"),
        ("DELETE FROM event WHERE seq > 20", "cut short: checkpoint 22"),
        ("UPDATE checkpoint SET seq = 11 WHERE seq = 10", "checkpoint 11 is signed for 10 events"),
        ("UPDATE checkpoint SET envelope = replace(envelope, 'sig', 'gis') WHERE seq = 10", "checkpoint 10: "),
        ("UPDATE unit SET certificate = x'00' WHERE device_id = 'sn-0002'", "unit sn-0002 is not what its events say"),
        ("UPDATE unit SET state = 'verified' WHERE device_id = 'sn-0002'", "unit sn-0002 is not"),
        ("UPDATE unit SET facts = replace(facts, 'S0002', 'S9') WHERE device_id = 'sn-0002'", "batch b1 is not"),
        ("DELETE FROM unit WHERE device_id = 'sn-0003'", "batch b1 is not"),
    ],
)
def test_an_audit_finds_and_names_what_was_altered(paper, sql, says):
    worked(paper)
    tamper(paper, sql)
    with pytest.raises(VerificationFailed, match=says):
        audited(paper)


def test_a_ledger_put_back_or_rewritten_is_found_by_what_was_seen(paper, tmp_path):
    worked(paper, 1)
    copy_of = tmp_path / "copy.db"
    with closing(sqlite3.connect(paper.settings.ledger.path)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(paper.settings.ledger.path, copy_of)
    worked(paper, 1, batch_id="b2", first=2)
    with paper.session(signing(paper)) as (_, ledger):
        (tmp_path / "seen.json").write_bytes(ledger.checkpoints()[-1].envelope)
        place = ledger.unit("sn-0002").recorded
    seen, told = str(tmp_path / "seen.json"), f"{place.seq}:{place.head}"
    audited(paper, seen, told)

    shutil.copy(copy_of, paper.settings.ledger.path)
    audited(paper)  # by itself an older state is a sound one
    for mark in (seen, told):
        with pytest.raises(VerificationFailed, match="cut short"):
            audited(paper, mark)
    worked(paper, 1, batch_id="b3", first=3)
    for mark in (seen, told):
        with pytest.raises(VerificationFailed, match="rewritten"):
            audited(paper, mark)


def test_what_is_no_mark_of_this_ledger_is_refused(paper, tmp_path):
    worked(paper, 1)
    with pytest.raises(UsageProblem):
        audited(paper, "nothing")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(VerificationFailed):
        audited(paper, str(tmp_path / "x.json"))


@pytest.mark.parametrize("who", ["device", "stranger", "other-name"])
def test_only_the_station_signs_its_checkpoints(paper, who, tmp_path, now):
    other = Pki(tmp_path / "other", now, "Other Root")
    party = {
        "device": lambda: paper.pki.device("s-07"),
        "stranger": lambda: other.station("s-07"),
        "other-name": lambda: paper.pki.station("s-08"),
    }[who]()
    with paper.session() as (line, ledger):
        line.run(paper.batch(1), slots=1, progress=Watching())
        ledger.seal = seal_of(party, ledger.place())
        ledger.checkpoint()
    with pytest.raises(VerificationFailed, match="checkpoint 8: "):
        audited(paper)


# --- the proof ---


def proof_of(paper: PaperLine, device: str) -> dict[str, Any]:
    with Ledger(paper.settings.ledger.path, clock=paper.clock) as ledger:
        return dict(json.loads(json.dumps(Prover(ledger).prove(device))))


def test_a_proof_needs_the_anchor_alone_and_is_small(paper):
    worked(paper, 5)
    data = json.dumps(proof_of(paper, "sn-0003")).encode()
    paper.settings.ledger.path.unlink()
    shown = check_proof(data, paper.pki.trust)
    assert (shown.events[0].kind, shown.events[-1].kind) == ("attempt", "recorded")
    assert shown.checkpoint.station == {"site": "hh1", "line": "l2", "station": "s-07"}
    assert len(data) < 8192


def changes() -> dict[str, Callable[[dict[str, Any]], None]]:
    def body(proof: dict[str, Any]) -> None:
        proof["events"][2][4] = proof["events"][2][4].replace('csr_sha256":"', 'csr_sha256":"0')

    def other_device(proof: dict[str, Any]) -> None:
        proof["device_id"] = "sn-0002"

    def moved(proof: dict[str, Any]) -> None:
        proof["events"][0][0] += 1

    def fewer(proof: dict[str, Any]) -> None:
        proof["events"].pop()

    def hashes(proof: dict[str, Any]) -> None:
        proof["hashes"][0] = "00" * 32

    def far(proof: dict[str, Any]) -> None:
        proof["events"][-1][0] = 10**9

    def kind(proof: dict[str, Any]) -> None:
        proof["type"] = "x"

    def empty(proof: dict[str, Any]) -> None:
        proof["events"] = []

    def surrogate(proof: dict[str, Any]) -> None:
        proof["events"][0][2] = "\ud800"

    def twice(proof: dict[str, Any]) -> None:
        proof["events"].append(copy.deepcopy(proof["events"][-1]))

    made = (body, other_device, moved, fewer, hashes, far, kind, empty, surrogate, twice)
    return {change.__name__: change for change in made}


@pytest.mark.parametrize("change", changes())
def test_a_proof_that_was_changed_proves_nothing(paper, change):
    worked(paper, 2)
    proof = proof_of(paper, "sn-0001")
    check_proof(json.dumps(proof).encode(), paper.pki.trust)
    changes()[change](proof)
    with pytest.raises(VerificationFailed):
        check_proof(json.dumps(proof).encode(), paper.pki.trust)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000])
def test_what_is_no_proof(paper, text):
    with pytest.raises(VerificationFailed):
        check_proof(text.encode(), paper.pki.trust)


def test_nothing_is_proven_before_it_is_signed(paper):
    paper.run(paper.batch(1))
    with pytest.raises(UsageProblem, match="no checkpoint"):
        proof_of(paper, "sn-0001")


# --- other lines ---

OTHER = {"site": "hh1", "line": "l1", "station": "s-01"}


def set_of_another_line(paper: PaperLine, path: Path, *guards: tuple[str, str]) -> Path:
    write_set(path, guards, seal_of(paper.pki.station("s-01"), OTHER), paper.at)
    return path


def test_what_another_line_has_used_up_does_not_come_in(paper, tmp_path):
    many = [("serial", f"X{n}") for n in range(500)]
    path = set_of_another_line(paper, tmp_path / "l1.set", ("serial", "S0002"), *many)
    with paper.session() as (line, ledger):
        ledger.others = load_sets([path], paper.pki.trust, ledger.place())
        assert len(ledger.others.sets[0]) == 501
        assert all(ledger.others.holder(*guard) == "s-01" for guard in many)
        assert ledger.others.holder("mac", "X1") is None
        with pytest.raises(Conflict, match=r"serial S0002 \(of station s-01\)"):
            line.run(paper.batch(3), slots=1, progress=Watching())
        assert ledger.batches() == []


def test_a_key_of_another_line_is_found_when_it_is_made(paper, tmp_path):
    with paper.session() as (_, ledger):
        ledger.open_batch(paper.batch(1))
        ledger.begin_attempt("sn-0001", attempt_id="A", slot=1)
        path = set_of_another_line(paper, tmp_path / "l1.set", ("spki_sha256", "aa"))
        ledger.others = load_sets([path], paper.pki.trust, ledger.place())
        with pytest.raises(Conflict, match="belongs to s-01"):
            ledger.advance("sn-0001", ledger.way.after(ledger.unit("sn-0001").state), spki_sha256="aa")


def test_a_set_that_cannot_be_proven_stops_the_run(paper, tmp_path, now):
    path = set_of_another_line(paper, tmp_path / "l1.set", ("serial", "S0002"), ("serial", "S3"))
    head, first, second = path.read_bytes().splitlines(keepends=True)
    for wrong in (head + second + first, head + first, head, b"", first, head + b"x" + first[1:] + second):
        path.write_bytes(wrong)
        with pytest.raises(VerificationFailed):
            load_sets([path], paper.pki.trust, {})
    stranger = Pki(tmp_path / "other", now, "Other Root").station("s-01")
    write_set(path, [], seal_of(stranger, OTHER), now)
    with pytest.raises(VerificationFailed):
        load_sets([path], paper.pki.trust, {})
    set_of_another_line(paper, path)
    with pytest.raises(ConfigInvalid, match="own set"):
        load_sets([path], paper.pki.trust, OTHER)
    assert len(load_sets([path], paper.pki.trust, {}).sets[0]) == 0
    assert KNOWN_SET.endswith("known-set.v1+json")
