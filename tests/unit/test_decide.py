"""What the policy decides, clause by clause: every reason in its words, and the grant field by field."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from estserver.errors import EstError, NotAuthorized, PolicyRefused
from estserver.model import (
    Csr,
    Der,
    GeneralName,
    Identity,
    IdentityKind,
    KeyFacts,
    NameAttribute,
    NameChange,
    Operation,
    RequestedExtension,
)
from estserver.policy import Ask, Profile, decide, device_of
from estserver.policy.decide import NEVER, extended_key_usage, key_usage, misfits, usage_extensions
from estserver.policy.profile import EXTENDED_KEY_USAGES, NameRule
from tests.policy_support import CN, NOW, asked, previous
from tests.unit.test_policy import DEVICE, PROFILES, WHO, ask, changed, renewal

DAY = timedelta(days=1)
SERIAL, ORGANIZATION = "2.5.4.5", "2.5.4.10"
RSA_2048 = KeyFacts("RSA", "RSA-2048", 2048)
CLIENT_AUTH, SERVER_AUTH = EXTENDED_KEY_USAGES["client_auth"], EXTENDED_KEY_USAGES["server_auth"]
OWN_DNS = GeneralName("dns", "sn-1")


def refusal(profile: Profile, request: Ask) -> tuple[type[EstError], tuple[str, ...]]:
    with pytest.raises(EstError) as refused:
        decide(profile, request)
    return type(refused.value), refused.value.reasons


def told(profile: Profile, request: Ask, *reasons: str, error: type[EstError] = NotAuthorized) -> None:
    """Refused for these reasons, in this order, and no other."""
    assert refusal(profile, request) == (error, reasons)


# --- who ------------------------------------------------------------------------------------------------------------


def test_a_profile_is_given_to_its_requesters_alone() -> None:
    for kind in IdentityKind:
        request, profile = ask(asked((SERIAL, "sn-1")), replace(WHO, kind=kind)), PROFILES["idevid"]
        if kind in profile.requesters:
            assert decide(profile, request).device == "sn-1"
        else:
            allowed = ", ".join(profile.requesters)
            told(profile, request, f"profile idevid is given to: {allowed}; this is a {kind}")


def test_a_credential_opens_its_labels_alone() -> None:
    who = replace(WHO, labels=("factory", "test"))
    assert decide(DEVICE, ask(asked(), who, label="test")).label == "test"
    told(DEVICE, ask(asked(), who, label="x"), "credential:line-1 may not use the label 'x'")
    told(DEVICE, ask(asked(), who), "credential:line-1 may not use the label '(none)'")
    told(DEVICE, ask(asked(), replace(WHO, labels=())), "credential:line-1 may not use the label '(none)'")


def test_only_devices_of_ones_own_may_be_named() -> None:
    reason = "credential:line-1 may not name the device gw-1"
    request = asked((CN, "gw-1"))
    told(DEVICE, ask(request), reason)
    told(DEVICE, ask(request, replace(WHO, within=("*",))), reason)
    told(DEVICE, ask(request, replace(WHO, devices=("*",), within=("sn-*",))), reason)
    assert decide(DEVICE, ask(request, replace(WHO, devices=("*",), within=("gw-1",)))).device == "gw-1"


def test_a_request_names_one_device() -> None:
    form = "the subject must carry one device id (lower case, at most 64 characters) as common_name or serial_number"
    for subject in ([(ORGANIZATION, "x")], [(CN, "a b")], [(CN, "sn-1"), (CN, "sn-2")]):
        error, reasons = refusal(DEVICE, ask(asked(*subject)))
        assert (error, reasons) == (PolicyRefused, (form,)), "what else is wrong with names shows once it is known"
    by_serial = DEVICE.model_copy(update={"device_id": ("serial_number",)})
    told(by_serial, ask(asked()), form.replace("common_name or ", ""), error=PolicyRefused)


def test_the_first_attribute_that_is_there_names_the_device() -> None:
    def device(*subject: tuple[str, str]) -> str | None:
        return device_of(DEVICE, asked(*subject))

    assert device((SERIAL, "sn-2"), (CN, "SN-1")) == "sn-1"
    assert device((ORGANIZATION, "x"), (SERIAL, "sn-2")) == "sn-2"
    assert device((CN, "a b"), (SERIAL, "sn-2")) is None, "what is there and no device id is not passed over"
    assert device((CN, "sn-1"), (CN, "sn-1"), (SERIAL, "sn-2")) is None


def test_a_certificate_opens_its_own_profile_alone() -> None:
    record = previous(asked(), profile="gateway")
    own = Identity(IdentityKind.CERTIFICATE, "sn-1", ("sn-1", "sn-2"), certificate=record)
    reason = "a certificate of profile gateway does not open profile device"
    told(DEVICE, ask(asked(), own), reason)
    assert decide(DEVICE, ask(asked((CN, "sn-2")), own)).device == "sn-2", "for somebody else it is a station's matter"
    assert decide(DEVICE, ask(asked(), replace(own, certificate=previous(asked())))).device == "sn-1"
    assert decide(DEVICE, ask(asked(voucher=record), own)).device == "sn-1", "it vouches, rather than asks"
    other = replace(record, serial=record.serial + 1)
    told(DEVICE, ask(asked(voucher=other), own), reason)


def test_a_station_that_renews_itself_is_a_certificate_like_any() -> None:
    csr = asked((CN, "line-1"))
    record = previous(csr, profile="station")
    station = Identity(IdentityKind.STATION, "line-1", ("sn-*", "line-1"), certificate=record)
    profile = PROFILES["station"].model_copy(update={"requesters": (IdentityKind.CERTIFICATE,)})
    again = ask(csr, station, operation=Operation.SIMPLEREENROLL, previous=record)
    assert decide(profile, again).predecessor == record.serial
    given_to = "profile station is given to: certificate; this is a station"
    told(profile, ask(csr, station), given_to)
    other = replace(record, serial=record.serial + 1)
    told(profile, replace(again, previous=other), given_to)


# --- keys and signatures --------------------------------------------------------------------------------------------


def test_the_kind_of_key_and_its_size_are_limited_at_both_ends() -> None:
    profile = changed("constraints", key_types=("P-384", "RSA"), rsa_bits=(3072, 4096))
    for bits in (3072, 3073, 4096):
        assert decide(profile, ask(asked(key=KeyFacts("RSA", f"RSA-{bits}", bits)))).device == "sn-1"
    for bits in (3071, 4097):
        reason = f"RSA-{bits} offered; profile device takes P-384, RSA 3072 to 4096"
        told(profile, ask(asked(key=KeyFacts("RSA", f"RSA-{bits}", bits))), reason, error=PolicyRefused)
    told(profile, ask(asked()), "P-256 offered; profile device takes P-384, RSA 3072 to 4096", error=PolicyRefused)
    curves = changed("constraints", key_types=("P-256", "P-384"))
    told(curves, ask(asked(key=RSA_2048)), "RSA-2048 offered; profile device takes P-256, P-384", error=PolicyRefused)
    assert decide(curves, ask(asked(key=KeyFacts("EC", "P-384", 384)))).device == "sn-1"


def test_what_a_renewal_may_also_stay_with_is_told_where_it_is_another_kind() -> None:
    profile = changed("constraints", key_types=("P-384",))
    offered = "P-256 offered; profile device takes P-384"
    request = renewal(asked(), previous(asked(), key_name="P-521"))
    told(profile, request, f"{offered}; this renewal may also stay with P-521", error=PolicyRefused)
    held = profile.model_copy(update={"renewal": profile.renewal.model_copy(update={"at_par": False})})
    told(held, request, offered, error=PolicyRefused)
    told(held, renewal(asked(), previous(asked())), offered, error=PolicyRefused)


def test_the_hash_of_the_signature_is_limited_where_there_is_one() -> None:
    profile = changed("constraints", signature_hashes=("SHA384", "SHA512"))
    told(
        profile,
        ask(asked()),
        "signed with SHA256; profile device takes ('SHA384', 'SHA512')",
        error=PolicyRefused,
    )
    for name in ("SHA384", "SHA512", ""):
        assert decide(profile, ask(asked(signature_hash=name))).device == "sn-1"


# --- renewal --------------------------------------------------------------------------------------------------------


def test_a_renewal_repeats_profile_subject_and_san() -> None:
    had = previous(asked((CN, "sn-1"), (SERIAL, "sn-1"), san=(OWN_DNS,)), profile="gateway", serial=8)
    own = Identity(IdentityKind.STATION, "line-1", ("*",))
    request = ask(asked(), own, operation=Operation.SIMPLEREENROLL, previous=had)
    told(
        DEVICE,
        request,
        "the certificate being renewed has the profile gateway, not device",
        "the subject differs from the certificate being renewed: 'common_name=sn-1' "
        "instead of 'common_name=sn-1, serial_number=sn-1' (RFC 7030 §4.2.2)",
        "the SAN differs from the certificate being renewed: none instead of dns:sn-1",
    )
    two = (OWN_DNS, GeneralName("uri", "urn:device:sn-1"))
    told(
        DEVICE,
        ask(asked(san=two), own, operation=Operation.SIMPLEREENROLL, previous=previous(asked())),
        "the SAN differs from the certificate being renewed: dns:sn-1 uri:urn:device:sn-1 instead of none",
    )


def test_what_is_renewed_is_a_matter_of_authority_each_by_itself() -> None:
    own = Identity(IdentityKind.STATION, "line-1", ("*",))
    for had in (
        previous(asked(), profile="gateway"),
        previous(asked((CN, "sn-1"), (SERIAL, "sn-1"))),
        previous(asked(san=(OWN_DNS,))),
    ):
        request = ask(asked(), own, operation=Operation.SIMPLEREENROLL, previous=had)
        error, reasons = refusal(DEVICE, request)
        assert (error, len(reasons)) == (NotAuthorized, 1)


def test_an_algorithm_that_must_not_change_is_named() -> None:
    strict = changed("renewal", may_change_algorithm=False)
    request = renewal(asked(), previous(asked(), key_name="P-384"))
    told(strict, request, "profile device renews P-384 with P-384 only", error=PolicyRefused)
    assert decide(DEVICE, request).predecessor == 7
    assert decide(strict, renewal(asked(), previous(asked()))).predecessor == 7


def test_names_may_stay_and_key_may_not_when_it_is_of_another_kind() -> None:
    """Par is counted for each by itself."""
    csr = asked(san=(GeneralName("dns", "legacy.example"),), key=RSA_2048)
    request = renewal(csr, previous(csr, key_name="P-256"))
    profile = changed("constraints", key_types=("P-256",)).model_copy(
        update={"allowed": DEVICE.allowed.model_copy(update={"san": {}})}
    )
    told(profile, request, "RSA-2048 offered; profile device takes P-256; this renewal may also stay with P-256",
         error=PolicyRefused)  # fmt: skip
    assert decide(profile, renewal(replace(csr, key=asked().key), previous(csr, key_name="P-256"))).tolerated == (
        "profile device allows no dns names in the SAN",
    )


def test_a_request_without_subject_renews_for_whom_it_was_given_to_and_enrols_nobody() -> None:
    record = previous(asked(), subject=(), san=(OWN_DNS,))
    own = Identity(IdentityKind.CERTIFICATE, "sn-1", ("sn-1",), certificate=record)
    empty = asked(subject=(), san=(OWN_DNS,))
    assert decide(DEVICE, ask(empty, own, operation=Operation.SIMPLEREENROLL, previous=record)).device == "sn-1"
    error, reasons = refusal(DEVICE, ask(empty))
    assert (error, len(reasons)) == (PolicyRefused, 1)
    other = ask(asked((CN, "sn-2")), own, operation=Operation.SIMPLEREENROLL, previous=record)
    assert "certificate:sn-1 may not name the device sn-2" in refusal(DEVICE, other)[1], "its subject speaks for it"


# --- ChangeSubjectName ----------------------------------------------------------------------------------------------


def test_names_change_at_a_renewal_alone() -> None:
    change = NameChange((NameAttribute(CN, "sn-1"),), ())
    words = "ChangeSubjectName is for renewals: put the names to certify into subject and SAN"
    told(changed("renewal", change_names="same-device"), ask(asked(change=change)), words, error=PolicyRefused)
    told(
        DEVICE,
        renewal(asked(change=change), previous(asked())),
        "profile device changes no names at a renewal: leave out ChangeSubjectName",
        error=PolicyRefused,
    )


def test_the_new_subject_goes_on_naming_the_device() -> None:
    change = NameChange((NameAttribute(CN, "sn-2"), NameAttribute(SERIAL, "sn-1")), ())
    told(
        changed("renewal", change_names="same-device"),
        renewal(asked(change=change), previous(asked())),
        "common_name 'sn-2' does not fit sn-1",
        "the new subject 'common_name=sn-2, serial_number=sn-1' does not name the device sn-1",
    )


# --- subject --------------------------------------------------------------------------------------------------------

ALLOWED = "it allows common_name, organization, country, serial_number"
NAMED = changed(
    "allowed",
    subject={
        "common_name": NameRule(values=("{device}", "x-{device}")),
        "organization": NameRule(values=("Acme *",), required=True),
        "country": NameRule(values=("*",)),
        "serial_number": NameRule(values=("*",)),
    },
)


@pytest.mark.parametrize(
    ("subject", "reasons"),
    [
        ([(CN, "sn-1"), (ORGANIZATION, "Acme 1")], ()),
        ([(CN, "SN-1"), (ORGANIZATION, "ACME 1"), ("2.5.4.6", "DE")], ()),
        ([(CN, "sn-1")], ("profile device requires organization in the subject",)),
        (
            [(CN, "sn-1"), (ORGANIZATION, "x"), (ORGANIZATION, "Acme 2")],
            ("organization 'x' does not fit Acme *", "the subject has organization twice"),
        ),
        (
            [(CN, "sn-1"), ("1.2.3", "x"), ("2.5.4.7", "y"), (ORGANIZATION, "Acme 1")],
            (
                f"profile device allows no 1.2.3 in the subject; {ALLOWED}",
                f"profile device allows no locality in the subject; {ALLOWED}",
            ),
        ),
        (
            [(CN, "sn-1"), (ORGANIZATION, "Acme 1"), ("2.5.4.6", "DEU")],
            ("country has 3 characters; 2 to 2 fit (RFC 5280 appendix A)",),
        ),
        (
            [(CN, "sn-1"), (ORGANIZATION, "Acme 1"), (SERIAL, "a_b")],
            ("serial_number 'a_b' has characters that a PrintableString cannot hold",),
        ),
    ],
)
def test_a_subject_is_what_the_profile_names(subject: list[tuple[str, str]], reasons: tuple[str, ...]) -> None:
    request = ask(asked(*subject))
    if reasons:
        told(NAMED, request, *reasons, error=PolicyRefused)
    else:
        assert decide(NAMED, request).subject == request.csr.subject


def test_every_pattern_of_an_attribute_is_told_with_the_device_in_it() -> None:
    profile = NAMED.model_copy(update={"device_id": ("serial_number",)})
    request = ask(asked((SERIAL, "sn-1"), (CN, "y"), (ORGANIZATION, "Acme 1")))
    told(profile, request, "common_name 'y' does not fit sn-1 or x-sn-1", error=PolicyRefused)
    fits = ask(asked((SERIAL, "sn-1"), (CN, "x-sn-1"), (ORGANIZATION, "Acme 1")))
    assert decide(profile, fits).device == "sn-1"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("country", ["DE"], ["", "D", "DEU", "Ä!"]),
        ("serial_number", ["1", "a" * 64], ["", "a" * 65, "a_b"]),
        ("common_name", ["1", "ä" * 64, "a_b"], ["", "a" * 65]),
    ],
)
def test_a_certificate_holds_values_of_their_length_and_kind(name: str, good: list[str], bad: list[str]) -> None:
    assert not [value for value in good if any(misfits(name, value))]
    assert not [value for value in bad if not any(misfits(name, value))]


# --- SAN ------------------------------------------------------------------------------------------------------------


def test_a_kind_of_name_that_is_required_has_to_be_there() -> None:
    rules = {"dns": NameRule(values=("{device}",), required=True), "uri": NameRule(values=("urn:*",), required=True)}
    profile = changed("allowed", san=rules)
    uri = GeneralName("uri", "urn:x")
    reason = "profile device requires a {} name in the SAN"
    told(profile, ask(asked()), reason.format("dns"), reason.format("uri"), error=PolicyRefused)
    told(profile, ask(asked(san=(OWN_DNS,))), reason.format("uri"), error=PolicyRefused)
    assert decide(profile, ask(asked(san=(OWN_DNS, uri)))).san == (OWN_DNS, uri)


def test_names_that_an_identity_was_given_count_where_the_profile_says_so() -> None:
    name = GeneralName("dns", "a.plant.example")
    reason = "credential:line-1 may not have the name dns:a.plant.example"
    rule = NameRule(values=("{device}",))
    for identity, reasons in ((True, ()), (False, (reason,))):
        profile = changed("allowed", san={"dns": rule.model_copy(update={"identity": identity})})
        if reasons:
            told(profile, ask(asked(san=(name,))), *reasons)
        else:
            assert decide(profile, ask(asked(san=(name,)))).san == (name,)
    told(DEVICE, ask(asked(san=(name,)), replace(WHO, names=())), reason)
    email = GeneralName("email", "a@b.example")
    told(DEVICE, ask(asked(san=(email,))), "profile device allows no email names in the SAN", error=PolicyRefused)


def test_names_of_a_certificate_are_its_devices_alone() -> None:
    """What a certificate has, its own device may have again; nobody else by showing it."""
    name = GeneralName("dns", "legacy.example")
    record = previous(asked(san=(name,)))
    who = Identity(IdentityKind.CERTIFICATE, "sn-1", ("sn-1", "sn-2"), certificate=record)
    assert decide(DEVICE, ask(asked(san=(name,)), who)).san == (name,)
    other = ask(asked((CN, "sn-2"), san=(name,)), who)
    told(DEVICE, other, "certificate:sn-1 may not have the name dns:legacy.example")
    exact = changed("allowed", san={"dns": NameRule(values=("{device}",))})
    told(exact, ask(asked(san=(name,)), who), "certificate:sn-1 may not have the name dns:legacy.example")


# --- extensions -----------------------------------------------------------------------------------------------------


def wish(oid: str, *, critical: bool) -> RequestedExtension:
    return RequestedExtension(oid, critical, Der(b"\x05\0"))


def test_extensions_that_nobody_sets_must_not_be_critical() -> None:
    known = tuple(wish(oid, critical=True) for oid in ("2.5.29.15", "2.5.29.37", "2.5.29.19"))
    unknown = (wish("1.2.3", critical=False), wish("2.5.29.31", critical=False))
    assert decide(DEVICE, ask(asked(extensions=(*known, *unknown)))).device == "sn-1"
    told(
        DEVICE,
        ask(asked(extensions=(wish("2.5.29.36", critical=True), *known, wish("1.2.3", critical=True)))),
        "extension 2.5.29.36 is marked critical and is none that this server sets",
        "extension 1.2.3 is marked critical and is none that this server sets",
        error=PolicyRefused,
    )


def test_usages_that_are_asked_leave_something_or_are_refused() -> None:
    def refused(profile: Profile, words: str, **changes: Any) -> None:
        told(profile, ask(asked(**changes)), words, error=PolicyRefused)

    refused(DEVICE, "key usage none asked; profile device gives digital_signature", key_usage=())
    refused(
        DEVICE,
        "key usage key_agreement, crl_sign asked; profile device gives digital_signature, key_encipherment",
        key_usage=("key_agreement", "crl_sign"),
        key=RSA_2048,
    )
    refused(
        DEVICE,
        f"extended key usage {SERVER_AUTH}, 1.2.3 asked; profile device gives client_auth",
        extended_key_usage=(SERVER_AUTH, "1.2.3"),
    )
    bare = changed("certificate", extended_key_usage=())
    words = f"extended key usage {CLIENT_AUTH} asked; profile device gives none"
    refused(bare, words, extended_key_usage=(CLIENT_AUTH,))
    refused(
        PROFILES["server"].model_copy(update={"requesters": (WHO.kind,)}),
        "extended key usage 1.2.3 asked; profile server gives server_auth, client_auth",
        extended_key_usage=("1.2.3",),
    )
    told(DEVICE, ask(asked(ca=True)), "a CA certificate is asked for (basicConstraints CA:TRUE)")


def test_a_wish_narrows_in_the_order_of_the_profile() -> None:
    profile = PROFILES["gateway"]
    both = tuple(EXTENDED_KEY_USAGES[name] for name in profile.certificate.extended_key_usage)
    assert len(both) == 2
    assert extended_key_usage(profile, asked()) == both
    assert extended_key_usage(profile, asked(extended_key_usage=(*reversed(both), "1.2.3"))) == both
    assert extended_key_usage(profile, asked(extended_key_usage=both[1:])) == both[1:]
    rsa = asked(key=RSA_2048)
    assert key_usage(DEVICE, rsa) == ("digital_signature", "key_encipherment")
    assert key_usage(DEVICE, replace(rsa, key_usage=("key_encipherment", "crl_sign"))) == ("key_encipherment",)
    assert key_usage(DEVICE, asked()) == ("digital_signature",)
    for name, usage in (("X25519", "key_agreement"), ("ML-KEM-768", "key_encipherment")):
        assert key_usage(DEVICE, asked(key=KeyFacts("", name))) == (usage,)


def test_what_is_empty_is_left_out() -> None:
    assert usage_extensions((), ()) == ()
    assert [one.oid for one in usage_extensions(("digital_signature",), ())] == ["2.5.29.15"]
    (purposes,) = usage_extensions((), (CLIENT_AUTH, SERVER_AUTH))
    assert (purposes.oid, purposes.critical) == ("2.5.29.37", False)


# --- possession that another certificate states ---------------------------------------------------------------------


def test_q_06_names_are_those_of_the_certificate_that_vouches() -> None:
    voucher = previous(asked((CN, "sn-1"), san=(OWN_DNS,)))
    assert decide(DEVICE, ask(asked(voucher=voucher))).san == (), "fewer names are no matter"
    assert decide(DEVICE, ask(asked(voucher=voucher, san=(OWN_DNS,)))).san == (OWN_DNS,)
    name = GeneralName("dns", "a.plant.example")
    told(
        DEVICE,
        ask(asked(voucher=voucher, san=(name,))),
        "the certificate that vouches for the key does not have the name dns:a.plant.example",
    )
    told(
        DEVICE,
        ask(asked((CN, "sn-2"), voucher=voucher)),
        "the subject 'common_name=sn-2' is not 'common_name=sn-1', of the certificate that vouches for it",
    )
    told(
        DEVICE,
        ask(asked((CN, "sn-2"), voucher=voucher, san=(GeneralName("dns", "sn-2"),))),
        "the subject 'common_name=sn-2' is not 'common_name=sn-1', of the certificate that vouches for it",
        "the certificate that vouches for the key does not have the name dns:sn-2",
    )


# --- time, and the grant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [timedelta(0), -DAY])
def test_an_issuer_at_its_end_grants_nothing(left: timedelta) -> None:
    end = f"{NOW + left:%Y-%m-%d}"
    told(
        DEVICE,
        ask(asked(), issuer_not_after=NOW + left),
        f"the issuing CA expired on {end}: its operator has to renew it",
    )
    assert decide(DEVICE, ask(asked(), issuer_not_after=NOW + timedelta(seconds=1))).not_after > NOW


def test_a_grant_has_the_life_that_the_profile_gives() -> None:
    rules = {"lifetime": 100 * DAY, "renew_at": 0.5, "backdate": timedelta(hours=1)}
    grant = decide(changed("certificate", **rules), ask(asked()))
    assert grant.not_before == NOW - timedelta(hours=1)
    assert (grant.not_after, grant.renew_after) == (NOW + 100 * DAY, NOW + 50 * DAY)
    short = decide(changed("certificate", **rules), ask(asked(), issuer_not_after=NOW + 10 * DAY))
    assert (short.not_after, short.renew_after) == (NOW + 10 * DAY, NOW + 5 * DAY)
    assert decide(changed("certificate", lifetime="never"), ask(asked())).not_after == NEVER


def test_a_grant_says_who_asked_for_what_through_which_door() -> None:
    csr: Csr = asked(san=(OWN_DNS,))
    request = ask(
        csr,
        replace(WHO, labels=("factory",)),
        label="factory",
        binding="verified",
        peer_address="192.0.2.7",
        apart_from=frozenset({"station"}),
        request_id="r-1",
    )
    grant = decide(DEVICE, request)
    assert (grant.operation, grant.label, grant.profile) == (Operation.SIMPLEENROLL, "factory", "device")
    assert (grant.requester, grant.credential) == ("credential:line-1", "line-1")
    assert (grant.device, grant.csr, grant.subject, grant.san) == ("sn-1", csr, csr.subject, csr.san)
    assert (grant.binding, grant.peer_address, grant.request_id) == ("verified", "192.0.2.7", "r-1")
    assert (grant.holder, grant.apart_from, grant.approval) == ("device", frozenset({"station"}), False)
    assert (grant.predecessor, grant.key_reuse, grant.tolerated) == (None, False, ())


def test_a_credential_is_spent_where_one_was_shown() -> None:
    record = previous(asked())
    own = Identity(IdentityKind.CERTIFICATE, "sn-1", ("sn-1",), certificate=record)
    assert decide(DEVICE, ask(asked(), own)).credential is None
    assert decide(DEVICE, ask(asked(), replace(own, credential="line"))).credential == "line"


def test_a_key_may_be_kept_where_the_profile_says_so() -> None:
    assert decide(changed("renewal", key_reuse="same-device"), ask(asked())).key_reuse
    assert decide(PROFILES["station"], ask(asked(), replace(WHO, kind=PROFILES["station"].requesters[0]))).holder == (
        "site"
    )
