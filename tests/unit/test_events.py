"""What is told of a certificate: identifiers that sort, facts that match, nothing secret."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estserver import events
from estserver.model import Der, DeviceId, Operation, Reservation, Serial
from tests.inventory_support import grant_for
from tests.policy_support import asked, previous

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)


def random(size: int) -> bytes:
    return bytes(range(size))


moments = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - given one


@given(moments, st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_ulids_sort_by_time_and_then_by_chance(at: datetime, one: bytes, two: bytes) -> None:
    first, second = events.ulid(at, one), events.ulid(at + timedelta(milliseconds=1), two)
    assert len(first) == 26
    assert first < second
    assert (events.ulid(at, one) < events.ulid(at, two)) is (one < two)


@pytest.mark.parametrize(
    ("operation", "verb"), [(Operation.SIMPLEENROLL, "issued"), (Operation.SIMPLEREENROLL, "renewed")]
)
def test_an_issue_is_one_event_of_the_ca_and_the_identity_of_the_device(operation: Operation, verb: str) -> None:
    grant = grant_for("sn-1", operation=operation, predecessor=Serial(255))
    told = events.issued(
        Reservation(Serial(0xABC), grant, NOW), Der(b"der"), ca="acme", issuer="CN=Issuing", random=random
    )
    assert [(e.topic, e.type, e.retain) for e in told] == [
        (f"ca/acme/evt/{verb}", f"org.estline.certificate.{verb}.v1", False),
        ("d/sn-1/identity", "org.estline.identity.current.v1", True),
    ]
    for event in told:
        assert event.source == "/ca/acme"
        data = json.loads(json.dumps(event.data))
        assert data["cert"]["sha256"] == hashlib.sha256(b"der").hexdigest()
        assert (data["cert"]["serial"], data["supersedes"]) == ("abc", "ff")
        assert data["key"] == {"alg": "P-256", "spki_sha256": grant.csr.spki_sha256}


def test_a_revocation_takes_the_identity_along_only_when_it_was_the_current_one() -> None:
    record = previous(asked(), device=DeviceId("sn-1"))
    current = events.revoked(record, "keyCompromise", NOW, ca="acme", random=random)
    older = events.revoked(replace(record, superseded_by=Serial(8)), "keyCompromise", NOW, ca="acme", random=random)
    assert [event.topic for event in current] == ["ca/acme/evt/revoked", "d/sn-1/identity"]
    assert [event.topic for event in older] == ["ca/acme/evt/revoked"]
    assert current[1].data["revoked"] == {"at": "2027-03-01T12:00:00Z", "reason": "keyCompromise"}
