"""What the parts of an inventory that have a face of their own are made of: `inventory.pending`, `.crls` and so on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import Connection

from estserver.inventory.transaction import Transaction


class Room:
    """One part of an inventory; every method is one transaction.

    Args:
        read, write: begin a transaction; `write` takes the time, and whether it is `durable` where that is left open.
    """

    def __init__(
        self,
        read: Callable[[], AbstractContextManager[Connection]],
        write: Callable[..., AbstractContextManager[Transaction]],
    ) -> None:
        self._read = read
        self._write = write
