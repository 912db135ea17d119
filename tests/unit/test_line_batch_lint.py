"""What a spreadsheet does to a list of units is named for what it is; warnings refuse nothing."""

from __future__ import annotations

import json

import pytest

from devicesim.cli import run
from devicesim.line.batch import load_batch
from devicesim.line.findings import InputInvalid
from tests.line_support import write_files


def errors(path) -> dict[tuple[int, str], str]:
    with pytest.raises(InputInvalid) as caught:
        load_batch(path)
    return {(found.row, found.column): found.text for found in caught.value.findings if found.severity == "error"}


def test_what_a_spreadsheet_made_of_a_number(tmp_path):
    rows = [
        "sn-1,1.23E+11,,,\n",
        "sn-2,'0042,,,\n",
        'sn-3,"=""0042""",,,\n',
        'sn-4,"1,5E-3",,,\n',
        "sn-5,ok,,,1.2E+17\n",
    ]
    found = errors(write_files(tmp_path, rows))
    assert found.keys() == {(2, "serial"), (3, "serial"), (4, "serial"), (5, "serial"), (6, "se_id")}
    assert all("spreadsheet" in text for text in found.values())


@pytest.mark.parametrize("serial", ["12E34", "1E5", "SN'4", "E+5", "A=1"])
def test_a_serial_that_only_looks_odd_is_a_serial(tmp_path, serial):
    assert load_batch(write_files(tmp_path, [f"sn-1,{serial},,,\n"])).units[0].serial == serial


def test_another_separator_and_another_encoding_are_named(tmp_path):
    path = write_files(tmp_path, ["sn-1,A1,sensor,,\n"])
    csv = tmp_path / "units.csv"
    text = csv.read_text()
    csv.write_text(text.replace(",", ";"))
    assert "semicolons" in errors(path)[1, ""]
    csv.write_text(text, encoding="utf-16")
    assert "UTF-16" in errors(path)[1, ""]
    csv.write_text(text, encoding="utf-8-sig")
    assert load_batch(path).warnings == ()


def test_spaces_are_passed_over_and_said_once(tmp_path):
    batch = load_batch(write_files(tmp_path, ["sn-1,A1 ,sensor,,\n", " sn-2,A2,sensor,,\n", "sn-3,A3,sensor,,\n"]))
    assert [unit.serial for unit in batch.units] == ["A1", "A2", "A3"]
    (warning,) = batch.warnings
    assert (warning.row, warning.column, warning.severity) == (2, "serial", "warning")
    assert "1 more" in warning.text


def test_digits_of_unequal_length_are_worth_a_look(tmp_path):
    (warning,) = load_batch(write_files(tmp_path, ["sn-1,0117,,,\n", "sn-2,42,,,\n"])).warnings
    assert (warning.row, warning.column) == (3, "serial")
    assert "leading zeros" in warning.text
    assert load_batch(write_files(tmp_path, ["sn-1,A117,,,\n", "sn-2,42,,,\n"])).warnings == ()


def test_blanks_in_the_head_are_not_guessed_away(tmp_path):
    path = write_files(tmp_path, ["sn-1,A1,sensor,,\n"])
    path.write_text(path.read_text().replace('"b1"', '"b1 "').replace("quantity = 1", 'quantity = "1"'))
    assert errors(path).keys() == {(0, "id"), (0, "quantity")}


def test_the_command_tells_warnings_from_errors(tmp_path, capsys):
    path = write_files(tmp_path, ["sn-1,A1 ,sensor,,\n"])
    assert run(["line", "check", str(path)]) == 0
    told = capsys.readouterr()
    assert "1 warnings" in told.out
    assert "units.csv:2: serial: warning: " in told.err
    assert run(["line", "check", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["valid"]
    assert [finding["severity"] for finding in told["findings"]] == ["warning"]

    path = write_files(tmp_path, ["sn-1,A1 ,sensor,,\n", "SN,A2,sensor,,\n"])
    assert run(["line", "check", str(path), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert not told["valid"]
    assert {(f["row"], f["column"], f["severity"]) for f in told["findings"]} == {
        (2, "serial", "warning"),
        (3, "device_id", "error"),
    }
    assert run(["line", "check", str(path)]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path / 'units.csv'}:3: device_id:")
