"""Manufacturers' revocation lists: where they come from, and who is on them.

Rules:
- A list is read outside of any request; a request looks one serial up.
- A list is replaced as a whole, in one transaction, and never by an older one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from estserver.errors import NotFound, StateError
from estserver.inventory import audit
from estserver.inventory.prepared import Prepared
from estserver.inventory.revocation_tables import anchor_crl, anchor_revoked
from estserver.inventory.room import Room
from estserver.inventory.schema import anchor
from estserver.records import AnchorCrlRecord, ListedStatus, Missing

_of = anchor_crl.c.anchor == bindparam("of")
_FIND = Prepared(select(anchor_crl).where(_of))
_STATUS = Prepared(
    select(anchor_crl.c.missing, anchor_crl.c.next_update, anchor_revoked.c.serial)
    .outerjoin(
        anchor_revoked,
        and_(anchor_revoked.c.anchor == anchor_crl.c.anchor, anchor_revoked.c.serial == bindparam("which")),
    )
    .where(_of)
)


class ForeignLists(Room):
    """The lists of manufacturers' CAs."""

    def status(self, name: str, serial: int) -> ListedStatus | None:
        """Find out what the list of an anchor says of a certificate; None when none is wanted of it."""
        with self._read() as connection:
            row = _STATUS.one(connection, of=name, which=f"{serial:x}")
        return None if row is None else ListedStatus(row.missing, row.next_update, row.serial is not None)

    def all(self) -> list[AnchorCrlRecord]:
        """Return every anchor that a list is wanted of, by name."""
        with self._read() as connection:
            return [_record(row) for row in connection.execute(select(anchor_crl).order_by(anchor_crl.c.anchor))]

    def want(self, name: str, source: str, missing: Missing, actor: str, now: datetime) -> None:
        """Want a list of an anchor from now on; before it is fetched there is none.

        Raises:
            NotFound: there is no such anchor.
        """
        with self._write(now) as tx:
            if tx.connection.execute(select(anchor.c.name).where(anchor.c.name == name)).scalar() is None:
                raise NotFound(f"there is no anchor {name}", advice="see: estserver trust list")
            if _FIND.one(tx.connection, of=name) is None:
                values = {"anchor": name, "source": source, "missing": missing}
                tx.connection.execute(insert(anchor_crl), values)
            else:
                change = update(anchor_crl).where(anchor_crl.c.anchor == name)
                tx.connection.execute(change.values(source=source, missing=missing, tried_at=None))
            detail = {"name": name, "source": source, "missing": missing}
            audit.append(tx, audit.Fact(actor, "trust-crl", "ok", detail))

    def want_no_more(self, name: str, actor: str, now: datetime) -> None:
        """Want no list of an anchor any more; NotFound when none was."""
        with self._write(now) as tx:
            if not forget(tx.connection, name):
                raise NotFound(f"no list is wanted of the anchor {name}")
            audit.append(tx, audit.Fact(actor, "trust-crl", "ok", {"name": name, "source": None}))

    def replace(
        self, name: str, serials: set[int], this_update: datetime, next_update: datetime, now: datetime
    ) -> None:
        """Let a list take the place of the one before.

        Raises:
            NotFound: none is wanted of this anchor any more.
            StateError: it is older than the one there is.
        """
        wanted = {f"{serial:x}" for serial in serials}
        with self._write(now) as tx:
            row = _FIND.one(tx.connection, of=name)
            if row is None:
                raise NotFound(f"no list is wanted of the anchor {name}")
            if row.this_update is not None and this_update < row.this_update:
                raise StateError(f"the list is of {this_update:%Y-%m-%d %H:%M}, older than the one that is known")
            known = set(
                tx.connection.execute(select(anchor_revoked.c.serial).where(anchor_revoked.c.anchor == name)).scalars()
            )
            _remove(tx.connection, name, known - wanted)
            added = [{"anchor": name, "serial": serial} for serial in sorted(wanted - known)]
            if added:
                tx.connection.execute(insert(anchor_revoked), added)
            tx.connection.execute(
                update(anchor_crl)
                .where(anchor_crl.c.anchor == name)
                .values(
                    this_update=this_update,
                    next_update=next_update,
                    entries=len(wanted),
                    tried_at=now,
                    problem=None,
                )
            )

    def failed(self, name: str, problem: str, now: datetime) -> None:
        """Note why a list could not be fetched; the one before stays."""
        with self._write(now) as tx:
            change = update(anchor_crl).where(anchor_crl.c.anchor == name)
            tx.connection.execute(change.values(tried_at=now, problem=problem))


def forget(connection: Connection, name: str) -> bool:
    """Forget the list of an anchor; return whether one was wanted."""
    connection.execute(delete(anchor_revoked).where(anchor_revoked.c.anchor == name))
    return connection.execute(delete(anchor_crl).where(anchor_crl.c.anchor == name)).rowcount == 1


def _remove(connection: Connection, name: str, serials: set[str]) -> None:
    if serials:
        one = and_(anchor_revoked.c.anchor == bindparam("of"), anchor_revoked.c.serial == bindparam("which"))
        connection.execute(
            delete(anchor_revoked).where(one), [{"of": name, "which": serial} for serial in sorted(serials)]
        )


def _record(row: Any) -> AnchorCrlRecord:  # noqa: ANN401 - a row of SQLAlchemy's
    return AnchorCrlRecord(**row._mapping)  # noqa: SLF001 - public in spite of its name
