"""Names and patterns: how far each reaches, and where it ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estserver.model import GeneralName, NameAttribute
from estserver.policy import names
from tests.policy_support import CN


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("dns:a.example", "a.example", True),
        ("dns:A.example", "a.EXAMPLE", True),
        ("dns:?.example", "a.example", True),
        ("dns:?.example", "ab.example", False),
        ("dns:?.example", "..example", False),
        ("dns:*.*.example", "a.b.example", True),
        ("dns:*.*.example", "a.example", False),
        ("dns:a*b*c.example", "a-b-b-c.example", True),
        ("dns:*.example", "*.example", False),
        ("ip:192.0.2.1", "192.0.2.1", True),
        ("ip:192.0.2.1", "192.0.2.2", False),
        ("ip:192.0.2.9/24", "192.0.2.1", True),
        ("ip:2001:db8::/32", "2001:db8::1", True),
        ("ip:2001:db8::/32", "192.0.2.1", False),
        ("ip:nonsense", "192.0.2.1", False),
        ("ip:192.0.2.*", "192.0.2.1", False),
        ("ip:192.0.2.0/24", "192.0.2.0/25", False),
        ("uri:urn:x:*", "urn:x:a.b", True),
        ("uri:urn:x:*", "urn:X:a", False),
        ("uri:urn:x:*", "urn:x:a/b", False),
        ("uri:urn:x:*", "urn:x:a?b", False),
        ("uri:urn:x:*", "urn:x:a#b", False),
        ("uri:urn:x:*", "urn:x:a@b", False),
        ("uri:urn:x:*", "urn:x:a\\b", False),
        ("email:*@a.example", "Somebody@A.example", True),
        ("email:*@a.example", "somebody@b.example", False),
        ("email:*", "a.b@c.example", True),
    ],
)
def test_a_pattern_covers_what_it_says_and_no_more(pattern: str, value: str, fits: bool) -> None:
    kind = pattern.partition(":")[0]
    assert names.name_matches(pattern, GeneralName(kind, value)) is fits  # type: ignore[arg-type]  # one of the kinds


def test_a_pattern_is_for_names_of_its_own_kind() -> None:
    for pattern in ("dns:x", "uri:x", "email:x", "x", ":x"):
        for kind in ("dns", "uri", "email"):
            name = GeneralName(kind, "x")  # type: ignore[arg-type]  # one of the kinds
            assert names.name_matches(pattern, name) is (pattern == f"{kind}:x")


@pytest.mark.parametrize("kind", ["device", "dns", "uri", "text"])
def test_a_pattern_without_wildcards_is_the_name_itself(kind: str) -> None:
    assert names.matches(kind, "a.b", "a.b")
    for other in ("a-b", "a.b.", "", "xa.b"):
        assert not names.matches(kind, "a.b", other)


def test_case_counts_where_names_tell_it_apart() -> None:
    for kind, fits in (("device", False), ("uri", False), ("dns", True), ("text", True)):
        assert names.matches(kind, "ab", "AB") is fits
        assert names.matches(kind, "a*", "AB") is fits
        assert names.matches(kind, "AB", "ab") is fits


@pytest.mark.parametrize("kind", ["device", "text"])
def test_a_star_takes_anything_there_is_but_in_dns_and_uri(kind: str) -> None:
    assert names.matches(kind, "a*z?", "a./?#@\\\nz.")


def test_stars_in_the_middle_are_settled_once() -> None:
    """A pattern costs no more than the square of the length: 64 stars against what does not fit."""
    assert not names.matches("device", "*a" * 32 + "b", "a" * 4000)
    assert names.matches("device", "*a" * 32 + "*b", "a" * 4000 + "b")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a", "a"),
        ("SN-1", "sn-1"),
        ("a.b_c-d9", "a.b_c-d9"),
        ("a" * 64, "a" * 64),
        ("a" * 65, None),
        ("a" * 63 + "-", None),
        ("", None),
        ("-a", None),
        (".a", None),
        ("a_", None),
        ("a b", None),
        ("a/b", None),
        ("a\n", None),
        ("\N{KELVIN SIGN}1", None),
    ],
)
def test_the_form_of_a_device_id(text: str, found: str | None) -> None:
    assert names.device_id(text) == found


def test_any_device_takes_the_id_itself_and_what_a_pattern_covers() -> None:
    assert names.any_device(("x", "sn-1"), "sn-1")
    assert names.any_device(("x", "sn-?"), "sn-1")
    assert names.any_device(("*",), "sn-1")
    for patterns in ((), ("sn",), ("sn-1*2",), ("SN-1",)):
        assert not names.any_device(patterns, "sn-1")


@given(st.text(max_size=10))
def test_a_printable_string_has_these_characters_alone(text: str) -> None:
    """X.680 §41.4."""
    known = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?")
    assert names.is_printable_string(text) is (set(text) <= known)


def test_every_character_of_a_printable_string_and_none_beside() -> None:
    assert names.is_printable_string("ABCXYZabcxyz0189 '()+,-./:=?")
    for other in '!"#$%&*;<>@[\\]^_`{|}~é\n':
        assert not names.is_printable_string(f"a{other}")


def test_subjects_are_the_same_attribute_by_attribute_in_their_order() -> None:
    cn, unit = NameAttribute(CN, "Pump  1"), NameAttribute("2.5.4.11", "Straße")
    assert names.same_subject((cn, unit), (NameAttribute(CN, " pump 1"), NameAttribute("2.5.4.11", "STRASSE")))
    assert names.same_subject((), ())
    for other in ((unit, cn), (cn,), (cn, unit, unit), (NameAttribute("2.5.4.5", "Pump 1"), unit)):
        assert not names.same_subject((cn, unit), other)
    assert not names.same_subject((cn,), (NameAttribute(CN, "Pump1"),)), "spaces are folded, not removed"


def test_a_subject_is_written_by_the_names_that_profiles_use() -> None:
    subject = (NameAttribute(CN, "sn-1"), NameAttribute("2.5.4.10", "Acme"), NameAttribute("1.2.3", "x"))
    assert names.subject_text(subject) == "common_name=sn-1, organization=Acme, 1.2.3=x"
    assert names.subject_text(()) == ""
    assert names.attribute_name("1.2.3") == "1.2.3"
