"""One battery over both brokers: the certificate decides who may say and hear what."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.errors import DeviceSimError
from devicesim.mqtt import outbox, topics
from devicesim.mqtt.access import Access
from devicesim.mqtt.announcer import Announcer, DrainResult
from devicesim.mqtt.broker import BrokerSettings, EmbeddedBroker, MosquittoBroker
from devicesim.mqtt.connection import MqttConnection, Will
from devicesim.mqtt.delivery import Delivery, Inbox
from devicesim.mqtt.events import Event, sequence_text, sign_event
from devicesim.mqtt.outbox import OutboxRow
from devicesim.mqtt.session import DeviceSession, announce_birth
from devicesim.mqtt.subscriber import Watcher
from devicesim.mqtt.topics import EventType
from devicesim.mqtt.ulid import new_ulid
from devicesim.trust import fingerprint
from tests.conftest import require_program
from tests.mqtt_pki import CLIENT, SERVER, Pki, real_now

pytestmark = pytest.mark.e2e
KINDS = {"mosquitto": MosquittoBroker, "embedded": EmbeddedBroker}


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"), real_now())


def settings_for(pki: Pki, directory) -> BrokerSettings:
    server = pki.issue("broker", SERVER).files
    names = Access(stations=("s-07",), announcers=("estserver",), readers=("registry",))
    return BrokerSettings(directory, server.certificate_path, server.key_path, server.trust_path, names)


@pytest.fixture(scope="module", params=sorted(KINDS))
def broker(request, pki, tmp_path_factory):
    if request.param == "mosquitto":
        require_program("mosquitto", "mosquitto")
    with KINDS[request.param](settings_for(pki, tmp_path_factory.mktemp(request.param) / "broker")) as running:
        yield running


def connect(broker, party, **options) -> MqttConnection:
    return MqttConnection(broker.url, party.files, **options)


def say(broker, party, topic, payload=b"{}", *, retain=False):
    """Publish one message; return why the broker refused it, or None."""
    inbox = Inbox()
    with connect(broker, party, on_message=inbox.put) as link:
        delivery = Delivery(link, [OutboxRow("x", topic, payload, retain)], inbox.take)
        delivery.run(time.monotonic() + 10)
        assert delivery.done or delivery.refused
        return delivery.refused.get("x")


@contextmanager
def ear(broker, party, topic):
    """Subscribe; yields a function that listens until a message with this payload comes, or the time is over."""
    inbox = Inbox()
    with connect(broker, party, on_message=inbox.put) as link:
        granted = link.subscribe(topic, time.monotonic() + 10)

        def hears(payload: bytes, seconds: float = 5.0) -> bool:
            deadline = time.monotonic() + seconds
            while granted and time.monotonic() < deadline:
                link.step(0.1)
                if any(message.payload == payload for message in inbox.take()):
                    return True
            return False

        yield hears


def list_of(pki: Pki, *revoked) -> bytes:
    """The revocation list of the test's CA, PEM."""
    day = timedelta(days=1)
    builder = x509.CertificateRevocationListBuilder().issuer_name(pki.root.subject)
    builder = builder.last_update(pki.at - day).next_update(pki.at + day)
    for party in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(party.certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(pki.at).build())
    return builder.sign(pki.key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_who_is_on_the_revocation_list_is_not_let_in(kind, pki, tmp_path):
    if kind == "mosquitto":
        require_program("mosquitto", "mosquitto")
    good, bad = pki.device(unique()), pki.device(unique())
    crl = tmp_path / "crl.pem"
    crl.write_bytes(list_of(pki, bad))
    settings = replace(settings_for(pki, tmp_path / "broker"), crl_path=crl)
    with KINDS[kind](settings) as running:
        assert say(running, good, f"est/1/d/{good.name}/evt/birth") is None
        with pytest.raises(DeviceSimError):
            say(running, bad, f"est/1/d/{bad.name}/evt/birth")


def unique() -> str:
    return f"dev-{time.monotonic_ns()}"


def test_a_device_speaks_on_its_own_topics(broker, pki):
    device = pki.device(unique())
    assert say(broker, device, f"est/1/d/{device.name}/evt/birth") is None
    assert (
        say(broker, device, f"est/1/d/{device.name}/presence", b'{"state":"online","session":1}', retain=True) is None
    )


@pytest.mark.parametrize(
    "topic",
    ["est/1/d/other/evt/birth", "est/1/d/{me}/identity", "est/1/s/{me}/evt/provisioned", "est/1/ca/x/evt/issued", "x"],
)
def test_a_device_speaks_nowhere_else(broker, pki, topic):
    device = pki.device(unique())
    assert say(broker, device, topic.format(me=device.name)) is not None


def test_a_station_that_was_not_named_is_refused(broker, pki):
    assert say(broker, pki.station("s-99"), "est/1/s/s-99/evt/provisioned") is not None
    assert say(broker, pki.station("s-07"), "est/1/s/s-07/evt/provisioned") is None


def test_a_denied_message_reaches_nobody(broker, pki):
    device, reader = pki.device(unique()), pki.issue("registry", CLIENT)
    forged = unique().encode()
    with ear(broker, reader, "est/1/#") as hears:
        assert say(broker, device, "est/1/d/other/evt/birth", forged) is not None
        assert say(broker, device, f"est/1/d/{device.name}/evt/birth", b"barrier") is None
        assert hears(b"barrier")
        assert not hears(forged, 0.3)


def test_only_readers_hear_everything(broker, pki):
    device, other, reader = pki.device(unique()), pki.device(unique()), pki.issue("registry", CLIENT)
    word = unique().encode()
    with ear(broker, reader, "est/1/#") as reader_hears, ear(broker, other, "est/1/#") as other_hears:
        assert say(broker, device, f"est/1/d/{device.name}/evt/birth", word) is None
        assert reader_hears(word)
        assert not other_hears(word, 0.3)


def test_nobody_takes_over_anothers_connection(broker, pki):
    """B connects under A's client id, with and without asking for A's session: A stays, and B stays B."""
    a, b = pki.device(unique()), pki.device(unique())
    with connect(broker, a) as victim:
        for session_seconds in (0, 3600):
            impostor = replace(b.files, name=a.name)
            try:
                with MqttConnection(broker.url, impostor, session_seconds=session_seconds):
                    pass
            except DeviceSimError:
                pass  # refusing is as good as renaming
            assert refused_as(broker, impostor, a.name)
        victim.step(0.1)
        assert victim.alive


def refused_as(broker, files, name) -> bool:
    inbox = Inbox()
    try:
        with MqttConnection(broker.url, files, on_message=inbox.put) as link:
            delivery = Delivery(link, [OutboxRow("x", f"est/1/d/{name}/evt/birth", b"{}", retain=False)], inbox.take)
            delivery.run(time.monotonic() + 10)
            return "x" in delivery.refused
    except DeviceSimError:
        return True


def test_a_will_cannot_say_what_its_owner_may_not(broker, pki):
    device, reader = pki.device(unique()), pki.issue("registry", CLIENT)
    with ear(broker, reader, "est/1/#") as hears:
        try:
            link = connect(broker, device, will=Will("est/1/d/other/presence", b"forged will", 0))
            link.abandon()
        except DeviceSimError:
            pass  # refused with the connection
        assert say(broker, device, f"est/1/d/{device.name}/evt/birth", b"barrier 2") is None
        assert hears(b"barrier 2")
        assert not hears(b"forged will", 1.0)


def test_a_stranger_is_told_something_useful_in_time(broker, pki, tmp_path):
    stranger = Pki(tmp_path / "other", real_now(), "Other Root").device("dev-1")
    files = replace(stranger.files, trust_path=pki.trust_path)
    with pytest.raises(DeviceSimError) as refusal:
        MqttConnection(broker.url, files, connect_seconds=5)
    assert "certificate" in refusal.value.line or "alert" in refusal.value.line


def test_an_expired_certificate_is_refused(broker, pki):
    with pytest.raises(DeviceSimError):
        connect(broker, pki.issue("dev-old", CLIENT, days=(-9, -2)), connect_seconds=5)


def test_the_broker_of_another_ca_is_not_trusted(broker, pki, tmp_path):
    device = Pki(tmp_path / "other", real_now(), "Other Root").device("dev-1")
    with pytest.raises(DeviceSimError, match="not the one to trust"):
        connect(broker, device)


def test_no_certificate_no_connection(broker, pki):
    import socket
    import ssl

    context = ssl.create_default_context(cafile=str(pki.trust_path))
    connect_v311 = bytes.fromhex("101000044d5154540402003c000464657631")
    with (
        socket.create_connection((broker.url.host, broker.url.port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        try:
            tls.sendall(connect_v311)
            assert tls.recv(16) == b""
        except OSError:
            pass  # an alert or a reset says the same


def test_presence_follows_the_connection(broker, pki):
    device, reader = pki.device(unique()), pki.issue("registry", CLIENT)
    at = real_now()
    with Watcher(broker.url, reader.files, pki.trust) as watcher:

        def becomes(state, session):
            return watcher.wait_for(
                lambda seen: (
                    (p := seen.presence.get(device.name)) is not None and (p.state, p.session) == (state, session)
                ),
                10,
            )

        with DeviceSession(device.files, broker.url, session=1, since=at):
            assert becomes("online", 1)
        assert becomes("offline", 1)
        session = DeviceSession(device.files, broker.url, session=2, since=at, will_delay_seconds=0)
        session.say("online")
        assert becomes("online", 2)
        session.abandon()
        assert becomes("lost", 2)


def event_for(kind: EventType, source: str, device: str, data: dict, number: int = 1) -> Event:
    at = real_now()
    return Event(
        id=new_ulid(at, lambda n: time.monotonic_ns().to_bytes(n, "big")),
        source=source,
        type=kind.value,
        subject=device,
        time=at,
        data={"device_id": device} | data,
        sequence=sequence_text(number),
    )


def signed_row(pki, party, event: Event, owner: str, *, retain=False) -> OutboxRow:
    payload = sign_event(event, key=party.key, certificate=party.certificate)
    return OutboxRow(event.id, topics.topic_for(EventType(event.type), owner), payload, retain)


@pytest.fixture
def box(tmp_path):
    path = tmp_path / "line.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript(outbox.SCHEMA)
    return lambda: sqlite3.connect(path)


def owe(box, *rows: OutboxRow) -> None:
    with closing(box()) as conn, conn:
        for row in rows:
            outbox.add(conn, id=row.id, topic=row.topic, payload=row.payload, retain=row.retain, at=real_now())


def test_the_loop_closes(broker, pki, box, tmp_path):
    """Station, device and server agree on one certificate, each in its own words."""
    station, server, reader = pki.station("s-07"), pki.issue("estserver", CLIENT), pki.issue("registry", CLIENT)
    device = pki.device(unique())
    cert = {"cert": {"sha256": fingerprint(device.certificate), "ca": "line2"}}
    provisioned = event_for(EventType.PROVISIONED, "/site/hh1/line/l2/station/s-07", device.name, cert)
    current = event_for(EventType.CURRENT, "/ca/line2", device.name, cert | {"supersedes": None})
    birth = event_for(EventType.BIRTH, f"/device/{device.name}", device.name, {"cert_sha256": cert["cert"]["sha256"]})
    owe(box, signed_row(pki, station, provisioned, "s-07"))
    with Watcher(broker.url, reader.files, pki.trust) as watcher:
        with Announcer(box, broker.url, station.files) as announcer:
            assert announcer.drain(10).pending == 0
        assert not watcher.matched(device.name).ok
        assert announce_birth(device.files, broker.url, session=1, event=birth).done
        identity = signed_row(pki, server, current, device.name, retain=True)
        assert say(broker, server, identity.topic, identity.payload, retain=True) is None
        assert watcher.wait([device.name], 10), watcher.matched(device.name).problems
        assert watcher.report().ok, watcher.report()
    with Watcher(broker.url, reader.files, pki.trust) as late:  # the retained identity is there for who comes later
        assert late.wait_for(lambda seen: seen.latest(EventType.CURRENT, device.name) is not None, 10)


def test_a_full_outbox_drains_in_order_and_once(broker, pki, box):
    station, reader = pki.station("s-07"), pki.issue("registry", CLIENT)
    rows = [
        signed_row(
            pki,
            station,
            event_for(EventType.PROVISIONED, "/site/hh1/line/l2/station/s-07", f"d-{number}", {}, number),
            "s-07",
        )
        for number in range(1000, 1300)
    ]
    owe(box, *rows)
    ids = {row.id for row in rows}
    heard: list[str] = []

    def note(verdict) -> None:
        if verdict.event is not None and verdict.event.id in ids and verdict.ok and not verdict.duplicate:
            heard.append(verdict.event.id)

    with (
        Watcher(broker.url, reader.files, pki.trust, on_verdict=note) as watcher,
        Announcer(box, broker.url, station.files, window=20) as announcer,
    ):
        assert announcer.drain(30) == DrainResult(sent=300, pending=0)
        assert announcer.drain(1) == DrainResult(sent=0, pending=0)
        assert watcher.wait_for(lambda seen: ids <= {event_id for _, event_id in seen.seen}, 20)
        assert watcher.report().gaps == {}
    assert sorted(heard) == sorted(ids)


def test_a_broker_that_is_down_costs_nothing(pki, box, tmp_path):
    """Everything stays owed, under its own id, and goes out when the broker is back; its retained words survive."""
    station, reader = pki.station("s-07"), pki.issue("registry", CLIENT)
    require_program("mosquitto", "mosquitto")
    broker = MosquittoBroker(settings_for(pki, tmp_path / "broker"))
    event = event_for(EventType.PROVISIONED, "/site/hh1/line/l2/station/s-07", "d-1", {})
    owe(box, signed_row(pki, station, event, "s-07"))
    with Announcer(box, broker.url, station.files) as announcer:
        down = announcer.drain(3)
        assert (down.sent, down.pending) == (0, 1)
        assert down.reason is not None
        assert "cannot reach the broker" in down.reason
        with broker:
            assert say(broker, station, "est/1/s/s-07/presence", b"stays", retain=True) is None
            assert announcer.drain(10) == DrainResult(sent=1, pending=0)
        later = event_for(EventType.PROVISIONED, "/site/hh1/line/l2/station/s-07", "d-2", {}, 2)
        owe(box, signed_row(pki, station, later, "s-07"))
        assert announcer.drain(3).pending == 1  # the kept connection is noticed to be dead
        with broker, ear(broker, reader, "est/1/s/s-07/#") as hears:
            assert hears(b"stays")
            assert announcer.drain(10) == DrainResult(sent=1, pending=0)


def test_a_watcher_comes_back_with_its_broker(pki, tmp_path):
    require_program("mosquitto", "mosquitto")
    broker = MosquittoBroker(settings_for(pki, tmp_path / "broker"))
    device, reader = pki.device(unique()), pki.issue("registry", CLIENT)
    with broker:
        watcher = Watcher(broker.url, reader.files, pki.trust)
        watcher.start()
    try:
        with broker:
            presence = f"est/1/d/{device.name}/presence"
            assert say(broker, device, presence, b'{"state":"online","session":1}', retain=True) is None
            assert watcher.wait_for(lambda seen: device.name in seen.presence, 15)
    finally:
        watcher.close()


def test_a_denied_event_stays_owed_and_stops_nothing(broker, pki, box):
    stranger = pki.station("s-99")
    event = event_for(EventType.PROVISIONED, "/site/hh1/line/l2/station/s-99", "d-1", {})
    fine = OutboxRow("fine", "est/1/d/s-99/evt/birth", b"{}", retain=False)
    owe(box, signed_row(pki, stranger, event, "s-99"), fine)
    with Announcer(box, broker.url, stranger.files) as announcer:
        result = announcer.drain(10)
    assert (result.sent, result.pending) == (1, 1)
    assert result.reason is not None
    assert "est/1/s/s-99/evt/provisioned" in result.reason
    with closing(box()) as conn:
        [row] = outbox.pending(conn, 10)
    assert (row.id, row.tries) == (event.id, 1)


def test_what_a_watcher_may_not_read_it_is_told(broker, pki):
    if broker.kind == "mosquitto":  # grants any subscription and delivers nothing: see the test of readers
        return
    with pytest.raises(DeviceSimError, match="denies"), Watcher(broker.url, pki.device(unique()).files, pki.trust):
        pass


def test_messages_carry_their_type_for_the_broker_to_route(broker, pki):
    if broker.kind != "mosquitto":  # MQTT 3.1.1 has no properties
        return
    import paho.mqtt.client as paho

    device, reader = pki.device(unique()), pki.issue("registry", CLIENT)
    seen: list[paho.MQTTMessage] = []
    with connect(broker, reader) as link:
        link._client.on_message = lambda _c, _u, message: seen.append(message)
        assert link.subscribe(f"est/1/d/{device.name}/evt/birth", time.monotonic() + 5)
        event = event_for(EventType.BIRTH, f"/device/{device.name}", device.name, {})
        assert announce_birth(device.files, broker.url, session=1, event=event).done
        link.wait(lambda: bool(seen), time.monotonic() + 5, "to deliver")
    properties = seen[0].properties
    assert properties.ContentType == "application/cloudevents+json; charset=utf-8"
    assert ("type", EventType.BIRTH.value) in properties.UserProperty
    assert ("id", event.id) in properties.UserProperty
    assert 0 < properties.MessageExpiryInterval <= 7 * 24 * 3600
    assert json.loads(seen[0].payload)["id"] == event.id
