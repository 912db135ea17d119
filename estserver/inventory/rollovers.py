"""What became of the CAs, and how far the fleet has followed them.

Rules:
- A CA has one rollover at a time; a stage is left once, by whoever comes first, in one transaction with its audit row.
- Of a device it is known what it was given last; that may be lost with the power, and the device asks again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import astuple, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    Index,
    LargeBinary,
    String,
    Table,
    Text,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from estserver.errors import StateError
from estserver.inventory import audit
from estserver.inventory.prepared import Prepared
from estserver.inventory.room import Room
from estserver.inventory.schema import Id, Instant, certificate, device_certificate, metadata
from estserver.inventory.transaction import Transaction
from estserver.model import Der
from estserver.records import Reach, RolloverCertificates, RolloverRecord, Stage, Tier

rollover = Table(
    "rollover",
    metadata,
    Column("id", Id, primary_key=True),
    Column("ca", String(64), nullable=False),
    Column("tier", String(8), nullable=False),
    Column("stage", String(8), nullable=False),
    Column("key_kind", String(16), nullable=False),
    Column("key", Text, nullable=False),
    Column("old", LargeBinary, nullable=False),
    Column("new", LargeBinary),
    Column("new_with_old", LargeBinary),
    Column("old_with_new", LargeBinary),
    Column("issuing", LargeBinary),
    Column("started_at", Instant, nullable=False),
    Column("stage_at", Instant, nullable=False),
)
_IS_OPEN = rollover.c.stage != literal_column(f"'{Stage.RETIRE}'")
Index("ix_rollover_open", rollover.c.ca, unique=True, sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN)

cacerts_fetch = Table(
    "cacerts_fetch",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("ca", String(64), primary_key=True),
    Column("answer_sha256", String(64), nullable=False),
    Column("at", Instant, nullable=False),
)

_GIVEN = Prepared(
    update(cacerts_fetch)
    .where(cacerts_fetch.c.device == bindparam("whose"), cacerts_fetch.c.ca == bindparam("which"))
    .values(answer_sha256=bindparam("answer"), at=bindparam("now", type_=cacerts_fetch.c.at.type))
)
_GIVEN_FIRST = Prepared(insert(cacerts_fetch), ("device", "ca", "answer_sha256", "at"))


class Rollovers(Room):
    """What an operator does with the CAs, and what devices were given of them; every method is one transaction."""

    def all(self) -> tuple[RolloverRecord, ...]:
        """Return every rollover there was, in order."""
        with self._read() as connection:
            return tuple(map(_record, connection.execute(select(rollover).order_by(rollover.c.id))))

    def start(self, record: RolloverRecord, actor: str) -> RolloverRecord:
        """Write down that a CA is to move; `record.id` is given here.

        Raises:
            StateError: it is moving already.
        """
        with self._write(record.started_at, durable=True) as tx:
            values = {name: getattr(record, name) for name in ("ca", "tier", "stage", "key_kind", "key", "old")}
            values |= {"started_at": record.started_at, "stage_at": record.stage_at}
            try:
                made = tx.connection.execute(insert(rollover).values(**values).returning(rollover.c.id)).scalar_one()
            except IntegrityError:
                raise StateError(
                    f"a rollover of the CA {record.ca} is on its way", advice="see: estserver rollover status"
                ) from None
            started = replace(record, id=made)
            _tell(tx, started, actor, {"key_kind": record.key_kind, "key": record.key})
        return started

    def advance(
        self,
        record: RolloverRecord,
        stage: Stage,
        actor: str,
        now: datetime,
        detail: Mapping[str, object],
        made: RolloverCertificates | None = None,
    ) -> RolloverRecord:
        """Leave a stage for the next.

        Args:
            made: what was made for it, at `cross`.
            detail: for the audit: why it may be left.

        Raises:
            StateError: another operator left it first; nothing was changed.
        """
        advanced = replace(record, stage=stage, stage_at=now, made=made or record.made)
        values: dict[str, object] = {"stage": stage, "stage_at": now}
        if made is not None:
            names = ("new", "new_with_old", "old_with_new", "issuing")
            values |= dict(zip(names, astuple(made), strict=True))
        with self._write(now, durable=True) as tx:
            same = (rollover.c.id == record.id, rollover.c.stage == record.stage)
            if tx.connection.execute(update(rollover).where(*same).values(**values)).rowcount != 1:
                raise StateError(
                    f"the rollover of the CA {record.ca} is not at stage {record.stage} any more",
                    advice="see: estserver rollover status",
                )
            _tell(tx, advanced, actor, detail)
        return advanced

    def note_fetch(self, device: str, ca: str, answer_sha256: str, now: datetime) -> None:
        """Note what a device was given by `/cacerts`."""
        with self._write(now, durable=False) as tx:
            if not _GIVEN.run(tx.connection, whose=device, which=ca, answer=answer_sha256, now=now):
                _GIVEN_FIRST.run(tx.connection, device=device, ca=ca, answer_sha256=answer_sha256, at=now)

    def reach(
        self, ca: str, labels: Collection[str], answer_sha256: str, issuer: str, now: datetime, *, but: str
    ) -> Reach:
        """Count how far the devices of a CA have followed it: one pass over what is in force; no page asks for this.

        Args:
            labels: the CA's.
            answer_sha256, issuer: what `/cacerts` answers, and the identifier of the key that signs, or will.
            but: a device that does not count, the server itself.
        """
        behind = func.max(case((certificate.c.issuer == issuer, 0), else_=1)).label("behind")
        live = (
            select(device_certificate.c.device, behind)
            .join(certificate, certificate.c.id == device_certificate.c.certificate_id)
            .where(
                certificate.c.not_after > now,
                certificate.c.revoked_at.is_(None),
                certificate.c.label.in_(labels),
                device_certificate.c.device != but,
            )
            .group_by(device_certificate.c.device)
            .subquery()
        )
        given = (
            (cacerts_fetch.c.device == live.c.device)
            & (cacerts_fetch.c.ca == ca)
            & (cacerts_fetch.c.answer_sha256 == answer_sha256)
        )
        query = select(func.count(), func.count(cacerts_fetch.c.device), func.sum(live.c.behind)).select_from(
            live.outerjoin(cacerts_fetch, given)
        )
        with self._read() as connection:
            everyone, fetched, late = connection.execute(query).one()
        return Reach(everyone, fetched, everyone - int(late or 0))

    def issuers_in_use(self, now: datetime) -> dict[str, datetime]:
        """Return the key identifiers of all CA keys that signed a certificate still in time, and when the last ends.

        Each of these keys must go on publishing CRLs (RFC 5280 §5, RFC 4210 §4.4.3).
        """
        query = (
            select(certificate.c.issuer, func.max(certificate.c.not_after, type_=Instant()))
            .where(certificate.c.not_after > now)
            .group_by(certificate.c.issuer)
        )
        with self._read() as connection:
            return {issuer: last for issuer, last in connection.execute(query) if issuer}


def _tell(tx: Transaction, record: RolloverRecord, actor: str, detail: Mapping[str, object]) -> None:
    told = {"ca": record.ca, "tier": record.tier, "rollover": record.id, **detail}
    audit.append(tx, audit.Fact(actor, f"rollover-{record.stage}", "ok", told))


def _record(row: Any) -> RolloverRecord:  # noqa: ANN401 - a row of `rollover`
    links = (row.new_with_old, row.old_with_new, row.issuing)
    made = None
    if row.new is not None:
        made = RolloverCertificates(Der(row.new), *(None if der is None else Der(der) for der in links))
    return RolloverRecord(
        id=row.id,
        ca=row.ca,
        tier=Tier(row.tier),
        stage=Stage(row.stage),
        key_kind=row.key_kind,
        key=row.key,
        old=Der(row.old),
        started_at=row.started_at,
        stage_at=row.stage_at,
        made=made,
    )
