"""What a profile says: to a person line by line, to a client item by item; the client's side reads it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from devicesim.codec import CsrAttrs, KeyWish, parse_csrattrs
from estserver import asn1, csrattrs
from estserver.model import Identity, IdentityKind
from estserver.policy import Profile, csr_attributes, explain
from estserver.policy.profile import EXTENDED_KEY_USAGES, NameRule
from estserver.policy.voices import wanted_key
from tests import csr_maker as maker
from tests.unit.test_policy import DEVICE, PROFILES, changed

VECTORS = Path(__file__).parents[1] / "vectors"
EC_KEY, RSA_KEY = "1.2.840.10045.2.1", "1.2.840.113549.1.1.1"


def heard(profile: Profile, *, binding_required: bool = False) -> CsrAttrs:
    return parse_csrattrs(csr_attributes(profile, binding_required=binding_required))


def listed(profile: Profile, *, binding_required: bool = False) -> list[tuple[str, list[bytes]]]:
    """The items of the list, as octets; a bare OID has no values."""
    found = []
    for item in maker.values(csr_attributes(profile, binding_required=binding_required)):
        kind, several = (item, b"") if item[0] == 0x06 else maker.values(item)
        found.append((maker.dotted(kind), maker.values(several) if several else []))
    return found


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wish"),
    [
        ("P-256", KeyWish(EC_KEY, "1.2.840.10045.3.1.7", None)),
        ("P-384", KeyWish(EC_KEY, "1.3.132.0.34", None)),
        ("P-521", KeyWish(EC_KEY, "1.3.132.0.35", None)),
        ("RSA", KeyWish(RSA_KEY, None, 3072)),
        ("Ed25519", KeyWish("1.3.101.112", None, None)),
        ("Ed448", KeyWish("1.3.101.113", None, None)),
        ("ML-DSA-44", KeyWish("2.16.840.1.101.3.4.3.17", None, None)),
        ("ML-DSA-65", KeyWish("2.16.840.1.101.3.4.3.18", None, None)),
        ("ML-DSA-87", KeyWish("2.16.840.1.101.3.4.3.19", None, None)),
        ("X25519", KeyWish("1.3.101.110", None, None)),
        ("ML-KEM-768", KeyWish("2.16.840.1.101.3.4.4.2", None, None)),
        ("ML-KEM-1024", KeyWish("2.16.840.1.101.3.4.4.3", None, None)),
    ],
)
def test_every_kind_of_key_is_wished_for_in_list_and_template(kind: str, wish: KeyWish) -> None:
    only = changed("constraints", key_types=(kind,))
    assert heard(only).key == wish
    values = [maker.oid(wish.curve)] if wish.curve else [b"\x02\x02\x0c\x00"] if kind == "RSA" else []
    assert listed(only)[0] == (wish.algorithm, values)
    first = maker.values(csr_attributes(only, binding_required=False))[0]
    assert first == maker.attribute(wish.algorithm, *values), "an attribute, be it one without values (RFC 8951 §4)"
    parameters = maker.oid(wish.curve) if wish.curve else b"\x05\x00" if kind == "RSA" else b""
    algorithm = maker.sequence(maker.oid(wish.algorithm), parameters)[2:]
    assert algorithm in csr_attributes(only, binding_required=False)


@pytest.mark.parametrize(
    ("low", "high", "told"), [(2048, 4096, 3072), (3072, 4096, 3072), (4096, 8192, 4096), (2048, 2048, 2048)]
)
def test_the_rsa_size_that_is_wished_for_is_one_the_profile_takes(low: int, high: int, told: int) -> None:
    """Once only in the list, which a client that reads templates passes over; and beyond the largest that is taken."""
    profile = changed("constraints", key_types=("RSA",), rsa_bits=(low, high))
    assert heard(profile).key == KeyWish(RSA_KEY, None, told)
    assert listed(profile)[0] == (RSA_KEY, [asn1.integer_der(told)])


def test_s_x08_a_placeholder_is_the_vectors_octet_for_octet() -> None:
    vector = (VECTORS / "derived-rfc9908-template-rsa3072-empty-attributes.der").read_bytes()
    assert csrattrs.rsa_placeholder(3072) in vector


def test_a_key_is_wished_for_where_there_is_one_to_wish_for() -> None:
    assert heard(DEVICE).key is None
    assert wanted_key(DEVICE) is None
    assert wanted_key(changed("constraints", key_types=("P-384",))) == "P-384"
    assert wanted_key(DEVICE.model_copy(update={"preferred_key": "Ed448"})) == "Ed448"


# --- the rest of the list -------------------------------------------------------------------------------------------


def test_the_list_is_in_its_order_and_ends_in_a_bare_oid() -> None:
    bound = [kind for kind, _ in listed(changed("constraints", key_types=("P-384",)), binding_required=True)]
    assert bound == [maker.CHALLENGE_PASSWORD, EC_KEY, maker.EXTENSION_REQUEST, "1.2.840.113549.1.9.16.2.61", maker.CN]
    for profile in PROFILES.values():
        items = listed(profile)
        assert maker.CHALLENGE_PASSWORD not in [kind for kind, _ in items]
        assert items[-1] == ({"serial_number": maker.SERIAL_NUMBER}.get(profile.device_id[0], maker.CN), [])


def test_usages_that_every_key_would_have_are_asked_for() -> None:
    def usages(*kinds: str, **certificate: Any) -> set[str]:
        profile = changed("constraints", key_types=kinds)
        rules = profile.certificate.model_copy(update=certificate)
        return {wish.oid for wish in heard(profile.model_copy(update={"certificate": rules})).extensions}

    assert usages("P-256") == usages("X25519") == usages("ML-KEM-768", "ML-KEM-1024") == {"2.5.29.15", "2.5.29.37"}
    assert usages("X25519", "ML-KEM-768") == {"2.5.29.37"}, "each has another one"
    assert usages("P-256", extended_key_usage=()) == {"2.5.29.15"}
    nothing = changed("certificate", key_usage=(), extended_key_usage=())
    assert maker.EXTENSION_REQUEST not in [kind for kind, _ in listed(nothing)]
    der = csr_attributes(PROFILES["gateway"], binding_required=False)
    for name in PROFILES["gateway"].certificate.extended_key_usage:
        assert der.count(maker.oid(EXTENDED_KEY_USAGES[name])) == 2, "in list and template"


def test_the_list_has_the_names_too_where_nothing_is_left_to_the_device() -> None:
    who = Identity(IdentityKind.CREDENTIAL, "line", ("sn-1",), ("dns:a.example",))
    der = csr_attributes(DEVICE, binding_required=False, identity=who)
    assert der.count(maker.oid("2.5.29.17")) == 2, "in list and template"
    for label in ("", "x"):
        narrow = replace(who, labels=("x",))
        told = csr_attributes(DEVICE, binding_required=False, label=label, identity=narrow)
        assert told == (der if label else csr_attributes(DEVICE, binding_required=False))
    assert csr_attributes(DEVICE, binding_required=False, identity=replace(who, labels=("",))) == der


# --- to a person ----------------------------------------------------------------------------------------------------


def test_a_profile_is_told_to_a_person_line_by_line() -> None:
    keys = "P-256, P-384, P-521, RSA 2048 to 4096, Ed25519, ML-DSA-44, ML-DSA-65, ML-DSA-87"
    assert list(explain(DEVICE)) == [
        "device: A device: proves itself to brokers and servers as a TLS client (LDevID).",
        "  given to      credential, certificate, station, idevid",
        "  names         of a device",
        "  device id     in the subject as common_name or serial_number",
        "  subject       common_name: {device}",
        "  subject       serial_number: {device}",
        "  SAN           dns: {device} or what the identity was given",
        "  SAN           uri: urn:device:{device} or what the identity was given",
        "  SAN           ip: what the identity was given",
        "  anything else in subject or SAN is refused",
        f"  keys          {keys}; signed with SHA256, SHA384, SHA512",
        "  valid for     365 days; due for renewal after 66% of it",
        "  key usage     digital_signature; for RSA digital_signature, key_encipherment",
        "  purposes      client_auth",
        "  renewal       key reuse: never; may change the algorithm",
        "                what a certificate has, kind of key and names, may stay although it is refused to others",
    ]


def test_everything_a_profile_can_say_is_told() -> None:
    update = {
        "holder": "site",
        "approval": "required",
        "allowed": changed("allowed", san={"dns": NameRule(values=("a", "b"), required=True)}).allowed,
        "constraints": changed("constraints", key_types=("X25519", "ML-KEM-768")).constraints,
        "certificate": changed("certificate", lifetime="never", extended_key_usage=()).certificate,
        "renewal": DEVICE.renewal.model_copy(
            update={
                "key_reuse": "same-device",
                "may_change_algorithm": False,
                "change_names": "same-device",
                "empty_subject": True,
                "at_par": False,
            }
        ),
    }
    assert list(explain(DEVICE.model_copy(update=update)))[2:] == [
        "  approval      an operator decides on every request (estserver pending)",
        "  names         of a site",
        "  device id     in the subject as common_name or serial_number",
        "  subject       common_name: {device}",
        "  subject       serial_number: {device}",
        "  SAN           dns: a or b (required)",
        "  anything else in subject or SAN is refused",
        "  keys          X25519, ML-KEM-768; signed with SHA256, SHA384, SHA512",
        "  valid for     never; due for renewal after 66% of it",
        "  key usage     key_agreement for X25519, key_encipherment for ML-KEM-768",
        "  possession    stated, and signed with the key of a certificate of this CA (RFC 9883)",
        "  purposes      not restricted",
        "  renewal       key reuse: same-device; may not change the algorithm",
        "                names may change by ChangeSubjectName, and leave the subject empty; the device stays the same",
        "                what a certificate has, kind of key and names, must fit all of this as well",
    ]


@pytest.mark.parametrize(
    ("lifetime", "words"),
    [
        (timedelta(days=1), "1 days"),
        (timedelta(days=2, hours=5), "2 days"),
        (timedelta(hours=23, minutes=59), "23 h 59 min"),
        (timedelta(hours=8), "8 h 0 min"),
        (timedelta(minutes=90), "1 h 30 min"),
    ],
)
def test_a_life_is_told_in_days_or_in_hours_and_minutes(lifetime: timedelta, words: str) -> None:
    told = "\n".join(explain(changed("certificate", lifetime=lifetime)))
    assert f"  valid for     {words}; due for renewal" in told


def test_several_usages_and_purposes_are_told_one_after_the_other() -> None:
    usages = ("digital_signature", "key_agreement")
    told = list(explain(changed("certificate", key_usage=usages, extended_key_usage=("client_auth", "server_auth"))))
    assert "  key usage     digital_signature, key_agreement; for RSA digital_signature, key_encipherment" in told
    assert "  purposes      client_auth, server_auth" in told


def test_names_that_may_change_and_not_be_empty() -> None:
    words = "                names may change by ChangeSubjectName; the device stays the same"
    assert words in list(explain(changed("renewal", change_names="same-device")))
