"""`line.toml`: relative to its folder, nothing unknown, every problem at once; `line init` writes one that is read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from devicesim.line.crew import Act
from devicesim.line.findings import InputInvalid
from devicesim.line.settings import BUILD_FLOOR, load_settings, template
from devicesim.line.states import State
from devicesim.line.station import Station
from tests.mqtt_pki import Pki

MADE = {
    "site": "hh1",
    "line": "l2",
    "station": "s-07",
    "est": "https://est.example:8443/.well-known/est",
    "trust": "root.pem",
    "cert": 'odd "name\\.pem',
    "key": "s-07.key",
    "label": "device",
}


def test_what_init_writes_is_read(tmp_path):
    path = tmp_path / "line.toml"
    path.write_text(template(**MADE, mqtt="mqtts://broker.example:8883"))
    settings = load_settings(path)
    assert settings.site.station == "s-07"
    assert settings.est.cert == tmp_path / 'odd "name\\.pem'
    assert settings.ledger.path == tmp_path / "line.db"
    assert settings.clock.floor == BUILD_FLOOR
    assert settings.clock.max_skew == timedelta(minutes=5)
    assert settings.mqtt is not None
    assert settings.mqtt.birth
    path.write_text(template(**MADE, mqtt=None))
    assert load_settings(path).mqtt is None


def test_every_problem_at_once(tmp_path):
    path = tmp_path / "line.toml"
    path.write_text(
        '[site]\nid = "HH"\nline = "l"\nslots = 0\ncolour = 1\n'
        '[est]\nurl = "http://x"\ntrust = "t"\ncert = "c"\nkey = "k"\ntimeout = "soon"\n'
        '[clock]\nfloor = "yesterday"\n[mqtt]\nurl = "mqtts://u:secret@x"\n'
    )
    with pytest.raises(InputInvalid) as caught:
        load_settings(path)
    assert {found.column for found in caught.value.findings} == {
        "site.id",
        "site.station",
        "site.slots",
        "site.colour",
        "est.url",
        "est.timeout",
        "clock.floor",
        "mqtt.url",
    }
    assert "secret" not in "".join(map(str, caught.value.findings))


def test_a_floor_never_goes_below_that_of_the_build(tmp_path):
    path = tmp_path / "line.toml"
    path.write_text(template(**MADE, mqtt=None).replace('"build"', "2020-01-01T00:00:00Z", 1))
    assert load_settings(path).clock.floor == BUILD_FLOOR
    path.write_text(template(**MADE, mqtt=None).replace('"build"', "2031-01-01T00:00:00Z", 1))
    assert load_settings(path).clock.floor == datetime(2031, 1, 1, tzinfo=UTC)


def test_a_station_needs_files_that_belong_together(tmp_path, now):
    pki = Pki(tmp_path, now)
    one, other = pki.station("s-07"), pki.station("s-08")
    path = tmp_path / "line.toml"
    names = {"trust": "trust.pem", "cert": one.files.certificate_path.name, "key": one.files.key_path.name}
    path.write_text(template(**{**MADE, **names}, mqtt=None))
    assert Station.load(load_settings(path), file=path).identity.certificates == (one.certificate,)

    def problems() -> str:
        with pytest.raises(InputInvalid) as caught:
            Station.load(load_settings(path), file=path)
        return "\n".join(map(str, caught.value.findings))

    path.write_text(template(**{**MADE, **names, "key": other.files.key_path.name, "trust": "none.pem"}, mqtt=None))
    assert "est.trust: cannot read" in problems()
    assert "is not the key of" in problems()
    path.write_text(template(**{**MADE, **names, "station": "s-08"}, mqtt=None))
    assert "names 's-07', but site.station is 's-08'" in problems()
    path.write_text(template(**{**MADE, **names}, mqtt=None))
    one.files.key_path.chmod(0o640)
    assert "chmod 600" in problems()


def test_people_and_shifts_are_read_and_every_mistake_in_them_is_named(tmp_path):
    path = tmp_path / "line.toml"
    text = template(**MADE, mqtt=None)
    more = 'timezone = "Europe/Berlin"\nshifts = { early = "06:00", night = "22:00" }\n[est]'
    people = '\n[operators]\n"op-1" = ["operate", "rework"]\n[rework]\nold_certificate = "revoke"\n'
    path.write_text(text.replace("[est]", more, 1) + people)
    settings = load_settings(path)
    assert settings.site.calendar().at(datetime(2027, 7, 1, 3, 59, tzinfo=UTC)) == "night"
    assert settings.site.calendar().at(datetime(2027, 7, 1, 4, 0, tzinfo=UTC)) == "early"
    settings.crew().admit(Act.RUN, "op-1")
    assert settings.rework.old_certificate == "revoke"

    wrong = 'timezone = "Europe/Nowhere"\nshifts = { early = "6", late = "25:00" }\n[est]'
    people = '\n[operators]\n"OP 1" = ["king"]\n[rework]\nold_certificate = "forget"\n'
    path.write_text(text.replace("[est]", wrong, 1) + people)
    with pytest.raises(InputInvalid) as caught:
        load_settings(path)
    named = {found.column.split(".")[0] + "." + found.column.split(".")[1] for found in caught.value.findings}
    assert named == {"site.timezone", "site.shifts", "operators.OP 1", "rework.old_certificate"}


def test_labels_are_a_step_of_the_way_and_their_paths_are_beside_the_file(tmp_path):
    path = tmp_path / "line.toml"
    text = template(**MADE, mqtt=None)
    path.write_text(text)
    assert State.LABELLED not in load_settings(path).way().states
    path.write_text(text + '[label]\nprinter = "file:labels"\ntemplate = "gw2.label"\ndpi = 300\n')
    settings = load_settings(path)
    assert settings.label is not None
    assert (settings.label.printer, settings.label.template) == (f"file:{tmp_path}/labels", tmp_path / "gw2.label")
    assert settings.label.scan_back
    assert settings.way().after(State.VERIFIED) is State.LABELLED
    path.write_text(text + '[label]\nprinter = ["lp", "-o", "raw"]\n')
    label = load_settings(path).label
    assert label is not None
    assert label.printer == ("lp", "-o", "raw")


@pytest.mark.parametrize(
    "printer", ['"lp"', "[]", '["lp", 1]', '["lp", ""]', "3", '"tcp://h:99999"', '"tcp://u:p@h:1"']
)
def test_a_printer_that_is_none_is_one_finding(tmp_path, printer):
    path = tmp_path / "line.toml"
    path.write_text(template(**MADE, mqtt=None) + f"[label]\nprinter = {printer}\n")
    with pytest.raises(InputInvalid) as caught:
        load_settings(path)
    (finding,) = caught.value.findings
    assert finding.column == "label.printer"
    assert finding.text.startswith('is "tcp://HOST:PORT"')
