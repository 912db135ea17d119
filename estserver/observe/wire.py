"""The wire log: the one place where a line about a request is built, and where it is counted.

Rules:
- One line per request and one per handshake that failed, whoever answered. No line holds a secret: nothing of a body,
  no header, and of a credential the name alone.
- What is counted by comes from small fixed sets (operations, labels, status, reasons); what a client made up counts as
  `(unknown)`, which no label can be called.
"""

from __future__ import annotations

import logging
from bisect import bisect_left

from estserver.observe.exchange import Exchange
from estserver.observe.lines import fields
from estserver.observe.tally import Tally
from estserver.serving import Closed, FrontEvent, HandshakeFailed, Opened, Refused

CONNECTIONS, ACCEPTED, HANDSHAKES = "connections", "accepted", "handshakes"
REQUESTS, REFUSALS, SECONDS, SECONDS_SUM = "requests", "refusals", "seconds", "seconds_sum"
LEVELS = frozenset({CONNECTIONS})
SPARE_ROWS = 16
UNKNOWN, DEFAULT_LABEL = "(unknown)", "(default)"

SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BOUNDS = (*map(str, SECONDS_BOUNDS), "+Inf")
FRONT_REASONS = {
    400: "malformed-http",
    408: "request-timeout",
    413: "body-too-large",
    431: "head-too-large",
    500: "internal-error",
    503: "stopping",
}
"""Status of an answer of the front's own → reason code."""

_SHOWN = (
    *("id", "peer", "tls", "method", "operation", "label", "path", "status", "reason"),
    *("requester", "device", "serial", "spki_sha256"),
)
"""The fields of a request's line, in its order."""

_log = logging.getLogger("estserver.wire")


class Wire:
    """Logs and counts what happens on the wire; make it before forking.

    Args:
        workers: how many processes will; at a reload those that end and those that begin count at once.
    """

    def __init__(self, workers: int) -> None:
        self.tally = Tally(4 * workers + SPARE_ROWS, LEVELS)

    def begin(self) -> None:
        """Let this process count: call it first in every worker."""
        if not self.tally.claim():
            _log.warning("a worker counts nothing: too many of them have not ended yet")

    def exchange(self, exchange: Exchange) -> None:
        """Tell a request that the application answered."""
        operation = exchange.operation or UNKNOWN
        label = UNKNOWN if exchange.label is None else exchange.label or DEFAULT_LABEL
        self._count(operation, label, exchange.status, exchange.reason)
        self.tally.add((SECONDS, operation, BOUNDS[bisect_left(SECONDS_BOUNDS, exchange.seconds)]))
        self.tally.add((SECONDS_SUM, operation), exchange.seconds)
        shown = {name: getattr(exchange, name) for name in _SHOWN}
        shown["ms"] = round(exchange.seconds * 1000, 1)
        _log.info("request", extra=fields(shown))

    def front(self, event: FrontEvent) -> None:
        """Tell what the front did without the application."""
        match event:
            case Opened():
                self.tally.add((CONNECTIONS,))
                self.tally.add((ACCEPTED,))
            case Closed():
                self.tally.add((CONNECTIONS,), -1)
            case HandshakeFailed(address, problem, detail):
                self.tally.add((HANDSHAKES, problem))
                _log.info(
                    "handshake failed", extra=fields({"peer": address, "reason": problem, "detail": detail or None})
                )
            case Refused():
                self._refused(event)

    def _refused(self, event: Refused) -> None:
        reason = FRONT_REASONS.get(event.status, "other")
        self._count(UNKNOWN, UNKNOWN, event.status, reason)
        shown = {
            "peer": event.address,
            "tls": event.tls_version or None,
            "method": event.method or None,
            "path": event.path or None,
            "status": event.status,
            "reason": reason,
            "detail": event.text,
        }
        _log.info("refused", extra=fields(shown))

    def _count(self, operation: str, label: str, status: int, reason: str | None) -> None:
        self.tally.add((REQUESTS, operation, label, str(status)))
        if reason is not None and status >= 400:
            self.tally.add((REFUSALS, reason))
