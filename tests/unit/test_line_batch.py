"""A batch is read whole, or refused with every problem and its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicesim.line.batch import ByIdevid, ByOneTimePassword, ByStation, load_batch
from devicesim.line.findings import InputInvalid
from tests.line_support import HEADER, write_files

DEMO = Path(__file__).parents[2] / "demo" / "batch.toml"


def places(path: Path) -> set[tuple[str, int, str]]:
    with pytest.raises(InputInvalid) as caught:
        load_batch(path)
    assert caught.value.exit_code == 3
    return {(Path(found.file).name, found.row, found.column) for found in caught.value.findings}


def texts(path: Path) -> str:
    with pytest.raises(InputInvalid) as caught:
        load_batch(path)
    return "\n".join(map(str, caught.value.findings))


def test_the_demo_batch_is_well_formed():
    batch = load_batch(DEMO)
    assert len(batch.units) == 25
    assert sum(isinstance(unit.enrol_by, ByStation) for unit in batch.units) == 23
    assert {unit.label for unit in batch.units} == {"device", "gateway"}
    by = {unit.device_id: unit.enrol_by for unit in batch.units}
    assert by["gw-0007"] == ByOneTimePassword("gw-0007", DEMO.parent / "secrets/gw-0007.password")
    assert isinstance(by["gw-0008"], ByIdevid)


def test_a_batch_is_the_same_however_it_is_written(tmp_path):
    plain = load_batch(write_files(tmp_path / "a", ["sn-1,A1,sensor,02-00-5E-10-00-01,\n"]))
    other = write_files(tmp_path / "b", ['sn-1,"A1",,02:00:5e:10:00:01,\n'])
    csv = other.parent / "units.csv"
    csv.write_bytes(b"\xef\xbb\xbf" + csv.read_bytes().replace(b"\n", b"\r\n"))
    assert load_batch(other).sha256() == plain.sha256()


def test_every_problem_is_reported_at_once_with_its_place(tmp_path):
    path = write_files(
        tmp_path,
        [
            "sn-1,A1,sensor,02:00:5e:10:00:01,\n",
            "SN_2,A2,sensor,,\n",
            "sn-3,A1,sensor,0200.5e10,\n",
            "sn-4,,pump,,\n",
            "sn-1,A5,sensor,02005e100001,se/9\n",
            "sn-6,A6\n",
        ],
    )
    assert places(path) == {
        ("units.csv", 3, "device_id"),
        ("units.csv", 4, "mac"),
        ("units.csv", 4, "serial"),
        ("units.csv", 5, "serial"),
        ("units.csv", 5, "model"),
        ("units.csv", 6, "device_id"),
        ("units.csv", 6, "mac"),
        ("units.csv", 6, "se_id"),
        ("units.csv", 7, ""),
    }


def test_problems_of_both_files_come_together(tmp_path):
    path = write_files(tmp_path, ["SN,A1,sensor,,\n"], more='colour = "grey"\n')
    assert places(path) == {("batch.toml", 0, "product.sensor.colour"), ("units.csv", 2, "device_id")}


@pytest.mark.parametrize(
    ("head", "column", "text"),
    [
        ('id = "b1"\nquantity = 2\n[product.sensor]\n', "quantity", "is 2, but units.csv has 1"),
        ('id = "b1"\nquantity = 1\n[product.sensor]\nquantity = 3\n', "product.sensor.quantity", "is 3"),
        ('id = "B 1"\nquantity = 1\n[product.sensor]\n', "id", "not an identifier"),
        ("quantity = 1\n[product.sensor]\n", "id", "is required"),
        ('id = "b1"\nquantity = 1\n', "product", "is required"),
        (
            'id = "b1"\nquantity = 1\n[product.sensor]\nkey_type = "DES"\n',
            "product.sensor.key_type",
            "unknown key type",
        ),
        ('id = "b1"\nquantity = 1\n[product.sensor]\n[unit."sn-9"]\nenrol = "station"\n', "unit.sn-9", "no unit"),
        (
            'id = "b1"\nquantity = 1\n[product.sensor]\n[unit."sn-1"]\nenrol = "otp"\n',
            "unit.sn-1.otp.password_file",
            "is req",
        ),
        ('id = "b1"\nquantity = 1\n[product.sensor]\n[unit."sn-1"]\nenrol = "magic"\n', "unit.sn-1", "magic"),
    ],
)
def test_what_the_head_must_say(tmp_path, head, column, text):
    path = write_files(tmp_path, ["sn-1,A1,sensor,,\n"])
    path.write_text(head)
    with pytest.raises(InputInvalid) as caught:
        load_batch(path)
    (found,) = caught.value.findings
    assert found.column == column
    assert text in found.text


def test_a_password_does_not_belong_into_the_manifest(tmp_path):
    path = write_files(tmp_path, ["sn-1,A1,hunter2\n"], header="device_id,serial,otp")
    assert "otp_file" in texts(path)
    assert "hunter2" not in texts(path)


def test_columns_are_known_and_stand_once(tmp_path):
    path = write_files(tmp_path, ["sn-1,x,y,A1\n"], header="device_id,colour,mac,mac")
    found = texts(path)
    assert "unknown column 'colour'" in found
    assert "'mac' stands twice" in found
    assert "'serial' is missing" in found


@pytest.mark.parametrize(
    ("octets", "row", "text"),
    [
        (HEADER.encode() + b"\nsn-1,\xff,sensor,,\n", 2, "not UTF-8"),
        (HEADER.encode() + b'\nsn-1,"A1,sensor,,\n', 2, "not CSV"),
        (b"", 1, "no header"),
        (HEADER.encode() + b"\nsn-1,A\x07,sensor,,\n", 2, "printable"),
        (HEADER.encode() + b"\nsn-1," + b"A" * 129 + b",sensor,,\n", 2, "at most 128"),
    ],
)
def test_what_is_not_a_units_file(tmp_path, octets, row, text):
    path = write_files(tmp_path, ["sn-1,A1,sensor,,\n"])
    (tmp_path / "units.csv").write_bytes(octets)
    with pytest.raises(InputInvalid) as caught:
        load_batch(path)
    assert any(found.row == row and text in found.text for found in caught.value.findings)


def test_attributes_are_a_json_object(tmp_path):
    rows = ['sn-1,A1,"{""b"": 1, ""a"": [2]}"\n', "sn-2,A2,[1]\n", "sn-3,A3,{\n"]
    path = write_files(tmp_path, rows, header="device_id,serial,attrs_json")
    assert places(path) == {("units.csv", 3, "attrs_json"), ("units.csv", 4, "attrs_json")}
    good = load_batch(write_files(tmp_path / "good", rows[:1], header="device_id,serial,attrs_json"))
    assert good.units[0].attrs_json == '{"a":[2],"b":1}'


def test_a_syntax_error_and_a_missing_file_are_findings(tmp_path):
    path = write_files(tmp_path, ["sn-1,A1,sensor,,\n"])
    (tmp_path / "units.csv").unlink()
    assert places(path) >= {("units.csv", 0, "")}
    path.write_text('id = "b1"\nquantity = = 1\n')
    assert places(path) == {("batch.toml", 2, "")}
