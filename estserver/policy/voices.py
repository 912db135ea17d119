"""The other voices of a profile: what `/csrattrs` answers, and what a person is told.

Rules:
- The answer is made from the same profile that checks the request (RFC 7030 §4.5.2: what the CA requires, it says).
- A legacy list and an RFC 9908 template stand side by side; the list ends in a bare OID, since libest's client loops
  for ever when it does not.
- Which names are wanted depends on who asks (`estserver.policy.wanted`); the list says of them what it has words for.
- A key type is stated when there is only one, or when the profile prefers one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from estserver import asn1, csrattrs
from estserver.model import Der, Extension, Identity
from estserver.policy import names
from estserver.policy.decide import key_types_text, usage_extensions
from estserver.policy.profile import ESTABLISHING, EXTENDED_KEY_USAGES, Profile
from estserver.policy.wanted import Wanted, device_attribute, wanted_names

# (attribute OID, its values; AlgorithmIdentifier for the template) by key type
_EC, _RSA = "1.2.840.10045.2.1", "1.2.840.113549.1.1.1"
_CURVES = {"P-256": "1.2.840.10045.3.1.7", "P-384": "1.3.132.0.34", "P-521": "1.3.132.0.35"}
_PLAIN = {
    "Ed25519": "1.3.101.112",
    "Ed448": "1.3.101.113",
    "ML-DSA-44": "2.16.840.1.101.3.4.3.17",
    "ML-DSA-65": "2.16.840.1.101.3.4.3.18",
    "ML-DSA-87": "2.16.840.1.101.3.4.3.19",
    "X25519": "1.3.101.110",
    "ML-KEM-768": "2.16.840.1.101.3.4.4.2",
    "ML-KEM-1024": "2.16.840.1.101.3.4.4.3",
}


def csr_attributes(
    profile: Profile, *, binding_required: bool, label: str = "", identity: Identity | None = None
) -> Der:
    """Encode the profile as CsrAttrs (RFC 8951 §4, RFC 9908 §3).

    Args:
        binding_required: the label wants the channel binding in every CSR (RFC 7030 §3.5).
        label, identity: where the request will go, and who makes it, if that is known.
    """
    key, wanted = wanted_key(profile), wanted_names(profile, label, identity)
    usages = [(e.oid, e.critical, e.value) for e in _extensions(profile)]
    named = [*usages, *_san(wanted)]
    items = []
    if binding_required:
        items.append(csrattrs.CsrAttribute(asn1.OID_CHALLENGE_PASSWORD))
    if key is not None:
        items.append(_key_attribute(key, profile))
    listed = usages if wanted.san_kinds else named  # the list has no word for what the device is to fill in
    if listed:
        items.append(csrattrs.CsrAttribute(asn1.OID_EXTENSION_REQUEST, (asn1.extensions_der(listed),)))
    template = csrattrs.request_template(
        subject=[csrattrs.rdn(oid, value) for oid, value in wanted.subject],
        key=_template_key(key, profile) if key is not None else None,
        extensions=named,
        partial=bool(wanted.san_kinds),
    )
    items.append(csrattrs.CsrAttribute(csrattrs.OID_CSR_TEMPLATE, (template,)))
    items.append(csrattrs.CsrAttribute(names.OIDS[device_attribute(profile)]))
    return csrattrs.csr_attrs(items)


def _san(wanted: Wanted) -> Iterator[tuple[str, bool, Der]]:
    """Yield the SAN, if there is one to be; without a subject it is critical (RFC 5280 §4.2.1.6)."""
    entries = [*((name.kind, name.value) for name in wanted.san), *((kind, None) for kind in wanted.san_kinds)]
    if entries:
        yield asn1.OID_SAN, not wanted.subject, csrattrs.alternative_names(entries)


def wanted_key(profile: Profile) -> str | None:
    """Return the one key type to suggest, or None when the device may choose."""
    types = profile.constraints.key_types
    return profile.preferred_key or (types[0] if len(types) == 1 else None)


def _extensions(profile: Profile) -> tuple[Extension, ...]:
    rules, kinds = profile.certificate, profile.constraints.key_types
    established = {ESTABLISHING[kind] for kind in kinds if kind in ESTABLISHING}
    usages = rules.key_usage if not established else tuple(established) if len(established) == 1 else ()
    return usage_extensions(usages, tuple(EXTENDED_KEY_USAGES[name] for name in rules.extended_key_usage))


def _key_attribute(key: str, profile: Profile) -> csrattrs.CsrAttribute:
    if key in _CURVES:
        return csrattrs.CsrAttribute(_EC, (asn1.oid_der(_CURVES[key]),))
    if key == "RSA":
        return csrattrs.CsrAttribute(_RSA, (asn1.integer_der(_rsa_bits(profile)),))
    return csrattrs.CsrAttribute(_PLAIN[key], ())


def _template_key(key: str, profile: Profile) -> Der:
    if key in _CURVES:
        return asn1.algorithm_identifier(_EC, curve=_CURVES[key])
    if key == "RSA":
        return Der(asn1.algorithm_identifier(_RSA, null=True) + csrattrs.rsa_placeholder(_rsa_bits(profile)))
    return asn1.algorithm_identifier(_PLAIN[key])


def _rsa_bits(profile: Profile) -> int:
    """Return the size to suggest: 128 bits of security (SP 800-57 part 1), or the nearest that the profile takes."""
    low, high = profile.constraints.rsa_bits
    return min(max(3072, low), high)


def explain(profile: Profile) -> Iterator[str]:
    """Tell a person what the profile takes and gives, a line each."""
    rules, allowed = profile.certificate, profile.allowed
    yield f"{profile.name}: {profile.description}"
    yield f"  given to      {', '.join(profile.requesters)}"
    if profile.approval == "required":
        yield "  approval      an operator decides on every request (estserver pending)"
    yield f"  names         of a {profile.holder}"
    yield f"  device id     in the subject as {' or '.join(profile.device_id)}"
    for where, entries in (("subject", allowed.subject), ("SAN", allowed.san)):
        for name, rule in entries.items():
            values = [*rule.values, *(["what the identity was given"] if rule.identity else [])]
            required = " (required)" if rule.required else ""
            yield f"  {where:<13} {name}: {' or '.join(values)}{required}"
    yield "  anything else in subject or SAN is refused"
    yield f"  keys          {key_types_text(profile)}; signed with {', '.join(profile.constraints.signature_hashes)}"
    lifetime = rules.lifetime if isinstance(rules.lifetime, str) else _days(rules.lifetime)
    yield f"  valid for     {lifetime}; due for renewal after {rules.renew_at:.0%} of it"
    established = {kind: use for kind, use in ESTABLISHING.items() if kind in profile.constraints.key_types}
    if established:
        yield f"  key usage     {', '.join(f'{use} for {kind}' for kind, use in established.items())}"
        yield "  possession    stated, and signed with the key of a certificate of this CA (RFC 9883)"
    else:
        yield f"  key usage     {', '.join(rules.key_usage)}; for RSA {', '.join(rules.key_usage_rsa)}"
    yield f"  purposes      {', '.join(rules.extended_key_usage) or 'not restricted'}"
    algorithm = "may" if profile.renewal.may_change_algorithm else "may not"
    yield f"  renewal       key reuse: {profile.renewal.key_reuse}; {algorithm} change the algorithm"
    if profile.renewal.change_names != "never":
        empty = ", and leave the subject empty" if profile.renewal.empty_subject else ""
        yield f"                names may change by ChangeSubjectName{empty}; the device stays the same"
    at_par = "may stay although it is refused to others" if profile.renewal.at_par else "must fit all of this as well"
    yield f"                what a certificate has, kind of key and names, {at_par}"


def _days(span: timedelta) -> str:
    return f"{span.days} days" if span.days else f"{span.seconds // 3600} h {span.seconds % 3600 // 60} min"
