"""Single IDevIDs that are refused though their manufacturer is trusted (RFC 5280 §4.1.2.5: one that never expires)."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import bindparam, delete, insert, select

from estserver.errors import NotFound, StateError
from estserver.inventory import audit
from estserver.inventory.prepared import Prepared
from estserver.inventory.room import Room
from estserver.inventory.schema import blocked_idevid
from estserver.model import SpkiHash
from estserver.records import BlockedRecord

_FOUND = Prepared(select(blocked_idevid.c.reason).where(blocked_idevid.c.spki_sha256 == bindparam("spki")))


class BlockedIdevids(Room):
    """What an operator blocks and unblocks, and what `identity` asks; every method is one transaction."""

    def reason(self, spki_sha256: SpkiHash) -> str | None:
        """Return why a key is blocked; None when it is not."""
        with self._read() as connection:
            row = _FOUND.one(connection, spki=spki_sha256)
        return None if row is None else str(row.reason)

    def all(self) -> list[BlockedRecord]:
        """Return every one, the oldest first."""
        query = select(blocked_idevid).order_by(blocked_idevid.c.created_at, blocked_idevid.c.spki_sha256)
        with self._read() as connection:
            return [
                BlockedRecord(SpkiHash(row.spki_sha256), row.subject, row.reason, row.created_at)
                for row in connection.execute(query)
            ]

    def add(self, record: BlockedRecord, actor: str) -> None:
        """Refuse an IDevID from now on.

        Raises:
            StateError: it is blocked already.
        """
        if self.reason(record.spki_sha256) is not None:
            raise StateError(f"the key {record.spki_sha256} is blocked already", advice="trust blocked lists them")
        with self._write(record.created_at) as tx:
            values = {name: getattr(record, name) for name in ("spki_sha256", "subject", "reason", "created_at")}
            tx.connection.execute(insert(blocked_idevid), values)
            detail = {"spki_sha256": record.spki_sha256, "subject": record.subject, "reason": record.reason}
            audit.append(tx, audit.Fact(actor, "trust-block", "ok", detail))

    def remove(self, spki_sha256: SpkiHash, actor: str, now: datetime) -> None:
        """Take an IDevID again.

        Raises:
            NotFound: it is not blocked.
        """
        with self._write(now) as tx:
            gone = delete(blocked_idevid).where(blocked_idevid.c.spki_sha256 == spki_sha256)
            if tx.connection.execute(gone).rowcount != 1:
                raise NotFound(f"the key {spki_sha256} is not blocked")
            audit.append(tx, audit.Fact(actor, "trust-unblock", "ok", {"spki_sha256": spki_sha256}))
