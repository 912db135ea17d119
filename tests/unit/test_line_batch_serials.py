"""Serials made from a range and a template, and serials of a file checked against them."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicesim.line.batch import Batch, load_batch
from devicesim.line.check_digits import CHECK_DIGITS
from devicesim.line.findings import InputInvalid
from devicesim.line.serials import Serial

ALPHABET = string.digits + string.ascii_uppercase


@pytest.mark.parametrize(
    ("check", "whole", "digits"),
    [
        ("iso7064-37-36", "A1-2425G-ABC1234002-M", 1),  # a Global Release Identifier (IFPI)
        ("iso7064-97-10", "5493000IBP32UQZ0KL24", 2),  # a legal entity identifier (ISO 17442)
        ("iso7064-97-10", "WEST12345698765432GB82", 2),  # the IBAN GB82 WEST 1234 5698 7654 32, as ISO 13616 turns it
        ("iso7064-11-2", "0000-0002-1825-0097", 1),  # ORCID iDs (support.orcid.org)
        ("iso7064-11-2", "0000-0002-1694-233X", 1),
    ],
)
def test_published_numbers_have_the_check_digits_that_are_reckoned(check, whole, digits):
    assert CHECK_DIGITS[check].for_text(whole[:-digits]) == whole[-digits:]


@given(st.text(ALPHABET, min_size=1, max_size=20))
def test_luhn36_is_luhn_as_it_is_written_down(payload):
    """The Luhn mod N algorithm, step by step: from the right, every second code point doubled, its digits summed."""
    total, factor = 0, 2
    for character in reversed(payload):
        addend = factor * ALPHABET.index(character)
        total += addend // 36 + addend % 36
        factor = 3 - factor
    assert CHECK_DIGITS["luhn36"].for_text(payload) == ALPHABET[-total % 36]


@pytest.mark.parametrize("check", sorted(CHECK_DIGITS))
@given(number=st.integers(0, 9_999_999), place=st.integers(0, 6), by=st.integers(1, 9))
def test_one_wrong_digit_is_always_found(check, number, place, by):
    serial = Serial(template="ACM-{n:07}-{check}", check=check, start=0)
    right = serial.serial(number)
    assert serial.number_of(right) == number
    at = 4 + place
    wrong = right[:at] + str((int(right[at]) + by) % 10) + right[at + 1 :]
    with pytest.raises(ValueError, match="wrong check digit"):
        serial.number_of(wrong)


def head(
    directory: Path, serial: str, *, quantity: int = 3, more: str = "", products: str = "[product.sensor]\n"
) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "batch.toml"
    path.write_text(f'id = "b1"\nquantity = {quantity}\n{more}[serial]\n{serial}\n{products}')
    return path


def refused(path: Path) -> list[tuple[int, str, str]]:
    with pytest.raises(InputInvalid) as caught:
        load_batch(path)
    return [(found.row, found.column, found.text) for found in caught.value.findings]


def names(batch: Batch) -> list[tuple[str, str]]:
    return [(unit.device_id, unit.serial) for unit in batch.units]


CHECKED = 'template = "ACM-{n:07}-{check}"\ncheck = "luhn36"\nstart = 41'


def test_a_range_makes_every_unit(tmp_path):
    batch = load_batch(head(tmp_path, CHECKED))
    assert names(batch) == [
        ("acm-0000041-a", "ACM-0000041-A"),
        ("acm-0000042-8", "ACM-0000042-8"),
        ("acm-0000043-6", "ACM-0000043-6"),
    ]
    assert load_batch(head(tmp_path, CHECKED)).sha256() == batch.sha256()
    assert load_batch(head(tmp_path, CHECKED.replace("41", "42"))).sha256() != batch.sha256()


def test_products_follow_each_other_as_often_as_they_say(tmp_path):
    products = "[product.gateway]\nquantity = 1\n[product.sensor]\nquantity = 2\n"
    batch = load_batch(head(tmp_path, 'template = "S{n}"\ndevice_id = "unit-{n:03}"', products=products))
    assert [(unit.device_id, unit.serial, unit.product) for unit in batch.units] == [
        ("unit-001", "S1", "gateway"),
        ("unit-002", "S2", "sensor"),
        ("unit-003", "S3", "sensor"),
    ]
    path = head(tmp_path, 'template = "S{n}"', products="[product.gateway]\n[product.sensor]\nquantity = 2\n")
    assert [found[1] for found in refused(path)] == ["product.gateway.quantity"]


def test_a_file_may_bring_the_facts_alone_or_some_serials(tmp_path):
    path = head(tmp_path, CHECKED, more='units = "units.csv"\n')
    (tmp_path / "units.csv").write_text("mac\n02:00:5e:10:00:01\n02:00:5e:10:00:02\n02:00:5e:10:00:03\n")
    made = load_batch(path)
    assert [unit.serial for unit in made.units] == ["ACM-0000041-A", "ACM-0000042-8", "ACM-0000043-6"]
    assert [unit.mac[-2:] for unit in made.units] == ["01", "02", "03"]
    (tmp_path / "units.csv").write_text("serial,device_id\nACM-0000045-2,\n,own-name\nACM-0000041-A,\n")
    assert names(load_batch(path)) == [
        ("acm-0000045-2", "ACM-0000045-2"),
        ("own-name", "ACM-0000042-8"),
        ("acm-0000041-a", "ACM-0000041-A"),
    ]


def test_serials_of_a_file_are_checked_row_by_row(tmp_path):
    path = head(tmp_path, CHECKED + "\ncount = 10", more='units = "units.csv"\n', quantity=6)
    rows = ["ACM-0000041-B", "ACM-000041-A", "XYZ-0000041-A", "ACM-0000099-L", "ACM-0000042-8", "ACM-0000042-8"]
    (tmp_path / "units.csv").write_text("serial\n" + "\n".join(rows) + "\n")
    found = {(row, column): text for row, column, text in refused(path)}
    assert "wrong check digit" in found[2, "serial"]
    assert "does not follow the template" in found[3, "serial"]
    assert "does not follow the template" in found[4, "serial"]
    assert found.keys() >= {(2, "serial"), (3, "serial"), (4, "serial"), (5, "serial"), (7, "serial"), (7, "device_id")}
    assert "already the one of row 6" in found[7, "serial"]


def test_a_number_outside_of_the_range_is_said(tmp_path):
    path = head(tmp_path, 'template = "S{n:04}"\nstart = 1\nend = 3', more='units = "units.csv"\n', quantity=1)
    (tmp_path / "units.csv").write_text("serial\nS0004\n")
    assert refused(path) == [(2, "serial", "'S0004' is outside of the range 1 to 3")]


def test_zeros_a_spreadsheet_took_away_are_missed(tmp_path):
    path = head(
        tmp_path, 'template = "{n:08}{check}"\ncheck = "iso7064-11-2"', more='units = "units.csv"\n', quantity=1
    )
    whole = Serial(template="{n:08}{check}", check="iso7064-11-2").serial(4711)
    (tmp_path / "units.csv").write_text(f"serial\n{whole.lstrip('0')}\n")
    ((row, column, text),) = refused(path)
    assert (row, column) == (2, "serial")
    assert "leading zeros" in text


@pytest.mark.parametrize(
    ("serial", "text"),
    [
        ('template = "ACM"', "holds {n}"),
        ('template = "{n}{n}"', "holds {n}"),
        ('template = "{n!r}"', "holds {n}"),
        ('template = "{n.__class__}"', "holds {n}"),
        ('template = "{n}-{check}"', "no check"),
        ('template = "{n}"\ncheck = "luhn36"', "behind every"),
        ('template = "{check}-{n}"\ncheck = "luhn36"', "behind every"),
        ('template = "{n}{check}"\ncheck = "crc32"', "luhn36"),
        ('template = "{n}"\nend = 9\ncount = 9', "not both"),
        ('template = "{n}"\nstart = 9\nend = 8', "before start"),
        ('template = "{n:02}"\nstart = 98\ncount = 3', "longer than"),
        ('template = "{n}"\nstart = 1\nend = 2', "room for 2 units, not for 3"),
        ('template = "{n}"\nstart = "1"', "integer"),
        ('template = "A {n}"', "not an identifier"),
    ],
)
def test_what_a_range_must_say(tmp_path, serial, text):
    (found,) = refused(head(tmp_path, serial))
    assert found[1].startswith("serial")
    assert text in found[2]


def test_a_file_is_neither_overlooked_nor_missed(tmp_path):
    path = head(tmp_path, CHECKED)
    (tmp_path / "units.csv").write_text("mac\n")
    assert [found[1] for found in refused(path)] == ["units"]
    (tmp_path / "units.csv").unlink()
    path = head(tmp_path, CHECKED, more='units = "units.csv"\n')
    assert any("cannot be read" in text for _, _, text in refused(path))


def test_without_a_range_ids_and_serials_are_still_required(tmp_path):
    path = tmp_path / "batch.toml"
    path.write_text('id = "b1"\nquantity = 1\n[product.sensor]\n')
    (tmp_path / "units.csv").write_text("mac\n02:00:5e:10:00:01\n")
    assert {text for _, _, text in refused(path)} == {"column 'device_id' is missing", "column 'serial' is missing"}


def test_a_batch_of_the_largest_size_is_made_and_one_more_row_is_refused(tmp_path):
    batch = load_batch(head(tmp_path, CHECKED, quantity=100_000))
    assert len({unit.serial for unit in batch.units}) == len({unit.device_id for unit in batch.units}) == 100_000
    assert [found[1] for found in refused(head(tmp_path, CHECKED, quantity=100_001))] == ["quantity"]
    path = head(tmp_path / "read", CHECKED, quantity=100_000, more='units = "units.csv"\n')
    (path.parent / "units.csv").write_text("hw_rev\n" + "A\n" * 100_001)
    assert "has more than 100000 units; make several batches" in {text for _, _, text in refused(path)}
