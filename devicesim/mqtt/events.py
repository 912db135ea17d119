"""Events: what was provisioned, said once, under one id, and signed so that a subscriber needs to trust no broker.

An event is a CloudEvent 1.0 in structured JSON. Its signature follows the CloudEvents verifiability extension: DSSE
over digests of the attributes and of `data`, carried in the attribute `dssematerial`. `data` is signed in one form
(compact, keys sorted, UTF-8) and a verifier brings it into the same form again, so a broker may re-format the message
and nothing else. An event that is not signed, or that carries an attribute its signature does not cover, is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from devicesim.errors import UsageProblem, VerificationFailed
from devicesim.mqtt import dsse
from devicesim.trust import TrustAnchors

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
PAYLOAD_TYPE = "https://cloudevents.io/verifiability/dsse/v0.1"
EVENT_MAX_BYTES = 64 * 1024
SIGNED_EXTENSIONS = ("sequence", "correlationid", "expirytime")

_REQUIRED = ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data", "dssematerial")
_OPTIONAL = ("dataschema", *SIGNED_EXTENSIONS)


@dataclass(frozen=True, slots=True)
class Event:
    """One CloudEvent: `data` is a JSON object, times are aware and of whole seconds (as the digest has them)."""

    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: Mapping[str, Any] = field(hash=False)
    dataschema: str | None = None
    sequence: str | None = None
    correlationid: str | None = None
    expirytime: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("id", "source", "type", "subject", "dataschema", "sequence", "correlationid"):
            if getattr(self, name) == "":  # an empty attribute and an absent one have the same digest
                raise UsageProblem(f"the event's {name} is empty: give it a value or leave it out")
        for when in (self.time, self.expirytime):
            if when is not None and (when.tzinfo is None or when.microsecond):
                raise UsageProblem("an event's times are in UTC and of whole seconds")


@dataclass(frozen=True, slots=True)
class VerifiedEvent:
    """An event whose signature and signer were proven; what the signer may say is for `verdict` to judge."""

    event: Event
    signer: x509.Certificate


def sequence_text(number: int) -> str:
    """Write a counter so that it sorts as a string, as the CloudEvents sequence extension demands."""
    return f"{number:020d}"


def sign_event(
    event: Event, *, key: PrivateKeyTypes, certificate: x509.Certificate, chain: Sequence[x509.Certificate] = ()
) -> bytes:
    """Return the event as the bytes to publish, signed by `certificate`'s key; `chain` holds the intermediates."""
    attributes = _attributes(event)
    covered = [name for name in SIGNED_EXTENSIONS if name in attributes]
    statement = json.dumps(_statement(attributes, event.data, covered), sort_keys=True, separators=(",", ":")).encode()
    envelope = dsse.seal(statement, PAYLOAD_TYPE, key=key, chain=(certificate, *chain))
    payload = canonical_json({**attributes, "dssematerial": _b64(envelope), "data": event.data})
    if len(payload) > EVENT_MAX_BYTES:
        raise UsageProblem(f"the event has {len(payload)} bytes; {EVENT_MAX_BYTES} are allowed")
    return payload


def verify_event(payload: bytes, *, trust: TrustAnchors, now: datetime) -> VerifiedEvent:
    """Read an event and prove who signed it: its signature, and a chain to `trust` that is valid at `now`."""
    fields = _parse(payload)
    event = _event(fields)
    attributes = _attributes(event)
    if any(fields[name] != text for name, text in attributes.items()):
        raise VerificationFailed("the event's times are not in UTC and of whole seconds")
    signed = dsse.unseal(_unb64(fields["dssematerial"]), PAYLOAD_TYPE, trust=trust, now=now)
    covered = [name for name in SIGNED_EXTENSIONS if name in attributes]
    try:
        statement = json.loads(signed.payload)
        matches = statement == _statement(attributes, event.data, covered)
    except (ValueError, RecursionError) as fault:
        raise VerificationFailed("the signed statement is malformed") from fault
    if not matches:
        raise VerificationFailed("the event is not the one that was signed: an attribute or its data was changed")
    return VerifiedEvent(event, signed.signer)


def read_event(payload: bytes) -> Event:
    """Read an event without proving anything about it: for the record of what was refused, never to act on."""
    return _event(_parse(payload))


def canonical_json(value: object) -> bytes:
    """Return the one form in which JSON is signed: compact, keys sorted, UTF-8."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as fault:
        raise UsageProblem(f"the event's data cannot be written as JSON: {fault}") from fault


def utc_text(when: datetime) -> str:
    """Write a time as events carry it: RFC 3339, UTC, whole seconds."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_time(text: str) -> datetime:
    """Read a time as events carry it, or raise ValueError."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _attributes(event: Event) -> dict[str, str]:
    optional = {
        "dataschema": event.dataschema,
        "sequence": event.sequence,
        "correlationid": event.correlationid,
        "expirytime": utc_text(event.expirytime) if event.expirytime else None,
    }
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": utc_text(event.time),
        "datacontenttype": "application/json",
    } | {name: text for name, text in optional.items() if text is not None}


def _statement(attributes: Mapping[str, str], data: Mapping[str, Any], covered: Sequence[str]) -> dict[str, Any]:
    """Return what is signed (CloudEvents verifiability extension): digests in one order, absent attributes as empty."""
    order = ("id", "source", "specversion", "type", "datacontenttype", "dataschema", "subject", "time")
    values = [attributes.get(name, "").encode() for name in order] + [canonical_json(data)]
    core = sha256(b"".join(sha256(value).digest() for value in values)).digest()
    ext = sha256(b"".join(sha256(attributes[name].encode()).digest() for name in covered)).digest()
    return {"core": _b64(core), "ext": _b64(ext), "signedextattrs": list(covered)}


def _parse(payload: bytes) -> dict[str, Any]:
    if len(payload) > EVENT_MAX_BYTES:
        raise VerificationFailed(f"the event has {len(payload)} bytes; {EVENT_MAX_BYTES} are allowed")
    try:
        fields = json.loads(payload, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        json.dumps(fields, ensure_ascii=False).encode()  # lone surrogates have no UTF-8
    except (ValueError, RecursionError) as fault:
        raise VerificationFailed("the event is not JSON") from fault
    if not isinstance(fields, dict):
        raise VerificationFailed("the event is not a JSON object")
    if str(fields.get("type", "")).startswith("org.estline.") and "dssematerial" not in fields:
        raise VerificationFailed("the event is not signed")
    absent = [name for name in _REQUIRED if name not in fields]
    if absent:
        raise VerificationFailed(f"the event lacks {', '.join(absent)}")
    return fields


def _event(fields: dict[str, Any]) -> Event:
    for name in (*_REQUIRED, *_OPTIONAL):
        kind = dict if name == "data" else str
        if name in fields and not (isinstance(fields[name], kind) and (fields[name] or kind is dict)):
            raise VerificationFailed(f"the event's {name} is not {'an object' if kind is dict else 'a text'}")
    if fields["specversion"] != "1.0" or fields["datacontenttype"] != "application/json":
        raise VerificationFailed("the event is not a CloudEvent 1.0 with JSON data")
    unsigned = sorted(set(fields) - {*_REQUIRED, *_OPTIONAL})
    if unsigned:
        raise VerificationFailed(f"attributes that no signature covers: {', '.join(unsigned)[:200]}")
    expiry = fields.get("expirytime")
    try:
        time, expirytime = utc_time(fields["time"]), utc_time(expiry) if expiry else None
    except ValueError as fault:
        raise VerificationFailed("the event's times are not in UTC and of whole seconds") from fault
    return Event(
        id=fields["id"],
        source=fields["source"],
        type=fields["type"],
        subject=fields["subject"],
        time=time,
        data=fields["data"],
        dataschema=fields.get("dataschema"),
        sequence=fields.get("sequence"),
        correlationid=fields.get("correlationid"),
        expirytime=expirytime,
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice in one object")
    return found


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _unb64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as fault:
        raise VerificationFailed("the signature envelope is not base64") from fault
