"""Homes whose CAs are rolled over, and fleets that are enrolled under them without HTTP."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.assembly import hierarchy_of, load_ca
from estserver.ca import IssuingCa
from estserver.enroll import Enrollment
from estserver.errors import ConfigError
from estserver.key_update import KeyUpdate, RootKey
from estserver.model import Der, Peer, Reservation, Serial
from estserver.records import RolloverRecord, Tier
from tests.csr_maker import new_key
from tests.est_server import Home
from tests.unit.test_ca import grant_for

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
YEAR = timedelta(days=365)
LATER = NOW + YEAR
WHY = "a test wants it"
_serials = itertools.count(1000)


@contextmanager
def updating(home: Home, now: datetime = LATER) -> Iterator[KeyUpdate]:
    with home.inventory() as inventory:
        yield KeyUpdate(home.settings, inventory, "acme", actor="operator:test", now=now, random=os.urandom)


def start(update: KeyUpdate, tier: Tier, kind: str | None = None) -> RolloverRecord:
    return update.start(tier, kind, RootKey())


def announced(update: KeyUpdate, tier: Tier) -> None:
    """Start without the root's key."""
    with pytest.raises(ConfigError, match="announced; to go on it takes the root's key"):
        update.start(tier, None, RootKey(Path("/nowhere/root.key")))


VERBS: dict[str, Callable[[KeyUpdate, Tier], object]] = {
    "announce": announced,
    "start": start,
    "switch": lambda update, _tier: update.switch(WHY),
    "retire": lambda update, _tier: update.retire(WHY),
}


def brought_to(update: KeyUpdate, stage: str, tier: Tier) -> None:
    """Bring a fresh home to a stage."""
    way = {"": (), "announce": ("announce",), "cross": ("start",), "switch": ("start", "switch")}
    for verb in way.get(stage, ("start", "switch", "retire")):
        VERBS[verb](update, tier)


def der_of(certificate: x509.Certificate) -> Der:
    return Der(certificate.public_bytes(Encoding.DER))


def cert(der: bytes | None) -> x509.Certificate:
    assert der is not None
    return x509.load_der_x509_certificate(der)


@contextmanager
def fleet(home: Home, now: datetime) -> Iterator[Callable[[str], Peer]]:
    """Enrol devices without HTTP, by whatever key signs now."""
    with home.inventory() as inventory:

        def enrol(device: str) -> Peer:
            grant = replace(grant_for(now=now, end=now + YEAR), device=device, credential=None)
            key = new_key().public_key().public_numbers().x
            grant = replace(grant, csr=replace(grant.csr, spki_sha256=f"{key:064x}"[:64]))
            ca = load_ca(home.settings, "acme", hierarchy_of(home.settings, "acme", inventory.rollovers.all()))
            reservation = inventory.reserve(grant, Serial(next(_serials)), now)
            assert isinstance(reservation, Reservation)
            issued = inventory.record(reservation, ca.issue(reservation), [], now, issuer=ca.key_id)
            return Peer("192.0.2.1", "TLSv1.3", issued.certificate)

        yield enrol


def recognised(enrollment: Enrollment, peer: Peer) -> bool:
    identity = enrollment._authenticator.identify(peer, None, "", LATER)
    return identity.certificate is not None


def leaf_of(ca: IssuingCa, now: datetime) -> x509.Certificate:
    grant = grant_for(now=now, end=ca.not_after)
    return cert(ca.issue(Reservation(Serial(next(_serials)), grant, now)))
