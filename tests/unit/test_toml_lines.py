"""Every mistake in a file is told with its line, wherever it is and whatever stands around it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estserver import toml_lines
from estserver.assembly import load_profiles, rules_of
from estserver.config import load_settings
from estserver.errors import ConfigError
from estserver.policy import parse_profile
from estserver.toml_lines import key_lines, line_of
from tests.est_server import Home, found_home

TEXT = '''\
a = 1  # c
b.c = [
  1,
  2,
]
s = """
[x]
y = 1
"""

[t.u]
k = { values = ["{device}"], q = 1 }
"dotted.key" = 3
[t]
late = 1
[[array]]
x = 1
'''


def test_the_line_of_a_key_is_where_its_statement_begins() -> None:
    lines = key_lines(TEXT)
    assert lines["a",] == 1
    assert lines["b", "c"] == lines["b", "c", 1] == 2
    assert lines["s",] == 6
    assert ("y",) not in lines
    assert lines["t", "u"] == 11
    assert lines["t", "u", "k", "q"] == 12
    assert lines["t", "u", "dotted.key"] == 13
    assert lines["t", "late"] == 15
    assert lines["array", 0, "x"] == 17
    assert line_of(("t", "u", "missing", 3), lines) == 11
    assert line_of(("missing",), lines) == 1


@given(
    st.lists(
        st.tuples(
            st.text("ab[]\"'=# \n\\é", max_size=6),
            st.one_of(st.integers(), st.text("ab[]\"'=# \n", max_size=9), st.lists(st.integers(), max_size=3)),
        ),
        max_size=6,
        unique_by=lambda pair: pair[0],
    )
)
def test_every_key_has_a_line_that_names_it(pairs: list[tuple[str, int | str | list[int]]]) -> None:
    text = "".join(f"\n# [no] = table\n{_basic(key)} = {_value(value)}\n" for key, value in pairs)
    lines = key_lines(text)
    assert {path[0] for path in lines} == set(tomllib.loads(text))
    for (key, _), number in zip(pairs, range(3, 99, 3), strict=False):
        assert lines[key,] == number


def _basic(text: str) -> str:
    return '"' + "".join(c if c not in '"\\\n' else f"\\u{ord(c):04x}" for c in text) + '"'


def _value(value: int | str | list[int]) -> str:
    return _basic(value) if isinstance(value, str) else str(value)


def test_a_statement_without_end_costs_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toml_lines, "STATEMENT_MAX_LINES", 10)
    text = "a = 1\nb = [\n" + "1,\n" * 20 + "]\nc = 1\n"
    assert key_lines(text) == {("a",): 1}


# --- what an operator reads -----------------------------------------------------------------------------------------

PROFILE = """\
description = "A kind"
requesters = ["credential"]
preferred_key = "P-256"

[allowed.subject]
common_name = { values = ["{device}"] }

[constraints]
key_types = ["P-256"]

[certificate]
lifetime = "365d"
"""


@pytest.mark.parametrize(
    ("good", "bad", "line", "words"),
    [
        ('"A kind"', '"A kind', 1, "not TOML: Illegal character"),
        ("[constraints]", "[constraints", 8, "not TOML: Expected"),
        ('lifetime = "365d"', "lifetime =", 12, "not TOML: Invalid value"),
        ('"365d"', '"soon"', 12, "certificate.lifetime"),
        ('lifetime = "365d"', "lifetyme = 1", 12, "certificate.lifetyme: Extra"),
        ('lifetime = "365d"', "renew_at = 1", 11, "certificate.lifetime: Field required"),
        ("common_name", "shoe_size", 6, "allowed.subject.shoe_size: is unknown; known are common_name"),
        ("[allowed.subject]", "[allowed.san]\nx400 = {}\n[allowed.subject]", 6, "allowed.san.x400: is unknown"),
        ("{device}", "{serial}", 6, "allowed.subject.common_name.values.0: '{serial}' has braces"),
        ('preferred_key = "P-256"', 'preferred_key = "P-384"', 3, "preferred_key is not one of"),
        ("common_name", "organization", 1, "device_id names no attribute"),
        ("key_types =", "rsa_bits = [4096, 2048]\nkey_types =", 9, "constraints.rsa_bits: is not a smallest"),
        ("key_types =", "rsa_bits = [1024, 2048]\nkey_types =", 9, "from 2048 to 8192"),
        ('["P-256"]', '[\n  "P-256",\n  "ROT13",\n]', 9, "constraints.key_types.1"),
        ('description = "A kind"\n', "", 1, "description: Field required"),
    ],
)
def test_a_mistake_in_a_profile_is_told_with_file_line_and_reason(good: str, bad: str, line: int, words: str) -> None:
    parse_profile("kind", PROFILE, source=Path("kind.toml"))
    with pytest.raises(ConfigError) as told:
        parse_profile("kind", PROFILE.replace(good, bad, 1), source=Path("kind.toml"))
    assert any(reason.startswith(f"kind.toml:{line}: ") and words in reason for reason in told.value.reasons), told


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return found_home(tmp_path_factory.mktemp("lines") / "home")


def test_the_problems_of_every_profile_and_the_block_list_are_told_at_once(home: Home) -> None:
    profiles = home.path / "profiles"
    kept = {path: path.read_bytes() for path in (*profiles.iterdir(), home.path / "estserver.toml")}
    home.configure('[keys]\nblocked = "blocked.txt"\n')
    settings = home.settings
    (home.path / "blocked.txt").write_text("nonsense\n")
    (profiles / "device.toml").write_text("nonsense = 1\n[certificate]\nlifetime = 1\nrenew_at = 2\n")
    (profiles / "gateway.toml").write_text("= 1\n")
    (profiles / "server.toml").write_bytes(b"# fine\n# \xff\n")
    with pytest.raises(ConfigError) as told:
        rules_of(settings)
    places = [reason.removeprefix(f"{home.path}/").partition(": ")[0] for reason in told.value.reasons]
    assert {f"profiles/device.toml:{line}" for line in (1, 3, 4)} <= set(places)
    assert {"profiles/gateway.toml:1", "profiles/server.toml:2", "blocked.txt:1"} <= set(places)
    for path, octets in kept.items():
        path.write_bytes(octets)


def test_a_mistake_in_the_configuration_is_told_with_its_line(home: Home) -> None:
    file = home.path / "estserver.toml"
    good = file.read_text("utf-8")
    length = good.count("\n")
    for bad, line, words in (
        ("[server.typo]\n", length + 1, "server.typo"),
        ('[limits]\nnames_max = "x"\n', length + 2, "limits.names_max"),
        ("[limits\n", length + 1, "not TOML"),
        ("x = [", length + 1, "not TOML"),
    ):
        file.write_text(good + bad, "utf-8")
        with pytest.raises(ConfigError) as told:
            load_settings(home.path)
        assert told.value.reasons[0].startswith(f"{file}:{line}: ")
        assert words in told.value.reasons[0]
    file.write_text(good, "utf-8")


def test_a_directory_without_profiles_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no profile in"):
        load_profiles(tmp_path)
