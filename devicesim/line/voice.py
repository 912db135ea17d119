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

from devicesim.line.crew import Actor
from devicesim.line.ledger import Announce, Announcement, SupersededRow, Told, UnitRow, Why
from devicesim.line.settings import Site
from devicesim.line.states import Failure, State
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

    def provisioned(
        self, unit: UnitRow, *, key_alg: str, timing_ms: Mapping[str, float], before: SupersededRow | None
    ) -> Announce:
        """Return what announces that a unit has passed; `before` is the identity that this one takes the place of."""
        assert unit.certificate is not None
        assert unit.spki_sha256 is not None
        data = {
            **unit_facts(unit),
            "outcome": "pass",
            "generation": unit.generation,
            "key": {"alg": key_alg, "origin": "device", "store": "file", "spki_sha256": unit.spki_sha256},
            "cert": cert_facts(x509.load_der_x509_certificate(unit.certificate)),
            "est": {"server": self.est_url, "op": "simpleenroll"},
            "timing_ms": {step: round(took) for step, took in timing_ms.items()},
            "supersedes": _superseded(before) if before else None,
        }
        kind = EventType.PROVISIONED if unit.generation == 1 else EventType.REPROVISIONED
        return self._announce(kind, unit, data)

    def failed(self, unit: UnitRow, failure: Failure, step: State) -> Announce:
        """Return what announces that an attempt at a unit has failed on its way to `step`."""
        told = {"code": failure.code, "state": unit.state, "step": step}
        return self._announce(EventType.FAILED, unit, {**unit_facts(unit), "outcome": "fail", "failure": told})

    def scrapped(self, unit: UnitRow, why: Why) -> Announce:
        """Return what announces that a unit was taken off the line for ever."""
        data = {**unit_facts(unit), "outcome": "scrapped", "reason": why.reason, "was": unit.state}
        if unit.certificate is not None:
            data["cert"] = cert_facts(x509.load_der_x509_certificate(unit.certificate))
        return self._announce(EventType.SCRAPPED, unit, data)

    def _announce(self, kind: EventType, unit: UnitRow, data: Mapping[str, Any]) -> Announce:
        def make(told: Told) -> Announcement:
            at = self.clock().replace(microsecond=0)
            event = Event(
                id=new_ulid(self.clock(), self.randomness),
                source=self.source,
                type=kind,
                subject=unit.device_id,
                time=at,
                data={**data, **_who(told.by), "ledger": {"seq": told.place.seq, "head": told.place.head}},
                sequence=sequence_text(told.sequence),
                correlationid=unit.attempt_id,
                expirytime=at + EXPIRES_AFTER,
            )
            leaf, *chain = self.identity.certificates
            payload = sign_event(event, key=self.identity.key, certificate=leaf, chain=chain)
            return Announcement(event.id, topic_for(kind, self.site.station, domain=self.domain), payload)

        return Announce(self.source, make)


def cert_facts(certificate: x509.Certificate) -> dict[str, str]:
    """Name a certificate without showing it."""
    return {
        "serial": f"{certificate.serial_number:x}",
        "sha256": sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_before": utc_text(certificate.not_valid_before_utc),
        "not_after": utc_text(certificate.not_valid_after_utc),
    }


def unit_facts(unit: UnitRow) -> dict[str, Any]:
    """Name a unit and the attempt it is in."""
    facts = {"serial": unit.facts["serial"], "model": unit.facts["product"], "hw_rev": unit.facts["hw_rev"]}
    return {
        "device_id": unit.device_id,
        **{name: value for name, value in facts.items() if value},
        "batch": unit.batch,
        "attempt": unit.attempts,
        "attempt_id": unit.attempt_id,
    }


def _who(by: Actor) -> dict[str, object]:
    """Name the people and the slot; site, line and station are the event's source."""
    known = {"slot": by.slot, "operator": by.operator, "second": by.second, "shift": by.shift}
    return {name: value for name, value in known.items() if value not in {"", None}}


def _superseded(before: SupersededRow) -> dict[str, Any]:
    """Name the identity that ended: its certificate, if it ever came, and why it ended."""
    named = {"generation": before.generation, "spki_sha256": before.spki_sha256, "reason": before.reason}
    if before.certificate is None:
        return named
    return {**named, "cert": cert_facts(x509.load_der_x509_certificate(before.certificate))}
