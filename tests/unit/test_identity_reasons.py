"""Why somebody is not recognised, code by code; who may vouch for a key; and what manufacturers took back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from estserver.asn1 import issuer_and_serial
from estserver.errors import BadCredentials, NotAuthenticated, NotAuthorized, RateLimited
from estserver.identity import Anchor, AnchorSet, Authenticator, CredentialVerifier
from estserver.model import BasicCredentials, CertificateRecord, Der, IdentityKind, Peer
from estserver.possession import Statement
from estserver.records import AnchorRecord, CredentialRecord, ListedStatus, StationRecord
from tests.makers import CLIENT, SERVER, Maker
from tests.unit.test_identity import (
    CMC_RA,
    NOW,
    OLD,
    OURS,
    PEPPER,
    TURBINES,
    Known,
    authenticator,
    der,
    enrolled,
    ours,
    peer,
    record,
)

SECOND = timedelta(seconds=1)
GOOD = BasicCredentials("line", b"good")


@pytest.fixture
def known() -> Known:
    return Known(makers=[AnchorRecord("turbines", der(TURBINES.certificate), "tw-{serial}", ("tw-*",), NOW)])


def refused(office: Authenticator, shown: Peer, *reasons: str, code: str, **how: Any) -> None:
    with pytest.raises(NotAuthorized) as told:
        office.identify(shown, how.pop("credentials", None), "factory", NOW, **how)
    assert (told.value.reasons, told.value.code) == (reasons, code)


def test_a_certificate_that_does_not_count_says_everything_that_is_wrong_with_it(known: Known) -> None:
    office = authenticator(known)
    unknown, client = "the certificate is not in the inventory of this server", "its extended key usage does not allow"
    purpose = f"{client} TLS client authentication"
    refused(office, peer(ours(purposes=[SERVER])), purpose, unknown, code="bad-certificate")
    refused(office, peer(ours()), unknown, code="bad-certificate")
    maker = f"{client} TLS client authentication", "the IDevID has no single serialNumber in its subject"
    refused(office, peer(TURBINES.idevid(None, not_before=OLD, purposes=[SERVER])), *maker, code="bad-certificate")
    unnamed = "the serialNumber of the IDevID does not make a device id"
    refused(office, peer(TURBINES.idevid("a b", not_before=OLD)), unnamed, code="bad-certificate")
    holder = ours(purposes=[SERVER])
    enrolled(known, holder)
    refused(office, peer(holder), purpose, code="bad-certificate")
    enrolled(known, holder, revoked_at=NOW, revocation_reason="keyCompromise")
    revoked = "the certificate was revoked on 2027-03-01 (keyCompromise)"
    refused(office, peer(holder), purpose, revoked, code="revoked")
    stranger = Maker("Stranger", not_before=OLD).idevid("1", not_before=OLD)
    words = "the client certificate does not lead to a trust anchor of this server"
    refused(office, peer(stranger), words, code="unknown-certificate")


def test_what_is_missing_is_asked_for(known: Known) -> None:
    known.credentials["line"] = record("line", b"good")
    office, nobody = authenticator(known), Peer("192.0.2.1")
    words = "this label wants a client certificate besides the credential"
    with pytest.raises(NotAuthorized, match=f"^{words}$"):
        office.identify(nobody, GOOD, "factory", NOW, both=True)
    for shown, both, words in [
        (nobody, False, "neither a client certificate nor a credential was offered"),
        (peer(ours()), True, "this label wants a credential besides the client certificate"),
    ]:
        with pytest.raises(NotAuthenticated, match=f"^{words}$"):
            office.identify(shown, None, "factory", NOW, both=both)


def test_a_station_is_who_the_registry_says_with_the_certificate_it_showed(known: Known) -> None:
    holder = ours(purposes=[CLIENT, CMC_RA])
    kept = enrolled(known, holder)
    known.stations["sn-1"] = StationRecord("line-1", ("unit-*",), NOW)
    who = authenticator(known).identify(peer(holder), None, "", NOW)
    assert (who.kind, who.name, who.devices) == (IdentityKind.STATION, "line-1", ("unit-*", "sn-1"))
    assert (who.certificate, who.labels, who.names) == (kept, None, ())


@dataclass
class Timed(Known):
    """Says at which instants it was asked."""

    asked: list[datetime] = field(default_factory=list)

    def authenticable(self, name: str, now: datetime) -> CredentialRecord | None:
        self.asked.append(now)
        return super().authenticable(name, now)

    def nameless(self, verifier: bytes, now: datetime) -> CredentialRecord | None:
        self.asked.append(now)
        return super().nameless(verifier, now)


def test_whether_a_credential_has_expired_is_asked_for_the_instant_of_the_request() -> None:
    timed = Timed(credentials={"line": record("line", b"good")})
    office = authenticator(timed)
    assert office.identify(Peer("192.0.2.1"), GOOD, "factory", NOW).name == "line"
    with pytest.raises(BadCredentials):
        office.identify(Peer("192.0.2.1"), BasicCredentials("", b"good"), "factory", NOW + SECOND)
    assert timed.asked == [NOW, NOW + SECOND]


def test_a_guess_at_a_chosen_secret_is_paid_for_first(known: Known) -> None:
    known.credentials["line"] = record("line", b"good", chosen=True)

    def stop() -> None:
        raise RateLimited("guesses enough")

    with pytest.raises(RateLimited):
        authenticator(known).identify(Peer("192.0.2.1"), GOOD, "factory", NOW, stop)


def test_an_anchor_that_is_added_counts_for_who_comes_next(known: Known) -> None:
    office, pumps = authenticator(known), Maker("Pumps", not_before=OLD)
    holder = pumps.idevid("1", not_before=OLD)
    refused(office, peer(holder), "the client certificate does not lead to a trust anchor of this server",
            code="unknown-certificate")  # fmt: skip
    known.makers = [*known.makers, AnchorRecord("pumps", der(pumps.certificate), "{serial}", ("*",), NOW)]
    assert office.identify(peer(holder), None, "", NOW).name == "pumps/1"
    assert office.identify(peer(TURBINES.idevid("1", not_before=OLD)), None, "", NOW).name == "turbines/tw-1"


# --- who may vouch for a key that cannot sign (RFC 9883 §3) ---------------------------------------------------------


@dataclass
class Serials(Known):
    """Finds any certificate by its serial."""

    kept: CertificateRecord | None = None

    def by_serial(self, serial: int) -> CertificateRecord | None:
        return self.kept if self.kept is not None and self.kept.serial == serial else None


def vouching(**how: Any) -> tuple[Authenticator, Serials, Statement]:
    known, holder = Serials(), ours(**how)
    issuer, serial = issuer_and_serial(der(holder.certificate))
    known.kept = enrolled(known, holder, serial=serial)
    return authenticator(known), known, Statement(issuer, serial, None)


def test_q_06_a_certificate_of_this_ca_vouches_when_it_is_named_right() -> None:
    office, known, statement = vouching()
    assert known.kept is not None
    assert office.vouch(statement, NOW) == known.kept
    assert office.vouch(replace(statement, certificate=known.kept.certificate), NOW) == known.kept
    other = OURS.idevid("2", not_before=OLD)
    for wrong in (
        replace(statement, serial=statement.serial + 1),
        replace(statement, issuer=Der(b"\x30\x00")),
        replace(statement, certificate=der(other.certificate)),
    ):
        with pytest.raises(NotAuthorized) as told:
            office.vouch(wrong, NOW)
        assert told.value.reasons == ("the statement of possession names a certificate that is none of this CA",)
        assert told.value.code == "unknown-certificate"
    known.kept = replace(known.kept, certificate=der(other.certificate))
    with pytest.raises(NotAuthorized, match="none of this CA"):
        office.vouch(statement, NOW)


def test_q_06_a_certificate_that_does_not_count_vouches_for_nothing() -> None:
    office, known, statement = vouching(not_after=NOW)
    assert known.kept is not None
    assert office.vouch(statement, NOW) == known.kept
    with pytest.raises(NotAuthorized, match="expired on") as told:
        office.vouch(statement, NOW + SECOND)
    assert told.value.code == "bad-certificate"
    known.kept = replace(known.kept, revoked_at=NOW, revocation_reason="superseded")
    with pytest.raises(NotAuthorized, match="was revoked on") as told:
        office.vouch(statement, NOW)
    assert told.value.code == "revoked"
    stranger = Maker("Stranger", not_before=OLD).idevid("1", not_before=OLD)
    issuer, serial = issuer_and_serial(der(stranger.certificate))
    known.kept = enrolled(known, stranger, serial=serial)
    with pytest.raises(NotAuthorized, match=r"^it does not lead to this CA$") as told:
        office.vouch(Statement(issuer, serial, None), NOW)
    assert told.value.code == "bad-certificate"


# --- manufacturers' lists -------------------------------------------------------------------------------------------


@dataclass
class Lists:
    """What the list of one anchor says; `asked` are the serials it was asked about."""

    said: ListedStatus | None
    asked: list[tuple[str, int]] = field(default_factory=list)

    def status(self, name: str, serial: int) -> ListedStatus | None:
        self.asked.append((name, serial))
        return self.said


def listing(missing: Any, next_update: datetime | None, *, revoked: bool = False) -> Lists:
    return Lists(ListedStatus(missing, next_update, revoked))


def office_with(known: Known, lists: Lists) -> Authenticator:
    explicit = AnchorSet([Anchor("ours", der(OURS.certificate))])
    return Authenticator(known, explicit, CredentialVerifier(PEPPER), implicit_trust=True, lists=lists)


@pytest.mark.parametrize(("missing", "next_update"), [("refuse", NOW), ("accept", NOW - SECOND), ("accept", None)])
def test_who_was_revoked_is_refused_by_a_list_that_has_ended_too(
    known: Known, missing: str, next_update: datetime | None
) -> None:
    office = office_with(known, listing(missing, next_update, revoked=True))
    words = "the certificate was revoked by its manufacturer turbines"
    refused(office, peer(TURBINES.idevid("1", not_before=OLD)), words, code="revoked")


@pytest.mark.parametrize(
    ("missing", "next_update", "taken"),
    [
        ("refuse", NOW + SECOND, True),
        ("refuse", NOW, True),
        ("refuse", NOW - SECOND, False),
        ("refuse", None, False),
        ("accept", NOW - SECOND, True),
        ("accept", None, True),
    ],
)
def test_where_a_list_says_nothing_what_the_operator_wanted_counts(
    known: Known, missing: str, next_update: datetime | None, taken: bool
) -> None:
    lists, holder = listing(missing, next_update), TURBINES.idevid("1", not_before=OLD)
    office = office_with(known, lists)
    if taken:
        assert office.identify(peer(holder), None, "", NOW).name == "turbines/tw-1"
    else:
        with pytest.raises(NotAuthorized) as told:
            office.identify(peer(holder), None, "", NOW)
        assert told.value.reasons == ("there is no valid revocation list of turbines for this certificate",)
        assert told.value.code == "revocation-unknown"
        assert told.value.advice == "the server's operator can look into it with: estserver trust crl list"
    assert lists.asked == [("turbines", holder.certificate.serial_number)]


def test_of_what_others_issued_below_the_anchor_its_list_says_nothing(known: Known) -> None:
    below = Maker("Plant", above=TURBINES, not_before=OLD)
    holder, middle = below.idevid("1", not_before=OLD), below.certificate.serial_number
    lists = listing("refuse", NOW + SECOND)
    words = "there is no valid revocation list of turbines for this certificate"
    refused(office_with(known, lists), peer(holder), words, code="revocation-unknown")
    assert lists.asked == [("turbines", middle)], "asked about what it issued itself"
    accepting = office_with(known, listing("accept", None))
    assert accepting.identify(peer(holder), None, "", NOW).name == "turbines/tw-1"
    unlisted = office_with(known, Lists(None))
    assert unlisted.identify(peer(holder), None, "", NOW).name == "turbines/tw-1"
