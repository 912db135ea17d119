"""The wire log: the one place where a line about a request is built, and where it is counted.

Rules:
- One line per request and one per handshake that failed, whoever answered. No line holds a secret: nothing of a body,
  no header but what it was recognised by, and of a credential the name alone.
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

_log = logging.getLogger(__name__)


class Wire:
    """Logs and counts what happens on the wire."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def exchange(self, exchange: Exchange) -> None:
        """Tell a request that the application answered."""
        operation = exchange.operation or UNKNOWN
        label = UNKNOWN if exchange.label is None else exchange.label or DEFAULT_LABEL
        self._count(operation, label, exchange.status, exchange.reason)
        bound = BOUNDS[bisect_left(SECONDS_BOUNDS, exchange.seconds)]
        self._tally.add((SECONDS, operation, bound))
        self._tally.add((SECONDS_SUM, operation), exchange.seconds)
        _log.info(
            "request",
            extra=fields(
                {
                    "id": exchange.id,
                    "peer": exchange.address,
                    "tls": exchange.tls_version,
                    "method": exchange.method,
                    "operation": exchange.operation,
                    "label": exchange.label,
                    "path": exchange.path,
                    "status": exchange.status,
                    "reason": exchange.reason,
                    "requester": exchange.requester,
                    "device": exchange.device,
                    "serial": exchange.serial,
                    "spki_sha256": exchange.spki_sha256,
                    "binding": exchange.binding,
                    "ms": round(exchange.seconds * 1000, 1),
                }
            ),
        )

    def front(self, event: FrontEvent) -> None:
        """Tell what the front did without the application."""
        match event:
            case Opened():
                self._tally.add((CONNECTIONS,))
                self._tally.add((ACCEPTED,))
            case Closed():
                self._tally.add((CONNECTIONS,), -1)
            case HandshakeFailed(address, problem, detail):
                self._tally.add((HANDSHAKES, problem))
                shown = {"peer": address, "reason": str(problem), "detail": detail or None}
                _log.info("handshake failed", extra=fields(shown))
            case Refused():
                self._refused(event)

    def _refused(self, event: Refused) -> None:
        reason = FRONT_REASONS.get(event.status, "other")
        self._count(UNKNOWN, UNKNOWN, event.status, reason)
        shown = {
            "peer": event.address,
            "tls": event.tls_version,
            "method": event.method or None,
            "path": event.path or None,
            "status": event.status,
            "reason": reason,
            "detail": event.text,
        }
        _log.info("refused", extra=fields(shown))

    def _count(self, operation: str, label: str, status: int, reason: str | None) -> None:
        self._tally.add((REQUESTS, operation, label, str(status)))
        if reason is not None:
            self._tally.add((REFUSALS, reason))
