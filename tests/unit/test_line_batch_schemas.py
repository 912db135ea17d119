"""The published schemas say what the linter does: they are current, and both agree wherever JSON Schema can say it."""

from __future__ import annotations

import json
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from devicesim.cli import run
from devicesim.line.batch import Head
from devicesim.line.schemas import SCHEMAS
from devicesim.line.settings import Settings
from devicesim.line.template import template
from devicesim.line.units_csv import COLUMNS

ROOT = Path(__file__).parents[2]
BATCH, LINE, ROW = (jsonschema.Draft202012Validator(SCHEMAS[name]()) for name in ("batch", "line", "units"))


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_what_is_published_is_current(name, capsys):
    assert run(["line", "schema", name]) == 0
    text = capsys.readouterr().out
    assert (ROOT / "docs" / "schemas" / f"{name}.schema.json").read_text("utf-8") == text
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_every_published_schema_is_made_by_the_command():
    assert {path.name for path in (ROOT / "docs" / "schemas").iterdir()} == {f"{name}.schema.json" for name in SCHEMAS}


def linter_accepts(model: type[Head | Settings], document: dict[str, Any]) -> bool:
    try:
        model.model_validate(document)
    except ValidationError:
        return False
    return True


def as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return value.isoformat() if isinstance(value, datetime) else value


GOOD = 'id = "b1"\nquantity = 1\n[product.sensor]\n'
HEADS = [
    GOOD,
    (ROOT / "demo" / "batch.toml").read_text("utf-8"),
    'id = "b1"\nquantity = 1\nkey_type = "ML-DSA-44"\nprofile = "device"\n[product.a]\nquantity = 1\nhw_rev = " A"\n',
    'leased = true\nunits = "u.csv"\n' + GOOD + '[serial]\ntemplate = "A{n:07}-{check}"\ncheck = "luhn36"\nend = 9\n',
    GOOD + '[serial]\ntemplate = "{n}"\ndevice_id = "d-{n:03}"\nstart = 0\ncount = 1\n',
]
BAD_HEADS = [
    "quantity = 1\n[product.sensor]\n",
    'id = "b1"\nquantity = 1\n',
    'id = "b1"\nquantity = 1\n[product]\n',
    GOOD.replace("b1", "B1"),
    GOOD.replace("b1", "b1 "),
    GOOD.replace("quantity = 1", "quantity = 0"),
    GOOD.replace("quantity = 1", 'quantity = "1"'),
    GOOD.replace("quantity = 1", "quantity = true"),
    GOOD.replace("sensor", "Sensor"),
    GOOD + 'colour = "grey"\n',
    GOOD + 'key_type = "DES"\n',
    GOOD + 'key_type = "ec-p256"\n',
    GOOD + 'profile = "a/b"\n',
    'leased = "yes"\n' + GOOD,
    GOOD + '[unit.a]\nenrol = "magic"\n',
    GOOD + '[unit.a]\nenrol = "otp"\n',
    GOOD + '[unit.a]\nenrol = "station"\ncert = "x"\n',
    GOOD + '[unit.a]\nenrol = "otp"\npassword_file = "x"\nuser = "a:b"\n',
    GOOD + "[serial]\nstart = 1\n",
    GOOD + '[serial]\ntemplate = "A"\n',
    GOOD + '[serial]\ntemplate = "{n}{m}"\n',
    GOOD + '[serial]\ntemplate = "{n}{check}"\n',
    GOOD + '[serial]\ntemplate = "{n}"\ndevice_id = "{n}{check}"\n',
    GOOD + '[serial]\ntemplate = "{check}{n}"\ncheck = "luhn36"\n',
    GOOD + '[serial]\ntemplate = "{n}"\ncheck = "luhn36"\n',
    GOOD + '[serial]\ntemplate = "{n}{check}"\ncheck = "crc32"\n',
    GOOD + '[serial]\ntemplate = "{n}"\nend = 1\ncount = 1\n',
    GOOD + '[serial]\ntemplate = "{n}"\nstart = -1\n',
]


@pytest.mark.parametrize("text", HEADS)
def test_a_batch_the_linter_accepts_the_schema_accepts(text):
    document = tomllib.loads(text)
    assert linter_accepts(Head, document)
    BATCH.validate(as_json(document))


@pytest.mark.parametrize("text", BAD_HEADS)
def test_a_batch_the_linter_refuses_the_schema_refuses(text):
    document = tomllib.loads(text)
    assert not linter_accepts(Head, document)
    assert not BATCH.is_valid(as_json(document))


STATION = tomllib.loads(
    template(site="hh1", line="l2", station="s-07", est="https://est.example", trust="t", cert="c", key="k", label="",
             mqtt="mqtts://broker.example:8883")
)  # fmt: skip


@pytest.mark.parametrize(
    ("section", "key", "value", "good"),
    [
        ("clock", "floor", "2027-01-01T00:00:00Z", True),
        ("clock", "floor", "yesterday", False),
        ("est", "timeout", "90s", True),
        ("est", "timeout", "soon", False),
        ("est", "timeout", 10, False),
        ("est", "url", "http://est.example", False),
        ("est", "url", "https://u:p@est.example", False),
        ("est", "url", "https://est.example:8443/.well-known/est", True),
        ("est", "retries", 21, False),
        ("site", "slots", "4", False),
        ("site", "station", "S-07", False),
        ("mqtt", "birth", "yes", False),
        ("mqtt", "url", "mqtt://broker.example", False),
        ("key", "alg", "RSA-3072", True),
        ("key", "alg", "rsa-3072", False),
        ("ledger", "colour", "grey", False),
    ],
)
def test_a_station_is_accepted_by_both_or_by_none(section, key, value, good):
    document = {**STATION, section: {**STATION.get(section, {}), key: value}}
    read = datetime.fromisoformat(value) if key == "floor" and good else value
    assert linter_accepts(Settings, {**document, section: {**document[section], key: read}}) is good
    validator = jsonschema.Draft202012Validator(LINE.schema, format_checker=jsonschema.FormatChecker())
    if key != "floor":  # the format date-time needs a library of its own to be checked
        assert validator.is_valid(document) is good
    else:
        assert validator.is_valid(document) or not good


VALUES = st.text("aA0-_:.,'=\"{}[]E+ \t\x07é", max_size=12) | st.sampled_from(
    ["02:00:5e:10:00:01", "02-00-5E-10-00-01", "02005e100001", "0200:5e:10:00:01", "1.23E+11", "'1", '{"a": 1}', "[1]"]
)


@given(st.fixed_dictionaries({"device_id": st.just("sn-1"), "serial": st.just("A1")}, optional={}), st.data())
def test_a_row_the_linter_accepts_the_schema_accepts(row, data):
    name = data.draw(st.sampled_from(sorted(COLUMNS)))
    value = data.draw(VALUES).strip()
    try:
        accepted = not value or bool(COLUMNS[name].check(value))
    except ValueError:
        return
    assert accepted
    if value or name not in ("device_id", "serial"):
        ROW.validate({**row, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device_id", "SN-1"),
        ("device_id", ""),
        ("serial", ""),
        ("serial", "1.23E+11"),
        ("serial", "'0042"),
        ("serial", "x" * 129),
        ("serial", "a\x07"),
        ("mac", "02:00:5e:10:00"),
        ("mac", "02:00-5e:10:00:01"),
        ("se_id", "a/b"),
        ("profile", "a/b"),
        ("attrs_json", "[1]"),
        ("colour", "grey"),
    ],
)
def test_a_row_the_linter_refuses_the_schema_refuses(name, value):
    assert not ROW.is_valid({"device_id": "sn-1", "serial": "A1", name: value})
    if value and name in COLUMNS:
        with pytest.raises(ValueError):
            COLUMNS[name].check(value)


def test_a_numbered_row_may_leave_out_what_the_batch_makes():
    numbered = jsonschema.Draft202012Validator(SCHEMAS["units-numbered"]())
    numbered.validate({"serial": "", "mac": "02:00:5e:10:00:01"})
    assert not ROW.is_valid({"mac": "02:00:5e:10:00:01"})
