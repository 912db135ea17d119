"""The one table that turns errors into HTTP, and the application without its TLS front."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
from flask.testing import FlaskClient

from estserver import errors
from estserver.enroll import Enrollment
from estserver.errors import CapacityError, EstError, PolicyRefused, StorageUnavailable
from estserver.web import create_app
from estserver.web.errors import status_of
from tests.est_server import EST, Home, found_home, today
from tests.plain_front import tls_peer

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EstError)]
PKCS10 = {"Content-Type": "application/pkcs10"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return found_home(tmp_path_factory.mktemp("web") / "home")


@pytest.fixture
def client(home: Home) -> Iterator[FlaskClient]:
    with home.inventory() as inventory:
        client = create_app(home.settings, inventory=inventory, clock=today, random=os.urandom).test_client()
        client.environ_base["tls.peer"] = tls_peer()
        yield client


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Enrollment, "ca_certificates", fail)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_answers_in_text(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, kind: type[EstError]
) -> None:
    raising(monkeypatch, kind("because of this", advice="do that"))
    answer = client.get(f"{EST}/cacerts")
    assert answer.status_code == status_of(kind("x"))
    if answer.status_code == 401:
        assert (answer.data, "WWW-Authenticate" in answer.headers) == (b"", True)
    elif answer.status_code == 500:
        assert answer.text == "the server failed to do this; nothing was issued\n"
    else:
        assert answer.text == "because of this\ndo that\n"
    assert "html" not in answer.headers.get("Content-Type", "")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.MalformedRequest, 400),
        (errors.ProofOfPossessionFailed, 400),
        (errors.WeakKey, 400),
        (errors.PolicyRefused, 400),
        (errors.NotAuthenticated, 401),
        (errors.BadCredentials, 401),
        (errors.NotAuthorized, 403),
        (errors.ChannelBindingFailed, 403),
        (errors.KeyReused, 403),
        (errors.UnknownLabel, 404),
        (errors.NotFound, 404),
        (errors.AwaitingApproval, 202),
        (errors.QueueFull, 503),
        (errors.StorageUnavailable, 503),
        (errors.InternalError, 500),
        (errors.ConfigError, 500),
        (errors.EstError, 500),
    ],
)
def test_the_table(kind: type[EstError], status: int) -> None:
    assert status_of(kind("x")) == status


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.AwaitingApproval("wait"), "5"),
        (StorageUnavailable("full"), "5"),
        (CapacityError("busy", retry_after=timedelta(minutes=2)), "120"),
        (CapacityError("busy", retry_after=timedelta(milliseconds=1)), "1"),
        (PolicyRefused("later", retry_after=timedelta(hours=1)), "3600"),
    ],
)
def test_retry_after_is_in_whole_seconds(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, error: EstError, seconds: str
) -> None:
    raising(monkeypatch, error)
    assert client.get(f"{EST}/cacerts").headers["Retry-After"] == seconds


def test_every_reason_is_a_line_and_none_is_two(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, PolicyRefused("one", "two\r\x1b[31m", "größer"))
    assert client.get(f"{EST}/cacerts").text == "one\ntwo??[31m\ngrößer\n"


def test_s_r10_what_nobody_expected_is_logged_and_not_told(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raising(monkeypatch, RuntimeError("secret of the inside"))
    with caplog.at_level(logging.ERROR):
        answer = client.get(f"{EST}/cacerts")
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    assert "secret of the inside" in caplog.text


def test_s_t01_without_the_facts_of_a_handshake_nobody_enrols(client: FlaskClient) -> None:
    """Lessons 1 and 2: no header stands in for them, and `wsgi.url_scheme` is no proof."""
    headers = {**PKCS10, "X-Forwarded-Proto": "https", "X-Client-Verify": "SUCCESS"}
    del client.environ_base["tls.peer"]
    for environ in ({}, {"tls.peer": "CN=sn-1"}, {"tls.peer": {"certificate": b"x"}}, {"wsgi.url_scheme": "https"}):
        for method, path in (("POST", f"{EST}/simpleenroll"), ("GET", f"{EST}/cacerts"), ("GET", "/nowhere")):
            answer = client.open(path, method=method, data=b"MAA=", headers=headers, environ_overrides=environ)
            assert answer.status_code == 403
            assert "over TLS only" in answer.text


def test_a_body_larger_than_the_limit_is_413(client: FlaskClient) -> None:
    answer = client.post(f"{EST}/simpleenroll", data=b"A" * 65_537, headers=PKCS10)
    assert answer.status_code == 413
