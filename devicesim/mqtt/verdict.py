"""What a proven signer may say, and where: the second half of believing an event.

Rules, all of them checked, every breach named:
- the type belongs on the topic, and the topic, the source and the subject name the same station, device or CA;
- a station's event is signed by that station's certificate, which carries id-kp-cmcRA (RFC 6402 §2.10);
- a device's event is signed by that device's certificate, and a birth names the very certificate that signed it;
- the current identity and the CA's events are signed by the configured announcer;
- what `data` says about the device and the CA agrees with subject and source;
- the event has not expired and is not from the future.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509

from devicesim.mqtt.connection import common_name
from devicesim.mqtt.events import Event, VerifiedEvent
from devicesim.mqtt.topics import PLACES, EventType, Topic, source_owner
from devicesim.trust import CMC_RA, extended_key_usage, fingerprint

CLOCK_SKEW = timedelta(minutes=5)
_CLASSES = {"s": "station", "d": "device", "ca": "CA"}


def problems(verified: VerifiedEvent, topic: Topic | None, *, announcer: str, now: datetime) -> tuple[str, ...]:
    """Return, in plain words, everything that speaks against a signed event; `topic` None: it came as a file."""
    event, signer = verified.event, verified.signer
    if event.type not in set(EventType):
        return (f"the type {event.type} is not one of ours",)
    place = PLACES[EventType(event.type)]
    owner = source_owner(event.source, place.source_class)
    found = [f"the source {event.source} does not name a {_CLASSES[place.source_class]}"] if owner is None else []
    if topic is not None:
        said_by = event.subject if place.source_class != place.owner_class else owner
        found += _topic_problems(event, topic, place.owner_class, place.tail, said_by)
    found += _SIGNERS[place.source_class](event, signer, owner, announcer)
    found += _data_problems(event, owner if place.source_class == "ca" else None)
    found += _time_problems(event, now)
    return tuple(found)


def _topic_problems(event: Event, topic: Topic, owner_class: str, tail: str, said_by: str | None) -> Iterator[str]:
    if (topic.owner_class, topic.tail) != (owner_class, tail):
        yield f"an event of type {event.type} does not belong on the topic {topic}"
    elif said_by is not None and topic.owner != said_by:
        yield f"the topic is of {topic.owner}, the event of {said_by}"


def _by_station(_: Event, signer: x509.Certificate, owner: str | None, __: str) -> Iterator[str]:
    name = common_name(signer)
    if owner is not None and name != owner:
        yield f"signed by {name}, not by the station {owner}"
    if CMC_RA not in extended_key_usage(signer):
        yield f"signed by {name}, whose certificate is not that of a station (no id-kp-cmcRA)"


def _by_device(event: Event, signer: x509.Certificate, owner: str | None, _: str) -> Iterator[str]:
    name = common_name(signer)
    if owner is not None and name != owner:
        yield f"signed by {name}, not by the device {owner}"
    if owner is not None and event.subject != owner:
        yield f"the device {owner} speaks about {event.subject}"
    if event.type == EventType.BIRTH and event.data.get("cert_sha256") != fingerprint(signer):
        yield "the birth names another certificate than the one that signed it"


def _by_announcer(_: Event, signer: x509.Certificate, __: str | None, announcer: str) -> Iterator[str]:
    name = common_name(signer)
    if name != announcer:
        yield f"signed by {name}, not by the announcer {announcer}"


_SIGNERS: dict[str, Callable[[Event, x509.Certificate, str | None, str], Iterator[str]]] = {
    "s": _by_station,
    "d": _by_device,
    "ca": _by_announcer,
}


def _data_problems(event: Event, ca: str | None) -> Iterator[str]:
    device = event.data.get("device_id", event.subject)
    if device != event.subject:
        yield f"the event is about {event.subject}, its data about {device}"
    certificate: Any = event.data.get("cert")
    named = certificate.get("ca", ca) if isinstance(certificate, dict) else ca
    if ca is not None and named != ca:
        yield f"the event is of the CA {ca}, its certificate of the CA {named}"


def _time_problems(event: Event, now: datetime) -> Iterator[str]:
    if event.expirytime is not None and event.expirytime <= now:
        yield f"the event expired at {event.expirytime:%Y-%m-%d %H:%M:%S} UTC"
    if event.time > now + CLOCK_SKEW:
        yield f"the event is from the future ({event.time:%Y-%m-%d %H:%M:%S} UTC)"
