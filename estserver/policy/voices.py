"""The other voices of a profile: what `/csrattrs` answers, and what a person is told.

Rules:
- The answer is made from the same profile that checks the request (RFC 7030 §4.5.2: what the CA requires, it says).
- A legacy list and an RFC 9908 template stand side by side; the list ends in a bare OID, since libest's client loops
  for ever when it does not.
- A key type is stated when there is only one, or when the profile prefers one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from estserver import asn1
from estserver.model import Der, Extension
from estserver.policy import names
from estserver.policy.decide import key_types_text, usage_extensions
from estserver.policy.profile import EXTENDED_KEY_USAGES, Profile

# (attribute OID, its values; AlgorithmIdentifier for the template) by key type
_EC, _RSA = "1.2.840.10045.2.1", "1.2.840.113549.1.1.1"
_CURVES = {"P-256": "1.2.840.10045.3.1.7", "P-384": "1.3.132.0.34", "P-521": "1.3.132.0.35"}
_PLAIN = {
    "Ed25519": "1.3.101.112",
    "Ed448": "1.3.101.113",
    "ML-DSA-44": "2.16.840.1.101.3.4.3.17",
    "ML-DSA-65": "2.16.840.1.101.3.4.3.18",
    "ML-DSA-87": "2.16.840.1.101.3.4.3.19",
}


def csr_attributes(profile: Profile, *, binding_required: bool) -> Der:
    """Encode the profile as CsrAttrs (RFC 8951 §4, RFC 9908 §3).

    Args:
        binding_required: the label wants the channel binding in every CSR (RFC 7030 §3.5).
    """
    key = wanted_key(profile)
    extensions = [(e.oid, e.critical, e.value) for e in _extensions(profile)]
    items = []
    if binding_required:
        items.append(asn1.CsrAttribute(asn1.OID_CHALLENGE_PASSWORD))
    if key is not None:
        items.append(_key_attribute(key, profile))
    if extensions:
        items.append(asn1.CsrAttribute(asn1.OID_EXTENSION_REQUEST, (asn1.extensions_der(extensions),)))
    template = asn1.request_template(
        subject_oids=[names.OIDS[profile.device_id[0]]],
        key_algorithm=_algorithm(key) if key is not None else None,
        extensions=extensions,
    )
    items.append(asn1.CsrAttribute(asn1.OID_CSR_TEMPLATE, (template,)))
    items.append(asn1.CsrAttribute(names.OIDS[profile.device_id[0]]))
    return asn1.csr_attrs(items)


def wanted_key(profile: Profile) -> str | None:
    """Return the one key type to suggest, or None when the device may choose."""
    types = profile.constraints.key_types
    return profile.preferred_key or (types[0] if len(types) == 1 else None)


def _extensions(profile: Profile) -> tuple[Extension, ...]:
    rules = profile.certificate
    return usage_extensions(rules.key_usage, tuple(EXTENDED_KEY_USAGES[name] for name in rules.extended_key_usage))


def _key_attribute(key: str, profile: Profile) -> asn1.CsrAttribute:
    if key in _CURVES:
        return asn1.CsrAttribute(_EC, (asn1.oid_der(_CURVES[key]),))
    if key == "RSA":
        return asn1.CsrAttribute(_RSA, (asn1.integer_der(max(3072, profile.constraints.rsa_bits[0])),))
    return asn1.CsrAttribute(_PLAIN[key], ())


def _algorithm(key: str) -> Der:
    if key in _CURVES:
        return asn1.algorithm_identifier(_EC, curve=_CURVES[key])
    return asn1.algorithm_identifier(_RSA, null=True) if key == "RSA" else asn1.algorithm_identifier(_PLAIN[key])


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
    yield f"  key usage     {', '.join(rules.key_usage)}; for RSA {', '.join(rules.key_usage_rsa)}"
    yield f"  purposes      {', '.join(rules.extended_key_usage) or 'not restricted'}"
    algorithm = "may" if profile.renewal.may_change_algorithm else "may not"
    yield f"  renewal       key reuse: {profile.renewal.key_reuse}; {algorithm} change the algorithm"
    at_par = "may stay although it is refused to others" if profile.renewal.at_par else "must fit all of this as well"
    yield f"                what a certificate has, kind of key and names, {at_par}"


def _days(span: timedelta) -> str:
    return f"{span.days} days" if span.days else f"{span.seconds // 3600} h {span.seconds % 3600 // 60} min"
