"""The device's own word: with the certificate it just got, it connects to the broker and says that it is there.

A step of the device's, after PASS: a broker that is down leaves the birth pending, to be said at the next run under the
same event id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from devicesim.device import DeviceIdentity
from devicesim.errors import DeviceSimError
from devicesim.line.ledger import Ledger, UnitRow
from devicesim.line.settings import Mqtt, Settings
from devicesim.line.steps import open_device
from devicesim.mqtt.connection import BrokerUrl, MqttIdentity
from devicesim.mqtt.events import Event, sequence_text
from devicesim.mqtt.session import announce_birth
from devicesim.mqtt.topics import EventType, device_source
from devicesim.mqtt.ulid import new_ulid
from devicesim.trust import fingerprint

GIVE_UP_AFTER = 2
"""Births that fail in a row before a run leaves the rest to the next one: the broker is down."""


@dataclass
class Midwife:
    """Sees to the births of one run; `failures` counts those in a row that did not succeed, `reason` says why."""

    settings: Settings
    mqtt: Mqtt
    ledger: Ledger
    clock: Callable[[], datetime]
    randomness: Callable[[int], bytes]
    failures: int = 0
    reason: str | None = None

    def attend(self, unit: UnitRow) -> None:
        """Let the device announce its birth; whatever goes wrong leaves it pending."""
        if self.failures >= GIVE_UP_AFTER:
            return
        try:
            self.reason = self._birth(unit)
        except DeviceSimError as error:
            self.reason = error.line
        if self.reason is None:
            self.ledger.mark_birth(unit.device_id)
        self.failures = 0 if self.reason is None else self.failures + 1

    def _birth(self, unit: UnitRow) -> str | None:
        """Connect as the device and say it; return why the broker does not have it, or None."""
        identity = open_device(self.settings, unit.device_id, self.clock)[0].identity
        if identity is None:
            return f"{unit.device_id} has no identity in its store"
        source = device_source(unit.device_id)
        facts = self.ledger.birth_event(unit.device_id, new_ulid(self.clock(), self.randomness), source)
        event = Event(
            id=facts.id,
            source=source,
            type=EventType.BIRTH,
            subject=unit.device_id,
            time=facts.time,
            data=_data(unit, identity),
            sequence=sequence_text(facts.sequence),
        )
        said = announce_birth(
            self._mqtt_identity(identity),
            BrokerUrl.parse(self.mqtt.url),
            session=facts.session,
            event=event,
            domain=self.mqtt.domain,
        )
        return None if said.done else said.reason or "the broker did not take it"

    def _mqtt_identity(self, identity: DeviceIdentity) -> MqttIdentity:
        trust = self.mqtt.trust or identity.trust_path
        return MqttIdentity(identity.certificate_path, identity.key_path, trust, identity.device_id)


def _data(unit: UnitRow, identity: DeviceIdentity) -> dict[str, object]:
    facts = {"device_id": unit.device_id, "serial": unit.facts["serial"], "model": unit.facts["product"]}
    return {**facts, "cert_sha256": fingerprint(identity.certificate), "boot": 1, "answers": unit.event_id}
