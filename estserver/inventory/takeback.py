"""What is taken back in numbers, and the devices that may not come again.

Rules:
- What is chosen is read a page at a time and revoked a page at a time, so that nobody waits for all of it; a run that
  was cut short is completed by the same run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, select

from estserver.inventory import blocks, queries, revocation
from estserver.inventory.blocks import BlockedDevice
from estserver.inventory.prepared import Prepared
from estserver.inventory.revocation import Announce
from estserver.inventory.room import Room
from estserver.inventory.schema import certificate
from estserver.model import CertificateRecord, DeviceId, Serial, SpkiHash

PAGE = 500


@dataclass(frozen=True, slots=True)
class Choice:
    """Which certificates in force are meant: all that fit everything that is said.

    Attributes:
        spki_sha256: of this key.
        requester: asked for by this one, as `station:line-1`.
        issuer: signed by the CA with this key identifier.
    """

    spki_sha256: SpkiHash | None = None
    requester: str | None = None
    issuer: str | None = None


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """What became of a certificate; `issuer` is the key identifier of who signed it."""

    issuer: str
    revoked_at: datetime | None
    reason: str | None


_STATUS = Prepared(
    select(certificate.c.issuer, certificate.c.revoked_at, certificate.c.revocation_reason).where(
        queries.has_serial(bindparam("which"))
    )
)


class Takeback(Room):
    """Revocation in numbers, and blocks."""

    def status(self, serial: Serial) -> CertificateStatus | None:
        """Find out what became of a certificate; None when none with this serial was ever recorded."""
        with self._read() as connection:
            row = _STATUS.one(connection, which=serial)
        if row is None:
            return None
        return CertificateStatus(row.issuer, row.revoked_at, row.revocation_reason)

    def chosen(self, choice: Choice, now: datetime) -> Iterator[list[CertificateRecord]]:
        """Find what is meant, a page at a time."""
        query, last = self._in_force(choice, now), 0
        while True:
            with self._read() as connection:
                rows = connection.execute(query.where(certificate.c.id > last)).all()
            if rows:
                yield [queries.to_record(row) for row in rows]
            if len(rows) < PAGE:
                return
            last = rows[-1].id

    def _in_force(self, choice: Choice, now: datetime) -> queries.Query:
        query = queries.ALL.where(certificate.c.revoked_at.is_(None), certificate.c.not_after >= now)
        if choice.issuer is not None:
            query = query.where(certificate.c.issuer == choice.issuer)
        if choice.requester is not None:
            query = query.where(certificate.c.requester == choice.requester)
        if choice.spki_sha256 is not None:
            with self._read() as connection:
                owner = queries.key_device(connection, choice.spki_sha256)
            query = query.where(certificate.c.device == owner, certificate.c.spki_sha256 == choice.spki_sha256)
        return query.order_by(certificate.c.id).limit(PAGE)

    def revoke(
        self,
        serials: Sequence[Serial],
        reason: str,
        actor: str,
        now: datetime,
        announce: Announce = revocation.nothing,
    ) -> list[CertificateRecord]:
        """Revoke these and no others, in one transaction; return those that were in force."""
        with self._write(now) as tx:
            return revocation.revoke_some(tx, serials, reason, actor, announce)

    def block(self, device: DeviceId, reason: str, actor: str, now: datetime) -> None:
        """Let a device get no certificate from now on, whether or not it ever had one."""
        with self._write(now) as tx:
            blocks.add(tx, device, reason, actor)

    def unblock(self, device: DeviceId, actor: str, now: datetime) -> None:
        """Let a device enrol again; NotFound when it is not blocked."""
        with self._write(now) as tx:
            blocks.remove(tx, device, actor)

    def blocked(self, *, after: str = "", limit: int = 100) -> list[BlockedDevice]:
        """Return the next blocked devices, by name."""
        with self._read() as connection:
            return blocks.page(connection, after=after, limit=limit)
