"""How an earlier run left the inventory: whether it closed it, whether it is whole, by which clock it was written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from estserver.errors import StorageUnavailable
from estserver.inventory import audit
from estserver.inventory.database import Database, damaged


@dataclass(frozen=True, slots=True)
class Condition:
    """What is found before anything is served.

    Attributes:
        left_open: whoever had it last did not close it, and crashed, or still uses it; every page was read.
        written_at: when this server last wrote something down, by the clock of then.
    """

    left_open: bool
    written_at: datetime | None


def condition_of(database: Database, server_id: str) -> Condition:
    """Look the database over; after a crash, all of it.

    Raises:
        ConfigError: it is damaged.
    """
    if database.left_open and database.is_sqlite:
        _read_every_page(database)
    with database.read() as connection:
        return Condition(database.left_open, audit.written_at(connection, server_id))


def _read_every_page(database: Database) -> None:
    try:
        with database.read() as connection:
            sound = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() == "ok"
    except StorageUnavailable as error:
        if error.code != "storage-damaged":
            raise
        raise damaged(database) from None
    if not sound:
        raise damaged(database)
