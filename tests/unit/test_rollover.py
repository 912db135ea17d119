"""Rollover, by tables: which verb leads where, what is served at each stage, who is recognised, what a crash leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from estserver.assembly import hierarchy_of, load_ca, load_publishers
from estserver.ca import answer_sha256
from estserver.cli.arguments import CA_KEY_KINDS
from estserver.errors import StateError
from estserver.home import Plan, found
from estserver.identity import Anchor, AnchorSet
from estserver.inventory.rollovers import Rollovers
from estserver.key_ids import subject_key_id
from estserver.keys import KINDS
from estserver.model import Der, Peer, Serial
from estserver.records import Reach, RolloverRecord, Stage, Tier
from estserver.rollover import problems
from tests.est_server import Home, found_home
from tests.rollover_support import (
    LATER,
    NOW,
    VERBS,
    WHY,
    brought_to,
    cert,
    der_of,
    fleet,
    leaf_of,
    recognised,
    start,
    updating,
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home", now=NOW)


TRANSITIONS = [
    ("", "start", "cross"),
    ("", "announce", "announce"),
    ("", "switch", None),
    ("", "retire", None),
    ("announce", "announce", "announce"),
    ("announce", "start", "cross"),
    ("announce", "switch", None),
    ("announce", "retire", None),
    ("cross", "start", "cross"),
    ("cross", "switch", "switch"),
    ("cross", "retire", None),
    ("switch", "start", "switch"),
    ("switch", "switch", "switch"),
    ("switch", "retire", "retire"),
    ("retire", "retire", "retire"),
    ("retire", "switch", None),
    ("retire", "start", "cross"),
]
"""Stage, verb, the stage that it leads to; None where it is refused."""


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize(("stage", "verb", "leads_to"), TRANSITIONS)
def test_each_verb_leads_where_the_table_says(home: Home, tier: Tier, stage: str, verb: str, leads_to: str) -> None:
    with updating(home) as update:
        brought_to(update, stage, tier)
        before = update.records(), update.hierarchy()
        if leads_to is None:
            with pytest.raises(StateError, match=r"cannot go to \w+: its rollover (was not started|is at stage \w+)"):
                VERBS[verb](update, tier)
            assert (update.records(), update.hierarchy()) == before
        else:
            VERBS[verb](update, tier)
            assert update.records()[-1].stage == leads_to
            assert len(update.records()) == len(before[0]) + ((stage, verb) == ("retire", "start") or stage == "")


def test_one_rollover_at_a_time(home: Home) -> None:
    with updating(home) as update:
        start(update, Tier.ISSUING)
        for tier, kind in ((Tier.ROOT, None), (Tier.ISSUING, "P-384")):
            with pytest.raises(StateError, match="is on its way, at stage cross"):
                start(update, tier, kind)


# --- what is served -------------------------------------------------------------------------------------------------

SERVED = {
    Tier.ISSUING: {
        "": ("old", {"old", "root"}),
        "announce": ("old", {"old", "root"}),
        "cross": ("old", {"old", "new", "root"}),
        "switch": ("new", {"old", "new", "root"}),
        "retire": ("new", {"new", "root"}),
    },
    Tier.ROOT: {
        "": ("old", {"below old", "old"}),
        "announce": ("old", {"below old", "old"}),
        "cross": ("old", {"below old", "below new", "old", "new", "old with new", "new with old"}),
        "switch": ("new", {"below old", "below new", "old", "new", "old with new", "new with old"}),
        "retire": ("new", {"below new", "new"}),
    },
}
"""At each stage: whose certificate signs, or is above what signs, and what `/cacerts` holds."""


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("stage", ["", "announce", "cross", "switch", "retire"])
def test_what_is_served_at_each_stage(home: Home, tier: Tier, stage: str) -> None:
    old = der_of(home.issuing if tier is Tier.ISSUING else home.root)
    names = {der_of(home.root): "root", der_of(home.issuing): "below old", old: "old"}
    with updating(home) as update:
        brought_to(update, stage, tier)
        records, hierarchy = update.records(), update.hierarchy()
        made = records[-1].made if records else None
        if made is not None:
            names |= {made.new: "new"}
            links = ((made.new_with_old, "new with old"), (made.old_with_new, "old with new"))
            names |= {der: name for der, name in (*links, (made.issuing, "below new")) if der is not None}
        signs, served = SERVED[tier][stage]
        assert {names[der] for der in hierarchy.published} == served
        assert names[hierarchy.issuing if tier is Tier.ISSUING else hierarchy.root] == signs
        assert len(set(hierarchy.published)) == len(hierarchy.published)
        load_ca(home.settings, "acme", hierarchy)  # the key is there and is the certificate's, the chain holds


# --- the gate -------------------------------------------------------------------------------------------------------

GATES = [
    # tier, stage, live, fetched, renewed, how many things are missing
    (Tier.ROOT, Stage.ANNOUNCE, 100, 0, 0, 0),
    (Tier.ROOT, Stage.CROSS, 0, 0, 0, 0),
    (Tier.ROOT, Stage.CROSS, 100, 98, 100, 1),
    (Tier.ROOT, Stage.CROSS, 100, 99, 0, 0),
    (Tier.ROOT, Stage.SWITCH, 100, 98, 100, 1),
    (Tier.ROOT, Stage.SWITCH, 100, 100, 0, 0),
    (Tier.ISSUING, Stage.CROSS, 1, 0, 0, 1),
    (Tier.ISSUING, Stage.CROSS, 1, 1, 0, 0),
    (Tier.ISSUING, Stage.SWITCH, 1000, 990, 989, 1),
    (Tier.ISSUING, Stage.SWITCH, 1000, 989, 989, 2),
    (Tier.ISSUING, Stage.SWITCH, 1000, 990, 990, 0),
]


@pytest.mark.parametrize(("tier", "stage", "live", "fetched", "renewed", "missing"), GATES)
def test_a_stage_is_left_when_the_fleet_has_followed(
    tier: Tier, stage: Stage, live: int, fetched: int, renewed: int, missing: int
) -> None:
    record = RolloverRecord(1, "acme", tier, stage, "P-256", "new.key", Der(b""), NOW, NOW)
    assert len(problems(record, Reach(live, fetched, renewed))) == missing


def test_each_step_waits_for_the_fleet_and_says_for_how_much_of_it(home: Home) -> None:
    with fleet(home, LATER) as enrol, updating(home) as update, home.enrollment(lambda: LATER) as before:
        old = [enrol(f"sn-{number}") for number in range(4)]
        for peer in old:
            before.note_fetch("", peer)
        record = start(update, Tier.ISSUING)
        assert update.reach(record) == Reach(4, 0, 0), "what was given before the new certificate was in it is nothing"
        with pytest.raises(StateError, match=r"0 of 4 live devices \(0\.0%\) were given") as caught:
            update.switch()
        assert caught.value.code == "too-early"
        with home.enrollment(lambda: LATER) as during:
            for peer in old[:3]:
                during.note_fetch("", peer)
            with pytest.raises(StateError, match=r"3 of 4 live devices \(75\.0%\)"):
                update.switch()
            during.note_fetch("", old[3])
            during.note_fetch("", replace(old[3], certificate=None))
        update.switch()
        with pytest.raises(StateError, match=r"0 of 4 .* have a certificate signed by the new key"):
            update.retire()
        update.retire(override=WHY)
    rows = [row for row in home.audit() if row["action"].startswith("rollover-")]
    assert [row["action"] for row in rows] == [f"rollover-{stage}" for stage in Stage]
    assert rows[2]["detail"].keys() == {"ca", "tier", "rollover", "live", "fetched", "renewed"}
    assert rows[3]["detail"]["override"] == WHY
    assert rows[3]["detail"]["missing"] == [
        "0 of 4 live devices (0.0%) have a certificate signed by the new key; 99% are wanted"
    ]
    assert {row["actor"] for row in rows} == {"operator:test"}


def test_a_fetch_counts_for_the_device_that_proves_itself_and_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = list[str]()
    note = Rollovers.note_fetch

    def counted(self: Rollovers, device: str, ca: str, answer: str, now: datetime) -> None:
        noted.append(device)
        note(self, device, ca, answer, now)

    monkeypatch.setattr(Rollovers, "note_fetch", counted)
    with fleet(home, LATER) as enrol, home.enrollment(lambda: LATER) as enrollment, home.inventory() as inventory:
        good, revoked = enrol("sn-good"), enrol("sn-gone")
        assert revoked.certificate is not None
        inventory.revoke(Serial(cert(revoked.certificate).serial_number), "keyCompromise", "operator:test", LATER)
        stranger = found_home(home.path.parent / "other", now=NOW)
        (foreign,) = x509.load_pem_x509_certificates((stranger.path / "tls.pem").read_bytes())[:1]
        for _ in range(3):
            for peer in (good, revoked, Peer("192.0.2.1"), replace(good, certificate=der_of(foreign))):
                enrollment.note_fetch("", peer)
    assert noted == ["sn-good"]


# --- who is recognised ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", Tier)
def test_certificates_of_old_and_new_ca_authenticate_at_every_stage(home: Home, tier: Tier) -> None:
    with fleet(home, LATER) as enrol, updating(home) as update:
        peers = [enrol("sn-before")]
        for number, step in enumerate(
            (lambda: start(update, tier), lambda: update.switch(WHY), lambda: update.retire(WHY))
        ):
            step()
            peers.append(enrol(f"sn-{number}"))
            with home.enrollment(lambda: LATER) as enrollment:
                assert [recognised(enrollment, peer) for peer in peers] == [True] * len(peers)


def test_a_certificate_of_a_ca_that_was_only_announced_is_a_strangers(home: Home) -> None:
    with updating(home) as update:
        start(update, Tier.ISSUING)
        (record,) = update.records()
        hierarchy = update.hierarchy()
        assert record.made is not None
        ca = load_ca(home.settings, "acme", replace(hierarchy, issuing=record.made.new, key=record.key, besides=()))
    leaf = der_of(leaf_of(ca, LATER))
    before = hierarchy_of(home.settings, "acme", [replace(record, stage=Stage.ANNOUNCE)])
    known = AnchorSet([Anchor("a", root) for root in hierarchy.anchors], hierarchy.helpers)
    unknown = AnchorSet([Anchor("a", root) for root in before.anchors], before.helpers)
    assert known.path(leaf, [], LATER) is not None
    assert unknown.path(leaf, [], LATER) is None


# --- who must go on publishing --------------------------------------------------------------------------------


def test_r_06_the_old_key_must_publish_until_its_last_leaf_has_expired(home: Home) -> None:
    with updating(home) as update, fleet(home, LATER) as enrol, home.inventory() as inventory:
        enrol("sn-old")
        old = subject_key_id(update.hierarchy().issuing)
        start(update, Tier.ISSUING)
        update.switch(WHY)
        enrol("sn-new")
        update.retire(WHY)
        new = subject_key_id(update.hierarchy().issuing)

        def publishing(at: datetime) -> list[str]:
            return [ca.key_id for ca in load_publishers(home.settings, inventory, at)["acme"]]

        assert publishing(LATER) == [old, new]
        last = inventory.rollovers.issuers_in_use(LATER)[old]
        assert publishing(last - timedelta(seconds=1)) == [old, new]
        assert publishing(last) == [new]


def test_root_and_issuing_ca_move_one_after_the_other_and_again(home: Home) -> None:
    """Each way through every algorithm; at the end what was enrolled under the first key is still known."""
    with updating(home) as update, fleet(home, LATER) as enrol:
        first = enrol("sn-first")
        for tier, kind in (
            (Tier.ISSUING, "P-384"),
            (Tier.ROOT, "Ed25519"),
            (Tier.ISSUING, "ML-DSA-44"),
            (Tier.ROOT, "ML-DSA-87"),
        ):
            start(update, tier, kind)
            update.switch(WHY)
            update.retire(WHY)
        hierarchy = update.hierarchy()
        assert [cert(der).subject.rfc4514_string() for der in hierarchy.published] == [
            "CN=Acme Issuing CA 3",
            "CN=Acme Root CA",
        ]
        assert len(hierarchy.anchors) == 3
        last = enrol("sn-last")
        with home.enrollment(lambda: LATER) as enrollment:
            assert recognised(enrollment, first)
            assert recognised(enrollment, last)
    names = {"root.key", "root-2.key", "root-3.key", "issuing.key", "issuing-2.key", "issuing-3.key"}
    assert names <= {path.name for path in (home.path / "private").iterdir()}


def test_encrypted_keys_stay_encrypted(tmp_path: Path) -> None:
    passphrase, where = tmp_path / "passphrase", tmp_path / "encrypted"
    passphrase.write_text("correct horse\n")
    plan = Plan(where, "Acme", ("localhost",), "P-256", passphrase=b"correct horse", passphrase_file=passphrase)
    with updating(Home(where, found(plan, now=NOW, random=os.urandom))) as update:
        start(update, Tier.ISSUING)
        update.switch()
        update.retire()
        start(update, Tier.ROOT)
    for name in ("issuing-2.key", "root-2.key"):
        assert b"ENCRYPTED" in (where / "private" / name).read_bytes()


def test_the_command_line_offers_every_kind_of_key() -> None:
    assert set(CA_KEY_KINDS) == set(KINDS)


def test_an_answer_is_the_same_in_any_order(home: Home) -> None:
    certificates = [der_of(home.root), der_of(home.issuing)]
    assert answer_sha256(certificates) == answer_sha256(certificates[::-1])
    assert answer_sha256(certificates) != answer_sha256(certificates[:1])


@pytest.mark.parametrize("arguments", [("switch", "--override"), ("switch", "--reason", "x"), ("start", "leaf")])
def test_half_an_override_is_a_usage_error(home: Home, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "estserver", "rollover", *arguments, "--home", str(home.path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
