"""A command that is killed anywhere in a rollover: what is served is whole, and the command given again completes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from estserver import key_update
from estserver.assembly import load_ca
from estserver.errors import ConfigError, StateError
from estserver.inventory.rollovers import Rollovers
from estserver.key_update import RootKey
from estserver.records import Stage, Tier
from tests.est_server import Home, found_home
from tests.rollover_support import (
    LATER,
    NOW,
    VERBS,
    brought_to,
    der_of,
    start,
    updating,
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home", now=NOW)


class Killed(BaseException):
    """Where a process ended."""


_RECORD, _FILES = ("advance before 1", "advance after 1"), ("write 1", "write 2", "into place 1", "into place 2")
_KEY = ("announce before 1", "announce after 1", "generate after 1", "into place 1")
POINTS = {
    (Tier.ISSUING, "start"): (*_KEY, *_RECORD),
    (Tier.ISSUING, "switch"): _RECORD,
    (Tier.ISSUING, "retire"): _RECORD,
    (Tier.ROOT, "start"): (*_KEY, *_RECORD, "write 1", "write 2", "into place 2", "into place 3"),
    (Tier.ROOT, "switch"): (*_RECORD, *_FILES),
    (Tier.ROOT, "retire"): (*_RECORD, *_FILES),
}
"""What each command does that can be the last thing it did: the step, and which time that it is taken."""


@pytest.mark.parametrize(
    ("tier", "verb", "point"), [(tier, verb, point) for (tier, verb), points in POINTS.items() for point in points]
)
def test_after_a_crash_anywhere_what_is_served_is_whole_and_a_rerun_completes(
    home: Home, monkeypatch: pytest.MonkeyPatch, tier: Tier, verb: str, point: str
) -> None:
    with updating(home) as update:
        brought_to(update, {"start": "", "switch": "cross", "retire": "switch"}[verb], tier)
        before = update.hierarchy().published
        with monkeypatch.context() as patch:
            crash(patch, point)
            with pytest.raises(Killed):
                VERBS[verb](update, tier)
        between = update.hierarchy()
        load_ca(home.settings, "acme", between)
        with home.enrollment(lambda: LATER) as enrollment:
            assert set(enrollment.ca_certificates("")) == set(between.published)
        VERBS[verb](update, tier)
        after = update.hierarchy()
        assert between.published in (before, after.published)
        assert update.records()[-1].stage == {"start": "cross"}.get(verb, verb)
        assert len(update.records()) == 1
        load_ca(home.settings, "acme", after)
    told = [row["action"] for row in home.audit() if row["action"].startswith("rollover-")]
    assert len(told) == len(set(told)), "each stage is told once"
    root = x509.load_pem_x509_certificates((home.path / "root.pem").read_bytes())
    assert der_of(root[0]) == after.root
    assert not list(home.path.rglob("*.new")), "nothing is left lying about"


STEPS: dict[str, tuple[Any, str]] = {
    "announce": (Rollovers, "start"),
    "advance": (Rollovers, "advance"),
    "generate": (key_update.FileSigner, "generate"),
    "into place": (key_update, "_into_place"),
    "write": (key_update, "write_pem"),
}


def crash(patch: pytest.MonkeyPatch, point: str) -> None:
    """End the process before or after a step, the first time or a later one."""
    words = point.split()
    step, after, times = (
        " ".join(w for w in words[:-1] if w not in {"before", "after"}),
        "after" in words,
        int(words[-1]),
    )
    where, name = STEPS[step]
    real, passed = getattr(where, name), itertools.count(1)

    def stand_in(*args: object, **named: object) -> object:
        if next(passed) < times:
            return real(*args, **named)
        if after:
            real(*args, **named)
        raise Killed

    patch.setattr(where, name, stand_in)


def test_no_key_is_overwritten_and_a_key_of_another_kind_is_not_taken(home: Home) -> None:
    stray = home.path / "private" / "issuing-2.key"
    stray.write_bytes((home.path / "private" / "issuing.key").read_bytes())
    stray.chmod(0o600)
    with updating(home) as update:
        with pytest.raises(ConfigError, match="is no key of kind P-384"):
            start(update, Tier.ISSUING, "P-384")
        stray.rename(stray.with_suffix(".kept"))
        assert start(update, Tier.ISSUING).stage is Stage.CROSS
    assert stray.read_bytes() != stray.with_suffix(".kept").read_bytes()


def test_a_key_that_is_not_the_roots_signs_nothing(home: Home, tmp_path: Path) -> None:
    other = found_home(tmp_path / "other", now=NOW)
    with updating(home) as update:
        with pytest.raises(ConfigError, match="not the key of the root"):
            update.start(Tier.ROOT, None, RootKey(other.path / "private" / "root.key"))
        assert not (home.path / "private" / "root-2.key").exists()
        assert [record.stage for record in update.records()] == [Stage.ANNOUNCE]


def test_two_commands_at_once_are_one_after_the_other(home: Home) -> None:
    with updating(home) as update, key_update._alone(home.path):
        with pytest.raises(StateError) as caught:
            start(update, Tier.ROOT)
        assert caught.value.code == "locked"
