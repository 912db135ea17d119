"""Provisioned units out of a line's ledger: the one place where an export knows how a ledger is kept.

Rules:
- One snapshot: however often the units are read, and whatever a line writes meanwhile, they are the same units.
- The chain of the ledger is verified first, and a certificate is the one whose hash stands in it.
- A row at a time: memory does not grow with the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.csr import public_key_type, spki
from devicesim.errors import ConfigInvalid, UsageProblem, VerificationFailed
from devicesim.exports.provisioned import Provisioned
from devicesim.line.crew import Actor
from devicesim.line.ledger import Ledger, chain, rows
from devicesim.line.ledger.disk import storage_errors
from devicesim.line.states import PASSED
from devicesim.trust import TrustAnchors, build_path

# What the chain tells of the current identity of each unit: its PASS, and the certificate it was issued last.
_TOLD = """
CREATE TEMP TABLE told AS
SELECT u.device_id, r.at, r.actor, max(e.seq) AS last,
       json_extract(e.body, '$.certificate_sha256') AS certificate_sha256
  FROM unit u
  JOIN event r ON r.seq = u.recorded_seq AND r.kind = 'recorded' AND json_extract(r.body, '$.device_id') = u.device_id
  JOIN event e ON json_extract(e.body, '$.device_id') = u.device_id AND e.kind = 'enrolled' AND e.seq < r.seq
 GROUP BY u.device_id
"""
_PASSED = ", ".join(f"'{state}'" for state in sorted(PASSED))
_UNITS = (
    f"{rows.UNIT.replace(' FROM unit u', ', t.at, t.actor, t.certificate_sha256 FROM unit u')}"
    f" LEFT JOIN temp.told t USING (device_id) WHERE u.batch = ? AND u.state IN ({_PASSED}) ORDER BY u.position"
)
_COUNT = f"SELECT count(*), count(*) FILTER (WHERE state IN ({_PASSED})) FROM unit WHERE batch = ?"  # noqa: S608 - states


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A batch as it stood at one moment.

    Attributes:
        planned: units of the batch.
        passed: those of them that have passed; the others are in no export.
    """

    batch: str
    planned: int
    passed: int
    _conn: Any
    _ledger: Ledger
    _issuers: Issuers
    _place: Mapping[str, str]

    def units(self) -> Iterator[Provisioned]:
        """Read the units that have passed, in the order of the batch; as often as is needed."""
        with storage_errors(self._ledger.path):
            for row in self._conn.execute(_UNITS, (self.batch,)):
                yield _unit(row, self._place, self._issuers)


class Issuers:
    """Finds the chain of a certificate among the certificates at hand, proven up to a trust anchor."""

    def __init__(self, pool: Sequence[x509.Certificate], trust: TrustAnchors) -> None:
        self._pool, self._trust = pool, trust
        self._known: dict[bytes, tuple[x509.Certificate, ...]] = {}

    def chain(self, certificate: x509.Certificate, at: datetime) -> tuple[bytes, ...]:
        """Return the issuers in DER, from the certificate's own to the anchor; else say what is missing."""
        name = certificate.issuer.public_bytes()
        known = self._known.get(name)
        if known is None or not _issued_by(certificate, known[0]):
            try:
                known = build_path(certificate, self._pool, self._trust, at)[1:]
            except VerificationFailed as error:
                advice = "give the certificates of the CA that issues: --ca FILE, from `devicesim est cacerts`"
                raise ConfigInvalid(str(error), advice=advice) from error
            self._known[name] = known
        return tuple(each.public_bytes(Encoding.DER) for each in known)


@contextmanager
def snapshot(ledger: Ledger, batch: str, issuers: Issuers) -> Iterator[Snapshot]:
    """Hold a batch as it is now for as long as the context lasts; the ledger is verified first."""
    if batch not in dict(ledger.batches()):
        raise UsageProblem(f"there is no batch {batch!r} in this ledger", advice="see `devicesim line status`")
    with storage_errors(ledger.path), closing(ledger.connect()) as conn:
        conn.execute("BEGIN")
        deque(chain.checked(conn.execute(chain.ROWS)), maxlen=0)
        conn.execute(_TOLD)
        planned, passed = conn.execute(_COUNT, (batch,)).fetchone()
        yield Snapshot(batch, planned, passed, conn, ledger, issuers, ledger.place())


def _unit(row: tuple[Any, ...], place: Mapping[str, str], issuers: Issuers) -> Provisioned:
    *columns, at, actor, told_sha256 = row
    unit = rows.unit_row(tuple(columns))
    der = unit.certificate or b""
    if unit.recorded is None or sha256(der).hexdigest() != told_sha256:
        raise VerificationFailed(
            f"{unit.device_id}: its certificate is not the one that the ledger's chain tells of",
            advice="the ledger was altered: keep the file as it is, and compare it with a backup",
        )
    certificate = x509.load_der_x509_certificate(der)
    provisioned_at = datetime.fromisoformat(at)
    facts, by = unit.facts, Actor.read(actor)
    return Provisioned(
        device_id=unit.device_id,
        serial=facts["serial"],
        batch=unit.batch,
        model=facts["product"],
        hw_rev=facts["hw_rev"],
        mac=facts["mac"],
        se_id=facts["se_id"],
        group=facts["group"],
        certificate=der,
        chain=issuers.chain(certificate, provisioned_at),
        csr=unit.csr or b"",
        cert_serial=f"{certificate.serial_number:x}",
        cert_sha256=sha256(der).hexdigest(),
        spki_sha256=sha256(spki(certificate)).hexdigest(),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=_utc(certificate.not_valid_before_utc),
        not_after=_utc(certificate.not_valid_after_utc),
        key_alg=public_key_type(certificate.public_key()),
        key_store="file",
        site=by.site or place["site"],
        line=by.line or place["line"],
        station=by.station,
        operator=by.operator,
        shift=by.shift,
        provisioned_at=_utc(provisioned_at),
        attempts=unit.attempts,
        outcome="pass",
        label=unit.label or "",
        ledger_seq=unit.recorded.seq,
        ledger_head=unit.recorded.head,
    )


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
