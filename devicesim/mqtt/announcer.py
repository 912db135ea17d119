"""The announcer: brings what the outbox owes to a broker.

Whatever goes wrong with the broker ends as a `DrainResult`, never as an exception: a line must not stop because of it.
Rows stay owed until the broker is known to have them. Answers are committed in batches; a crash in between sends
some events again, under the same id, and consumers know them by it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from devicesim.errors import DeviceSimError
from devicesim.mqtt import outbox
from devicesim.mqtt.connection import BrokerUrl, MqttConnection, MqttIdentity
from devicesim.mqtt.delivery import Delivery, Inbox

BATCH_ROWS = 500
WINDOW = 64
RETRY_SECONDS_MAX = 3600


@dataclass(frozen=True, slots=True)
class DrainResult:
    """What a drain achieved: events sent, events still owed, and why, if not all could be sent."""

    sent: int
    pending: int
    reason: str | None = None


class Announcer:
    """Sends owed announcements as one identity; keeps its connection from one drain to the next."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        broker: BrokerUrl,
        identity: MqttIdentity,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        window: int = WINDOW,
    ) -> None:
        self._connect, self._broker, self._identity = connect, broker, identity
        self._clock, self._window = clock, window
        self._link: MqttConnection | None = None
        self._inbox = Inbox()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def drain(self, deadline_seconds: float) -> DrainResult:
        """Send what is due, for at most so long. Never raises because of the broker or a busy database."""
        deadline = time.monotonic() + deadline_seconds
        sent, reason = 0, None
        try:
            conn = self._connect()
        except (sqlite3.Error, OSError) as fault:
            return DrainResult(0, 0, f"the outbox cannot be opened: {fault}")
        try:
            while time.monotonic() < deadline and reason is None:
                rows = outbox.pending(conn, BATCH_ROWS, at=self._clock())
                if not rows:
                    break
                count, reason = self._send(conn, rows, deadline)
                sent += count
            return DrainResult(sent, outbox.pending_count(conn), reason or _oldest_reason(conn))
        except sqlite3.Error as fault:
            conn.rollback()
            return DrainResult(sent, outbox.pending_count(conn), f"the outbox is not available: {fault}")
        finally:
            conn.close()

    def close(self) -> None:
        """Leave the broker."""
        if self._link is not None:
            self._link.close()
        self._link = None

    def _send(self, conn: sqlite3.Connection, rows: list[outbox.OutboxRow], deadline: float) -> tuple[int, str | None]:
        """Offer one batch and commit the answers; return how many the broker has, and what broke the connection."""
        delivery, reason = None, None
        try:
            link = self._connected(deadline)
            delivery = Delivery(link, rows, self._inbox.take)
            delivery.run(deadline)
        except DeviceSimError as fault:
            reason = fault.line
            self._drop()
        if delivery is None:
            return 0, reason
        now = self._clock()
        tries = {row.id: row.tries for row in rows}
        outbox.mark_done(conn, delivery.done, now)
        for id_, why in delivery.refused.items():
            outbox.mark_failed(conn, id_, why, now + _pause(tries[id_]))
        conn.commit()
        return len(delivery.done), reason

    def _connected(self, deadline: float) -> MqttConnection:
        if self._link is not None:
            try:
                self._link.step(0)  # notices what happened since the last drain
            except DeviceSimError:
                self._drop()
        if self._link is None:
            seconds = max(min(deadline - time.monotonic(), 10.0), 0.1)
            self._link = MqttConnection(
                self._broker,
                self._identity,
                window=self._window,
                on_message=self._inbox.put,
                connect_seconds=seconds,
            )
        return self._link

    def _drop(self) -> None:
        if self._link is not None:
            self._link.abandon()
        self._link = None


def _pause(tries: int) -> timedelta:
    return timedelta(seconds=min(5 * 2 ** min(tries, 20), RETRY_SECONDS_MAX))


def _oldest_reason(conn: sqlite3.Connection) -> str | None:
    rows = outbox.pending(conn, 1)
    return rows[0].reason if rows else None
