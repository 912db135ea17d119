"""Each request is told once, with its id and why it was refused, at the moment its answer begins."""

from __future__ import annotations

import base64
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from estserver.enroll import Enrollment
from estserver.errors import StorageUnavailable
from estserver.observe import Exchange
from estserver.serving import TlsPeer
from estserver.web import create_app
from estserver.web.observe import Observed, note, note_error, request_id
from tests.csr_maker import new_key, request
from tests.est_server import EST, Home, basic, found_home, today

PKCS10 = {"Content-Type": "application/pkcs10"}
OVER_TLS = {"tls.peer": TlsPeer("TLSv1.3", "x", None, (), None, None, None), "REMOTE_ADDR": "192.0.2.7"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return found_home(tmp_path_factory.mktemp("observed") / "home")


@pytest.fixture
def told() -> list[Exchange]:
    return []


@pytest.fixture
def client(home: Home, told: list[Exchange]) -> Iterator[FlaskClient]:
    numbers = itertools.count(1)

    def random(size: int) -> bytes:
        return next(numbers).to_bytes(size)

    with home.inventory() as inventory:
        yield create_app(home.settings, inventory=inventory, clock=today, random=random, tell=told.append).test_client()


@pytest.mark.parametrize(
    ("method", "path", "status", "facts"),
    [
        ("GET", f"{EST}/cacerts", 200, {"operation": "cacerts", "label": ""}),
        ("HEAD", f"{EST}/gateway/csrattrs", 200, {"operation": "csrattrs", "label": "gateway"}),
        ("GET", f"{EST}/nobody/cacerts", 404, {"path": f"{EST}/nobody/cacerts", "reason": "unknown-label"}),
        ("GET", "/admin?password=x", 404, {"path": "/admin", "reason": "no-such-operation"}),
        ("GET", "/a%0d%0ab%00", 404, {"path": "/a\r\nb\0", "reason": "no-such-operation"}),
        ("PUT", f"{EST}/cacerts", 405, {"operation": "cacerts", "label": "", "reason": "method-not-allowed"}),
        ("POST", f"{EST}/fullcmc", 501, {"operation": "fullcmc", "label": "", "reason": "not-implemented"}),
        ("POST", f"{EST}/simpleenroll", 415, {"operation": "simpleenroll", "label": "", "reason": "wrong-media-type"}),
    ],
)
def test_every_request_is_told_once(
    client: FlaskClient, told: list[Exchange], method: str, path: str, status: int, facts: dict[str, str]
) -> None:
    client.open(path, method=method, environ_overrides=OVER_TLS)
    (exchange,) = told
    assert 0 < exchange.seconds < 10
    assert exchange == Exchange(
        "0000000000000001", "192.0.2.7", "TLSv1.3", method, status, seconds=exchange.seconds, **facts
    )


def test_an_enrolment_is_told_with_what_came_of_it(client: FlaskClient, told: list[Exchange], home: Home) -> None:
    credential = home.credential("sn-1")
    body, how = base64.b64encode(request(new_key(), "sn-1")), {"headers": {**PKCS10, **basic(credential)}}
    for _ in range(2):
        assert client.post(f"{EST}/simpleenroll", data=body, environ_overrides=OVER_TLS, **how).status_code == 200
    issue, repeat = home.audit()[-2:]
    assert (issue["action"], repeat["action"]) == ("issue", "repeat")
    for exchange, row in zip(told, (issue, repeat), strict=True):
        assert row["detail"]["request_id"] == exchange.id
        assert (row["actor"], row["detail"]["device"]) == (exchange.requester, exchange.device)
        assert (row["detail"]["serial"], row["detail"]["spki_sha256"]) == (exchange.serial, exchange.spki_sha256)
    assert told[0].id != told[1].id
    assert (told[0].requester, told[0].reason) == (f"credential:{credential[0]}", None)


def test_a_refusal_is_told_with_what_was_known(client: FlaskClient, told: list[Exchange], home: Home) -> None:
    name, secret = home.credential("sn-2")
    for device, password in (("sn-2", "wrong"), ("sn-3", secret)):
        body = base64.b64encode(request(new_key(), device))
        headers = {**PKCS10, **basic((name, password))}
        client.post(f"{EST}/simpleenroll", data=body, headers=headers, environ_overrides=OVER_TLS)
    rows = home.audit()[-2:]
    assert [exchange.reason for exchange in told] == ["bad-credentials", "not-authorized"]
    assert [exchange.requester for exchange in told] == [f"unrecognised:{name}", f"credential:{name}"]
    for exchange, row in zip(told, rows, strict=True):
        assert (row["action"], row["outcome"], row["actor"]) == ("refuse", exchange.reason, exchange.requester)
        detail = row["detail"]
        assert (detail["request_id"], detail["device"]) == (exchange.id, exchange.device)
        assert (detail["spki_sha256"], exchange.serial) == (exchange.spki_sha256, None)


def test_a_fault_is_logged_with_the_id_that_its_request_has(
    client: FlaskClient, told: list[Exchange], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(Enrollment, "ca_certificates", fail)
    with caplog.at_level(logging.ERROR):
        assert client.get(f"{EST}/cacerts", environ_overrides=OVER_TLS).status_code == 500
    assert (told[0].status, told[0].reason) == (500, "internal-error")
    assert [getattr(record, "fields", None) for record in caplog.records] == [{"id": told[0].id}]


def test_an_answer_that_comes_later_is_told_when_it_comes(told: list[Exchange]) -> None:
    """A group of enrolments shares one commit: how each ends is known only then."""

    def lazy(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        note(environ, requester="station:line-1")
        yield from ()
        note_error(environ, StorageUnavailable("full"))
        start_response("503 SERVICE UNAVAILABLE", [])
        yield request_id(environ).encode()

    app = Observed(lazy, {"/x": ("simpleenroll", "")}, told.append, lambda size: b"\1" * size)
    answer = app({"PATH_INFO": "/x", "REQUEST_METHOD": "POST"}, lambda *_: lambda _octets: None)
    assert told == []
    assert list(answer) == [b"01" * 8]
    (exchange,) = told
    assert (exchange.status, exchange.reason) == (503, "storage-unavailable")
    assert exchange.requester == "station:line-1"
