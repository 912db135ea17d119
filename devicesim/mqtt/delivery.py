"""Delivering owed messages over one connection, and knowing which of them the broker has.

On MQTT 5 the broker's answer says it (a reason code below 0x80, MQTT 5 §3.4.2.1). On 3.1.1 a denied message is
acknowledged like any other, so there a message counts only once it has come back on our own subscription.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable

from devicesim.mqtt.connection import MqttConnection, Received
from devicesim.mqtt.outbox import OutboxRow

READ_BACK_SECONDS = 3.0
HEADERS = ("specversion", "type", "id", "source", "subject", "correlationid")


class Delivery:
    """Offers rows to a broker, a window at a time; what became of them stands in `done` and `refused` at any moment.

    Attributes:
        done: ids of the rows the broker has.
        refused: id -> why the broker did not take it.
    """

    def __init__(self, link: MqttConnection, rows: Iterable[OutboxRow], heard: Callable[[], list[Received]]) -> None:
        self.done: list[str] = []
        self.refused: dict[str, str] = {}
        self._link, self._heard = link, heard
        self._waiting = deque(rows)
        self._sent: dict[int, tuple[OutboxRow, float]] = {}

    def run(self, deadline: float) -> None:
        """Work until every row is answered or the deadline (of `time.monotonic`); Unreachable when the link is lost."""
        if self._link.reads_back:
            self._listen(deadline)
        while (self._waiting or self._sent) and time.monotonic() < deadline:
            while self._waiting and len(self._sent) < self._link.window:
                row = self._waiting.popleft()
                message = self._link.publish(row.topic, row.payload, retain=row.retain, headers=_headers(row.payload))
                self._sent[message] = row, time.monotonic()
            self._link.step(0.2)
            self._settle()

    def _listen(self, deadline: float) -> None:
        denied = {
            topic
            for topic in dict.fromkeys(row.topic for row in self._waiting)
            if not self._link.subscribe(topic, deadline)
        }
        for row in [row for row in self._waiting if row.topic in denied]:
            self._waiting.remove(row)
            self.refused[row.id] = f"the broker denies {row.topic} to {self._link.identity.name}"

    def _settle(self) -> None:
        if self._link.reads_back:
            self._settle_by_reading_back()
            return
        for message in [message for message in self._sent if message in self._link.acks]:
            row, _ = self._sent.pop(message)
            why = self._link.acks.pop(message)
            if why is None:
                self.done.append(row.id)
            else:
                self.refused[row.id] = f"the broker refused {row.topic} from {self._link.identity.name}: {why}"

    def _settle_by_reading_back(self) -> None:
        heard = {(message.topic, message.payload) for message in self._heard()}
        late = time.monotonic() - READ_BACK_SECONDS
        for message, (row, sent_at) in list(self._sent.items()):
            if (row.topic, row.payload) in heard:
                self.done.append(row.id)
            elif sent_at < late:
                self.refused[row.id] = (
                    f"{row.topic} did not come back: the broker may deny it to {self._link.identity.name}"
                )
            else:
                continue
            del self._sent[message]
            self._link.acks.pop(message, None)


class Inbox:
    """Keeps what a connection hears until it is asked for."""

    def __init__(self) -> None:
        self._messages: list[Received] = []

    def put(self, message: Received) -> None:
        """Keep a message."""
        self._messages.append(message)

    def take(self) -> list[Received]:
        """Return what was heard since the last time."""
        taken, self._messages = self._messages, []
        return taken


def _headers(payload: bytes) -> dict[str, str] | None:
    """Return the attributes that are repeated as MQTT properties, so that a broker can route without parsing."""
    try:
        fields = json.loads(payload)
    except ValueError:
        return None
    if not isinstance(fields, dict) or "specversion" not in fields:
        return None
    return {name: fields[name] for name in HEADERS if isinstance(fields.get(name), str)}
