"""Numbers that are kept instead of counted, each changed in the transaction that makes it true."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, bindparam, func, insert, select, update

from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import counter
from estserver.inventory.transaction import Transaction

_this = (counter.c.server_id == bindparam("server"), counter.c.name == bindparam("counter"))
_ADD = Prepared(update(counter).where(*_this).values(value=counter.c.value + bindparam("amount")))
_VALUE = Prepared(select(counter.c.value).where(*_this).with_for_update())
_BEGIN = Prepared(insert(counter), ("server_id", "name", "value"))
SENT, SEQUENCE = "events_sent", "sequence:"
"""How many events were sent; and, before the name of a source, how many it ever had to tell."""
PUBLIC = ("issued", "repeated", "refused", "revoked", "voided")
"""What `read` tells, zero when it never happened."""


def add(tx: Transaction, name: str, amount: int = 1) -> None:
    """Add to a counter of this server, when the transaction ends."""
    counts = tx.totals.counts
    tx.totals = replace(tx.totals, counts={**counts, name: counts.get(name, 0) + amount})


def take(tx: Transaction, name: str, amount: int) -> range:
    """Count on, and return the numbers that were counted: no other transaction has them."""
    row = _VALUE.one(tx.connection, server=tx.server_id, counter=name)
    last = (0 if row is None else int(row.value)) + tx.totals.counts.get(name, 0)
    add(tx, name, amount)
    return range(last + 1, last + amount + 1)


def settle(tx: Transaction) -> None:
    """Write down what was added."""
    for name, amount in tx.totals.counts.items():
        if not _ADD.run(tx.connection, server=tx.server_id, counter=name, amount=amount):
            _BEGIN.run(tx.connection, server_id=tx.server_id, name=name, value=amount)


def read(connection: Connection) -> dict[str, int]:
    """Return the public counters, summed over all servers, and how many events are still to be sent."""
    query = select(counter.c.name, func.sum(counter.c.value)).group_by(counter.c.name)
    found = {name: int(value) for name, value in connection.execute(query)}
    told = {name: found.get(name, 0) for name in PUBLIC}
    owed = sum(value for name, value in found.items() if name.startswith(SEQUENCE))
    return {**told, "outbox_depth": owed - found.get(SENT, 0)}
