"""An outbox row → the signed CloudEvent that is published; docs/mqtt.md is the convention.

Rules:
- CloudEvents 1.0, structured JSON; times are UTC and whole seconds, `data` is compact JSON with sorted keys.
- The signature follows the CloudEvents verifiability extension: DSSE v1.0.2 over digests of the attributes and of
  `data`. It carries the signer's chain, so that a subscriber needs the trust anchor alone.
- Pure: the same row, key and chain say the same thing whenever they are asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from estserver.events import time_text
from estserver.inventory import OutboxRow
from estserver.keys import Signer
from estserver.model import Der

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
PAYLOAD_TYPE = "https://cloudevents.io/verifiability/dsse/v0.1"
EXPIRES_AFTER = timedelta(days=7)
_CORE = ("id", "source", "specversion", "type", "datacontenttype", "dataschema", "subject", "time")
_EXTENSIONS = ("sequence", "expirytime")


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who signs: a signer, and its certificate followed by the intermediates."""

    signer: Signer
    chain: Sequence[Der]


def attributes_of(row: OutboxRow) -> dict[str, str]:
    """Return the context attributes of an event, without its signature."""
    event = row.event
    attributes = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": time_text(event.at),
        "datacontenttype": "application/json",
        "sequence": f"{row.sequence:020d}",
    }
    return attributes if event.retain else {**attributes, "expirytime": time_text(event.at + EXPIRES_AFTER)}


def signed_event(row: OutboxRow, speaker: Speaker) -> bytes:
    """Return the bytes to publish."""
    attributes = attributes_of(row)
    statement = _json(_statement(attributes, row.event.data))
    kind = PAYLOAD_TYPE.encode()
    encoding = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(statement), statement)
    signature = {
        "keyid": hashlib.sha256(speaker.chain[0]).hexdigest(),
        "sig": _b64(speaker.signer.sign_data(encoding)),
        "extension": {"kind": "application/pkix-cert-chain", "ext": {"x5c": [_b64(der) for der in speaker.chain]}},
    }
    envelope = _json({"payload": _b64(statement), "payloadType": PAYLOAD_TYPE, "signatures": [signature]})
    return _json({**attributes, "dssematerial": _b64(envelope), "data": row.event.data})


def _statement(attributes: Mapping[str, str], data: Mapping[str, object]) -> dict[str, object]:
    values = [attributes.get(name, "").encode() for name in _CORE] + [_json(data)]
    covered = [name for name in _EXTENSIONS if name in attributes]
    return {
        "core": _b64(_digest(values)),
        "ext": _b64(_digest([attributes[name].encode() for name in covered])),
        "signedextattrs": covered,
    }


def _digest(values: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(value).digest() for value in values)).digest()


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
