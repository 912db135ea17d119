"""What a subscriber knows: which events were proven, which were refused and why, and what they say together.

The loop is closed for a device when three speakers agree on one certificate: the station that provisioned the device,
the device that was born with it, and the server whose retained identity names it. No I/O and no clock here.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import KeysView
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from devicesim.errors import VerificationFailed
from devicesim.mqtt import verdict
from devicesim.mqtt.connection import Received, common_name
from devicesim.mqtt.events import Event, VerifiedEvent, read_event, verify_event
from devicesim.mqtt.topics import DOMAIN, EventType, Topic, parse_topic
from devicesim.trust import TrustAnchors

SEEN_MAX = 500_000
REFUSED_MAX = 1_000
GAP_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one message: believed when there are no problems; a duplicate says nothing new."""

    topic: str
    event: Event | None
    problems: tuple[str, ...]
    signer: str | None = None
    duplicate: bool = False
    note: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the message may be acted on."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Match:
    """What three speakers say about one device, and every way in which they disagree."""

    device_id: str
    provisioned: Event | None
    birth: Event | None
    identity: Event | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all three have spoken and agree."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Report:
    """Everything heard, in numbers and in words."""

    events: int
    duplicates: int
    devices: tuple[Match, ...]
    refused: tuple[Verdict, ...]
    refused_count: int
    gaps: dict[str, tuple[int, ...]]

    @property
    def ok(self) -> bool:
        """Whether every message was believed, none is missing and every device matched."""
        return not self.refused_count and not self.gaps and all(match.ok for match in self.devices)


@dataclass(frozen=True, slots=True)
class Presence:
    """The last word about a device's connection."""

    state: str
    session: int


class Collector:
    """Judges messages one by one and remembers what was proven."""

    def __init__(self, trust: TrustAnchors, *, announcer: str = "estserver", domain: str = DOMAIN) -> None:
        self._trust, self._announcer, self._domain = trust, announcer, domain
        self._seen: OrderedDict[tuple[str, str], Event] = OrderedDict()
        self._latest: dict[EventType, dict[str, Event]] = {kind: {} for kind in EventType}
        self._once_current: dict[str, set[str]] = {}
        self._last_sequence: dict[str, int] = {}
        self._missing: dict[str, set[int]] = {}
        self._refused: list[Verdict] = []
        self._refused_count = self._duplicates = self._events = 0
        self.presence: dict[str, Presence] = {}

    def take(self, message: Received, now: datetime) -> Verdict:
        """Judge one message and remember what it proves."""
        topic = parse_topic(message.topic)
        if topic is None or topic.domain != self._domain:
            return self._refuse(Verdict(message.topic, None, ("the topic is not one of ours",)))
        if topic.tail == "presence":
            return self._take_presence(topic, message)
        if not message.payload and topic.tail == "identity":
            return self._cleared(topic)
        return self._take_event(topic, message, now)

    def matched(self, device_id: str) -> Match:
        """Compare what the station, the device and the server say about a device."""
        provisioned, birth, identity = (
            self._latest[kind].get(device_id) for kind in (EventType.PROVISIONED, EventType.BIRTH, EventType.CURRENT)
        )
        found = [
            words
            for event, words in (
                (provisioned, "no station has announced it as provisioned"),
                (birth, "the device has not announced its birth"),
                (identity, "the server has not announced its current identity"),
            )
            if event is None
        ]
        born, made, current = birth and birth.data.get("cert_sha256"), _cert(provisioned), _cert(identity)
        if birth and identity and born != current:
            found.append(f"the device was born with certificate {born}, the server's current one is {current}")
        if identity and "revoked" in identity.data:
            found.append("the server has revoked its current certificate")
        if birth and provisioned and made != born and not self._was_current(provisioned):
            found.append(f"the station announced certificate {made}, the device was born with {born}")
        return Match(device_id, provisioned, birth, identity, tuple(found))

    def report(self) -> Report:
        """Return everything heard so far."""
        devices = {name for kind in (EventType.PROVISIONED, EventType.BIRTH) for name in self._latest[kind]}
        return Report(
            events=self._events,
            duplicates=self._duplicates,
            devices=tuple(self.matched(name) for name in sorted(devices)),
            refused=tuple(self._refused),
            refused_count=self._refused_count,
            gaps={source: tuple(sorted(numbers)) for source, numbers in self._missing.items() if numbers},
        )

    @property
    def seen(self) -> KeysView[tuple[str, str]]:
        """The (source, id) of every event that was proven."""
        return self._seen.keys()

    def latest(self, kind: EventType, subject: str) -> Event | None:
        """Return the newest proven event of a type about a subject."""
        return self._latest[kind].get(subject)

    def _take_event(self, topic: Topic, message: Received, now: datetime) -> Verdict:
        try:
            verified = verify_event(message.payload, trust=self._trust, now=now)
        except VerificationFailed as fault:
            return self._refuse(Verdict(message.topic, _unproven(message.payload), (str(fault),)))
        event, signer = verified.event, common_name(verified.signer)
        found = verdict.problems(verified, topic, announcer=self._announcer, now=now)
        before = self._seen.get((event.source, event.id))
        if not found and before is not None and before != event:
            found = ("another event was announced under the same id",)
        if found:
            return self._refuse(Verdict(message.topic, event, found, signer))
        if before is not None:
            self._duplicates += 1
            return Verdict(message.topic, event, (), signer, duplicate=True)
        self._remember(verified, live=not message.retained)
        return Verdict(message.topic, event, (), signer)

    def _remember(self, verified: VerifiedEvent, *, live: bool) -> None:
        event, kind = verified.event, EventType(verified.event.type)
        self._events += 1
        self._seen[event.source, event.id] = event
        while len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        if live:  # what a broker retains is the last of many: no gap is to be read from it
            self._count(event)
        if kind == EventType.CURRENT:
            names = self._once_current.setdefault(event.subject, set())
            names.update(name for name in (_cert(event), event.data.get("supersedes")) if isinstance(name, str))
        what = EventType.PROVISIONED if kind is EventType.REPROVISIONED else kind  # the station's newest word
        known = self._latest[what].get(event.subject)
        if known is None or _age(known) <= _age(event):
            self._latest[what][event.subject] = event

    def _was_current(self, provisioned: Event) -> bool:
        """Tell whether the server once named the announced certificate: by hash, or by serial as superseded."""
        known = self._once_current.get(provisioned.subject, set())
        return _cert(provisioned) in known or _cert(provisioned, "serial") in known

    def _count(self, event: Event) -> None:
        if event.sequence is None or not event.sequence.isdecimal():
            return
        number = int(event.sequence)
        last = self._last_sequence.get(event.source)
        missing = self._missing.setdefault(event.source, set())
        missing.discard(number)
        if last is not None and last + 1 < number:
            missing.update(range(max(last + 1, number - GAP_MAX), number))
        self._last_sequence[event.source] = max(last or 0, number)

    def _take_presence(self, topic: Topic, message: Received) -> Verdict:
        try:
            fields = json.loads(message.payload)
            said = Presence(str(fields["state"]), int(fields["session"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return self._refuse(Verdict(message.topic, None, ("the presence is malformed",)))
        known = self.presence.get(topic.owner)
        if known is None or known.session <= said.session:  # a late will of an older connection says nothing
            self.presence[topic.owner] = said
        return Verdict(message.topic, None, (), note=f"{said.state} (session {said.session})")

    def _cleared(self, topic: Topic) -> Verdict:
        self._latest[EventType.CURRENT].pop(topic.owner, None)
        return Verdict(str(topic), None, (), note="decommissioned: the identity was cleared")

    def _refuse(self, refused: Verdict) -> Verdict:
        self._refused_count += 1
        if len(self._refused) < REFUSED_MAX:
            self._refused.append(refused)
        return refused


def _cert(event: Event | None, fact: str = "sha256") -> Any:  # noqa: ANN401 - whatever the event says; it is only compared
    certificate = event.data.get("cert") if event else None
    return certificate.get(fact) if isinstance(certificate, dict) else None


def _age(event: Event) -> tuple[datetime, str]:
    return event.time, event.sequence or ""


def _unproven(payload: bytes) -> Event | None:
    try:
        return read_event(payload)
    except VerificationFailed:
        return None
