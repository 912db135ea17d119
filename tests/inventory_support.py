"""Grants to reserve and record: what the rooms before the inventory would have decided."""

from __future__ import annotations

import functools
import hashlib
import sqlite3
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from estserver.inventory import Inventory
from estserver.model import (
    Csr,
    Der,
    DeviceId,
    Event,
    GeneralName,
    Grant,
    Issued,
    KeyFacts,
    NameAttribute,
    Operation,
    Reservation,
    Serial,
    SpkiHash,
)
from estserver.records import CredentialRecord

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SECONDS_30 = 30


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "empty.db"
        Inventory.open(path, create=True).close()
        return path.read_bytes()


def new_inventory(path: Path, **options: Any) -> Inventory:
    """An empty inventory; migrated once for all tests, then copied."""
    path.touch(mode=0o600)
    path.write_bytes(_empty_database())
    return Inventory.open(path, **options)


def csr_for(device: str, key: str) -> Csr:
    return Csr(
        der=Der(f"csr of {device} {key}".encode()),
        spki=Der(key.encode()),
        spki_sha256=SpkiHash(hashlib.sha256(key.encode()).hexdigest()),
        key=KeyFacts("EC", "P-256", 256),
        signature_hash="SHA256",
        subject=(NameAttribute("2.5.4.3", device),),
        san=(GeneralName("dns", f"{device}.example"),),
    )


def grant_for(device: str = "sn-1", key: str | None = None, **changes: Any) -> Grant:
    csr = csr_for(device, key or f"key of {device}")
    grant = Grant(
        operation=Operation.SIMPLEENROLL,
        label="",
        profile="device",
        requester="station:line-1",
        credential=None,
        device=DeviceId(device),
        csr=csr,
        subject=csr.subject,
        san=csr.san,
        extensions=(),
        not_before=NOW - HOUR,
        not_after=NOW + 90 * DAY,
        renew_after=NOW + 60 * DAY,
        binding="verified",
        peer_address="192.0.2.7",
    )
    return replace(grant, **changes)


def event(event_id: str = "01EVENT", device: str = "sn-1") -> Event:
    return Event(
        event_id,
        "/ca/x",
        "org.estline.certificate.issued.v1",
        device,
        "ca/x/evt/issued",
        retain=False,
        at=NOW,
        data={"device_id": device},
    )


def credential_record(
    name: str = "sn-1", *, uses: int | None = 1, expires_at: datetime | None = None
) -> CredentialRecord:
    return CredentialRecord(
        name=name,
        scheme="hmac-sha256",
        verifier=b"v" * 32,
        salt=b"",
        label="",
        devices=("sn-*",),
        names=("dns:*.example",),
        uses=uses,
        spent=0,
        created_at=NOW,
        expires_at=expires_at,
    )


def reserve(inventory: Inventory, grant: Grant, serial: int, now: datetime = NOW) -> Reservation:
    reservation = inventory.reserve(grant, Serial(serial), now)
    assert isinstance(reservation, Reservation)
    return reservation


def enroll(
    inventory: Inventory, grant: Grant, serial: int, now: datetime = NOW, events: Iterable[Event] = ()
) -> Issued:
    reservation = inventory.reserve(grant, Serial(serial), now)
    if isinstance(reservation, Issued):
        return reservation
    return inventory.record(reservation, Der(f"certificate {serial}".encode()), list(events), now)


def dump(path: Path) -> list[str]:
    """All that a database holds, as SQL."""
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines


def run(path: Path, statement: str) -> None:
    """Change a database past the inventory."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()
