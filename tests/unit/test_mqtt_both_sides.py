"""What the server announces is what a subscriber verifies: two implementations of one convention."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.mqtt.collector import Collector
from devicesim.mqtt.connection import Received
from estserver.announce.cloudevent import Speaker, signed_event
from estserver.inventory import OutboxRow
from estserver.keys import FileSigner
from estserver.model import DeviceId, Event
from tests.mqtt_pki import CLIENT, Pki


@pytest.mark.parametrize(
    ("kind", "topic", "retain"),
    [
        ("org.estline.identity.current.v1", "d/acme-1/identity", True),
        ("org.estline.certificate.issued.v1", "ca/line2/evt/issued", False),
        ("org.estline.certificate.renewed.v1", "ca/line2/evt/renewed", False),
        ("org.estline.certificate.revoked.v1", "ca/line2/evt/revoked", False),
        ("org.estline.certificate.key-reused.v1", "ca/line2/evt/key-reused", False),
        ("org.estline.certificate.pending.v1", "ca/line2/evt/pending", False),
    ],
)
def test_the_servers_events_are_believed(tmp_path, now, kind, topic, retain):
    pki = Pki(tmp_path, now)
    server = pki.issue("estserver", CLIENT)
    data = {"device_id": "acme-1", "cert": {"sha256": "aa", "ca": "line2", "issuer": "CN=Ä"}, "supersedes": None}
    event = Event("01J0", "/ca/line2", kind, DeviceId("acme-1"), topic, retain=retain, at=now, data=data)
    speaker = Speaker(FileSigner(server.key), (server.certificate.public_bytes(Encoding.DER),))
    payload = signed_event(OutboxRow(7, event, 0, None), speaker)
    verdict = Collector(pki.trust).take(Received(f"est/1/{topic}", payload, retain), now)
    assert verdict.problems == ()
    assert verdict.signer == "estserver"
    assert verdict.event is not None
    assert (verdict.event.data, verdict.event.expirytime is None) == (data, retain)
