"""Topics, event types and sources: who speaks where, and under which name.

One identifier grammar serves the certificate's CN, the MQTT client id, a topic level and a file name, so that a broker
can tie all of them together. The topic names the speaker; site and line live in the event's source, so that moving a
station breaks no access rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

DOMAIN = "est"
VERSION = "1"
IDENTIFIER = r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?"

_IDENTIFIER = re.compile(IDENTIFIER)
_LEVEL = re.compile(r"[^/+#\x00-\x1f]{1,128}")  # a server's certificate has a host name for an id
_SOURCES = {
    "s": re.compile(rf"/site/({IDENTIFIER})/line/({IDENTIFIER})/station/(?P<owner>{IDENTIFIER})"),
    "d": re.compile(rf"/device/(?P<owner>{IDENTIFIER})"),
    "ca": re.compile(rf"/ca/(?P<owner>{IDENTIFIER})"),
}


class EventType(StrEnum):
    """Every event this project announces. A breaking change is a new type and a new schema."""

    PROVISIONED = "org.estline.identity.provisioned.v1"
    REPROVISIONED = "org.estline.identity.reprovisioned.v1"
    FAILED = "org.estline.identity.failed.v1"
    SCRAPPED = "org.estline.identity.scrapped.v1"
    BATCH_CLOSED = "org.estline.batch.closed.v1"
    BIRTH = "org.estline.identity.birth.v1"
    CURRENT = "org.estline.identity.current.v1"
    ISSUED = "org.estline.certificate.issued.v1"
    RENEWED = "org.estline.certificate.renewed.v1"
    REVOKED = "org.estline.certificate.revoked.v1"
    KEY_REUSED = "org.estline.certificate.key-reused.v1"
    PENDING = "org.estline.certificate.pending.v1"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a type of event is published: the class of speaker, and the levels after the speaker's id."""

    owner_class: str
    tail: str
    source_class: str


PLACES: dict[EventType, Place] = {
    EventType.PROVISIONED: Place("s", "evt/provisioned", "s"),
    EventType.REPROVISIONED: Place("s", "evt/reprovisioned", "s"),
    EventType.FAILED: Place("s", "evt/failed", "s"),
    EventType.SCRAPPED: Place("s", "evt/scrapped", "s"),
    EventType.BATCH_CLOSED: Place("s", "evt/batch-closed", "s"),
    EventType.BIRTH: Place("d", "evt/birth", "d"),
    EventType.CURRENT: Place("d", "identity", "ca"),
    EventType.ISSUED: Place("ca", "evt/issued", "ca"),
    EventType.RENEWED: Place("ca", "evt/renewed", "ca"),
    EventType.REVOKED: Place("ca", "evt/revoked", "ca"),
    EventType.KEY_REUSED: Place("ca", "evt/key-reused", "ca"),
    EventType.PENDING: Place("ca", "evt/pending", "ca"),
}


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic: `est/1/{owner_class}/{owner}/{tail}`."""

    domain: str
    owner_class: str
    owner: str
    tail: str

    def __str__(self) -> str:
        return f"{self.domain}/{VERSION}/{self.owner_class}/{self.owner}/{self.tail}"


def identifier(text: str) -> str:
    """Return `text` when it can be a CN, a client id and one topic level at once; raise ValueError when it cannot."""
    if _IDENTIFIER.fullmatch(text) is None:
        raise ValueError(
            f"{text[:80]!r} is not an identifier: 1 to 64 of a-z 0-9 - _, beginning and ending with a letter or digit"
        )
    return text


def topic_for(event_type: EventType, owner: str, *, domain: str = DOMAIN) -> str:
    """Return the topic on which `owner` (a station, device or CA id) hears or says events of this type."""
    place = PLACES[event_type]
    return str(Topic(identifier(domain), place.owner_class, identifier(owner), place.tail))


def device_presence(device: str, *, domain: str = DOMAIN) -> str:
    """Return the retained topic that says whether a device is online, offline or lost."""
    return str(Topic(identifier(domain), "d", identifier(device), "presence"))


def station_presence(station: str, *, domain: str = DOMAIN) -> str:
    """Return the retained topic that says whether a station is online, offline or lost."""
    return str(Topic(identifier(domain), "s", identifier(station), "presence"))


def everything(*, domain: str = DOMAIN) -> str:
    """Return the subscription for all announcements of a domain."""
    return f"{identifier(domain)}/{VERSION}/#"


def parse_topic(text: str) -> Topic | None:
    """Take a topic apart, or return None when it is not one of ours."""
    parts = text.split("/", 4)
    if len(parts) != 5 or parts[1] != VERSION or parts[2] not in _SOURCES:
        return None
    if _IDENTIFIER.fullmatch(parts[0]) is None or _LEVEL.fullmatch(parts[3]) is None:
        return None
    return Topic(parts[0], parts[2], parts[3], parts[4])


def station_source(site: str, line: str, station: str) -> str:
    """Return the CloudEvents `source` of a station."""
    return f"/site/{identifier(site)}/line/{identifier(line)}/station/{identifier(station)}"


def device_source(device: str) -> str:
    """Return the CloudEvents `source` of a device."""
    return f"/device/{identifier(device)}"


def ca_source(ca: str) -> str:
    """Return the CloudEvents `source` of a certificate authority."""
    return f"/ca/{identifier(ca)}"


def source_owner(source: str, source_class: str) -> str | None:
    """Return the id of the station (`s`), device (`d`) or CA (`ca`) that a source names, or None if it names none."""
    found = _SOURCES[source_class].fullmatch(source)
    return found["owner"] if found else None
