"""Rework: a unit tried again, given a new identity, or taken off the line for ever.

Rules:
- Whoever does it, whoever saw it, the reason and what it ends are one row of the chain, in one transaction with it.
- An identity that ends stays in the ledger, superseded, and what it used up stays taken.
- The EST protocol has no revocation: where the policy is to revoke, an order is written, owed until it is confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass

from devicesim.errors import Conflict
from devicesim.line.ledger.disk import stamp
from devicesim.line.ledger.edges import end_attempt
from devicesim.line.ledger.rows import UnitRow
from devicesim.line.ledger.writing import Announce, Writing
from devicesim.line.reasons import Reason
from devicesim.line.settings import OldCertificate
from devicesim.line.states import State


@dataclass(frozen=True, slots=True)
class Why:
    """The reason of a rework, and what the person has to say about it."""

    reason: Reason
    note: str = ""

    def body(self, unit: UnitRow) -> dict[str, object]:
        """Return what the chain tells of it."""
        note = {"note": self.note} if self.note else {}
        return {"device_id": unit.device_id, "reason": self.reason, "generation": unit.generation, **note}


def retry(writing: Writing, device_id: str, why: Why, *, idle: bool) -> None:
    """Let a unit that failed wait for the next run, its failure answered."""
    unit = _off_the_line(writing, device_id, idle=idle)
    if unit.failure is None:
        raise Conflict(f"{device_id} has not failed: it is {unit.state}", advice="there is nothing to try again")
    writing.conn.execute("UPDATE unit SET failure_code = NULL, failure_text = NULL WHERE device_id = ?", (device_id,))
    writing.tell("retry", {**why.body(unit), "code": unit.failure.code})


def reissue(writing: Writing, device_id: str, why: Why, old: OldCertificate, *, idle: bool) -> None:
    """End a unit's identity and send it back to the beginning of its way: a new key, a new certificate."""
    unit = _off_the_line(writing, device_id, idle=idle)
    if unit.spki_sha256 is None:
        raise Conflict(f"{device_id} has no identity to re-issue: it is {unit.state}", advice="run its batch")
    end_attempt(writing, unit, "aborted", None)
    ended = _supersede(writing, unit, why, old)
    writing.conn.execute(
        "UPDATE unit SET state = ?, generation = generation + 1, failure_code = NULL, failure_text = NULL,"
        " spki_sha256 = NULL, csr = NULL, certificate = NULL, cert_serial = NULL, label = NULL, event_id = NULL,"
        " recorded_seq = NULL, birth = 'none', birth_event = NULL WHERE device_id = ?",
        (State.PLANNED, device_id),
    )
    writing.tell("reissue", {**why.body(unit), **ended})


def scrap(
    writing: Writing, device_id: str, why: Why, old: OldCertificate, announce: Announce | None, *, idle: bool
) -> None:
    """Take a unit off the line for ever; what it used up stays taken."""
    unit = _off_the_line(writing, device_id, idle=idle)
    end_attempt(writing, unit, "aborted", None)
    ended = _supersede(writing, unit, why, old) if unit.spki_sha256 else {}
    writing.conn.execute(
        "UPDATE unit SET state = ?, failure_code = NULL, failure_text = NULL, birth = 'none' WHERE device_id = ?",
        (State.SCRAPPED, device_id),
    )
    writing.owe(announce, writing.tell(State.SCRAPPED, {**why.body(unit), **ended, "was": unit.state}))


def confirm_revoked(writing: Writing, device_id: str) -> int:
    """Record that the certificates that were to be revoked are; return how many they were."""
    writing.unit(device_id)
    rows = writing.conn.execute(
        "UPDATE revocation SET confirmed_at = ? WHERE device_id = ? AND confirmed_at IS NULL RETURNING generation",
        (stamp(writing.at), device_id),
    ).fetchall()
    for (generation,) in sorted(rows):
        writing.tell("revoked", {"device_id": device_id, "generation": generation})
    return len(rows)


def _off_the_line(writing: Writing, device_id: str, *, idle: bool) -> UnitRow:
    """Return a unit that nobody is working on; `idle`: no run is, so an attempt left open is of a crash."""
    unit = writing.unit(device_id)
    if unit.state is State.SCRAPPED:
        raise Conflict(f"{device_id} was scrapped: that is final", advice="plan a new unit, with another id")
    if unit.attempt_id is not None and not idle:
        raise Conflict(f"{device_id} is on the line now", advice="wait until its attempt has ended")
    return unit


def _supersede(writing: Writing, unit: UnitRow, why: Why, old: OldCertificate) -> dict[str, object]:
    """Put a unit's identity among those that ended, and order its revocation when that is the policy."""
    writing.conn.execute(
        "INSERT INTO superseded SELECT device_id, generation, spki_sha256, csr, certificate, cert_serial, label,"
        " event_id, recorded_seq, ?, ? FROM unit WHERE device_id = ?",
        (stamp(writing.at), why.reason, unit.device_id),
    )
    may_be_certified = unit.csr is not None  # it may have been asked for, even if no answer came
    revoke = old == "revoke" and may_be_certified
    if revoke:
        writing.conn.execute(
            "INSERT INTO revocation (device_id, generation, spki_sha256, cert_serial, reason, ordered_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (unit.device_id, unit.generation, unit.spki_sha256, unit.cert_serial, _rfc(why), stamp(writing.at)),
        )
    return {"cert_serial": unit.cert_serial, "old_certificate": "revoke" if revoke else "lapse"}


def _rfc(why: Why) -> str:
    """Return the CRL reason (RFC 5280 §5.3.1)."""
    return "keyCompromise" if why.reason is Reason.KEY_COMPROMISED else "superseded"
