"""Who asks: every way of being recognised, every reason for not being, at three times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from estserver.csr import spki_hash
from estserver.errors import BadCredentials, NotAuthenticated, NotAuthorized
from estserver.identity import Anchor, AnchorSet, Authenticator, CredentialVerifier
from estserver.identity.credentials import (
    generate_secret,
    verifier_for_chosen,
    verifier_for_generated,
)
from estserver.model import BasicCredentials, CertificateRecord, Der, Identity, IdentityKind, Peer
from estserver.records import AnchorRecord, CredentialRecord, StationRecord
from tests.csr_maker import sequence, set_of, spki, tlv, usage, values
from tests.est_server import Holder
from tests.makers import CLIENT, FAR, SERVER, Maker
from tests.policy_support import asked, previous

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
CLOCKS = [NOW, datetime(2049, 12, 31, 23, 59, 50, tzinfo=UTC), NOW.replace(year=2127)]
PEPPER = bytes(32)
OLD = NOW - timedelta(days=3650)


def der(certificate: x509.Certificate) -> Der:
    return Der(certificate.public_bytes(Encoding.DER))


@dataclass
class Known:
    """A registry in memory: the values are the contract, the database has tests of its own."""

    certificates: dict[str, CertificateRecord] = field(default_factory=dict)
    credentials: dict[str, CredentialRecord] = field(default_factory=dict)
    stations: dict[str, StationRecord] = field(default_factory=dict)
    makers: list[AnchorRecord] = field(default_factory=list)
    block_list: dict[str, str] = field(default_factory=dict)

    def certificate(self, sha256_hex: str) -> CertificateRecord | None:
        return self.certificates.get(sha256_hex)

    def authenticable(self, name: str, now: datetime) -> CredentialRecord | None:
        return self.credentials.get(name)

    def nameless(self, verifier: bytes, now: datetime) -> CredentialRecord | None:
        return next((one for one in self.credentials.values() if one.nameless and one.verifier == verifier), None)

    def station(self, name: str) -> StationRecord | None:
        return self.stations.get(name)

    @property
    def blocked(self) -> Known:
        return self

    def reason(self, spki_sha256: str) -> str | None:
        return self.block_list.get(spki_sha256)

    def anchors(self) -> list[AnchorRecord]:
        return self.makers


OURS = Maker("Our Root", not_before=OLD)
TURBINES = Maker("Turbines", not_before=OLD)


@pytest.fixture
def known() -> Known:
    anchor = AnchorRecord("turbines", der(TURBINES.certificate), "tw-{serial}", ("tw-*",), NOW)
    return Known(makers=[anchor])


def authenticator(known: Known, *, implicit: bool = True) -> Authenticator:
    explicit = AnchorSet([Anchor("ours", der(OURS.certificate))])
    return Authenticator(known, explicit, CredentialVerifier(PEPPER), implicit_trust=implicit)


def peer(holder: Holder, chain: Sequence[x509.Certificate] | None = None) -> Peer:
    above = holder.chain if chain is None else chain
    return Peer("192.0.2.1", certificate=der(holder.certificate), intermediates=tuple(map(der, above)))


def enrolled(known: Known, holder: Holder, **changes: object) -> CertificateRecord:
    record = previous(asked(), certificate=der(holder.certificate), **changes)
    known.certificates[hashlib.sha256(record.certificate).hexdigest()] = record
    return record


def ours(**how: object) -> Holder:
    return OURS.idevid("1", **{"not_before": OLD, **how})  # type: ignore[arg-type]  # as `idevid` takes them


# --- certificates ---------------------------------------------------------------------------------------------------


def test_nothing_offered_is_a_question(known: Known) -> None:
    with pytest.raises(NotAuthenticated):
        authenticator(known).identify(Peer("192.0.2.1"), None, "", NOW)


@pytest.mark.parametrize("now", CLOCKS, ids=str)
def test_a_device_of_ours_is_itself_and_no_more(known: Known, now: datetime) -> None:
    holder = ours()
    record = enrolled(known, holder)
    who = authenticator(known).identify(peer(holder), None, "", now)
    assert (who.kind, who.name, who.devices) == (IdentityKind.CERTIFICATE, "sn-1", ("sn-1",))
    assert who.certificate == record
    assert not who.may_assert_binding


@pytest.mark.parametrize(
    ("changes", "words", "code"),
    [
        ({"not_after": NOW - timedelta(seconds=1)}, "expired on", "bad-certificate"),
        ({"not_before": NOW + timedelta(seconds=1)}, "not valid before", "bad-certificate"),
        ({"purposes": [SERVER]}, "extended key usage", "bad-certificate"),
        ({"key_usage": usage("key_agreement")}, "key usage", "bad-certificate"),
        ({"ca": True}, "CA certificate", "bad-certificate"),
    ],
)
def test_a_certificate_of_ours_with_a_fault_is_refused_in_words(
    known: Known, changes: dict[str, object], words: str, code: str
) -> None:
    holder = ours(**changes)
    enrolled(known, holder)
    with pytest.raises(NotAuthorized, match=words) as refused:
        authenticator(known).identify(peer(holder), None, "", NOW)
    assert refused.value.code == code


@pytest.mark.parametrize("shift", [timedelta(0), timedelta(seconds=1)])
def test_the_last_second_counts_and_the_next_does_not(known: Known, shift: timedelta) -> None:
    holder = ours(not_after=NOW)
    enrolled(known, holder)
    if not shift:
        assert authenticator(known).identify(peer(holder), None, "", NOW).name == "sn-1"
        return
    with pytest.raises(NotAuthorized, match="expired on"):
        authenticator(known).identify(peer(holder), None, "", NOW + shift)


def test_every_fault_is_told_at_once(known: Known) -> None:
    holder = ours(not_after=NOW - timedelta(days=1), purposes=[SERVER], key_usage=usage("key_agreement"))
    enrolled(known, holder, revoked_at=NOW, revocation_reason="keyCompromise")
    with pytest.raises(NotAuthorized) as refused:
        authenticator(known).identify(peer(holder), None, "", NOW)
    assert len(refused.value.reasons) == 4
    assert refused.value.code == "revoked"


def test_a_certificate_that_nobody_wrote_down_is_refused(known: Known) -> None:
    with pytest.raises(NotAuthorized, match="not in the inventory"):
        authenticator(known).identify(peer(ours()), None, "", NOW)


def test_an_intermediate_that_expired_ends_its_chain(known: Known) -> None:
    below = Maker("Our Sub CA", above=OURS, not_before=OLD, not_after=NOW - timedelta(days=1))
    holder = below.idevid("1", not_before=OLD)
    enrolled(known, holder)
    with pytest.raises(NotAuthorized, match="CA certificate 1 of the chain expired"):
        authenticator(known).identify(peer(holder), None, "", NOW)


def test_a_leaf_does_not_issue_leaves(known: Known) -> None:
    leaf = TURBINES.idevid("1", not_before=OLD)
    fake = Maker("Fake", key=leaf.key)
    holder = fake.idevid("2", not_before=OLD)
    with pytest.raises(NotAuthorized, match="trust anchor"):
        authenticator(known).identify(peer(holder, [leaf.certificate]), None, "", NOW)


def test_what_the_peer_sends_becomes_no_anchor(known: Known) -> None:
    stranger = Maker("Stranger", not_before=OLD)
    for chain in ([stranger.certificate], [TURBINES.certificate, OURS.certificate], []):
        with pytest.raises(NotAuthorized) as refused:
            authenticator(known).identify(peer(stranger.idevid("1", not_before=OLD), chain), None, "", NOW)
        assert refused.value.code == "unknown-certificate"


def test_a_same_named_impostor_is_a_stranger(known: Known) -> None:
    impostor = Maker(TURBINES.name, not_before=OLD)
    with pytest.raises(NotAuthorized, match="trust anchor"):
        authenticator(known).identify(peer(impostor.idevid("1", not_before=OLD)), None, "", NOW)


@given(st.binary(max_size=200))
def test_a_certificate_that_cannot_be_read_is_a_strangers(octets: bytes) -> None:
    anchors = AnchorSet([Anchor("ours", der(OURS.certificate))])
    assert anchors.path(Der(octets), [Der(octets)], NOW) is None
    leaf = der(ours().certificate)
    assert anchors.path(Der(leaf[:-1] + octets[:1] or b"x"), (), NOW) is None or octets[:1] == leaf[-1:]


# --- stations -------------------------------------------------------------------------------------------------------

CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("purposes", [[CLIENT, CMC_RA], [CLIENT]])
def test_a_station_takes_both_a_purpose_and_an_entry(
    known: Known, registered: bool, purposes: list[x509.ObjectIdentifier]
) -> None:
    holder = ours(purposes=purposes)
    enrolled(known, holder)
    if registered:
        known.stations["sn-1"] = StationRecord("sn-1", ("unit-*",), NOW)
    who = authenticator(known).identify(peer(holder), None, "", NOW)
    is_station = registered and CMC_RA in purposes
    assert (who.kind is IdentityKind.STATION, who.may_assert_binding) == (is_station, is_station)
    assert ("unit-*" in who.devices) is is_station


# --- manufacturers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", CLOCKS, ids=str)
def test_an_idevid_without_an_end_is_taken_at_any_time(known: Known, now: datetime) -> None:
    holder = TURBINES.idevid("A-7", not_before=OLD, not_after=FAR)
    who = authenticator(known).identify(peer(holder), None, "", now)
    assert (who.kind, who.name, who.devices) == (IdentityKind.IDEVID, "turbines/tw-a-7", ("tw-a-7",))
    assert who.certificate is None


def test_an_idevid_without_ski_san_or_usages_is_whole() -> None:
    """D-03, D-05."""
    assert (
        not AnchorSet([Anchor("m", der(TURBINES.certificate))])
        .path(  # type: ignore[union-attr]  # a path there is
            der(TURBINES.idevid("1", not_before=OLD).certificate), (), NOW
        )
        .problems
    )


def test_d_08_an_idevid_may_have_purposes_nobody_knows() -> None:
    """As Wi-SUN has them: clientAuth and one of its own, digitalSignature and keyAgreement."""
    purposes = [CLIENT, x509.ObjectIdentifier("1.3.6.1.4.1.45605.1")]
    how = {"purposes": purposes, "key_usage": usage("digital_signature", "key_agreement"), "not_before": OLD}
    path = AnchorSet([Anchor("m", der(TURBINES.certificate))]).path(
        der(TURBINES.idevid("1", **how).certificate), (), NOW
    )
    assert path is not None
    assert not path.problems


def odd_idevid(change: str) -> Peer:
    """A certificate that the turbine maker did sign, with one field as no standard has it."""
    version, serial, algorithm, issuer, validity, subject, *rest = values(
        values(der(TURBINES.idevid("1").certificate))[0]
    )
    if change == "an empty RDN":
        subject = sequence(*values(subject), set_of())
    else:
        serial = tlv(0x02, b"\xff\x01")
    tbs = sequence(version, serial, algorithm, issuer, validity, subject, *rest)
    return Peer("192.0.2.1", certificate=Der(TURBINES.sign(tbs)))


def test_a_subject_that_cannot_be_read_is_a_strangers(known: Known) -> None:
    """Once an internal error, for anybody with a certificate of a trusted maker that has an empty RDN."""
    with pytest.raises(NotAuthorized, match="does not lead to a trust anchor"):
        authenticator(known).identify(odd_idevid("an empty RDN"), None, "", NOW)


def test_a_strangers_certificate_makes_no_warning(known: Known) -> None:
    """Once the library's words on the server's standard error; a warning fails a test here."""
    assert authenticator(known).identify(odd_idevid("a negative serial"), None, "", NOW).name == "turbines/tw-1"


@pytest.mark.parametrize(
    ("serial", "words"), [(None, "no single serialNumber"), ("a b", "does not make a device id"), ("/", "device id")]
)
def test_an_idevid_that_names_no_device_is_refused(known: Known, serial: str | None, words: str) -> None:
    with pytest.raises(NotAuthorized, match=words):
        authenticator(known).identify(peer(TURBINES.idevid(serial, not_before=OLD)), None, "", NOW)


def test_a_manufacturer_vouches_for_its_own_only(known: Known) -> None:
    known.makers = [replace(known.makers[0], devices=("tw-1*",))]
    with pytest.raises(NotAuthorized, match="may not vouch for the device tw-2"):
        authenticator(known).identify(peer(TURBINES.idevid("2", not_before=OLD)), None, "", NOW)


def test_implicit_trust_comes_and_goes_with_the_registry(known: Known) -> None:
    holder, office = TURBINES.idevid("1", not_before=OLD), authenticator(known)
    assert office.identify(peer(holder), None, "", NOW).kind is IdentityKind.IDEVID
    known.makers = []
    with pytest.raises(NotAuthorized):
        office.identify(peer(holder), None, "", NOW)
    with pytest.raises(NotAuthorized):
        authenticator(known, implicit=False).identify(peer(holder), None, "", NOW)


def test_d_06_the_key_of_a_blocked_idevid_gets_nothing_whatever_comes_with_it(known: Known) -> None:
    holder, office = TURBINES.idevid("1", not_before=OLD), authenticator(known)
    again = TURBINES.idevid("1", not_before=OLD, key=holder.key)
    other = TURBINES.idevid("2", not_before=OLD)
    known.credentials["line"] = record("line", b"good")
    known.block_list[spki_hash(spki(holder.key))] = "stolen in transit"
    for shown in (holder, again):
        for offered, both in [(None, False), (("line", b"good"), False), (("line", b"good"), True)]:
            credentials = None if offered is None else BasicCredentials(*offered)
            with pytest.raises(NotAuthorized, match="this IDevID is blocked here: stolen in transit") as refused:
                office.identify(peer(shown), credentials, "factory", NOW, both=both)
            assert refused.value.code == "blocked-idevid"
    assert office.identify(peer(other), None, "", NOW).kind is IdentityKind.IDEVID
    known.block_list.clear()
    assert office.identify(peer(holder), None, "", NOW).kind is IdentityKind.IDEVID


# --- credentials ----------------------------------------------------------------------------------------------------


def record(name: str, secret: bytes, *, chosen: bool = False) -> CredentialRecord:
    return CredentialRecord(
        name=name,
        scheme="scrypt" if chosen else "hmac-sha256",
        verifier=verifier_for_chosen(secret, b"s" * 16) if chosen else verifier_for_generated(secret, PEPPER),
        salt=b"s" * 16 if chosen else b"",
        label="factory",
        devices=("sn-*",),
        names=("dns:*.example",),
        uses=1,
        spent=0,
        created_at=NOW,
        expires_at=None,
    )


@pytest.mark.parametrize("chosen", [False, True])
def test_a_credential_decides_alone_and_for_its_label(known: Known, chosen: bool) -> None:
    known.credentials["line"] = record("line", b"a good secret", chosen=chosen)
    office = authenticator(known)

    def identify(name: str, secret: bytes, label: str) -> Identity:
        return office.identify(peer(ours()), BasicCredentials(name, secret), label, NOW)

    for _ in range(2):
        who = identify("line", b"a good secret", "factory")
        assert (who.kind, who.devices, who.labels) == (IdentityKind.CREDENTIAL, ("sn-*",), ("factory",))
    for wrong in (("line", b"a bad secret", "factory"), ("line", b"a good secret", ""), ("x", b"", "factory")):
        with pytest.raises(BadCredentials) as refused:
            identify(*wrong)
        assert str(refused.value) == "the credential is unknown, wrong, expired, spent, or not for this label"


def test_s_a06_an_empty_name_finds_only_a_credential_that_was_made_without_one(known: Known) -> None:
    known.credentials |= {
        "shift": replace(record("shift", b"shared secret"), nameless=True),
        "line": record("line", b"secret of line"),
    }
    office = authenticator(known)
    who = office.identify(peer(ours()), BasicCredentials("", b"shared secret"), "factory", NOW)
    assert (who.kind, who.name, who.devices) == (IdentityKind.CREDENTIAL, "shift", ("sn-*",))
    for secret, label in [(b"secret of line", "factory"), (b"shared secret", ""), (b"", "factory")]:
        with pytest.raises(BadCredentials):
            office.identify(peer(ours()), BasicCredentials("", secret), label, NOW)


def test_s_a02_where_both_are_wanted_the_certificate_says_who_and_the_credential_what_besides(known: Known) -> None:
    known.credentials["line"] = record("line", b"good")
    holder, office = ours(), authenticator(known)
    kept = enrolled(known, holder)
    good, bad = BasicCredentials("line", b"good"), BasicCredentials("line", b"bad")
    who = office.identify(peer(holder), good, "factory", NOW, both=True)
    assert (who.kind, who.name, who.certificate) == (IdentityKind.CERTIFICATE, "sn-1", kept)
    assert (who.devices, who.within, who.names) == (("sn-1",), ("sn-*",), ("dns:*.example",))
    assert (who.labels, who.credential) == (("factory",), "line")
    assert str(who) == "certificate:sn-1+credential:line"
    nobody, stranger = Peer("192.0.2.1"), peer(Maker("Strangers", not_before=OLD).idevid("1", not_before=OLD))
    for offered, secret, error in [
        (nobody, None, NotAuthenticated),
        (peer(holder), None, NotAuthenticated),
        (peer(holder), bad, BadCredentials),
        (nobody, bad, BadCredentials),
        (nobody, good, NotAuthorized),
        (stranger, good, NotAuthorized),
    ]:
        with pytest.raises(error):
            office.identify(offered, secret, "factory", NOW, both=True)


def test_peers_a_chosen_secret_pays_for_its_slow_hash_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow hash on every request costs UCM six times the rest of the enrolment."""
    verifier, kept, calls = CredentialVerifier(PEPPER), record("line", b"chosen", chosen=True), []

    def counted(secret: bytes, salt: bytes) -> bytes:
        calls.append(secret)
        return verifier_for_chosen(secret, salt)

    monkeypatch.setattr("estserver.identity.credentials.verifier_for_chosen", counted)
    assert all(verifier.matches(kept, b"chosen") for _ in range(5))
    assert calls == [b"chosen"]
    assert not verifier.matches(kept, b"other")
    assert not verifier.matches(replace(kept, verifier=bytes(32)), b"chosen"), "a new secret forgets the old one"


@given(st.binary(min_size=16, max_size=16))
def test_a_generated_secret_can_be_read_aloud(random: bytes) -> None:
    secret = generate_secret(random)
    assert len(secret) == 26
    assert set(secret) <= set("abcdefghijklmnopqrstuvwxyz234567")


def test_a_secret_is_in_no_repr() -> None:
    assert "hunter2" not in repr(BasicCredentials("x", b"hunter2"))
    assert repr(record("x", b"hunter2").verifier) not in repr(record("x", b"hunter2"))
