"""What every write is handed: the open transaction, whose it is, and the one time of everything in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection

from estserver.errors import EstError, InternalError
from estserver.inventory.prepared import driver

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Transaction:
    """One write transaction of one server."""

    connection: Connection
    server_id: str
    now: datetime

    def apart(self, work: Callable[[], T]) -> T | EstError:
        """Do a piece of work that is undone alone when it fails, whatever else the transaction holds.

        Returns:
            what the work returns, or the error that it raised; an error of the database itself is not returned but
            raised, and ends the transaction: nobody knows how much of it is still there.
        """
        run = driver(self.connection).execute
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
        run("ROLLBACK TO apart")
        run("RELEASE apart")
        return result
