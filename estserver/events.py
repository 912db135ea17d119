"""What happened, in the form it is told: event values for the outbox, made before the transaction that records them.

Topics and types follow docs/mqtt.md: events of the CA at `ca/{ca}/evt/…`, and, retained, the current identity of each
device at `d/{device}/identity`. Nothing in an event is secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from estserver.model import CertificateRecord, Csr, Der, DeviceId, Event, Grant, Operation, Reservation, Serial

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ULID_RANDOM_BYTES = 10

RandomBytes = Callable[[int], bytes]


def ulid(at: datetime, random_bytes: bytes) -> str:
    """Make a ULID: 48 bits of milliseconds and 80 random bits, 26 characters that sort by time."""
    value = int(at.timestamp() * 1000) << 80 | int.from_bytes(random_bytes[:ULID_RANDOM_BYTES])
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def serial_text(serial: Serial) -> str:
    """Write a serial number as lower-case hex digits, as `openssl x509 -serial` does in upper case."""
    return f"{serial:x}"


def time_text(at: datetime) -> str:
    """Write a UTC time as everything that leaves the server has it: `2027-03-01T12:00:00Z`."""
    return at.isoformat(timespec="seconds")[:19] + "Z"


def issued(reservation: Reservation, certificate: Der, *, ca: str, issuer: str, random: RandomBytes) -> list[Event]:
    """Tell that a certificate was issued or renewed: one event of the CA, one retained identity."""
    grant, at = reservation.grant, reservation.at
    verb = "renewed" if grant.operation is Operation.SIMPLEREENROLL else "issued"
    data: Mapping[str, object] = {
        "device_id": grant.device,
        "cert": {
            "serial": serial_text(reservation.serial),
            "sha256": hashlib.sha256(certificate).hexdigest(),
            "issuer": issuer,
            "ca": ca,
            "not_before": time_text(grant.not_before),
            "not_after": time_text(grant.not_after),
        },
        "key": {"alg": grant.csr.key.name, "spki_sha256": grant.csr.spki_sha256},
        "profile": grant.profile,
        "supersedes": None if grant.predecessor is None else serial_text(grant.predecessor),
    }
    return [
        _ca_event(verb, grant.device, ca, at, data, random),
        _identity(grant.device, ca, at, data, random),
    ]


def revoked(record: CertificateRecord, reason: str, at: datetime, *, ca: str, random: RandomBytes) -> Sequence[Event]:
    """Tell that a certificate was revoked; the retained identity says so too when it was the current one."""
    data: Mapping[str, object] = {
        "device_id": record.device,
        "cert": {"serial": serial_text(record.serial), "sha256": record.sha256, "ca": ca},
        "revoked": {"at": time_text(at), "reason": reason},
    }
    events = [_ca_event("revoked", record.device, ca, at, data, random)]
    if record.superseded_by is None:
        events.append(_identity(record.device, ca, at, data, random))
    return events


def key_reused(device: DeviceId, owner: DeviceId, csr: Csr, at: datetime, *, ca: str, random: RandomBytes) -> Event:
    """Raise the finding that two devices hold the same key: cloned firmware, or a bad generator."""
    data = {"device_id": device, "key_of": owner, "key": {"alg": csr.key.name, "spki_sha256": csr.spki_sha256}}
    return _ca_event("key-reused", device, ca, at, data, random)


def pending(grant: Grant, at: datetime, *, ca: str, random: RandomBytes) -> Event:
    """Call for an operator: a request waits for approval."""
    data = {
        "device_id": grant.device,
        "requester": grant.requester,
        "operation": grant.operation,
        "key": {"alg": grant.csr.key.name, "spki_sha256": grant.csr.spki_sha256},
        "profile": grant.profile,
    }
    return _ca_event("pending", grant.device, ca, at, data, random)


def _ca_event(
    verb: str, device: DeviceId, ca: str, at: datetime, data: Mapping[str, object], random: RandomBytes
) -> Event:
    kind, topic = f"org.estline.certificate.{verb}.v1", f"ca/{ca}/evt/{verb}"
    return _event(kind, topic, device, ca, at, data, random, retain=False)


def _identity(device: DeviceId, ca: str, at: datetime, data: Mapping[str, object], random: RandomBytes) -> Event:
    kind, topic = "org.estline.identity.current.v1", f"d/{device}/identity"
    return _event(kind, topic, device, ca, at, data, random, retain=True)


def _event(
    kind: str,
    topic: str,
    device: DeviceId,
    ca: str,
    at: datetime,
    data: Mapping[str, object],
    random: RandomBytes,
    *,
    retain: bool,
) -> Event:
    event_id = ulid(at, random(ULID_RANDOM_BYTES))
    return Event(event_id, f"/ca/{ca}", kind, device, topic, retain=retain, at=at, data=data)
