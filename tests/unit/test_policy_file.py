"""What a profile's file may say, at the last value that is taken and the first that is not."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from estserver.errors import ConfigError
from estserver.policy import Profile, parse_profile

TEXT = (resources.files("estserver.policy") / "profiles" / "device.toml").read_text("utf-8")
SIZES, NAMES = "rsa_bits = [2048, 4096]", 'dns = { values = ["{device}"], identity = true }'


def parsed(old: str = "", new: str = "") -> Profile:
    assert old in TEXT
    return parse_profile("mine", TEXT.replace(old, new, 1), source=Path("mine.toml"))


def refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(ConfigError) as told:
        parsed(old, new)
    assert len(told.value.reasons) == 1
    assert reason in told.value.reasons[0]


@pytest.mark.parametrize(("low", "high"), [(2048, 2048), (2048, 8192), (8192, 8192), (3072, 4096)])
def test_rsa_sizes_within_what_is_sound(low: int, high: int) -> None:
    assert parsed(SIZES, f"rsa_bits = [{low}, {high}]").constraints.rsa_bits == (low, high)


@pytest.mark.parametrize(("low", "high"), [(2047, 4096), (2048, 8193), (4096, 2048), (1024, 1024)])
def test_rsa_sizes_beyond(low: int, high: int) -> None:
    refused(SIZES, f"rsa_bits = [{low}, {high}]", "is not a smallest and a largest size from 2048 to 8192")


def test_kinds_of_names_are_known_ones() -> None:
    refused(NAMES, "x400 = {}", "x400")
    refused(NAMES, "x400 = {}", "is unknown; known are dns, ip, uri, email")
    known = "common_name, serial_number, country, locality, state, organization"
    refused("[allowed.san]", "shoe_size = {}\n[allowed.san]", f"is unknown; known are {known}")
    assert set(parsed(NAMES, "email = {}").allowed.san) == {"email", "uri", "ip"}


@pytest.mark.parametrize("pattern", ["{serial}", "{device", "device}", "{}", "{{device}}"])
def test_the_device_is_all_that_is_filled_in(pattern: str) -> None:
    words = f"{pattern!r} has braces; {{device}} is the only thing that is filled in"
    refused(NAMES, f'dns = {{ values = ["{pattern}"] }}', words)
    assert parsed(NAMES, 'dns = { values = ["a{device}b"] }').allowed.san["dns"].values == ("a{device}b",)


def test_what_is_inconsistent_is_refused() -> None:
    refused("device_id =", 'preferred_key = "X25519"\ndevice_id =', "preferred_key is not one of constraints.key_types")
    assert parsed("device_id =", 'preferred_key = "P-384"\ndevice_id =').preferred_key == "P-384"


def test_a_file_that_is_no_toml_is_told_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"^mine\.toml:2"):
        parse_profile("mine", 'description = "é"\n= broken', source=Path("mine.toml"))
