"""A device on the broker: online with the certificate it just got, its birth said and signed by itself, then offline.

Every connection has a session number, one higher than the last. The will carries it, so a will that arrives late, from
a connection before, can be told from the truth.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from devicesim.errors import DeviceSimError
from devicesim.mqtt import topics
from devicesim.mqtt.connection import BrokerUrl, MqttConnection, MqttIdentity, Will
from devicesim.mqtt.delivery import Delivery, Inbox
from devicesim.mqtt.events import Event, sign_event, utc_text
from devicesim.mqtt.outbox import OutboxRow
from devicesim.mqtt.topics import DOMAIN, EventType
from devicesim.trust import fingerprint

SESSION_SECONDS = 3600
WILL_DELAY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Announced:
    """Whether the broker has the event, and if not, why."""

    done: bool
    reason: str | None = None


class DeviceSession:
    """One connection of one device; `with` it, presence is `online` inside and `offline` afterwards."""

    def __init__(
        self,
        identity: MqttIdentity,
        broker: BrokerUrl,
        *,
        session: int,
        since: datetime,
        domain: str = DOMAIN,
        will_delay_seconds: int = WILL_DELAY_SECONDS,
        deadline_seconds: float = 10.0,
    ) -> None:
        self._identity, self._session, self._since, self._domain = identity, session, since, domain
        self._deadline_seconds = deadline_seconds
        self._presence = topics.device_presence(identity.name, domain=domain)
        self._inbox = Inbox()
        self._link = MqttConnection(
            broker,
            identity,
            will=Will(self._presence, self._state("lost"), will_delay_seconds),
            session_seconds=SESSION_SECONDS,
            on_message=self._inbox.put,
            connect_seconds=deadline_seconds,
        )

    def __enter__(self) -> Self:
        self.say("online")
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def say(self, state: str) -> Announced:
        """Publish the retained presence."""
        return self._deliver(OutboxRow("presence", self._presence, self._state(state), retain=True))

    def announce(self, event: Event) -> Announced:
        """Sign an event with the device's own key and publish it."""
        leaf, *between = self._identity.chain()
        payload = sign_event(event, key=self._identity.key(), certificate=leaf, chain=between)
        topic = topics.topic_for(EventType(event.type), self._identity.name, domain=self._domain)
        return self._deliver(OutboxRow(event.id, topic, payload, retain=False))

    def leave(self) -> None:
        """Say `offline` and go; the broker forgets the will."""
        try:
            self.say("offline")
        finally:
            self._link.close()

    def abandon(self) -> None:
        """Vanish, as with a power cut: the broker says `lost`."""
        self._link.abandon()

    def _state(self, state: str) -> bytes:
        facts: dict[str, object] = {"state": state, "session": self._session}
        if state != "lost":  # the broker says it at a time this side does not know
            facts |= {"since": utc_text(self._since), "cert_sha256": fingerprint(self._identity.chain()[0])}
        return json.dumps(facts, separators=(",", ":"), sort_keys=True).encode()

    def _deliver(self, row: OutboxRow) -> Announced:
        delivery = Delivery(self._link, [row], self._inbox.take)
        delivery.run(time.monotonic() + self._deadline_seconds)
        if row.id in delivery.done:
            return Announced(True)  # noqa: FBT003 - the field's name says it
        return Announced(False, delivery.refused.get(row.id, "the broker did not answer in time"))  # noqa: FBT003 - so


def announce_birth(
    identity: MqttIdentity,
    broker: BrokerUrl,
    *,
    session: int,
    event: Event,
    domain: str = DOMAIN,
    deadline_seconds: float = 10.0,
) -> Announced:
    """Connect with the certificate just got, say `online`, the signed birth and `offline`; whatever the broker does.

    Call it again with the same `event` and a higher `session` when it was not done.
    """
    said = Announced(done=False)
    try:
        with DeviceSession(
            identity, broker, session=session, since=event.time, domain=domain, deadline_seconds=deadline_seconds
        ) as device:
            said = device.announce(event)
    except DeviceSimError as fault:
        return said if said.done else Announced(done=False, reason=fault.line)
    return said
