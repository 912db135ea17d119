"""Queues of deadlines: who expires, when, and who has waited the longest."""

from __future__ import annotations

from estserver.serving.deadlines import Deadlines


def queues() -> Deadlines[str, str]:
    return Deadlines({"head": 10, "idle": 60})


def test_time_starts_with_the_phase_and_not_again():
    waiting = queues()
    waiting.file("a", "head", 0)
    waiting.file("a", "head", 9)
    assert waiting.expired(9.9) == []
    assert waiting.expired(10) == ["a"]


def test_progress_starts_it_again():
    waiting = queues()
    waiting.file("a", "head", 0)
    waiting.file("a", "head", 9, progress=1)
    assert waiting.expired(18) == []
    assert waiting.expired(19) == ["a"]


def test_another_phase_is_another_time():
    waiting = queues()
    waiting.file("a", "head", 0)
    waiting.file("a", "idle", 5)
    assert waiting.expired(64) == []
    assert waiting.expired(65) == ["a"]
    waiting.file("a", "elsewhere", 65)
    assert waiting.expired(1e9) == []
    assert waiting.is_in("a", "elsewhere")


def test_the_removed_never_expire():
    waiting = queues()
    waiting.file("a", "head", 0)
    waiting.remove("a")
    waiting.remove("a")
    assert waiting.expired(1e9) == []
    assert not waiting.is_in("a", "head")


def test_the_first_is_the_one_longest_in_its_phase():
    waiting = queues()
    for name, now in (("a", 0), ("b", 1), ("c", 2)):
        waiting.file(name, "idle", now)
    waiting.file("a", "head", 3)
    waiting.file("a", "idle", 4)
    assert waiting.first("idle") == "b"
    assert waiting.first("head") is None


def test_how_long_nothing_happens():
    waiting = queues()
    assert waiting.wait_seconds(0, longest=1) == 1
    waiting.file("a", "head", 0)
    assert waiting.wait_seconds(0, longest=100) == 10
    assert waiting.wait_seconds(9.75, longest=1) == 0.25
    assert waiting.wait_seconds(99, longest=1) == 0
