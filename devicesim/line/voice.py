"""What a station says in public: its events, signed with its own certificate (provisioning events, CloudEvents 1.0).

No private key, no password and no whole certificate is ever in an event: hashes and serial numbers name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.line.chain import ChainPlace
from devicesim.line.ledger import Announce, Announcement
from devicesim.line.records import UnitRow
from devicesim.line.settings import Site
from devicesim.line.states import Failure
from devicesim.mqtt.events import Event, sequence_text, sign_event, utc_text
from devicesim.mqtt.topics import EventType, station_source, topic_for
from devicesim.mqtt.ulid import new_ulid
from devicesim.transport import ClientIdentity

EXPIRES_AFTER = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Voice:
    """Makes and signs a station's events.

    Attributes:
        site: where the station stands.
        identity: the station's certificate and key; its CN is the station's id.
        domain: the first level of every topic.
        est_url: the EST server the units enrolled with.
        clock, randomness: for the event's time and id.
    """

    site: Site
    identity: ClientIdentity
    domain: str
    est_url: str
    clock: Callable[[], datetime]
    randomness: Callable[[int], bytes]

    @property
    def source(self) -> str:
        """The CloudEvents source, whose events are counted."""
        return station_source(self.site.id, self.site.line, self.site.station)

    def provisioned(self, unit: UnitRow, *, slot: int, key_alg: str, timing_ms: Mapping[str, float]) -> Announce:
        """Return what announces that a unit has passed."""
        assert unit.certificate is not None
        assert unit.spki_sha256 is not None
        data = {
            **_who(unit, slot),
            "outcome": "pass",
            "key": {"alg": key_alg, "origin": "device", "store": "file", "spki_sha256": unit.spki_sha256},
            "cert": cert_facts(x509.load_der_x509_certificate(unit.certificate)),
            "est": {"server": self.est_url, "op": "simpleenroll"},
            "timing_ms": {step: round(took) for step, took in timing_ms.items()},
            "supersedes": None,
        }
        return self._announce(EventType.PROVISIONED, unit, data)

    def failed(self, unit: UnitRow, failure: Failure, *, slot: int) -> Announce:
        """Return what announces that an attempt at a unit has failed."""
        data = {**_who(unit, slot), "outcome": "fail", "failure": {"code": failure.code, "state": unit.state}}
        return self._announce(EventType.FAILED, unit, data)

    def _announce(self, kind: EventType, unit: UnitRow, data: Mapping[str, Any]) -> Announce:
        def make(sequence: int, place: ChainPlace) -> Announcement:
            at = self.clock().replace(microsecond=0)
            event = Event(
                id=new_ulid(self.clock(), self.randomness),
                source=self.source,
                type=kind,
                subject=unit.device_id,
                time=at,
                data={**data, "ledger": {"seq": place.seq, "head": place.head}},
                sequence=sequence_text(sequence),
                correlationid=unit.attempt_id,
                expirytime=at + EXPIRES_AFTER,
            )
            leaf, *chain = self.identity.certificates
            payload = sign_event(event, key=self.identity.key, certificate=leaf, chain=chain)
            return Announcement(event.id, topic_for(kind, self.site.station, domain=self.domain), payload)

        return make


def cert_facts(certificate: x509.Certificate) -> dict[str, str]:
    """Name a certificate without showing it."""
    return {
        "serial": f"{certificate.serial_number:x}",
        "sha256": sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_before": utc_text(certificate.not_valid_before_utc),
        "not_after": utc_text(certificate.not_valid_after_utc),
    }


def _who(unit: UnitRow, slot: int) -> dict[str, object]:
    facts = {"serial": unit.facts["serial"], "model": unit.facts["product"], "hw_rev": unit.facts["hw_rev"]}
    return {
        "device_id": unit.device_id,
        **{name: value for name, value in facts.items() if value},
        "batch": unit.batch,
        "attempt": unit.attempts,
        "attempt_id": unit.attempt_id,
        "slot": slot,
    }
