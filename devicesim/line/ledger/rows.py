"""What the ledger keeps of a unit, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from devicesim.line.ledger.chain import ChainPlace
from devicesim.line.states import ENDED, PASSED, Failure, FailureCode, State


@dataclass(frozen=True, slots=True)
class UnitRow:
    """A unit as the ledger has it.

    Attributes:
        attempt_id: the attempt under way, or None.
        generation: 1 for the first identity, one more for each re-issue.
        spki_sha256, csr, certificate, cert_serial, label, event_id: of the current generation, as far as it has come.
            `cert_serial` is `<16 hex of the issuer's hash>:<serial, hex>`, unique over all issuers.
        recorded: where in the chain its PASS is.
    """

    device_id: str
    batch: str
    facts: Mapping[str, str]
    state: State
    failure: Failure | None
    attempts: int
    attempt_id: str | None
    generation: int
    spki_sha256: str | None
    csr: bytes | None
    certificate: bytes | None
    cert_serial: str | None
    label: str | None
    event_id: str | None
    birth: str
    recorded: ChainPlace | None

    @property
    def passed(self) -> bool:
        """Whether the unit may leave the station."""
        return self.state in PASSED

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do for it: it passed, or was scrapped."""
        return self.state in ENDED


UNIT = (
    "SELECT u.device_id, u.batch, u.facts, u.state, u.failure_code, u.failure_text, u.attempts, u.attempt_id,"
    " u.generation, u.spki_sha256, u.csr, u.certificate, u.cert_serial, u.label, u.event_id, u.birth, e.seq, e.hash"
    " FROM unit u LEFT JOIN event e ON e.seq = u.recorded_seq"
)


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try at a unit, and who was at it; a run that goes on where a crash left off goes on with the same attempt.

    Attributes:
        shift, operator: empty where the station has none, or the attempt is of the first schema.
        outcome: `pass`, `fail` or `aborted`; None while it is under way.
        timing_ms: how long each step took, under the state it led to.
    """

    id: str
    device_id: str
    number: int
    site: str
    line: str
    station: str
    slot: int
    shift: str
    operator: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    failure_code: str | None
    timing_ms: Mapping[str, float]


ATTEMPT = (
    "SELECT a.id, a.device_id, a.number, a.site, a.line, a.station, a.slot, a.shift, a.operator, a.started_at,"
    " a.ended_at, a.outcome, a.failure_code, a.timing_ms FROM attempt a"
)


@dataclass(frozen=True, slots=True)
class SupersededRow:
    """An identity a unit had before it was re-issued or scrapped; its key and serial number stay taken."""

    device_id: str
    generation: int
    spki_sha256: str
    csr: bytes | None
    certificate: bytes | None
    cert_serial: str | None
    label: str | None
    event_id: str | None
    recorded: ChainPlace | None
    superseded_at: datetime
    reason: str


SUPERSEDED = (
    "SELECT s.device_id, s.generation, s.spki_sha256, s.csr, s.certificate, s.cert_serial, s.label, s.event_id,"
    " e.seq, e.hash, s.superseded_at, s.reason FROM superseded s LEFT JOIN event e ON e.seq = s.recorded_seq"
)


@dataclass(frozen=True, slots=True)
class RevocationRow:
    """A certificate that is to be revoked at the CA: ordered here, carried out there, and owed until confirmed.

    Attributes:
        cert_serial: as in `UnitRow`; None when no answer came: then it is whatever was issued for the key.
        reason: a reason of RFC 5280 §5.3.1.
    """

    device_id: str
    generation: int
    spki_sha256: str
    cert_serial: str | None
    reason: str
    ordered_at: datetime
    confirmed_at: datetime | None


REVOCATION = "SELECT device_id, generation, spki_sha256, cert_serial, reason, ordered_at, confirmed_at FROM revocation"


def unit_row(row: tuple[Any, ...]) -> UnitRow:
    """Read a row of UNIT."""
    device_id, batch, facts, state, code, text, *rest = row
    failure = Failure(FailureCode(code), text) if code else None
    return UnitRow(device_id, batch, json.loads(facts), State(state), failure, *rest[:-2], *_place(*rest[-2:]))


def attempt_row(row: tuple[Any, ...]) -> AttemptRow:
    """Read a row of ATTEMPT."""
    return AttemptRow(*row[:-5], *_times(*row[-5:-3]), *row[-3:-1], *[json.loads(row[-1])])


def superseded_row(row: tuple[Any, ...]) -> SupersededRow:
    """Read a row of SUPERSEDED."""
    return SupersededRow(*row[:-4], *_place(*row[-4:-2]), *_times(row[-2]), *row[-1:])


def revocation_row(row: tuple[Any, ...]) -> RevocationRow:
    """Read a row of REVOCATION."""
    return RevocationRow(*row[:-2], *_times(*row[-2:]))


def _place(seq: int | None, head: str) -> list[Any]:
    return [None if seq is None else ChainPlace(seq, head)]


def _times(*texts: str | None) -> list[Any]:
    return [None if text is None else datetime.fromisoformat(text) for text in texts]
