"""The numbers for Prometheus, on a listener of their own that only this machine can reach.

Every worker answers on that listener, in a thread beside its loop, for all of them: whichever takes the connection adds
up what all have counted. What the inventory knows is asked of it at that moment.
"""

from __future__ import annotations

import itertools
import logging
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import HTTPServer
from typing import TypeAlias

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from estserver.errors import ConfigError, EstError
from estserver.observe import wire
from estserver.observe.tally import Key, Tally

CLIENT_SECONDS = 5.0
CERTIFICATES = ("issued", "repeated", "revoked", "voided")

_log = logging.getLogger(__name__)

Counters: TypeAlias = Callable[[], Mapping[str, int]]
Found: TypeAlias = defaultdict[Key, float]


class ServerMetrics(Collector):
    """Gives every metric of a server at the moment it is asked.

    Args:
        counters: those of the inventory; while it cannot be read, its metrics are missing and the others are not.
    """

    def __init__(self, tally: Tally, counters: Counters) -> None:
        self._tally = tally
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        """Give what was counted on the wire, then what the inventory says."""
        yield from _wire_metrics(self._tally.read())
        try:
            counters = self._counters()
        except EstError as error:
            _log.warning("the inventory could not be asked for its counters: %s", error)
        else:
            yield from _inventory_metrics(counters)


def _wire_metrics(found: Found) -> Iterator[Metric]:
    yield _family(found, wire.REQUESTS, "Requests answered.", ("operation", "label", "status"))
    yield _family(found, wire.REFUSALS, "Requests refused, by reason code.", ("reason",))
    yield _family(found, wire.HANDSHAKES, "TLS handshakes that failed.", ("reason",), name="handshake_failures")
    yield _family(found, wire.ACCEPTED, "Connections accepted.", (), name="connections_accepted")
    yield GaugeMetricFamily("estserver_connections", "Connections open now.", found[wire.CONNECTIONS,])
    yield _histogram(found)


def _family(found: Found, key: str, text: str, labels: tuple[str, ...], name: str = "") -> CounterMetricFamily:
    family = CounterMetricFamily(f"estserver_{name or key}", text, labels=labels)
    for (kind, *values), count in sorted(found.items()):
        if kind == key:
            family.add_metric(values, count)
    return family


def _histogram(found: Found) -> HistogramMetricFamily:
    """Add the buckets up, as Prometheus wants them: each holds all that were faster."""
    text = "Seconds from a complete request to its answer."
    family = HistogramMetricFamily("estserver_request_seconds", text, labels=("operation",))
    buckets: dict[str, dict[str, float]] = defaultdict(dict)
    for key, count in found.items():
        if key[0] == wire.SECONDS:
            buckets[key[1]][key[2]] = count
    for operation, counts in sorted(buckets.items()):
        sums = itertools.accumulate(counts.get(bound, 0.0) for bound in wire.BOUNDS)
        family.add_metric([operation], list(zip(wire.BOUNDS, sums, strict=True)), found[wire.SECONDS_SUM, operation])
    return family


def _inventory_metrics(counters: Mapping[str, int]) -> Iterator[Metric]:
    family = CounterMetricFamily("estserver_certificates", "Certificates, by what became of them.", labels=("event",))
    for event in CERTIFICATES:
        family.add_metric([event], counters[event])
    yield family
    yield GaugeMetricFamily("estserver_outbox_depth", "Announcements not yet sent.", counters["outbox_depth"])
    yield GaugeMetricFamily("estserver_pending", "Requests that wait for an operator.", counters["pending"])


# --- the listener ---------------------------------------------------------------------------------------------------


def listen(address: str) -> socket.socket:
    """Bind the listener, before there are workers that share it.

    Args:
        address: `[metrics] listen`, which the configuration has checked.

    Raises:
        ConfigError: it cannot be had.
    """
    host, _, port = address.rpartition(":")
    listener = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen()
        listener.settimeout(0)  # another worker may be quicker to accept
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror}", advice="choose another [metrics] listen, or leave it empty"
        ) from None
    _log.info("metrics on http://%s:%s/metrics", host, listener.getsockname()[1])
    return listener


def start(listener: socket.socket, tally: Tally, counters: Counters) -> None:
    """Answer on the listener, in a thread, for as long as this process lives."""
    registry = CollectorRegistry()
    registry.register(ServerMetrics(tally, counters))
    server = _Server(listener, registry)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": None}, name="metrics", daemon=True).start()


class _Server(HTTPServer):
    """An HTTP server on a listener that is already bound."""

    def __init__(self, listener: socket.socket, registry: CollectorRegistry) -> None:
        handler = type("_Handler", (MetricsHandler,), {"registry": registry, "timeout": CLIENT_SECONDS})
        super().__init__(listener.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that went away; the next one is answered all the same."""
        if not isinstance(sys.exc_info()[1], OSError):
            _log.exception("the metrics could not be given")
