"""What `/csrattrs` says of names, to whom; read by the client's own codec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from devicesim.codec import CsrAttrs, parse_csrattrs, san_wishes
from devicesim.csr import KEY_TYPES
from devicesim.errors import CannotComply
from devicesim.wishes import LocalPolicy, OwnNames, draft
from estserver import csr
from estserver.model import Csr, Der, GeneralName, Identity, IdentityKind, NameAttribute, Operation
from estserver.policy import Ask, Profile, csr_attributes, decide
from estserver.policy.decide import NEVER
from estserver.policy.names import OIDS
from estserver.policy.profile import NameRule
from estserver.policy.wanted import Wanted, wanted_names
from tests.csr_maker import new_key
from tests.policy_support import CN, NOW, asked, previous
from tests.unit.test_policy import DEVICE, PROFILES, WHO

SAN = "2.5.29.17"
ONE = replace(WHO, devices=("sn-1",), names=("dns:pump.plant.example", "ip:192.0.2.7", "uri:urn:x:*", "ip:10.0.0.0/8"))
IDEVID = Identity(IdentityKind.IDEVID, "acme/sn-1", ("sn-1",))
LINE_1 = previous(asked((CN, "line-1")), profile="station")
GENERIC = Wanted(((CN, None),))
GIVEN = (GeneralName("dns", "pump.plant.example"), GeneralName("ip", "192.0.2.7"))


def allowing(subject: dict[str, NameRule], san: dict[str, NameRule]) -> Profile:
    allowed = DEVICE.allowed.model_copy(update={"subject": subject, "san": san})
    return DEVICE.model_copy(update={"allowed": allowed})


def holder(record_csr: Csr, **changes: Any) -> Identity:
    record = previous(record_csr, **changes)
    return Identity(IdentityKind.CERTIFICATE, record.device, (record.device,), certificate=record)


def wishes(profile: Profile, identity: Identity | None) -> CsrAttrs:
    return parse_csrattrs(csr_attributes(profile, binding_required=False, identity=identity))


def test_everybody_is_told_the_same_and_no_values() -> None:
    assert wanted_names(DEVICE, "", None) == GENERIC


def test_who_names_one_device_is_told_its_names() -> None:
    assert wanted_names(DEVICE, "", ONE) == Wanted(((CN, "sn-1"),), GIVEN)
    assert wanted_names(DEVICE, "", IDEVID) == Wanted(((CN, "sn-1"),))


def test_who_has_a_certificate_is_told_the_names_in_it() -> None:
    subject = ((CN, "sn-1"), (OIDS["organization"], "Acme"))
    had = asked(*subject, san=(GeneralName("dns", "legacy.example"),))
    assert wanted_names(DEVICE, "", holder(had)) == Wanted(subject, had.san)


@pytest.mark.parametrize(
    "identity",
    [
        WHO,
        replace(ONE, devices=("sn-1", "sn-2")),
        replace(ONE, labels=("other",)),
        replace(ONE, within=("gw-*",)),
        Identity(IdentityKind.STATION, "line-1", ("sn-1",), certificate=LINE_1),
        holder(asked(), profile="gateway"),
    ],
    ids=["pattern", "several", "label", "within", "station", "other profile"],
)  # fmt: skip
def test_who_is_not_one_device_for_this_profile_is_told_what_everybody_is(identity: Identity) -> None:
    assert wanted_names(DEVICE, "", identity) == GENERIC


def test_who_may_not_have_the_profile_is_told_what_everybody_is() -> None:
    assert wanted_names(PROFILES["service"], "", IDEVID) == GENERIC


def test_a_station_is_told_its_own_names_where_it_renews_itself() -> None:
    station = Identity(IdentityKind.STATION, "line-1", ("*",), certificate=LINE_1)
    assert wanted_names(PROFILES["station"], "", station) == Wanted(((CN, "line-1"),))


RULES = allowing(
    {
        "serial_number": NameRule(values=("{device}",)),
        "organization": NameRule(values=("Acme",), required=True),
        "organizational_unit": NameRule(values=("a", "b"), required=True),
        "country": NameRule(values=("DEU",), required=True),
        "locality": NameRule(values=("Bonn",)),
    },
    {
        "dns": NameRule(values=("{device}.example",), required=True),
        "uri": NameRule(values=("urn:x:*",), required=True),
        "ip": NameRule(identity=True, required=True),
        "email": NameRule(values=("a@b.example",)),
    },
)


def test_what_is_required_is_asked_for_and_stated_where_there_is_no_choice() -> None:
    subject = (("2.5.4.5", None), ("2.5.4.10", "Acme"), ("2.5.4.11", None), ("2.5.4.6", None))
    assert wanted_names(RULES, "", None) == Wanted(subject, (), ("dns", "uri", "ip"))
    known = wanted_names(RULES, "", ONE)
    assert known.subject == (("2.5.4.5", "sn-1"), *subject[1:])
    assert known.san == (GeneralName("dns", "sn-1.example"), GeneralName("ip", "192.0.2.7"))
    assert known.san_kinds == ("uri",)


def test_a_value_no_certificate_can_hold_is_not_stated() -> None:
    device = replace(ONE, devices=("sn_1",))
    assert wanted_names(allowing({"serial_number": NameRule(values=("{device}",))}, {}), "", device).subject == (
        ("2.5.4.5", None),
    )
    assert wanted_names(DEVICE, "", replace(ONE, names=("uri:https://bücher.example/",))).san == ()


def test_s_x09_a_name_for_the_device_to_fill_in_is_a_partial_one_and_no_word_of_it_is_in_the_list() -> None:
    (san,) = [wish for wish in wishes(RULES, ONE).extensions if wish.oid == SAN]
    assert san.value is not None
    told = [(name.kind, name.text, name.partial) for name in san_wishes(san.value)]
    assert told == [
        ("dns", "dns:sn-1.example", False),
        ("ip", "ip:192.0.2.7", False),
        ("uri", "uri:", True),
    ]
    der = csr_attributes(RULES, binding_required=False, identity=ONE)
    assert bytes.fromhex("060b2a864886f70d010910023e") in der, "id-aa-extensionReqTemplate"
    assert der.count(bytes.fromhex("0603551d11")) == 1, "the SAN is in the template alone"


def test_a_certificate_without_subject_wants_a_critical_san_and_no_subject() -> None:
    identity = holder(asked(), subject=(), san=GIVEN)
    told = wishes(DEVICE, identity)
    assert told.subject is None
    assert [wish.critical for wish in told.extensions if wish.oid == SAN] == [True]


@pytest.mark.parametrize(
    ("profile", "identity", "own"),
    [
        (DEVICE, ONE, OwnNames("sn-1", tuple(map(str, GIVEN)))),
        (DEVICE, IDEVID, OwnNames("sn-1")),
        (DEVICE, None, OwnNames("sn-1", ("dns:sn-1",))),
        (RULES.model_copy(update={"allowed": RULES.allowed.model_copy(update={"subject": DEVICE.allowed.subject})}),
         ONE, OwnNames("sn-1", ("uri:urn:x:1", "ip:192.0.2.7", "dns:sn-1.example"))),
    ],
)  # fmt: skip
def test_s_x12_what_a_device_makes_of_it_is_granted(profile: Profile, identity: Identity | None, own: OwnNames) -> None:
    key = KEY_TYPES["EC-P256"].generate()
    request = csr.parse(Der(draft(key, own, wishes(profile, identity), LocalPolicy()).sign()))
    grant = decide(profile, Ask(Operation.SIMPLEENROLL, "", identity or ONE, request, None, "absent", NOW, NEVER))
    assert grant.device == "sn-1"


@pytest.mark.parametrize(
    ("identity", "own", "words"),
    [
        (ONE, OwnNames("sn-2"), "call itself 'sn-1'"),
        (ONE, OwnNames("sn-1"), "'dns:pump.plant.example', which is not its own"),
        (holder(asked((CN, "sn-1"), (OIDS["organization"], "Acme"))), OwnNames("sn-9"), "call itself 'sn-1'"),
    ],
)
def test_c_x05_c_x06_what_a_device_cannot_say_of_itself_it_says_in_one_line(
    identity: Identity, own: OwnNames, words: str
) -> None:
    with pytest.raises(CannotComply, match=words) as refused:
        draft(new_key(), own, wishes(DEVICE, identity), LocalPolicy())
    assert "\n" not in str(refused.value)


def test_c_x06_a_device_may_be_told_a_name_its_policy_allows() -> None:
    allowed = LocalPolicy(names=("dns:*.plant.example", "ip:192.0.2.*"))
    made = draft(new_key(), OwnNames("sn-1"), wishes(DEVICE, ONE), allowed)
    request = csr.parse(Der(made.sign()))
    assert request.san == GIVEN
    assert request.subject == (NameAttribute(CN, "sn-1"),)


def test_every_kind_of_given_name_is_told_as_it_is_and_no_pattern_is() -> None:
    given = ("uri:urn:x:1", "email:a@b.example", "dns:?.example", "dns:*.example", "ip:2001:db8::1", "ip:10.0.0.0/8")
    rules = dict.fromkeys(("dns", "uri", "ip", "email"), NameRule(identity=True))
    profile = allowing({"common_name": NameRule(values=("{device}",))}, rules)
    assert wanted_names(profile, "", replace(ONE, names=given)).san == (
        GeneralName("email", "a@b.example"),
        GeneralName("ip", "2001:db8::1"),
        GeneralName("uri", "urn:x:1"),
    )


def test_the_device_itself_is_told_where_the_rule_would_take_others_too() -> None:
    several = allowing({"common_name": NameRule(values=("x", "{device}"))}, {})
    assert wanted_names(several, "", ONE).subject == ((CN, "sn-1"),)
    one = allowing({"common_name": NameRule(values=("x",))}, {})
    assert wanted_names(one, "", None).subject == ((CN, "x"),)
    assert wanted_names(one, "", ONE).subject == ((CN, "sn-1"),)
    unit = NameRule(values=("unit of {device}",), required=True)
    both = allowing({"common_name": NameRule(values=("{device}",)), "organizational_unit": unit}, {})
    assert wanted_names(both, "", ONE).subject == ((CN, "sn-1"), ("2.5.4.11", "unit of sn-1"))
    assert wanted_names(both, "", None).subject == ((CN, None), ("2.5.4.11", None))
