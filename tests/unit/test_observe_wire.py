"""What is told of each request and connection, and how it is counted; the text that Prometheus reads."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from estserver.errors import ConfigError, StorageUnavailable
from estserver.observe import Exchange, Wire, metrics
from estserver.serving import Closed, HandshakeFailed, HandshakeProblem, Opened, Refused

COUNTERS = {"issued": 5, "repeated": 1, "refused": 9, "revoked": 2, "voided": 3, "outbox_depth": 4, "pending": 6}
ENROLLED = Exchange(
    id="0011",
    peer="192.0.2.7",
    tls="TLSv1.3",
    method="POST",
    status=200,
    seconds=0.0123,
    operation="simpleenroll",
    label="",
    requester="station:line-1",
    device="sn-1",
    serial="4a",
    spki_sha256="ff",
)
STRANGE = Exchange("0012", "192.0.2.8", "TLSv1.2", "GET", 404, 0.001, path="/x\r\ny", reason="no-such-operation")


@pytest.fixture
def wire() -> Wire:
    wire = Wire(1)
    wire.begin()
    return wire


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, dict[str, Any]]]]:
    caplog.set_level(logging.INFO)
    return lambda: [(record.message, getattr(record, "fields", {})) for record in caplog.records]


def scraped(wire: Wire, counters: Callable[[], dict[str, int]] = lambda: COUNTERS) -> dict[tuple[str, ...], float]:
    """Name and labels of every sample of the text exposition → its value."""
    registry = CollectorRegistry()
    registry.register(metrics.ServerMetrics(wire.tally, counters))
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_a_request_is_a_line_and_numbers(wire: Wire, told: Callable[[], Any]) -> None:
    wire.exchange(ENROLLED)
    wire.exchange(STRANGE)
    common = {"peer": "192.0.2.7", "tls": "TLSv1.3", "method": "POST", "operation": "simpleenroll", "label": ""}
    facts = {"requester": "station:line-1", "device": "sn-1", "serial": "4a", "spki_sha256": "ff"}
    assert told() == [
        ("request", {"id": "0011", **common, "status": 200, **facts, "ms": 12.3}),
        (
            "request",
            {
                "id": "0012",
                "peer": "192.0.2.8",
                "tls": "TLSv1.2",
                "method": "GET",
                "path": "/x\r\ny",
                "status": 404,
                "reason": "no-such-operation",
                "ms": 1.0,
            },
        ),
    ]
    found = scraped(wire)
    assert found["estserver_requests_total", "(default)", "simpleenroll", "200"] == 1
    assert found["estserver_requests_total", "(unknown)", "(unknown)", "404"] == 1
    assert found["estserver_refusals_total", "no-such-operation"] == 1


def test_a_request_that_waits_is_told_why_and_counted_as_no_refusal(wire: Wire, told: Callable[[], Any]) -> None:
    wire.exchange(replace(ENROLLED, status=202, reason="awaiting-approval"))
    ((_, line),) = told()
    assert (line["status"], line["reason"]) == (202, "awaiting-approval")
    found = scraped(wire)
    assert found["estserver_requests_total", "(default)", "simpleenroll", "202"] == 1
    assert not any("awaiting-approval" in name for name in found)


def test_what_a_client_made_up_makes_no_time_series(wire: Wire) -> None:
    wire.exchange(STRANGE)
    before = set(scraped(wire))
    for number in range(50):
        wire.exchange(
            Exchange("1", "192.0.2.8", "", f"M{number}", 404, 0.001, path=f"/{number}", reason="no-such-operation")
        )
    assert set(scraped(wire)) == before


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            HandshakeFailed("192.0.2.1", HandshakeProblem.HTTP, "http request"),
            ("handshake failed", {"peer": "192.0.2.1", "reason": "plain-http", "detail": "http request"}),
        ),
        (
            HandshakeFailed("192.0.2.1", HandshakeProblem.GONE),
            ("handshake failed", {"peer": "192.0.2.1", "reason": "gone"}),
        ),
        (
            Refused("192.0.2.1", "TLSv1.3", 413, "too much", "POST", "/a"),
            (
                "refused",
                {
                    "peer": "192.0.2.1",
                    "tls": "TLSv1.3",
                    "method": "POST",
                    "path": "/a",
                    "status": 413,
                    "reason": "body-too-large",
                    "detail": "too much",
                },
            ),
        ),
        (
            Refused("192.0.2.1", "TLSv1.2", 400, "malformed request"),
            (
                "refused",
                {
                    "peer": "192.0.2.1",
                    "tls": "TLSv1.2",
                    "status": 400,
                    "reason": "malformed-http",
                    "detail": "malformed request",
                },
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_front_does_alone_is_a_line(
    wire: Wire, told: Callable[[], Any], event: HandshakeFailed | Refused, line: tuple[str, dict[str, Any]]
) -> None:
    wire.front(event)
    assert told() == [line]
    counted = "handshake_failures" if isinstance(event, HandshakeFailed) else "refusals"
    assert scraped(wire)[f"estserver_{counted}_total", line[1]["reason"]] == 1


def test_connections_come_and_go_without_a_line(wire: Wire, told: Callable[[], Any]) -> None:
    for event in (Opened("192.0.2.1"), Opened("192.0.2.2"), Closed("192.0.2.1")):
        wire.front(event)
    assert told() == []
    found = scraped(wire)
    assert (found["estserver_connections",], found["estserver_connections_accepted_total",]) == (1, 2)


def test_the_histogram_holds_what_was_faster(wire: Wire) -> None:
    for seconds in (0.001, 0.0011, 0.3, 99.0):
        wire.exchange(Exchange("1", "192.0.2.8", "", "GET", 200, seconds, operation="cacerts", label=""))
    found = scraped(wire)
    buckets = {
        bound: found["estserver_request_seconds_bucket", bound, "cacerts"] for bound in ("0.001", "0.0025", "0.25")
    }
    assert buckets == {"0.001": 1, "0.0025": 2, "0.25": 2}
    assert found["estserver_request_seconds_bucket", "0.5", "cacerts"] == 3
    assert found["estserver_request_seconds_bucket", "+Inf", "cacerts"] == 4
    assert found["estserver_request_seconds_count", "cacerts"] == 4
    assert found["estserver_request_seconds_sum", "cacerts"] == pytest.approx(99.3021)


def test_the_inventory_is_asked_at_that_moment(wire: Wire) -> None:
    found = scraped(wire)
    assert {key[1]: value for key, value in found.items() if key[0] == "estserver_certificates_total"} == {
        "issued": 5,
        "repeated": 1,
        "revoked": 2,
        "voided": 3,
    }
    assert found["estserver_outbox_depth",] == 4
    assert found["estserver_pending",] == 6


def test_while_the_inventory_is_away_the_other_numbers_are_there(wire: Wire, told: Callable[[], Any]) -> None:
    def away() -> dict[str, int]:
        raise StorageUnavailable("locked")

    wire.front(Opened("192.0.2.1"))
    found = scraped(wire, away)
    assert found["estserver_connections",] == 1
    assert not any("certificates" in key[0] or "outbox" in key[0] for key in found)
    assert told() == [("the inventory could not be asked for its counters: locked", {})]


def test_a_worker_that_cannot_count_says_so(
    wire: Wire, told: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.tally, "claim", lambda: False)
    wire.begin()
    assert told() == [("a worker counts nothing: too many of them have not ended yet", {})]


def test_a_metrics_port_in_use_is_an_error_with_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="in use") as caught:
            metrics.listen(address)
    assert "[metrics] listen" in caught.value.advice


def test_the_listener_may_be_on_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    with metrics.listen("[::1]:0") as listener:
        assert listener.getsockname()[0] == "::1"
