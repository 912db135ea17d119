"""The inventory: what was asked, issued, revoked and refused; who may ask; what is still to be told.

Rules:
- The only SQL of the server is in here, and nothing of it is visible outside.
- A certificate leaves the server only after `record` returned it.
- Audit and outbox rows are written in the transaction of what they tell.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self

from estserver.errors import EstError
from estserver.inventory import (
    audit,
    buckets,
    counters,
    issuance,
    queries,
    refusals,
    registry,
    revocation,
    void,
)
from estserver.inventory.audit import AuditReport
from estserver.inventory.blocked import BlockedIdevids
from estserver.inventory.condition import Condition, condition_of
from estserver.inventory.crls import Crls
from estserver.inventory.database import Database, open_database
from estserver.inventory.foreign import ForeignLists
from estserver.inventory.issuance import Claim, Signed
from estserver.inventory.outbox import Outbox, OutboxRow
from estserver.inventory.pending import PendingRequests
from estserver.inventory.queries import Status
from estserver.inventory.revocation import REASONS, Announce
from estserver.inventory.rollovers import Rollovers
from estserver.inventory.takeback import Takeback
from estserver.inventory.transaction import Transaction
from estserver.inventory.void import Leftover
from estserver.limits import Bucket
from estserver.model import (
    CertificateRecord,
    Der,
    DeviceId,
    Event,
    GeneralName,
    Grant,
    Issued,
    NameAttribute,
    Refusal,
    Reservation,
    Serial,
    SpkiHash,
)
from estserver.records import AnchorRecord, AuditRow, CredentialRecord, StationRecord

__all__ = ["REASONS", "AuditReport", "Claim", "Condition", "Inventory", "Leftover", "OutboxRow", "Signed", "Status"]

_WRITES_PER_PRUNE = 64


class Inventory:
    """One server's view of the inventory; make it with `Inventory.open`, once in each process.

    Every method is one transaction and may raise `StorageUnavailable`; then nothing was changed, as far as is known,
    and the same call, or the same request, finds out. What waits for an operator is at `pending`, announcements owed at
    `outbox`, revocation lists at `crls`, those of manufacturers at `foreign`, what is taken back in numbers and devices
    that are blocked at `takeback`, single IDevIDs that are refused at `blocked`, what became of the CAs at `rollovers`.
    """

    def __init__(self, database: Database, server_id: str) -> None:
        self._database = database
        self._server_id = server_id
        self._writes = itertools.count(1)
        self.pending = PendingRequests(database.read, partial(self._write, durable=True))
        self.outbox = Outbox(database, self._write, server_id)
        self.blocked = BlockedIdevids(database.read, partial(self._write, durable=True))
        self.crls = Crls(database.read, self._write)
        self.foreign = ForeignLists(database.read, partial(self._write, durable=True))
        self.takeback = Takeback(database.read, partial(self._write, durable=True))
        self.rollovers = Rollovers(database.read, self._write)

    @classmethod
    def open(
        cls,
        url_or_path: str | Path,
        *,
        server_id: str = "estserver",
        migrate: bool = True,
        create: bool = False,
        busy_seconds: float = 5.0,
    ) -> Self:
        """Open the inventory; `create` makes the file (0600) when there is none, as `estserver init` does.

        Raises:
            ConfigError: missing, damaged, not an inventory, or newer than this program.
        """
        database = open_database(url_or_path, create=create, migrate=migrate, busy_seconds=busy_seconds)
        return cls(database, server_id)

    def condition(self) -> Condition:
        """Tell how an earlier run left the inventory; ConfigError when it is damaged."""
        return condition_of(self._database, self._server_id)

    def close(self) -> None:
        """Close the connections of this process."""
        self._database.close()

    @contextmanager
    def _write(self, now: datetime, *, durable: bool) -> Iterator[Transaction]:
        with self._database.write(durable=durable) as connection:
            tx = Transaction(connection, self._server_id, now)
            yield tx
            audit.settle(tx)
            counters.settle(tx)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- one enrolment, or several at once -------------------------------------------------------------------------

    def reserve(
        self, grant: Grant, serial: Serial, now: datetime, payment: Sequence[Bucket] = ()
    ) -> Reservation | Issued:
        """Write `serial` down for a grant before anything is signed, or return what already answers this request.

        Raises:
            RateLimited: one of the buckets to pay from is empty.
            KeyReused: the key belongs to another device, or was certified before.
            NotAuthorized: the name belongs to a part of the site, or to a device and this is none; or it was denied.
            BadCredentials: the credential was removed, has expired, or was spent on other requests.
            AwaitingApproval: an operator has to agree and has not yet; QueueFull when too many wait for that.
            InternalError: the serial was used before.
        """
        (result,) = self.reserve_all([Claim(grant, serial, tuple(payment))], now)
        if isinstance(result, EstError):
            raise result
        return result

    def reserve_all(self, claims: Sequence[Claim], now: datetime) -> list[Reservation | Issued | EstError]:
        """Do what `reserve` does for several requests in one transaction; one that is refused takes none along."""
        with self._write(now, durable=False) as tx:
            self._prune_now_and_then(tx)
            return [tx.apart(partial(issuance.reserve, tx, claim)) for claim in claims]

    def record(
        self, reservation: Reservation, certificate: Der, events: Sequence[Event], now: datetime, *, issuer: str = ""
    ) -> Issued:
        """Write a signed certificate down, durably, with its CSR, audit row and announcements.

        Returns:
            what may be sent: this certificate, or, `repeated`, the one that another process recorded for the same
            request meanwhile; then this reservation is void and `events` are not sent.

        Raises:
            KeyReused: the key was certified meanwhile by a different request; the reservation is void.
            NotAuthorized: the predecessor was revoked or the name taken meanwhile; the reservation is void.
            StorageUnavailable: also when the reservation was withdrawn meanwhile.
            InternalError: the reservation was used before, or never made.
        """
        (result,) = self.record_all([Signed(reservation, certificate, tuple(events), issuer)], now)
        if isinstance(result, EstError):
            raise result
        return result

    def record_all(self, signed: Sequence[Signed], now: datetime) -> list[Issued | EstError]:
        """Do what `record` does for several certificates in one durable transaction: all wait for one sync."""
        with self._write(now, durable=True) as tx:
            return [tx.apart(partial(issuance.record, tx, one)) for one in signed]

    def void(self, reservation: Reservation, reason: str, now: datetime) -> None:
        """Give a reservation up, because signing failed; its serial is never used."""
        with self._write(now, durable=False) as tx:
            void.void(tx, reservation, reason)

    def leftovers_void(self, now: datetime) -> list[Leftover]:
        """Give up what an earlier run of this server reserved and never recorded; for its start, before any worker."""
        with self._write(now, durable=True) as tx:
            return void.void_leftovers(tx)

    def refuse(
        self, refusal: Refusal, now: datetime, events: Sequence[Event] = (), payment: Sequence[Bucket] = ()
    ) -> None:
        """Write a refusal down.

        Raises:
            RateLimited: one of the buckets to pay from is empty; nothing was written.
        """
        with self._write(now, durable=False) as tx:
            self._prune_now_and_then(tx)
            buckets.pay(tx, payment)
            refusals.refuse(tx, refusal, events)

    def require(self, payment: Sequence[Bucket], now: datetime) -> None:
        """Look whether these buckets could be paid from, and take nothing.

        Raises:
            RateLimited: one of them is empty.
        """
        with self._database.read() as connection:
            buckets.require(connection, payment, now)

    def _prune_now_and_then(self, tx: Transaction) -> None:
        if next(self._writes) % _WRITES_PER_PRUNE == 0:
            buckets.prune(tx)

    # --- revocation -------------------------------------------------------------------------------------------------

    def revoke(
        self, serial: Serial, reason: str, actor: str, now: datetime, announce: Announce = revocation.nothing
    ) -> list[CertificateRecord]:
        """Revoke a certificate and what it superseded; `announce` makes the events of each.

        Raises:
            NotFound: no such certificate.
        """
        with self._write(now, durable=True) as tx:
            return revocation.revoke(tx, serial, reason, actor, announce)

    def revoke_device(
        self, device: DeviceId, reason: str, actor: str, now: datetime, announce: Announce = revocation.nothing
    ) -> list[CertificateRecord]:
        """Revoke all that is in force for a device, withdraw what is being issued for it, and block it.

        Raises:
            NotFound: the device has no certificate.
        """
        with self._write(now, durable=True) as tx:
            return revocation.revoke_device(tx, device, reason, actor, announce)

    # --- look-ups ---------------------------------------------------------------------------------------------------

    def certificate(self, sha256_hex: str) -> CertificateRecord | None:
        """Find a certificate by the SHA-256 of its octets: how a peer's certificate is recognised."""
        with self._database.read() as connection:
            return queries.by_sha256(connection, sha256_hex)

    def by_serial(self, serial: Serial) -> CertificateRecord | None:
        """Find a certificate by its serial."""
        with self._database.read() as connection:
            return queries.by_serial(connection, serial)

    def csr(self, serial: Serial) -> Der | None:
        """Return the octets of the request that a certificate answered."""
        with self._database.read() as connection:
            return queries.csr(connection, serial)

    def current(self, device: DeviceId, profile: str) -> CertificateRecord | None:
        """Find the certificate of a device and profile that no other supersedes; it may be revoked or expired."""
        with self._database.read() as connection:
            return queries.current(connection, device, profile)

    def current_by_names(
        self, subject: tuple[NameAttribute, ...], san: Iterable[GeneralName], device: DeviceId
    ) -> CertificateRecord | None:
        """Find the newest unsuperseded certificate of a device with exactly these names (RFC 7030 §4.2.2)."""
        with self._database.read() as connection:
            return queries.current_by_names(connection, subject, san, device)

    def key_device(self, spki_sha256: SpkiHash) -> DeviceId | None:
        """Return the device a key belongs to, whether or not a certificate came of it."""
        with self._database.read() as connection:
            return queries.key_device(connection, spki_sha256)

    def list_certificates(
        self,
        *,
        device: DeviceId | None = None,
        profile: str | None = None,
        status: Status | None = None,
        expiring_before: datetime | None = None,
        after: Serial | None = None,
        limit: int = 100,
    ) -> list[CertificateRecord]:
        """Return the next page: in order of issue, or of expiry with `expiring_before`.

        Raises:
            NotFound: `after` is not the serial of a certificate.
        """
        with self._database.read() as connection:
            return queries.page(
                connection,
                device=device,
                profile=profile,
                status=status,
                expiring_before=expiring_before,
                after=after,
                limit=limit,
            )

    def counters(self) -> dict[str, int]:
        """Return how many were issued, repeated, refused, revoked, voided, and how deep the outbox is."""
        with self._database.read() as connection:
            return counters.read(connection)

    # --- who may ask ------------------------------------------------------------------------------------------------

    def authenticable(self, name: str, now: datetime) -> CredentialRecord | None:
        """Find a credential that may authenticate; a spent one does for 24 h, and as long as its request is pending.

        `reserve` refuses it (`BadCredentials`) for any other request.
        """
        with self._database.read() as connection:
            return registry.authenticable(connection, name, now)

    def nameless(self, verifier: bytes, now: datetime) -> CredentialRecord | None:
        """Find a credential without a name that may authenticate, by what is kept of its secret."""
        with self._database.read() as connection:
            return registry.nameless(connection, verifier, now)

    def credential(self, name: str) -> CredentialRecord | None:
        """Find a credential, whatever its state."""
        with self._database.read() as connection:
            return registry.credential_named(connection, name)

    def credentials(self) -> list[CredentialRecord]:
        """Return every credential, by name."""
        with self._database.read() as connection:
            return registry.credentials(connection)

    def credential_add(self, record: CredentialRecord, actor: str) -> None:
        """Write a new credential down; StateError when the name is taken."""
        with self._write(record.created_at, durable=True) as tx:
            registry.credential_add(tx, record, actor)

    def credential_remove(self, name: str, actor: str, now: datetime) -> None:
        """Forget a credential; NotFound when there is none."""
        with self._write(now, durable=True) as tx:
            registry.credential_remove(tx, name, actor)

    def station(self, name: str) -> StationRecord | None:
        """Find a station."""
        with self._database.read() as connection:
            return registry.station_named(connection, name)

    def stations(self) -> list[StationRecord]:
        """Return every station, by name."""
        with self._database.read() as connection:
            return registry.stations(connection)

    def station_add(self, record: StationRecord, actor: str) -> None:
        """Write a new station down; StateError when the name is taken."""
        with self._write(record.created_at, durable=True) as tx:
            registry.station_add(tx, record, actor)

    def station_remove(self, name: str, actor: str, now: datetime) -> None:
        """Forget a station; NotFound when there is none."""
        with self._write(now, durable=True) as tx:
            registry.station_remove(tx, name, actor)

    def anchors(self) -> list[AnchorRecord]:
        """Return every manufacturer's CA that is trusted, by name."""
        with self._database.read() as connection:
            return registry.anchors(connection)

    def anchor_add(self, record: AnchorRecord, actor: str) -> None:
        """Trust a manufacturer's CA; StateError when the name is taken."""
        digest = hashlib.sha256(record.certificate).hexdigest()
        with self._write(record.created_at, durable=True) as tx:
            registry.anchor_add(tx, record, actor, digest)

    def anchor_remove(self, name: str, actor: str, now: datetime) -> None:
        """Trust a manufacturer's CA no more; NotFound when there is none."""
        with self._write(now, durable=True) as tx:
            registry.anchor_remove(tx, name, actor)

    # --- what is told -----------------------------------------------------------------------------------------------

    def audit_verify(self) -> AuditReport:
        """Walk this server's whole audit chain."""
        with self._database.snapshot() as connection:
            return audit.verify(connection, self._server_id)

    def audit_rows(self, *, after: int = 0) -> Iterator[AuditRow]:
        """Read this server's audit rows in order, a batch at a time."""
        with self._database.snapshot() as connection:
            yield from audit.rows(connection, self._server_id, after=after)

    def audit_lines(self) -> Iterator[str]:
        """Read this server's audit chain as JSON lines from which anybody can compute the hashes again."""
        return (audit.line(row, self._server_id) for row in self.audit_rows())
