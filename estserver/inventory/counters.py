"""Numbers that are kept instead of counted, each changed in the transaction that makes it true."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, func, insert, select, update

from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import counter
from estserver.inventory.transaction import Transaction

_ADD = Prepared(
    update(counter)
    .where(counter.c.server_id == bindparam("server"), counter.c.name == bindparam("counter"))
    .values(value=counter.c.value + bindparam("amount"))
    .returning(counter.c.value)
)
_BEGIN = Prepared(insert(counter), ("server_id", "name", "value"))
SENT, SEQUENCE = "events_sent", "sequence:"
"""How many events were sent; and, before the name of a source, how many it ever had to tell."""
PUBLIC = ("issued", "repeated", "refused", "revoked", "voided")
"""What `read` tells, zero when it never happened."""


def add(tx: Transaction, name: str, amount: int = 1) -> int:
    """Add to a counter of this server and return its new value."""
    row = _ADD.one(tx.connection, server=tx.server_id, counter=name, amount=amount)
    if row is None:
        _BEGIN.run(tx.connection, server_id=tx.server_id, name=name, value=amount)
        return amount
    return int(row.value)


def read(connection: Connection) -> dict[str, int]:
    """Return the public counters, summed over all servers, and how many events are still to be sent."""
    query = select(counter.c.name, func.sum(counter.c.value)).group_by(counter.c.name)
    found = {name: int(value) for name, value in connection.execute(query)}
    told = {name: found.get(name, 0) for name in PUBLIC}
    owed = sum(value for name, value in found.items() if name.startswith(SEQUENCE))
    return {**told, "outbox_depth": owed - found.get(SENT, 0)}
