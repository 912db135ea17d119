"""One connection to the broker, and the proof that what was published arrived.

Rules:
- Mutual TLS with a certificate of this CA; the client id is the announcer's name.
- MQTT 5 first: there a publish is done when the broker's answer has a reason code below 0x80.
- A broker that speaks only 3.1.1 acknowledges what it denies as well, so there a publish is done when this client's
  own subscription brings the event back.
- Every wait has an end: with TLS 1.3 a refused client sees nothing but the end of the connection (RFC 8446 §4.6.2).
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from estserver.announce.cloudevent import CONTENT_TYPE, EXPIRES_AFTER
from estserver.config import MqttSection
from estserver.errors import CapacityError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 10.0
KEEPALIVE_SECONDS = 30
WINDOW = 64
_UNSUPPORTED_VERSION = 0x84


class BrokerUnavailable(CapacityError):
    """The broker cannot be reached, does not answer, or refuses the announcer; everything stays owed."""

    code = "broker-unavailable"


class Publisher:
    """A connected announcer, driven in the caller's own thread; close it when done.

    Args:
        settings: `[mqtt]`; `resolve` turns its paths into absolute ones.

    Raises:
        BrokerUnavailable: no connection, in one line.
    """

    def __init__(self, settings: MqttSection, resolve: Callable[[Path], Path]) -> None:
        self._settings = settings
        self._sent: dict[int, str] = {}
        self._answers: dict[int, str | None] = {}
        self._read_back: set[str] = set()
        context = _tls(settings, resolve)
        client = self._connect(context, MQTTProtocolVersion.MQTTv5)
        self._reads_back = client is None
        self._client = client or self._connect_old(context)

    def publish(self, topic: str, payload: bytes, *, event_id: str, retain: bool) -> None:
        """Publish one event at QoS 1; `settle` says whether it arrived."""
        properties = None if self._reads_back else _properties(retain=retain)
        info = self._client.publish(self._topic(topic), payload, 1, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise BrokerUnavailable("the connection to the broker was lost")
        self._sent[info.mid] = event_id

    def settle(self) -> tuple[list[str], dict[str, str]]:
        """Wait for the answers to everything published since; return the ids that arrived and those that did not."""
        deadline = time.monotonic() + ANSWER_SECONDS
        sent, self._sent = self._sent, {}
        while time.monotonic() < deadline and not all(self._answered(mid, event) for mid, event in sent.items()):
            self.step(0.1)
        done = [event for mid, event in sent.items() if self._answered(mid, event) and not self._answers[mid]]
        denied = {event: self._answers.get(mid) or "no answer" for mid, event in sent.items() if event not in done}
        self._answers.clear()
        self._read_back.clear()
        return done, denied

    def step(self, seconds: float) -> None:
        """Let the connection work; at most so long."""
        if self._client.loop(seconds) != paho.MQTT_ERR_SUCCESS or not self._client.is_connected():
            raise BrokerUnavailable("the broker closed the connection")

    def close(self) -> None:
        """Leave cleanly."""
        self._client.disconnect()
        self._client.loop(0)

    def _answered(self, mid: int, event_id: str) -> bool:
        if mid not in self._answers:
            return False
        return not self._reads_back or self._answers[mid] is not None or event_id in self._read_back

    def _topic(self, topic: str) -> str:
        return f"{self._settings.domain}/1/{topic}"

    def _connect_old(self, context: ssl.SSLContext) -> paho.Client:
        client = self._connect(context, MQTTProtocolVersion.MQTTv311)
        if client is None:
            raise BrokerUnavailable("the broker speaks neither MQTT 5 nor 3.1.1")
        for topic in (self._topic("d/+/identity"), self._topic("ca/+/evt/+")):
            client.subscribe(topic, 1)
        return client

    def _connect(self, context: ssl.SSLContext, version: MQTTProtocolVersion) -> paho.Client | None:
        """Connect; None when the broker does not know this version."""
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._settings.name,
            protocol=version,
            reconnect_on_failure=False,
        )
        connected: list[ReasonCode] = []
        client.tls_set_context(context)
        client.max_inflight_messages_set(WINDOW)
        client.on_connect = lambda _client, _data, _flags, code, _properties: connected.append(code)
        client.on_publish = self._published
        client.on_message = self._message
        where = urlsplit(self._settings.broker)
        deadline = time.monotonic() + CONNECT_SECONDS
        try:
            client.connect(where.hostname or "", where.port or 8883, KEEPALIVE_SECONDS)
            while not connected and time.monotonic() < deadline and client.loop(0.2) == paho.MQTT_ERR_SUCCESS:
                pass
        except (OSError, ValueError) as error:
            raise BrokerUnavailable(f"the broker {self._settings.broker} cannot be reached: {error}") from None
        if not connected:
            raise BrokerUnavailable(f"the broker {self._settings.broker} ended the connection without an answer")
        if version == MQTTProtocolVersion.MQTTv5 and connected[0].value == _UNSUPPORTED_VERSION:
            return None
        if connected[0].is_failure:
            raise BrokerUnavailable(f"the broker {self._settings.broker} refused the announcer: {connected[0]}")
        return client

    def _published(self, _client: object, _data: object, mid: int, code: ReasonCode, _properties: object) -> None:
        self._answers[mid] = str(code) if code.is_failure else None

    def _message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        try:
            self._read_back.add(str(json.loads(message.payload)["id"]))
        except (ValueError, KeyError, TypeError):
            return


def _tls(settings: MqttSection, resolve: Callable[[Path], Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(resolve(settings.trust))
        # a password, or OpenSSL would ask for one on the terminal
        context.load_cert_chain(resolve(settings.certificate), resolve(settings.key), password="")
    except OSError as error:
        raise BrokerUnavailable(
            f"the announcer's certificate {resolve(settings.certificate)} cannot be used yet: {error.strerror}"
        ) from None
    return context


def _properties(*, retain: bool) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    properties.ContentType = CONTENT_TYPE
    properties.PayloadFormatIndicator = 1
    if not retain:
        properties.MessageExpiryInterval = int(EXPIRES_AFTER.total_seconds())
    return properties
