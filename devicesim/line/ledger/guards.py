"""What belongs to one unit for ever: ids, serials, addresses, keys, certificates, labels; across batches and lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from devicesim.errors import Conflict
from devicesim.line.ledger.writing import Writing

OF_A_PLAN = ("device_id", "serial", "mac", "se_id")
LEARNED = ("spki_sha256", "cert_serial", "label")


def of_facts(facts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what a planned unit will have for itself alone."""
    return [(kind, facts[kind]) for kind in OF_A_PLAN if facts[kind]]


def collisions(writing: Writing, facts: Mapping[str, str]) -> Iterator[str]:
    """Name what of a planned unit another unit has already, here or on another line."""
    for kind, value in of_facts(facts):
        row = writing.conn.execute(
            "SELECT g.device_id, u.batch FROM guard g JOIN unit u USING (device_id) WHERE kind = ? AND value = ?",
            (kind, value),
        ).fetchone()
        if row is not None:
            yield f"{kind} {value} ({row[0]} of batch {row[1]})"
        elif station := writing.others.holder(kind, value):
            yield f"{kind} {value} (of station {station})"


def claim(writing: Writing, kind: str, value: str, device_id: str) -> None:
    """Let something belong to a unit, or raise Conflict when it belongs to another, here or on another line."""
    insert = "INSERT OR IGNORE INTO guard (kind, value, device_id) VALUES (?, ?, ?)"
    new = writing.conn.execute(insert, (kind, value, device_id)).rowcount
    select = "SELECT device_id FROM guard WHERE kind = ? AND value = ?"
    owner: str | None = writing.conn.execute(select, (kind, value)).fetchone()[0]
    if owner == device_id:
        owner = writing.others.holder(kind, value) if new else None
    if owner is not None:
        raise Conflict(f"{kind} {value} already belongs to {owner}", advice="take the unit out: it is a duplicate")
