"""docs/protocol.md says something of every row, once, and what it says is met is shown by tests that are there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "protocol.md"

SPANS = {
    "S-T": 12, "S-H": 15, "S-A": 10, "S-C": 10, "S-E": 12, "S-R": 10, "S-N": 11, "S-P": 14, "S-X": 13, "S-K": 17,
    "S-M": 5, "C-T": 13, "C-B": 4, "C-C": 11, "C-E": 12, "C-W": 4, "C-R": 4, "C-P": 4, "C-X": 8, "C-K": 5, "C-M": 1,
}  # fmt: skip
"""How many rows each series has, from 01 on."""
SERIES = {"R": (1, 8), "B": (1, 7), "Q": (1, 11), "P": (1, 14), "D": (1, 10), "V": (1, 7)}
COAPS, BRSKI = range(10, 23), range(30, 40)
IDS = [
    *(f"{name}{number:02}" for name, count in SPANS.items() for number in range(1, count + 1)),
    *(f"{name}-{number:02}" for name, (first, last) in SERIES.items() for number in range(first, last + 1)),
    *(f"X-{number}" for number in (*COAPS, *BRSKI)),
]
STATES = ("met", "deviation", "not applicable", "not yet")
ROW = re.compile(r"^\| ([A-Z]+-[A-Z]?\d+) \|(.*)\|$", re.MULTILINE)
NAMED = re.compile(r"`(?:((?:unit|protocol|e2e)/\w+\.py)::)?(test_\w+)`")


@cache
def rows() -> dict[str, tuple[str, str, str, str]]:
    """What, state, how, shown by; by id."""
    found = {}
    for name, rest in ROW.findall(PAGE.read_text("utf-8")):
        what, state, how, shown = (cell.strip() for cell in rest.split("|"))
        found[name] = (what, state, how, shown)
    return found


@cache
def functions_of(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


@cache
def all_tests() -> frozenset[str]:
    return frozenset().union(*(functions_of(str(path.relative_to(TESTS))) for path in TESTS.rglob("test_*.py")))


def test_every_row_is_there_exactly_once() -> None:
    assert len(IDS) == len(set(IDS)) == 275
    assert Counter(name for name, _ in ROW.findall(PAGE.read_text("utf-8"))) == Counter(IDS)


def test_a_row_has_a_state_and_what_it_takes() -> None:
    for name, (what, state, how, shown) in rows().items():
        assert what, name
        assert state in STATES, name
        assert shown if state == "met" else how, f"{name}: what is met is shown by a test; what is not has a reason"
        assert not (shown and state == "not yet"), f"{name}: a test that shows a part stands beside the reason"


def test_every_test_that_a_row_names_exists() -> None:
    for name, (_, _, how, shown) in rows().items():
        file = ""
        for place, test in NAMED.findall(shown):
            file = place or file
            assert test in functions_of(file), f"{name}: {file}::{test}"
        assert len(NAMED.findall(shown)) == shown.count("`") // 2, f"{name}: nothing else is named as a test"
        assert {test for _, test in NAMED.findall(how)} <= all_tests(), name


def test_the_rows_of_each_state_are_counted() -> None:
    counted = Counter(state for _, state, _, _ in rows().values())
    table = dict(
        re.findall(r"^\| (met|deviation|not applicable|not yet) \| (\d+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    )
    assert {state: int(number) for state, number in table.items()} == counted


def test_the_tests_that_bear_the_name_of_a_row_stand_in_it_if_it_is_not_met_yet() -> None:
    """Who builds a row names its test after it; then the row is to be looked at again."""
    words = [f"_{test.removeprefix('test_')}_" for test in all_tests()]
    stale = [
        name
        for name, (_, state, how, _) in rows().items()
        if state == "not yet"
        and "`test_" not in how
        and any(f"_{name.lower().replace('-', '_')}_" in word for word in words)
    ]
    assert stale == []
