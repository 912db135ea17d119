"""One MQTT connection over mutual TLS, with an answer to every question: a typed result or a typed error, in time.

Rules:
- The identity is the certificate: its CN is the client id, so that a broker can hold the two together.
- MQTT 5 first; a broker that does not know it is spoken to in 3.1.1. There a denied publish is acknowledged like any
  other, so an acknowledgement proves nothing, and what is published is read back instead.
- With TLS 1.3 a refused client sees nothing but the connection's end (RFC 8446 §4.6.2): every wait has a deadline.
- The TLS here is the system's OpenSSL, through `ssl`; it cannot use ML-DSA keys.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from devicesim.errors import DeviceSimError, KeyStoreError, Unreachable, UsageProblem
from devicesim.mqtt.events import CONTENT_TYPE
from devicesim.trust import load_certificates

WEEK_SECONDS = 7 * 24 * 3600
KEEPALIVE_SECONDS = 30
CONNECT_SECONDS = 10.0
TLS_KEYS = (ec.EllipticCurvePublicKey, rsa.RSAPublicKey, ed25519.Ed25519PublicKey)
UNSUPPORTED_VERSION = 0x84

_URL = re.compile(r"mqtts://(?:(?P<host>[A-Za-z0-9._-]+)|\[(?P<v6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?/?")


class BrokerRefused(DeviceSimError):
    """The broker knows this client and said no; the same connection will not succeed."""

    code = "broker-refused"
    exit_code = 7


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """Where a broker listens; always TLS."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> BrokerUrl:
        """Read `mqtts://HOST:PORT`."""
        found = _URL.fullmatch(text)
        port = int(found["port"] or 8883) if found else 0
        if found is None or not 0 < port < 65536:
            raise UsageProblem(f"{text[:200]!r} is not the address of a broker", advice="write mqtts://HOST:PORT")
        return cls(found["host"] or found["v6"], port)

    def __str__(self) -> str:
        return f"mqtts://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class MqttIdentity:
    """Who connects: the files of a certificate (leaf, then intermediates), its key and the trust anchors; the CN."""

    certificate_path: Path
    key_path: Path
    trust_path: Path
    name: str
    passphrase: bytes | None = field(default=None, repr=False)

    @classmethod
    def from_files(cls, certificate: Path, key: Path, trust: Path, passphrase: bytes | None = None) -> MqttIdentity:
        """Name the identity after its certificate's CN."""
        return cls(certificate, key, trust, common_name(load_certificates(certificate)[0]) or "", passphrase)

    def chain(self) -> tuple[x509.Certificate, ...]:
        """Return the certificate and its intermediates."""
        return load_certificates(self.certificate_path)

    def key(self) -> PrivateKeyTypes:
        """Return the key, to sign events with."""
        try:
            return load_pem_private_key(self.key_path.read_bytes(), self.passphrase)
        except OSError as fault:
            raise KeyStoreError(f"cannot read {self.key_path}: {fault.strerror}") from fault
        except (ValueError, TypeError) as fault:
            raise KeyStoreError(f"{self.key_path} is not a key this passphrase opens") from fault

    def tls(self) -> ssl.SSLContext:
        """Return the TLS side of this identity: mutual, TLS 1.2 or later, the given trust anchors and no others."""
        if not isinstance(self.chain()[0].public_key(), TLS_KEYS):
            raise KeyStoreError(
                f"{self.certificate_path} has a key that the system's TLS cannot use (ML-DSA needs OpenSSL 3.5)",
                advice="connect to the broker with an EC, RSA or Ed25519 certificate",
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslsocket_class = _TlsSocket
        try:
            context.load_verify_locations(self.trust_path)
            context.load_cert_chain(self.certificate_path, self.key_path, lambda: self.passphrase or b"")
        except OSError as fault:  # ssl.SSLError is one
            raise KeyStoreError(
                f"cannot use {self.certificate_path} with {self.key_path} and {self.trust_path}: {_reason(fault)}",
                advice="give PEM files: the certificate, the key that belongs to it, and the trust anchor",
            ) from fault
        return context


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says in our name when the connection dies."""

    topic: str
    payload: bytes
    delay_seconds: int = 10


@dataclass(frozen=True, slots=True)
class Received:
    """A message from the broker."""

    topic: str
    payload: bytes
    retained: bool


class MqttConnection:
    """A connected client, driven by `step()` in the caller's own thread; use as a context manager.

    Attributes:
        acks: the broker's answers to publish(), by message id: None when it has the message, else why not.
        window: how many messages may be on their way unanswered.
        reads_back: an acknowledgement proves nothing here (MQTT 3.1.1): only reading back does.
    """

    def __init__(
        self,
        broker: BrokerUrl,
        identity: MqttIdentity,
        *,
        will: Will | None = None,
        session_seconds: int = 0,
        window: int = 64,
        on_message: Callable[[Received], None] | None = None,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        self.broker = broker
        self.identity = identity
        self.acks: dict[int, str | None] = {}
        self.window = window
        self._will, self._session_seconds = will, session_seconds
        self._on_message = on_message
        self._subscribed: dict[int, bool] = {}
        deadline = time.monotonic() + connect_seconds
        context = identity.tls()
        try:
            self._client = self._connect(context, MQTTProtocolVersion.MQTTv5, deadline)
        except _SpeaksNoMqtt5:
            self._client = self._connect(context, MQTTProtocolVersion.MQTTv311, deadline)
        self.reads_back = self._client.protocol != MQTTProtocolVersion.MQTTv5

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as this side knows."""
        return self._client.is_connected()

    def step(self, seconds: float) -> None:
        """Let the connection work for at most so long; raise Unreachable when it is lost."""
        code = self._client.loop(max(seconds, 0.0))
        if code != paho.MQTT_ERR_SUCCESS or not self._client.is_connected():
            raise Unreachable(f"the broker {self.broker} closed the connection")

    def publish(self, topic: str, payload: bytes, *, retain: bool, headers: dict[str, str] | None = None) -> int:
        """Send at QoS 1 and return the message id under which `acks` will have the broker's answer."""
        info = self._client.publish(topic, payload, 1, retain, self._publish_properties(retain, headers))
        if info.rc not in (paho.MQTT_ERR_SUCCESS, paho.MQTT_ERR_QUEUE_SIZE):
            raise Unreachable(f"the broker {self.broker} is not connected")
        return info.mid

    def subscribe(self, topic: str, deadline: float) -> bool:
        """Subscribe at QoS 1 and wait for the answer; False when the broker denies it."""
        code, mid = self._client.subscribe(topic, 1)
        if code != paho.MQTT_ERR_SUCCESS or mid is None:
            raise Unreachable(f"the broker {self.broker} is not connected")
        self.wait(lambda: mid in self._subscribed, deadline, "to answer a subscription")
        return self._subscribed.pop(mid)

    def wait(self, ready: Callable[[], bool], deadline: float, what: str) -> None:
        """Work until `ready()`; raise Unreachable at the deadline (of `time.monotonic`)."""
        while not ready():
            left = deadline - time.monotonic()
            if left <= 0:
                raise Unreachable(f"the broker {self.broker} took too long {what}")
            self.step(min(left, 0.5))

    def close(self) -> None:
        """Leave cleanly: the broker forgets the will."""
        self._client.disconnect()
        self._release()

    def abandon(self) -> None:
        """Drop the connection without a word, as a power cut does: the broker sends the will."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()
        self._release()

    def _release(self) -> None:
        self._client.on_disconnect = None
        self._client.on_message = None
        self._client.loop(0)

    def _connect(self, context: ssl.SSLContext, version: MQTTProtocolVersion, deadline: float) -> paho.Client:
        client = self._prepare(context, version)
        answers: list[ReasonCode] = []

        def connected(_c: object, _u: object, _f: object, code: ReasonCode, granted: Properties | None) -> None:
            answers.append(code)
            self.window = min(self.window, getattr(granted, "ReceiveMaximum", self.window))  # MQTT 5 §3.3.4

        client.on_connect = connected
        modern = version == MQTTProtocolVersion.MQTTv5
        start: dict[str, Any] = {"clean_start": self._session_seconds == 0, "properties": self._connect_properties()}
        try:
            client.connect(self.broker.host, self.broker.port, KEEPALIVE_SECONDS, **(start if modern else {}))
            while not answers and time.monotonic() < deadline and client.loop(0.2) == paho.MQTT_ERR_SUCCESS:
                pass
        except (OSError, ValueError) as fault:
            raise self._unreachable(fault) from fault
        if not answers:
            raise Unreachable(
                f"the broker {self.broker} ended or ignored the connection of {self.identity.name!r} without an answer",
                advice="is this certificate issued by the CA the broker trusts, and still valid?",
            )
        if modern and answers[0].value == UNSUPPORTED_VERSION:
            raise _SpeaksNoMqtt5
        if answers[0].is_failure:
            raise BrokerRefused(
                f"the broker {self.broker} refused {self.identity.name!r}: {answers[0]}",
                advice="the broker must trust this certificate's CA and know this name",
            )
        return client

    def _prepare(self, context: ssl.SSLContext, version: MQTTProtocolVersion) -> paho.Client:
        modern = version == MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.identity.name,
            clean_session=None if modern else self._session_seconds == 0,
            protocol=version,
            reconnect_on_failure=False,
        )
        client.tls_set_context(context)
        client.connect_timeout = CONNECT_SECONDS / 2
        client.max_inflight_messages_set(self.window)
        client.on_publish = self._published
        client.on_subscribe = lambda _c, _u, mid, codes, _p: self._subscribed.update({mid: not codes[0].is_failure})
        client.on_message = self._message
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, 1, True, self._will_properties() if modern else None)  # noqa: FBT003 - paho's own order
        return client

    def _published(self, _c: object, _u: object, mid: int, code: ReasonCode, _p: object) -> None:
        self.acks[mid] = str(code) if code.is_failure else None

    def _message(self, _c: object, _u: object, message: paho.MQTTMessage) -> None:
        if self._on_message is not None:
            self._on_message(Received(message.topic, bytes(message.payload), message.retain))

    def _connect_properties(self) -> Properties:
        return _properties(PacketTypes.CONNECT, SessionExpiryInterval=self._session_seconds, ReceiveMaximum=self.window)

    def _will_properties(self) -> Properties | None:
        assert self._will is not None
        return _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=self._will.delay_seconds)

    def _publish_properties(self, retain: bool, headers: dict[str, str] | None) -> Properties | None:
        if self._client.protocol != MQTTProtocolVersion.MQTTv5 or headers is None:
            return None
        facts: dict[str, Any] = {"ContentType": CONTENT_TYPE, "PayloadFormatIndicator": 1}
        if not retain:
            facts["MessageExpiryInterval"] = WEEK_SECONDS
        if "correlationid" in headers:
            facts["CorrelationData"] = headers["correlationid"].encode()
        pairs = [(name, text) for name, text in headers.items() if name != "correlationid"]
        return _properties(PacketTypes.PUBLISH, UserProperty=pairs, **facts)

    def _unreachable(self, fault: Exception) -> DeviceSimError:
        if isinstance(fault, ssl.SSLCertVerificationError):
            return Unreachable(
                f"the broker {self.broker} is not the one to trust: {fault.verify_message}",
                advice="check its address, and that the trust anchor is the one of its CA",
            )
        return Unreachable(f"cannot reach the broker {self.broker}: {_reason(fault)}")


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails, which paho leaves to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _SpeaksNoMqtt5(Exception):
    """The broker answered that it does not know MQTT 5."""


def common_name(certificate: x509.Certificate) -> str | None:
    """Return the one CN of a certificate: the name a broker knows it by. None when there is not exactly one."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


def _properties(packet: int, **facts: object) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    for name, value in facts.items():
        setattr(properties, name, value)
    return properties


def _reason(fault: Exception) -> str:
    if isinstance(fault, ssl.SSLError):
        return (fault.reason or str(fault)).replace("_", " ").lower()
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
