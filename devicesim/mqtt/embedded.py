"""The embedded broker: amqtt, made to hold what the demo and the tests need of a broker, and bound to one address.

What amqtt does not do by itself is added here, before it looks at anything else of a CONNECT:
- a client without a certificate of the CA does not get through the handshake;
- the certificate's CN replaces user name and client id, so that nobody can touch another's session;
- a will on a topic its owner may not write to is refused with the connection.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import amqtt.broker
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


class _CertifiedBroker(Broker):
    """amqtt, asking for a certificate."""

    @staticmethod
    def _create_ssl_context(listener: ListenerConfig) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(listener.cafile)
        context.load_cert_chain(listener.certfile, listener.keyfile, lambda: b"")
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def _certified_handler(access: Access) -> type[BrokerProtocolHandler]:
    class CertifiedHandler(BrokerProtocolHandler):
        """Names each connection after its certificate before amqtt looks for an older session of that name."""

        @classmethod
        async def init_from_connect(cls, reader: Any, writer: Any, plugins_manager: Any) -> Any:  # noqa: ANN401 - amqtt's own types
            handler, session = await BrokerProtocolHandler.init_from_connect(reader, writer, plugins_manager)
            name = _name_on(session.ssl_object)
            if name is None:
                raise MQTTError("no certificate with a name")
            session.username = session.client_id = name
            if session.will_flag and not access.allows(name, "write", session.will_topic or ""):
                raise MQTTError(f"{name} may not leave a will on {session.will_topic}")
            return handler, session

    return CertifiedHandler


def serve(settings: BrokerSettings, ready: Callable[[BrokerUrl], None]) -> None:
    """Run the broker in this process until SIGTERM or SIGINT; `ready` is told when it accepts connections."""
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
    amqtt.broker.BrokerProtocolHandler = _certified_handler(settings.access)  # the only seam before the session look-up
    asyncio.run(_serve(settings, ready))


async def _serve(settings: BrokerSettings, ready: Callable[[BrokerUrl], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        broker = _CertifiedBroker(_configuration(settings))
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
