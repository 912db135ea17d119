"""One profile, what it grants and what it says: never more than it names, and never more after it was tightened."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from asn1crypto.x509 import ExtKeyUsageSyntax, KeyUsage
from cryptography import x509
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from devicesim.codec import parse_csrattrs
from estserver.csr import KEY_USAGE_BITS
from estserver.errors import ConfigError, EstError, NotAuthorized, PolicyRefused
from estserver.model import (
    CertificateRecord,
    Csr,
    Der,
    GeneralName,
    Grant,
    Identity,
    IdentityKind,
    KeyFacts,
    NameAttribute,
    Operation,
    RequestedExtension,
)
from estserver.policy import Ask, Profile, csr_attributes, decide, explain, parse_profile
from estserver.policy.decide import NEVER
from estserver.policy.names import OIDS, device_id, matches, name_matches, same_subject
from estserver.policy.profile import EXTENDED_KEY_USAGES, Allowed, NameRule
from tests.policy_support import CN, NOW, asked, previous

SERIAL, ORGANIZATION = OIDS["serial_number"], OIDS["organization"]
PROFILES = {
    entry.name.removesuffix(".toml"): parse_profile(
        entry.name.removesuffix(".toml"), entry.read_text("utf-8"), source=Path(entry.name)
    )
    for entry in (resources.files("estserver.policy") / "profiles").iterdir()
}
DEVICE = PROFILES["device"]
KEYS = [
    *(KeyFacts("EC", name, 0) for name in ("P-256", "P-384", "P-521", "secp256k1")),
    *(KeyFacts("RSA", f"RSA-{bits}", bits) for bits in (2048, 3072, 4096, 8192)),
    *(KeyFacts(name, name) for name in ("Ed25519", "Ed448")),
    *(KeyFacts("ML-DSA", f"ML-DSA-{level}") for level in (44, 65, 87)),
]


WHO = Identity(IdentityKind.CREDENTIAL, "line-1", ("sn-*",), ("dns:*.plant.example", "ip:192.0.2.0/24"))


def ask(csr: Csr, identity: Identity = WHO, **changes: Any) -> Ask:
    made = Ask(Operation.SIMPLEENROLL, "", identity, csr, None, "absent", NOW, NEVER)
    return replace(made, **changes)


def granted(profile: Profile, request: Ask) -> Grant | None:
    try:
        return decide(profile, request)
    except EstError as error:
        refusal = error
    assert refusal.reasons
    return None


# --- properties -----------------------------------------------------------------------------------------------------

names = st.one_of(
    st.builds(
        GeneralName, st.just("dns"), st.sampled_from(["sn-1", "a.plant.example", "b.example", "*.plant.example"])
    ),
    st.builds(GeneralName, st.just("ip"), st.sampled_from(["192.0.2.9", "192.0.3.1", "::1"])),
    st.builds(GeneralName, st.just("uri"), st.sampled_from(["urn:device:sn-1", "urn:device:sn-2"])),
    st.builds(GeneralName, st.sampled_from(["email", "rid", "other", "dirname"]), st.just("x")),
)
csrs = st.builds(
    lambda subject, **changes: asked(*subject, **changes),
    st.sampled_from(
        [
            *([[(CN, "sn-1")], [(SERIAL, "sn-1")], [(CN, "SN-1"), (SERIAL, "sn-1")]] * 3),
            *([(CN, "sn-1"), (ORGANIZATION, "x")], [(CN, "sn-1"), (CN, "sn-1")], [(CN, "other")], [(SERIAL, "")]),
        ]
    ),
    key=st.sampled_from(KEYS),
    signature_hash=st.sampled_from(["SHA256", "SHA512", ""]),
    san=st.frozensets(names, max_size=3).map(lambda found: tuple(sorted(found))),
    key_usage=st.none() | st.lists(st.sampled_from(KEY_USAGE_BITS), unique=True).map(tuple),
    extended_key_usage=st.none() | st.lists(st.sampled_from([*EXTENDED_KEY_USAGES.values(), "1.2.3"])).map(tuple),
    ca=st.sampled_from([False] * 7 + [True]),
    extensions=st.lists(
        st.builds(
            RequestedExtension, st.sampled_from(["2.5.29.15", "1.2.3.4"]), st.booleans(), st.just(Der(b"\x05\0"))
        ),
        max_size=1,
    ).map(tuple),
)
identities = st.builds(
    Identity,
    st.sampled_from(IdentityKind),
    st.just("who"),
    st.sampled_from([("sn-*",), ("sn-1",), ("*",), ("x",)]),
    st.sampled_from([(), ("dns:*.plant.example", "ip:192.0.2.0/24"), ("uri:urn:*",)]),
    st.sampled_from([None, None, ("",), ("other",)]),
)
profiles = st.sampled_from(list(PROFILES.values()))


@settings(max_examples=120)
@given(profiles, csrs, identities)
def test_what_is_granted_is_what_the_profile_names(profile: Profile, csr: Csr, identity: Identity) -> None:
    grant = granted(profile, ask(csr, identity))
    if grant is None:
        return
    assert identity.kind in profile.requesters
    assert not csr.ca
    assert {name.kind for name in grant.san} <= set(profile.allowed.san)
    assert {a.oid for a in grant.subject} <= {OIDS[name] for name in profile.allowed.subject}
    assert (grant.subject, grant.san) == (csr.subject, csr.san)
    assert (csr.key.name if csr.key.algorithm != "RSA" else "RSA") in profile.constraints.key_types
    usages, purposes = _usages(grant)
    wanted = profile.certificate.key_usage_rsa if csr.key.algorithm == "RSA" else profile.certificate.key_usage
    assert usages <= set(wanted)
    assert purposes <= {EXTENDED_KEY_USAGES[name] for name in profile.certificate.extended_key_usage}
    assert csr.key_usage is None or usages <= set(csr.key_usage), "a wish is never inverted (S-E06)"
    assert csr.extended_key_usage is None or purposes <= set(csr.extended_key_usage)
    assert grant.not_before < NOW < grant.renew_after <= grant.not_after <= NEVER


def _usages(grant: Grant) -> tuple[set[str], set[str]]:
    usages, purposes = set[str](), set[str]()
    for extension in grant.extensions:
        if extension.oid == "2.5.29.15":
            native = {"non_repudiation": "content_commitment"}
            usages = {native.get(bit, bit) for bit in KeyUsage.load(extension.value).native}
        else:
            purposes = {one.dotted for one in ExtKeyUsageSyntax.load(extension.value)}
    return usages, purposes


def _tighter(profile: Profile) -> st.SearchStrategy[Profile]:
    """The same profile with something taken away."""
    allowed, limits, rules = profile.allowed, profile.constraints, profile.certificate
    subject = {k: v for k, v in allowed.subject.items() if k in profile.device_id}
    exact = {k: NameRule(values=v.values, required=v.required) for k, v in allowed.san.items()}
    required = {k: v.model_copy(update={"required": True}) for k, v in allowed.san.items()}
    return st.sampled_from(
        [
            profile.model_copy(update={"allowed": Allowed(subject=subject, san=allowed.san)}),
            profile.model_copy(update={"allowed": Allowed(subject=allowed.subject)}),
            profile.model_copy(update={"allowed": Allowed(subject=allowed.subject, san=exact)}),
            profile.model_copy(update={"allowed": Allowed(subject=allowed.subject, san=required)}),
            profile.model_copy(update={"requesters": profile.requesters[:1]}),
            *(
                profile.model_copy(update={"constraints": limits.model_copy(update=change)})
                for change in (
                    {"key_types": limits.key_types[:1]},
                    {"rsa_bits": (3072, 3072)},
                    {"signature_hashes": ("SHA512",)},
                )
            ),
            *(
                profile.model_copy(update={"certificate": rules.model_copy(update=change)})
                for change in ({"extended_key_usage": rules.extended_key_usage[:1]}, {"lifetime": timedelta(hours=1)})
            ),
        ]
    )


@settings(max_examples=120)
@given(st.data(), profiles, csrs, identities)
def test_a_tightened_profile_never_grants_more(
    data: st.DataObject, profile: Profile, csr: Csr, identity: Identity
) -> None:
    request = ask(csr, identity)
    before, after = granted(profile, request), granted(data.draw(_tighter(profile)), request)
    if after is None:
        return
    assert before is not None
    for now, then in zip(_usages(after), _usages(before), strict=True):
        assert now <= then
    assert after.not_after <= before.not_after


@given(csrs, st.sampled_from([("sn-1",), ("sn-*",), ("x",)]))
def test_an_identity_of_less_is_granted_no_more(csr: Csr, devices: tuple[str, ...]) -> None:
    less = replace(WHO, devices=devices, names=())
    if granted(DEVICE, ask(csr, less)) is not None:
        assert granted(DEVICE, ask(csr, replace(WHO, devices=("*",)))) is not None


# --- by example -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_shipped_profile_grants_its_plain_request_and_explains_itself(name: str) -> None:
    profile = PROFILES[name]
    identity = Identity(profile.requesters[0], "who", ("*",))
    grant = decide(profile, ask(asked((OIDS[profile.device_id[0]], "sn-1")), identity))
    assert grant.device == "sn-1"
    text = "\n".join(explain(profile))
    assert all(kind in text for kind in profile.allowed.subject)
    assert parse_csrattrs(csr_attributes(profile, binding_required=False)).subject is not None


def test_a_profile_that_asks_for_approval_says_so_in_its_grants_and_to_a_person() -> None:
    careful = DEVICE.model_copy(update={"approval": "required"})
    assert decide(careful, ask(asked())).approval
    assert not decide(DEVICE, ask(asked())).approval
    assert any("estserver pending" in line for line in explain(careful))
    assert not any("approval" in line for line in explain(DEVICE))


@pytest.mark.parametrize(("within", "allowed"), [(None, True), (("sn-*",), True), (("gw-*",), False), ((), False)])
def test_s_a02_what_came_besides_has_to_fit_too(within: tuple[str, ...] | None, allowed: bool) -> None:
    who = replace(WHO, credential="besides", within=within)
    assert (granted(DEVICE, ask(asked(), who)) is not None) is allowed


def renewal(csr: Csr, record: CertificateRecord) -> Ask:
    own = Identity(IdentityKind.CERTIFICATE, record.device, (record.device,), labels=("",), certificate=record)
    return ask(csr, own, operation=Operation.SIMPLEREENROLL, previous=record)


def test_lesson_6_what_a_certificate_has_it_may_keep_whatever_the_profile_says_by_now() -> None:
    csr = asked((CN, "sn-1"), (ORGANIZATION, "Acme"), san=(GeneralName("dns", "legacy.example"),))
    with pytest.raises(EstError):
        decide(DEVICE, ask(csr))
    grant = decide(DEVICE, renewal(csr, previous(csr)))
    assert (grant.subject, grant.san) == (csr.subject, csr.san)
    assert grant.predecessor == 7


def changed(section: str, **changes: Any) -> Profile:
    return DEVICE.model_copy(update={section: getattr(DEVICE, section).model_copy(update=changes)})


STRICTER = {
    "P-384": (changed("constraints", key_types=("P-384",)), {}, "P-256 offered; profile device takes P-384"),
    "RSA": (changed("constraints", rsa_bits=(3072, 4096)), {"key": KEYS[4]}, "RSA-2048 offered"),
    "hash": (changed("constraints", signature_hashes=("SHA512",)), {}, "signed with SHA256"),
    "subject": (
        changed("allowed", subject={"common_name": NameRule(values=("x-*",))}),
        {},
        "common_name 'sn-1' does not fit x-*",
    ),
    "SAN": (changed("allowed", san={}), {"san": (GeneralName("dns", "sn-1"),)}, "allows no dns names in the SAN"),
    "required": (changed("allowed", san={"dns": NameRule(required=True)}), {}, "requires a dns name in the SAN"),
}
"""Profiles that became stricter, what a certificate has from before, and what is tolerated of it."""


@pytest.mark.parametrize(("profile", "had", "words"), STRICTER.values(), ids=STRICTER)
def test_a_stricter_profile_strands_no_fleet_and_says_what_it_tolerates(
    profile: Profile, had: dict[str, Any], words: str
) -> None:
    csr = asked(**had)
    with pytest.raises(EstError, match=words):
        decide(profile, ask(csr))
    assert decide(DEVICE, renewal(csr, previous(csr))).tolerated == ()
    (tolerated,) = decide(profile, renewal(csr, previous(csr))).tolerated
    assert words in tolerated
    held = profile.model_copy(update={"renewal": profile.renewal.model_copy(update={"at_par": False})})
    with pytest.raises(EstError, match=words):
        decide(held, renewal(csr, previous(csr)))
    assert "may stay" in "\n".join(explain(profile))
    assert "must fit" in "\n".join(explain(held))


def test_at_par_is_the_kind_of_key_the_certificate_has_or_one_the_profile_takes() -> None:
    profile = changed("constraints", key_types=("P-384", "RSA"), rsa_bits=(3072, 4096))
    had = previous(asked(), key_name="P-256")
    assert decide(profile, renewal(asked(key=KEYS[1]), had)).tolerated == ()
    for other in (KEYS[2], KEYS[4]):
        with pytest.raises(PolicyRefused, match="takes P-384, RSA 3072 to 4096; this renewal may also stay with P-256"):
            decide(profile, renewal(asked(key=other), had))


def test_names_that_somebody_else_was_given_are_no_matter_of_tolerance() -> None:
    """A station renews what a credential once vouched for."""
    csr = asked(san=(GeneralName("dns", "a.plant.example"),))
    station = Identity(IdentityKind.STATION, "s-1", ("sn-*",))
    held = changed("renewal", at_par=False)
    again = ask(csr, station, operation=Operation.SIMPLEREENROLL, previous=previous(csr))
    assert decide(DEVICE, again).tolerated == decide(held, again).tolerated == ()
    with pytest.raises(NotAuthorized, match="may not have the name"):
        decide(DEVICE, ask(csr, station))


def test_what_is_asked_beyond_the_certificate_is_not_tolerated() -> None:
    """Purposes and CA certificates are no matter of what the certificate has: nothing is ever widened."""
    narrowed = changed("certificate", extended_key_usage=("client_auth",))
    csr = asked(extended_key_usage=(EXTENDED_KEY_USAGES["server_auth"],))
    with pytest.raises(PolicyRefused, match="extended key usage"):
        decide(narrowed, renewal(csr, previous(csr)))
    with pytest.raises(NotAuthorized, match="CA certificate"):
        decide(DEVICE, renewal(asked(ca=True), previous(asked())))


def test_a_renewal_may_be_held_to_its_algorithm() -> None:
    strict = DEVICE.model_copy(update={"renewal": DEVICE.renewal.model_copy(update={"may_change_algorithm": False})})
    csr = asked(key=KEYS[1])
    assert granted(DEVICE, renewal(csr, previous(csr, key_name="P-256"))) is not None
    with pytest.raises(PolicyRefused, match="P-256 only"):
        decide(strict, renewal(csr, previous(csr, key_name="P-256")))


def test_every_reason_is_told_and_authority_decides_the_kind() -> None:
    csr = asked((CN, "other"), (ORGANIZATION, "x"), key=KEYS[3], ca=True)
    with pytest.raises(NotAuthorized) as refused:
        decide(DEVICE, ask(csr))
    assert len(refused.value.reasons) == 4
    with pytest.raises(PolicyRefused):
        decide(DEVICE, ask(asked(key=KEYS[3])))


def test_q_09_a_wish_for_ml_dsa_has_no_values_and_is_read() -> None:
    wishes = parse_csrattrs(csr_attributes(changed("constraints", key_types=("ML-DSA-65",)), binding_required=False))
    assert wishes.key is not None
    assert (wishes.key.algorithm, wishes.key.curve, wishes.key.bits) == ("2.16.840.1.101.3.4.3.18", None, None)


def test_no_leaf_outlives_its_issuer() -> None:
    grant = decide(DEVICE, ask(asked(), issuer_not_after=NOW + timedelta(days=3)))
    assert grant.not_after == NOW + timedelta(days=3)
    assert grant.renew_after < grant.not_after


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("dns:*.a.example", "x.a.example", True),
        ("dns:*.a.example", "x.y.a.example", False),
        ("dns:*.a.example", "a.example", False),
        ("dns:*.A.example", "X.a.EXAMPLE", True),
        ("uri:urn:x:*", "urn:x:1", True),
        ("uri:https://a/*", "https://a/b/c", False),
        ("ip:10.0.0.0/8", "10.255.0.1", True),
        ("ip:10.0.0.0/8", "11.0.0.1", False),
        ("ip:::ffff:0:0/96", "10.0.0.1", False),
        ("dns:a[b].example", "ab.example", False),
        ("dns:a.example", "aXexample", False),
    ],
)
def test_patterns_stay_inside_their_level(pattern: str, value: str, fits: bool) -> None:
    assert name_matches(pattern, GeneralName(pattern.partition(":")[0], value)) is fits  # type: ignore[arg-type]


@given(st.text(max_size=80))
def test_a_device_id_is_one_level_of_everything(text: str) -> None:
    found = device_id(text)
    if found is not None:
        assert not set(found) & set("/+#\0 *?")
        assert len(found) <= 64
        assert device_id(found) == found
        assert matches("device", "*", found)


@given(st.text(max_size=20))
def test_names_compare_without_case_and_repeated_spaces(text: str) -> None:
    assume(text.strip() and text.upper().casefold() == text.casefold())
    left, right = NameAttribute(CN, text), NameAttribute(CN, f"  {text.upper()} ")
    assert same_subject([left], [right])
    assert not same_subject([left], [left, left])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("lifetime = '365d'", "description"),
        ("nonsense = 1\n", "nonsense"),
        ("[allowed.subject]\nshoe_size = {}\n", "shoe_size"),
        ("[allowed.san]\nx400 = {}\n", "x400"),
        ("[constraints]\nkey_types = ['ROT13']\n", "key_types"),
        ("[certificate]\nlifetime = 'soon'\nrenew_at = 7\n", "renew_at"),
        ("= broken", "not TOML"),
    ],
)
def test_a_profile_with_mistakes_says_all_of_them(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        parse_profile("mine", change, source=Path("profiles/mine.toml"))
    assert all("mine.toml" in reason for reason in refused.value.reasons)


def test_key_usages_are_written_as_cryptography_reads_them() -> None:
    grant = decide(DEVICE, ask(asked()))
    usage = x509.KeyUsage(**{bit: bit == "digital_signature" for bit in KEY_USAGE_BITS})
    assert [(e.oid, e.critical) for e in grant.extensions] == [("2.5.29.15", True), ("2.5.29.37", False)]
    assert grant.extensions[0].value == usage.public_bytes()
