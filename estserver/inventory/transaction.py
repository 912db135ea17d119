"""What every write is handed: the open transaction, whose it is, and the one time of everything in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class Transaction:
    """One write transaction of one server."""

    connection: Connection
    server_id: str
    now: datetime
