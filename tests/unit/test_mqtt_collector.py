"""What a subscriber believes: who may say what, where, and what three speakers say together."""

from __future__ import annotations

from datetime import timedelta

import pytest

from devicesim.mqtt.access import Access
from devicesim.mqtt.collector import Collector
from devicesim.mqtt.connection import BrokerUrl, Received
from devicesim.mqtt.events import Event, sequence_text, sign_event
from devicesim.mqtt.topics import EventType, topic_for
from devicesim.trust import fingerprint
from tests.mqtt_pki import CLIENT, Pki

STATION = "/site/hh1/line/l2/station/s-07"


class Scene:
    """A station, a device and a server that speak to one collector."""

    def __init__(self, directory, now) -> None:
        self.now = now
        self.pki = Pki(directory, now)
        self.station, self.device = self.pki.station(), self.pki.device("dev-1")
        self.server = self.pki.issue("estserver", CLIENT)
        self.collector = Collector(self.pki.trust)
        self.cert = fingerprint(self.device.certificate)

    def provisioned(self, **changes):
        return self.event(EventType.PROVISIONED, STATION, {"cert": {"sha256": self.cert}}, **changes)

    def birth(self, **changes):
        return self.event(EventType.BIRTH, "/device/dev-1", {"cert_sha256": self.cert}, **changes)

    def current(self, **changes):
        return self.event(EventType.CURRENT, "/ca/line2", {"cert": {"sha256": self.cert, "ca": "line2"}}, **changes)

    def event(self, kind, said_by, about, **changes) -> Event:
        fields = {
            "id": f"{kind.name}-1",
            "source": said_by,
            "type": kind.value,
            "subject": "dev-1",
            "time": self.now,
            "data": {"device_id": "dev-1"} | about,
        }
        return Event(**(fields | changes))

    def hear(self, event, party, topic=None, *, retained=False):
        owner = {"s": "s-07", "d": "dev-1", "ca": "line2"}
        kind = EventType(event.type)
        place = topic or topic_for(kind, owner[topic_for(kind, "x").split("/")[2]])
        payload = sign_event(event, key=party.key, certificate=party.certificate)
        return self.collector.take(Received(place, payload, retained), self.now)

    def all_three(self):
        self.hear(self.provisioned(), self.station)
        self.hear(self.birth(), self.device)
        return self.hear(self.current(), self.server)


@pytest.fixture
def scene(tmp_path, now) -> Scene:
    return Scene(tmp_path / "pki", now)


def test_three_that_agree_close_the_loop(scene):
    assert scene.all_three().ok
    assert scene.collector.matched("dev-1").ok
    assert scene.collector.report().ok


def test_what_is_missing_is_said(scene):
    scene.hear(scene.provisioned(), scene.station)
    problems = scene.collector.matched("dev-1").problems
    assert problems == (
        "the device has not announced its birth",
        "the server has not announced its current identity",
    )


def test_every_disagreement_is_named(scene):
    scene.hear(scene.provisioned(data={"device_id": "dev-1", "cert": {"sha256": "aa"}}), scene.station)
    scene.hear(scene.birth(), scene.device)
    scene.hear(scene.current(data={"device_id": "dev-1", "cert": {"sha256": "bb"}}), scene.server)
    problems = scene.collector.matched("dev-1").problems
    assert len(problems) == 2
    assert "aa" in " ".join(problems)
    assert "bb" in " ".join(problems)


def test_a_renewed_device_still_matches(scene):
    scene.all_three()
    renewed = scene.pki.device("dev-1")
    sha = fingerprint(renewed.certificate)
    later = scene.now + timedelta(seconds=1)
    scene.hear(
        scene.current(id="c-2", time=later, data={"device_id": "dev-1", "cert": {"sha256": sha}, "supersedes": None}),
        scene.server,
    )
    assert not scene.collector.matched("dev-1").ok
    scene.hear(scene.birth(id="b-2", time=later, data={"device_id": "dev-1", "cert_sha256": sha}), renewed)
    assert scene.collector.matched("dev-1").ok


@pytest.mark.parametrize(
    ("make", "by", "topic", "words"),
    [
        ("provisioned", "device", None, "not by the station s-07"),
        ("provisioned", "plain_station", None, "no id-kp-cmcRA"),
        ("provisioned", "other_station", None, "signed by s-08"),
        ("provisioned", "station", "est/1/s/s-08/evt/provisioned", "the topic is of s-08"),
        ("provisioned", "station", "est/1/s/s-07/evt/failed", "does not belong"),
        ("birth", "station", None, "not by the device dev-1"),
        ("birth", "same_name", None, "another certificate than the one that signed"),
        ("birth", "device", "est/1/d/dev-2/evt/birth", "the topic is of dev-2"),
        ("current", "station", None, "not by the announcer estserver"),
        ("current", "server", "est/1/d/dev-2/identity", "the topic is of dev-2"),
        ("foreign_ca", "server", None, "its certificate of the CA other"),
        ("other_device", "station", None, "its data about dev-2"),
        ("no_station", "station", None, "does not name a station"),
        ("stale", "station", None, "expired"),
        ("early", "station", None, "from the future"),
        ("unknown", "station", "est/1/s/s-07/evt/provisioned", "not one of ours"),
    ],
)
def test_who_may_not_say_what(scene, make, by, topic, words):
    pki, now = scene.pki, scene.now
    parties = {
        "station": scene.station,
        "device": scene.device,
        "server": scene.server,
        "plain_station": pki.issue("s-07", CLIENT),
        "other_station": pki.station("s-08"),
        "same_name": pki.device("dev-1"),
    }
    events = {
        "provisioned": scene.provisioned(),
        "birth": scene.birth(),
        "current": scene.current(),
        "foreign_ca": scene.current(data={"device_id": "dev-1", "cert": {"sha256": scene.cert, "ca": "other"}}),
        "other_device": scene.provisioned(data={"device_id": "dev-2"}),
        "no_station": scene.provisioned(source="/device/dev-1"),
        "stale": scene.provisioned(time=now - timedelta(days=8), expirytime=now),
        "early": scene.provisioned(time=now + timedelta(hours=1)),
    }
    if make == "unknown":
        event = scene.provisioned(type="org.example.other")
        payload = sign_event(event, key=scene.station.key, certificate=scene.station.certificate)
        verdict = scene.collector.take(Received(topic, payload, retained=False), now)
    else:
        verdict = scene.hear(events[make], parties[by], topic)
    assert not verdict.ok
    assert words in "; ".join(verdict.problems)
    report = scene.collector.report()
    assert (report.refused_count, report.events, report.ok) == (1, 0, False)


def test_a_repeat_is_known_and_a_second_event_under_one_id_refused(scene):
    assert not scene.hear(scene.provisioned(), scene.station).duplicate
    assert scene.hear(scene.provisioned(), scene.station).duplicate  # signed again: other bytes, same event
    verdict = scene.hear(scene.provisioned(data={"device_id": "dev-1", "cert": {"sha256": "cc"}}), scene.station)
    assert verdict.problems == ("another event was announced under the same id",)
    assert scene.collector.report().duplicates == 1


def test_gaps_are_seen_and_late_events_close_them(scene):
    def say(number, *, retained=False):
        event = scene.provisioned(id=f"p-{number}", sequence=sequence_text(number))
        scene.hear(event, scene.station, retained=retained)

    say(1, retained=True)  # retained: no gap is read from it
    for number in (4, 5, 8):
        say(number)
    assert scene.collector.report().gaps == {STATION: (6, 7)}
    say(6)
    say(7)
    assert scene.collector.report().gaps == {}


def test_an_older_identity_does_not_replace_a_newer_one(scene):
    scene.all_three()
    old = scene.current(id="c-0", time=scene.now - timedelta(days=1), data={"device_id": "dev-1", "cert": {}})
    scene.hear(old, scene.server)
    assert scene.collector.matched("dev-1").ok


def test_a_revoked_device_is_not_a_match(scene):
    scene.all_three()
    data = {"device_id": "dev-1", "cert": {"sha256": scene.cert, "ca": "line2"}, "revoked": {"reason": "keyCompromise"}}
    scene.hear(scene.current(id="c-2", time=scene.now + timedelta(seconds=1), data=data), scene.server)
    assert scene.collector.matched("dev-1").problems == ("the server has revoked its current certificate",)


def test_who_listens_only_after_a_renewal_still_sees_a_match(scene):
    made = {"device_id": "dev-1", "cert": {"sha256": "aa", "serial": "4f"}}
    now = {"device_id": "dev-1", "cert": {"sha256": scene.cert}, "supersedes": "4f"}
    scene.hear(scene.provisioned(data=made), scene.station)
    scene.hear(scene.birth(), scene.device)
    scene.hear(scene.current(data=now), scene.server)
    assert scene.collector.matched("dev-1").ok


def test_a_late_will_of_an_older_connection_says_nothing(scene):
    for state, session in (("online", 2), ("lost", 1)):
        payload = f'{{"state":"{state}","session":{session}}}'.encode()
        scene.collector.take(Received("est/1/d/dev-1/presence", payload, retained=True), scene.now)
    assert scene.collector.presence["dev-1"].state == "online"


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b'{"state":"x","session":"y"}', b"\xff"])
@pytest.mark.parametrize("topic", ["est/1/d/dev-1/presence", "est/1/d/dev-1/evt/birth", "acme/1/d/dev-1/evt/birth"])
def test_junk_is_refused_without_a_fuss(scene, topic, payload):
    assert not scene.collector.take(Received(topic, payload, retained=False), scene.now).ok


def test_a_cleared_identity_is_no_identity(scene):
    scene.all_three()
    scene.collector.take(Received("est/1/d/dev-1/identity", b"", retained=False), scene.now)
    assert not scene.collector.matched("dev-1").ok


ACCESS = Access(stations=("s-07",), announcers=("estserver",), readers=("registry",))


@pytest.mark.parametrize(
    ("name", "action", "topic", "allowed"),
    [
        ("dev-1", "write", "est/1/d/dev-1/evt/birth", True),
        ("dev-1", "write", "est/1/d/dev-1/evt/a/b", False),
        ("dev-1", "write", "est/1/d/dev-2/evt/birth", False),
        ("dev-1", "write", "est/1/d/dev-1/identity", False),
        ("dev-1", "read", "est/1/d/dev-1/identity", True),
        ("dev-1", "read", "est/1/d/+/identity", False),
        ("dev-1", "read", "est/1/#", False),
        ("dev-1", "read", "est/1/d/dev-1/#", False),
        ("dev-1", "write", "est/1/s/dev-1/evt/provisioned", False),
        ("s-07", "write", "est/1/s/s-07/evt/provisioned", True),
        ("s-07", "write", "est/1/s/s-08/evt/provisioned", False),
        ("s-08", "write", "est/1/s/s-08/evt/provisioned", False),
        ("estserver", "write", "est/1/d/any/identity", True),
        ("estserver", "write", "est/1/ca/line2/evt/issued", True),
        ("estserver", "read", "est/1/#", False),
        ("registry", "read", "est/1/#", True),
        ("registry", "read", "#", False),
        ("registry", "write", "est/1/d/dev-1/evt/birth", False),
    ],
)
def test_the_table_of_access(name, action, topic, allowed):
    assert ACCESS.allows(name, action, topic) is allowed


def test_mosquittos_acl_names_stations_one_by_one():
    acl = ACCESS.mosquitto_acl()
    assert "pattern readwrite est/1/d/%u/evt/+" in acl
    assert "user s-07\ntopic readwrite est/1/s/s-07/evt/+\n" in acl
    assert "pattern readwrite est/1/s" not in acl
    with pytest.raises(ValueError, match="identifier"):
        Access(stations=("s-07\ntopic #",))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("mqtts://localhost", "localhost", 8883), ("mqtts://[::1]:1", "::1", 1), ("mqtts://10.0.0.1:9/", "10.0.0.1", 9)],
)
def test_broker_addresses(text, host, port):
    assert BrokerUrl.parse(text) == BrokerUrl(host, port)
    assert BrokerUrl.parse(str(BrokerUrl.parse(text))) == BrokerUrl(host, port)
