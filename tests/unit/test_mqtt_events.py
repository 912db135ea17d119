"""Events: what is signed is what is read, and nothing else passes."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from devicesim.errors import UsageProblem, VerificationFailed
from devicesim.mqtt import dsse
from devicesim.mqtt.events import (
    EVENT_MAX_BYTES,
    Event,
    canonical_json,
    read_event,
    sequence_text,
    sign_event,
    verify_event,
)
from devicesim.mqtt.topics import EventType
from devicesim.mqtt.ulid import is_ulid, new_ulid
from tests.mqtt_pki import CLIENT, SERVER, Pki


@pytest.fixture
def pki(tmp_path, now) -> Pki:
    return Pki(tmp_path / "pki", now)


def an_event(now: datetime, **changes: object) -> Event:
    fields: dict[str, object] = {
        "id": new_ulid(now, bytes),
        "source": "/site/hh1/line/l2/station/s-07",
        "type": EventType.PROVISIONED.value,
        "subject": "acme-0004711",
        "time": now,
        "data": {"device_id": "acme-0004711", "hw": "ä", "ms": 31.5, "supersedes": None},
        "sequence": sequence_text(4711),
        "correlationid": "batch-a",
        "expirytime": now + timedelta(days=7),
    }
    return Event(**(fields | changes))  # type: ignore[arg-type]


def signed(pki: Pki, now: datetime, **changes: object) -> bytes:
    station = pki.station()
    return sign_event(an_event(now, **changes), key=station.key, certificate=station.certificate)


def test_ulids_sort_by_time_and_have_one_spelling(now):
    early, late = (new_ulid(when, lambda n: b"\xff" * n) for when in (now, now + timedelta(milliseconds=1)))
    assert early < late
    assert is_ulid(early)
    assert not is_ulid(early.lower())
    assert new_ulid(datetime.fromtimestamp(1469918176.385, now.tzinfo), bytes).startswith("01ARYZ6S41")


def test_a_signed_event_reads_back_with_its_signer(pki, now):
    station = pki.station()
    event = an_event(now)
    verified = verify_event(
        sign_event(event, key=station.key, certificate=station.certificate), trust=pki.trust, now=now
    )
    assert verified.event == event
    assert verified.signer == station.certificate


def test_a_broker_may_reformat_the_json(pki, now):
    pretty = json.dumps(json.loads(signed(pki, now)), indent=2).encode()
    assert verify_event(pretty, trust=pki.trust, now=now).event == an_event(now)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "01ARYZ6S410000000000000000"),
        ("source", "/site/hh1/line/l2/station/s-08"),
        ("type", "org.estline.identity.failed.v1"),
        ("subject", "acme-0004712"),
        ("time", "2027-03-01T12:00:01Z"),
        ("data", {"device_id": "acme-0004712"}),
        ("sequence", "00000000000000004712"),
        ("correlationid", "batch-b"),
        ("expirytime", "2037-03-01T12:00:00Z"),
        ("dataschema", "https://example.com/added"),
        ("sequence", None),
        ("specversion", "1.1"),
        ("datacontenttype", "text/plain"),
        ("extra", "unsigned"),
        ("dssematerial", None),
        ("data", None),
        ("subject", ""),
        ("dssematerial", "bm90IGFuIGVudmVsb3Bl"),
    ],
)
def test_any_change_is_refused(pki, now, name, value):
    fields = json.loads(signed(pki, now))
    fields[name] = value
    if value is None:
        del fields[name]
    with pytest.raises(VerificationFailed):
        verify_event(json.dumps(fields).encode(), trust=pki.trust, now=now)


def test_an_unsigned_event_of_ours_is_named_as_such(pki, now):
    fields = json.loads(signed(pki, now))
    del fields["dssematerial"]
    with pytest.raises(VerificationFailed, match="not signed"):
        verify_event(json.dumps(fields).encode(), trust=pki.trust, now=now)


def test_another_ca_is_refused(pki, now, tmp_path):
    with pytest.raises(VerificationFailed, match="does not chain"):
        verify_event(signed(pki, now), trust=Pki(tmp_path / "other", now).trust, now=now)


def test_a_signer_outside_its_validity_is_refused(pki, now):
    with pytest.raises(VerificationFailed, match="expired"):
        verify_event(signed(pki, now), trust=pki.trust, now=now + timedelta(days=31))


def test_a_chain_swapped_for_another_signers_is_refused(pki, now):
    """The envelope names a chain; a signature by another key under it is worth nothing."""
    thief, victim = pki.station("s-08"), pki.station("s-07")
    payload = sign_event(an_event(now), key=thief.key, certificate=victim.certificate)
    with pytest.raises(VerificationFailed, match="does not fit"):
        verify_event(payload, trust=pki.trust, now=now)


def test_an_intermediate_travels_with_the_signature(pki, now):
    leaf = pki.station()
    payload = sign_event(an_event(now), key=leaf.key, certificate=leaf.certificate, chain=(pki.root,))
    assert verify_event(payload, trust=pki.trust, now=now).signer == leaf.certificate


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        mldsa.MLDSA44PrivateKey.generate(),
    ],
    ids=lambda key: type(key).__name__,
)
def test_every_scheme_signs_and_verifies(key):
    scheme = next(row for row in dsse.SCHEMES if isinstance(key, row.private))
    scheme.verify(key.public_key(), scheme.sign(key, b"words"), b"words")
    assert isinstance(key.public_key(), scheme.public)


def test_the_pre_authentication_encoding_is_that_of_the_dsse_specification():
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_ca_certificate_signs_no_events(pki, now):
    payload = sign_event(an_event(now), key=pki.key, certificate=pki.root)
    with pytest.raises(VerificationFailed, match="not one for signatures"):
        verify_event(payload, trust=pki.trust, now=now)


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"{", b"\xff", b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 50_000, b'{"id":"\\ud800"}', b"1" * 70_000],
)
def test_junk_is_refused_in_one_way(pki, now, payload):
    with pytest.raises(VerificationFailed):
        verify_event(payload, trust=pki.trust, now=now)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=100) | st.text(max_size=50).map(lambda text: json.dumps({"type": text}).encode()))
def test_reading_never_fails_in_another_way(payload):
    with pytest.raises(VerificationFailed):
        read_event(payload)


def test_junk_inside_the_envelope_is_refused(pki, now):
    fields = json.loads(signed(pki, now))
    envelope = json.loads(base64.b64decode(fields["dssematerial"]))
    for path in ("payload", "payloadType", "signatures"):
        for junk in (None, 7, "???", [], [{}]):
            fields["dssematerial"] = base64.b64encode(json.dumps(envelope | {path: junk}).encode()).decode()
            with pytest.raises(VerificationFailed):
                verify_event(json.dumps(fields).encode(), trust=pki.trust, now=now)


def test_events_that_cannot_be_signed_unambiguously_are_not_made(pki, now):
    with pytest.raises(UsageProblem, match="empty"):
        an_event(now, correlationid="")
    with pytest.raises(UsageProblem, match="whole seconds"):
        an_event(now, time=now.replace(microsecond=1))
    with pytest.raises(UsageProblem, match="bytes"):
        signed(pki, now, data={"x": "y" * EVENT_MAX_BYTES})
    with pytest.raises(UsageProblem, match="JSON"):
        canonical_json({"x": float("nan")})


def test_certificates_without_client_purpose_still_chain(pki, now):
    """What a signer may say is another room's question: the chain alone is judged here."""
    for usages in ((SERVER,), (CLIENT,)):
        party = pki.issue("announcer", *usages)
        payload = sign_event(an_event(now), key=party.key, certificate=party.certificate)
        assert isinstance(verify_event(payload, trust=pki.trust, now=now).signer, x509.Certificate)
