"""ChangeSubjectName (RFC 6402 §2.8): how it is read, and what the policy makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estserver import csr
from estserver.errors import MalformedRequest, NotAuthorized, PolicyRefused
from estserver.inventory.issuance import fingerprint
from estserver.model import Csr, Der, GeneralName, Identity, IdentityKind, NameAttribute, NameChange, Operation
from estserver.policy import Ask, Profile, decide, explain
from estserver.policy.decide import NEVER
from estserver.policy.profile import NameRule
from tests import csr_maker as maker
from tests.policy_support import CN, NOW, asked, previous
from tests.unit.test_policy import DEVICE, STRICTER

VECTORS = Path(__file__).parents[1] / "vectors"
KEY = maker.new_key()
NEW_CN, NEW_DNS = NameAttribute(CN, "new-name"), GeneralName("dns", "new.example.com")


def changed_to(*values: bytes) -> NameChange | None:
    der = maker.request(KEY, "sn-1", maker.attribute(maker.CHANGE_SUBJECT_NAME, *values))
    return csr.parse(Der(der)).change


@pytest.mark.parametrize(
    ("vector", "change"),
    [
        ("subject-only", NameChange((NEW_CN,), ())),
        ("san-only-untagged-rfc6402", NameChange((), (NEW_DNS,))),
        ("san-only-tagged1-rfc5272bis-draft", NameChange((), (NEW_DNS,))),
        ("subject-and-san-untagged-rfc6402", NameChange((NEW_CN,), (NEW_DNS,))),
    ],
)
def test_s_n04_every_shape_and_both_encodings_are_read(vector: str, change: NameChange) -> None:
    assert changed_to((VECTORS / f"derived-changeSubjectName-{vector}.der").read_bytes()) == change


def test_s_n04_an_empty_name_is_an_empty_subject() -> None:
    san = maker.names("dns:new.example.com").public_bytes()
    assert changed_to(maker.sequence(maker.sequence(), san)) == NameChange((), (NEW_DNS,))


def test_s_n04_a_san_that_names_nothing_is_to_be_left_out() -> None:
    with pytest.raises(MalformedRequest) as told:
        changed_to(maker.sequence(maker.name("sn-1"), maker.tlv(0xA1)))
    words = "the subjectAlt of the ChangeSubjectName names nothing: leave it out (RFC 6402 §2.8)"
    assert told.value.reasons == (words,)


def test_no_change_is_none() -> None:
    assert csr.parse(Der(maker.request(KEY))).change is None


@given(st.binary(max_size=40), st.booleans())
def test_any_octets_in_it_are_read_or_refused_in_words(content: bytes, wrapped: bool) -> None:
    try:
        change = changed_to(maker.sequence(content) if wrapped else content)
    except MalformedRequest:
        return
    assert change is not None


@pytest.mark.parametrize("san", [["dns:a b"], ["dns:a.example."], [f"dns:{'a.' * 130}example"]])
def test_the_names_in_it_are_held_to_the_form_of_all_names(san: list[str]) -> None:
    with pytest.raises(MalformedRequest):
        changed_to(maker.sequence(maker.name("sn-1"), maker.names(*san).public_bytes()))
    with pytest.raises(MalformedRequest, match="control characters"):
        changed_to(maker.sequence(maker.name("sn\0-1")))


# --- the policy -----------------------------------------------------------------------------------------------------


def profile(**renewal: Any) -> Profile:
    rules = DEVICE.renewal.model_copy(update={"change_names": "same-device", **renewal})
    san = {"dns": NameRule(values=("{device}", "*.example.com"), identity=True)}
    allowed = DEVICE.allowed.model_copy(update={"san": san})
    return DEVICE.model_copy(update={"renewal": rules, "allowed": allowed})


def renewal(
    subject: tuple[NameAttribute, ...], *san: GeneralName, had: Csr | None = None, **changes: Any
) -> tuple[Csr, Ask]:
    had = had or asked()
    request = asked(**{"subject": had.subject, "san": had.san, "change": NameChange(subject, san), **changes})
    record = previous(had)
    own = Identity(IdentityKind.CERTIFICATE, record.device, (record.device,), certificate=record)
    return request, Ask(Operation.SIMPLEREENROLL, "", own, request, record, "absent", NOW, NEVER)


CN_SN1 = (NameAttribute(CN, "sn-1"),)


def test_s_n04_the_grant_has_the_new_names_and_the_device_stays() -> None:
    _, ask = renewal(CN_SN1, NEW_DNS)
    grant = decide(profile(), ask)
    assert (grant.subject, grant.san, grant.device, grant.predecessor) == (CN_SN1, (NEW_DNS,), "sn-1", 7)
    assert grant.tolerated == ()


def test_s_n04_what_is_left_out_is_to_go() -> None:
    had = asked(san=(GeneralName("dns", "old.example.com"),))
    _, ask = renewal(CN_SN1, had=had)
    assert decide(profile(), ask).san == ()
    _, ask = renewal((), NEW_DNS, had=had)
    with pytest.raises(PolicyRefused, match="wants a subject"):
        decide(profile(), ask)
    grant = decide(profile(empty_subject=True), ask)
    assert (grant.subject, grant.san, grant.device) == ((), (NEW_DNS,), "sn-1")


def test_s_n04_somebody_has_to_be_named() -> None:
    _, ask = renewal(())
    with pytest.raises(PolicyRefused, match="neither a subject nor a SAN"):
        decide(profile(empty_subject=True), ask)


@pytest.mark.parametrize("empty_subject", [True, False])
def test_s_n04_a_certificate_without_subject_is_renewed_at_par(empty_subject: bool) -> None:
    had = asked(subject=(), san=(NEW_DNS,))
    record = previous(asked(), subject=(), san=(NEW_DNS,))
    own = Identity(IdentityKind.CERTIFICATE, "sn-1", ("sn-1",), certificate=record)
    ask = Ask(Operation.SIMPLEREENROLL, "", own, had, record, "absent", NOW, NEVER)
    grant = decide(profile(empty_subject=empty_subject), ask)
    assert (grant.device, grant.subject, len(grant.tolerated)) == ("sn-1", (), int(not empty_subject))


def test_s_n04_a_request_without_subject_enrols_nobody() -> None:
    who = Identity(IdentityKind.CREDENTIAL, "line-1", ("*",))
    ask = Ask(Operation.SIMPLEENROLL, "", who, asked(subject=()), None, "absent", NOW, NEVER)
    with pytest.raises(PolicyRefused, match="one device id"):
        decide(profile(empty_subject=True), ask)


def test_s_n04_another_device_is_never_made_of_it() -> None:
    for other in ((NEW_CN,), (NameAttribute("2.5.4.10", "Acme"),), (*CN_SN1, *CN_SN1)):
        _, ask = renewal(other)
        with pytest.raises(NotAuthorized, match="does not name the device sn-1"):
            decide(profile(), ask)


def test_s_n04_nothing_that_changes_is_tolerated() -> None:
    """Names are kept at par; new ones are not, whatever the certificate had before."""
    legacy = (*CN_SN1, NameAttribute("2.5.4.10", "Acme"))
    _, ask = renewal(legacy, NEW_DNS, had=asked(subject=legacy))
    with pytest.raises(PolicyRefused, match="allows no organization"):
        decide(profile(), ask)
    stricter, had, _ = STRICTER["P-384"]
    _, ask = renewal(CN_SN1, had=asked(**had))
    rules = stricter.model_copy(update={"renewal": profile().renewal})
    assert len(decide(rules, ask).tolerated) == 1, "the kind of key may stay"


def test_s_n04_denied_by_default_with_every_reason() -> None:
    _, ask = renewal((NEW_CN,), GeneralName("email", "a@b.example"), ca=True)
    with pytest.raises(NotAuthorized) as refused:
        decide(DEVICE, ask)
    told = "\n".join(refused.value.reasons)
    for words in ("changes no names", "does not name the device", "does not fit sn-1", "no email names", "CA cert"):
        assert words in told


def test_s_n04_a_profile_says_that_names_may_change() -> None:
    assert not any("ChangeSubjectName" in line for line in explain(DEVICE))
    assert any("ChangeSubjectName" in line and "empty" not in line for line in explain(profile()))
    assert any("leave the subject empty" in line for line in explain(profile(empty_subject=True)))


def test_s_n04_other_names_make_another_request() -> None:
    grants = [decide(profile(), renewal(CN_SN1, *san)[1]) for san in ((), (NEW_DNS,))]
    assert fingerprint(grants[0]) != fingerprint(grants[1])
    assert fingerprint(grants[1]) == fingerprint(decide(profile(), renewal(CN_SN1, NEW_DNS)[1]))
