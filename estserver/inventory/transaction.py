"""What every write is handed: the open transaction, whose it is, and the one time of everything in it.

Whatever all writes of a server change, the end of its audit chain and its counters, is read once and written once in a
transaction, however many enrolments it holds: `audit` and `counters` keep it in `Totals` until the transaction ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection

from estserver.errors import EstError, InternalError
from estserver.inventory.prepared import driver

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Totals:
    """What this transaction will have changed when it ends; replaced, never changed, so that it can be taken back.

    Attributes:
        head: sequence number and hash of the last audit row, once a row was appended.
        counts: how much was added to which counter.
    """

    head: tuple[int, str] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Transaction:
    """One write transaction of one server."""

    connection: Connection
    server_id: str
    now: datetime
    totals: Totals = Totals()

    def apart(self, work: Callable[[], T]) -> T | EstError:
        """Do a piece of work that is undone alone when it fails, whatever else the transaction holds.

        Returns:
            what the work returns, or the error that it raised; an error of the database itself is not returned but
            raised, and ends the transaction: nobody knows how much of it is still there.
        """
        run, before = driver(self.connection).execute, self.totals
        run("SAVEPOINT apart")
        try:
            result: T | EstError = work()
        except self.connection.dialect.loaded_dbapi.IntegrityError as error:
            result = InternalError("the inventory refused a row that would break its rules")
            result.__cause__ = error
        except EstError as error:
            result = error
        else:
            run("RELEASE apart")
            return result
        self.totals = before
        run("ROLLBACK TO apart")
        run("RELEASE apart")
        return result
