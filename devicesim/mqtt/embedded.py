"""The embedded broker: amqtt, made to hold what the demo and the tests need of a broker, and bound to one address.

What amqtt does not do by itself is added here, before it looks at anything else of a CONNECT:
- a client without a certificate of the CA does not get through the handshake;
- one that speaks MQTT 5 is told at once that it is not spoken here (amqtt would wait for bytes that never come);
- the certificate's CN replaces user name and client id, so that nobody can touch another's session;
- a will on a topic its owner may not write to is refused with the connection;
- the tables of subscriptions and retained messages can change while amqtt walks them: it loses messages otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import amqtt.broker
from amqtt.adapters import ReaderAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext, BrokerConfig, ListenerConfig
from amqtt.errors import MQTTError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session
from cryptography import x509

from devicesim.errors import ConfigInvalid
from devicesim.mqtt.access import Access
from devicesim.mqtt.broker import BrokerSettings
from devicesim.mqtt.connection import BrokerUrl, common_name

CONNECT = 0x10
CONNECT_SECONDS = 10.0
CONNECT_MAX_BYTES = 128 * 1024
UNACCEPTABLE_PROTOCOL = bytes((0x20, 2, 0, 1))  # CONNACK, MQTT 3.1.1 §3.2.2.3

_HERE = "devicesim.mqtt.embedded"


class CertificateIdentity(BaseAuthPlugin):
    """Lets in who has been named by a certificate, and nobody else."""

    @dataclass
    class Config:
        """No options."""

    async def authenticate(self, *, session: Session) -> bool:
        """Tell whether the session belongs to the certificate on its connection (amqtt's hook)."""
        return bool(session.username) and session.username == session.client_id


class TopicAccess(BaseTopicPlugin):
    """Answers from the one table of `access`."""

    @dataclass
    class Config:
        """The names behind the roles."""

        stations: list[str] = field(default_factory=list)
        announcers: list[str] = field(default_factory=list)
        readers: list[str] = field(default_factory=list)
        domain: str = "est"

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        given = self.config
        self._access = Access(tuple(given.stations), tuple(given.announcers), tuple(given.readers), given.domain)

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """Tell whether the session may publish to, subscribe to or receive from a topic (amqtt's hook)."""
        if session is None or not session.username or not topic:
            return False
        return self._access.allows(session.username, "write" if action == Action.PUBLISH else "read", topic)


class _Snapshots(dict[str, Any]):
    """A table that may change while somebody walks it: amqtt awaits in the middle of its walks."""

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().__iter__()))

    def items(self) -> Any:  # noqa: ANN401 - a list where dict promises a view; amqtt only walks it
        """Return what is in the table now."""
        return [(key, list(value) if isinstance(value, list) else value) for key, value in super().items()]


class _CertifiedBroker(Broker):
    """amqtt, asking for a certificate, and walking tables that others may change meanwhile."""

    def __init__(self, config: BrokerConfig, crl_path: Path | None) -> None:
        self._crl_path = crl_path
        super().__init__(config)
        self._subscriptions = _Snapshots()
        self._retained_messages = _Snapshots()

    def _create_ssl_context(self, listener: ListenerConfig) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(listener.cafile)
        context.load_cert_chain(listener.certfile, listener.keyfile, lambda: b"")
        context.verify_mode = ssl.CERT_REQUIRED
        if self._crl_path is not None:
            context.load_verify_locations(self._crl_path)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        return context

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve one connection; that it may break at any time is no news (amqtt's hook)."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await super().stream_connected(reader, writer, listener_name)


def _certified_handler(access: Access) -> type[BrokerProtocolHandler]:
    class CertifiedHandler(BrokerProtocolHandler):
        """Names each connection after its certificate before amqtt looks for an older session of that name."""

        @classmethod
        async def init_from_connect(cls, reader: Any, writer: Any, plugins_manager: Any) -> Any:  # noqa: ANN401 - amqtt's own types
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    replay = await _begin(reader, writer)
                    handler, session = await BrokerProtocolHandler.init_from_connect(replay, writer, plugins_manager)
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as fault:
                raise MQTTError("no CONNECT in time") from fault
            name = _name_on(session.ssl_object)
            if name is None:
                raise MQTTError("no certificate with a name")
            session.username = session.client_id = name
            if session.will_flag and not access.allows(name, "write", session.will_topic or ""):
                raise MQTTError(f"{name} may not leave a will on {session.will_topic}")
            return handler, session

    return CertifiedHandler


class _Replay(ReaderAdapter):
    """Gives back what was read to look at, then goes on with the connection."""

    def __init__(self, head: bytes, rest: ReaderAdapter) -> None:
        self._head, self._rest = head, rest

    async def read(self, n: int = -1) -> bytes:
        """Return `n` bytes (amqtt's hook)."""
        taken, self._head = (self._head[:n], self._head[n:]) if n >= 0 else (self._head, b"")
        return taken + await self._rest.read(n - len(taken)) if n < 0 or len(taken) < n else taken

    def feed_eof(self) -> None:
        """Pass on the end (amqtt's hook)."""
        self._rest.feed_eof()


async def _begin(reader: ReaderAdapter, writer: WriterAdapter) -> _Replay:
    """Read a CONNECT as far as the protocol level (MQTT 3.1.1 §3.1.2), and turn away what is not 3.1.1."""
    head = await reader.read(2)
    while head[-1] & 0x80 and len(head) < 5:
        head += await reader.read(1)
    length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[1:]))
    if head[0] != CONNECT or not 10 <= length <= CONNECT_MAX_BYTES:
        raise MQTTError("not a CONNECT")
    head += await reader.read(7)
    if head[-7:] != b"\0\x04MQTT\x04":
        writer.write(UNACCEPTABLE_PROTOCOL)
        await writer.drain()
        raise MQTTError("not MQTT 3.1.1")
    return _Replay(head, reader)


def serve(settings: BrokerSettings, ready: Callable[[BrokerUrl], None]) -> None:
    """Run the broker in this process until SIGTERM or SIGINT; `ready` is told when it accepts connections."""
    for noisy in ("amqtt", "transitions", "asyncio"):  # each refused client would be a page of traceback
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    amqtt.broker.BrokerProtocolHandler = _certified_handler(settings.access)  # the only seam before the session look-up
    asyncio.run(_serve(settings, ready))


async def _serve(settings: BrokerSettings, ready: Callable[[BrokerUrl], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        broker = _CertifiedBroker(_configuration(settings), settings.crl_path)
        await broker.start()
    except Exception as fault:
        raise ConfigInvalid(f"the embedded broker cannot start: {fault}") from fault
    ready(BrokerUrl(settings.host, settings.port))
    await stop.wait()
    await broker.shutdown()


def _configuration(settings: BrokerSettings) -> BrokerConfig:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    listener = ListenerConfig(
        bind=f"{host}:{settings.port}",
        ssl=True,
        cafile=settings.trust_path,
        certfile=settings.certificate_path,
        keyfile=settings.key_path,
    )
    names = settings.access
    return BrokerConfig(
        listeners={"default": listener},
        plugins={
            f"{_HERE}.CertificateIdentity": {},
            f"{_HERE}.TopicAccess": {
                "stations": list(names.stations),
                "announcers": list(names.announcers),
                "readers": list(names.readers),
                "domain": names.domain,
            },
        },
    )


def _name_on(tls: ssl.SSLObject | None) -> str | None:
    der = tls.getpeercert(binary_form=True) if tls is not None else None
    return common_name(x509.load_der_x509_certificate(der)) if der else None
