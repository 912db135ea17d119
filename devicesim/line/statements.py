"""What a station states about its ledger, signed: DSSE over canonical JSON, with the station's certificate chain in it.

Rules:
- A statement says who makes it (site, line, station) and when (`at`); it is believed when the signer's certificate
  names that station, carries id-kp-cmcRA (RFC 6402 §2.10) and chains to the anchor at that time, so that it can still
  be checked when the certificate has expired.
- The time is the station's own word: whoever needs more keeps a copy, which no later signature can change.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from devicesim.errors import VerificationFailed
from devicesim.mqtt import dsse
from devicesim.mqtt.connection import common_name
from devicesim.mqtt.events import canonical_json, utc_text, utc_time
from devicesim.transport import ClientIdentity
from devicesim.trust import CMC_RA, TrustAnchors, extended_key_usage

CHECKPOINT = "application/vnd.estline.ledger-checkpoint.v1+json"
KNOWN_SET = "application/vnd.estline.known-set.v1+json"
YIELD = "application/vnd.estline.line-yield.v1+json"
YIELD_PAGE = "application/vnd.estline.line-yield-page.v1+json"

Seal = Callable[[str, Mapping[str, object], datetime], bytes]
"""Signs a statement of a kind, made at a time, and returns its envelope."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that was proven to be of the station it names."""

    fields: Mapping[str, Any]
    at: datetime
    signer: x509.Certificate

    @property
    def place(self) -> dict[str, str]:
        """The station that made it."""
        return {name: str(self.fields[name]) for name in ("site", "line", "station")}


def sealing(identity: ClientIdentity, place: Mapping[str, str]) -> Seal:
    """Return what signs as a station."""

    def seal(kind: str, fields: Mapping[str, object], at: datetime) -> bytes:
        payload = canonical_json({**fields, **place, "at": utc_text(at)})
        return dsse.seal(payload, kind, key=identity.key, chain=identity.certificates)

    return seal


def unseal(envelope: bytes, kind: str, trust: TrustAnchors) -> Statement:
    """Return what an envelope states, once it is proven who states it; else VerificationFailed."""
    try:
        claimed = json.loads(base64.b64decode(json.loads(envelope)["payload"], validate=True))
        at = utc_time(claimed["at"])
    except (KeyError, TypeError, ValueError, RecursionError) as fault:
        raise VerificationFailed("the signed statement is malformed") from fault
    signed = dsse.unseal(envelope, kind, trust=trust, now=at)
    fields = json.loads(signed.payload)
    if common_name(signed.signer) != fields.get("station"):
        raise VerificationFailed(f"signed by {common_name(signed.signer)}, not by the station {fields.get('station')}")
    if CMC_RA not in extended_key_usage(signed.signer):
        raise VerificationFailed("the signer's certificate is not that of a station (no id-kp-cmcRA)")
    if not all(isinstance(fields.get(name), str) for name in ("site", "line")):
        raise VerificationFailed("the signed statement does not say where it was made")
    return Statement(fields, at, signed.signer)
