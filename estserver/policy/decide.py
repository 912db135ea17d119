"""Profile + identity + request + what is known → a `Grant`, or every reason why not.

Rules, all checked before anything is refused:
1. The identity may ask for this profile, and the request names exactly one device that the identity may name; who asks
   for itself with a certificate gets the profile it has.
2. Key type, key size and signature hash are within the constraints.
3. Every subject attribute and every SAN is allowed, by the profile or by what the identity itself was given.
4. At a renewal, subject and SAN are those of the certificate being renewed (RFC 7030 §4.2.2). It is granted at par: a
   key of the kind it has, and the names it has, may stay although the profile has become stricter, and the grant says
   what was tolerated. `[renewal] at_par = false` in the profile ends that.
5. Of the requested extensions only key usages count, as wishes within what the profile sets: never inverted, never
   widened (RFC 5272 §3.1). CA:TRUE and unknown critical extensions are refused, the rest is dropped.
6. The names of a ChangeSubjectName (RFC 6402 §2.8) stand in for those of the request at a renewal, where the profile
   lets names change: rule 3 holds for them, none is kept at par, and they go on naming the same device. Elsewhere it is
   refused, since names that were asked for must not be passed over (RFC 7030 §4.2.1).
7. A key that cannot sign is given only to whom the certificate that vouches for it names (RFC 9883 §3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from estserver.csr import KEY_USAGE_BITS
from estserver.errors import NotAuthorized, PolicyRefused
from estserver.model import (
    CertificateRecord,
    Csr,
    Der,
    DeviceId,
    Extension,
    GeneralName,
    Grant,
    Identity,
    IdentityKind,
    NameChange,
    Operation,
)
from estserver.policy import names
from estserver.policy.profile import ESTABLISHING, EXTENDED_KEY_USAGES, NameRule, Profile

NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""notAfter of a certificate without a good end date (RFC 5280 §4.1.2.5)."""

ATTRIBUTE_MAX_CHARS = 64
_PRINTABLE = ("serial_number", "country")

BindingResult = Literal["verified", "absent", "asserted"]
_MAY_BE_CRITICAL = frozenset(
    oid.dotted_string
    for oid in (ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE, ExtensionOID.BASIC_CONSTRAINTS)
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, as everything before the policy has established it.

    Attributes:
        previous: the certificate being renewed; None for an enrolment.
        issuer_not_after: end of the issuing CA's certificate; no leaf outlives it.
        apart_from: as in `Grant`.
    """

    operation: Operation
    label: str
    identity: Identity
    csr: Csr
    previous: CertificateRecord | None
    binding: BindingResult
    now: datetime
    issuer_not_after: datetime
    peer_address: str = ""
    apart_from: frozenset[str] = frozenset()
    request_id: str = ""

    @property
    def change(self) -> NameChange | None:
        """How names are to change; that belongs to a renewal."""
        return None if self.previous is None else self.csr.change

    @property
    def names(self) -> Csr | NameChange:
        """What holds the names to certify."""
        return self.change or self.csr


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason why not; `authority` when the identity, rather than the request, is at fault."""

    text: str
    authority: bool = False


def decide(profile: Profile, ask: Ask) -> Grant:
    """Grant what is asked.

    Raises:
        NotAuthorized: the identity may not ask for this, together with every other reason there is.
        PolicyRefused: the profile does not allow what is asked, with every reason.
    """
    device = _device(profile, ask)
    tolerated = dict.fromkeys(_at_par(profile, ask, device))
    violations = [one for one in _violations(profile, ask, device) if one not in tolerated]
    if violations or device is None:
        texts = dict.fromkeys(violation.text for violation in violations)
        error = NotAuthorized if any(violation.authority for violation in violations) else PolicyRefused
        raise error(*texts)
    return _grant(profile, ask, device, tuple(violation.text for violation in tolerated))


def _device(profile: Profile, ask: Ask) -> DeviceId | None:
    """Return whom it is for; what has no subject is renewed for whom it was given to."""
    if ask.previous is not None and not ask.csr.subject:
        return ask.previous.device
    return device_of(profile, ask.csr)


def device_of(profile: Profile, asked: Csr | NameChange) -> DeviceId | None:
    """Return the one device a request names, or None when it names none, or two."""
    for attribute in profile.device_id:
        values = [a.value for a in asked.subject if a.oid == names.OIDS[attribute]]
        if values:
            return names.device_id(values[0]) if len(values) == 1 else None
    return None


def _violations(profile: Profile, ask: Ask, device: DeviceId | None) -> Iterator[Violation]:
    if ask.issuer_not_after <= ask.now:
        end = f"{ask.issuer_not_after:%Y-%m-%d}"
        yield Violation(f"the issuing CA expired on {end}: its operator has to renew it", authority=True)
    yield from _identity(profile, ask, device)
    yield from _key(profile, ask)
    if ask.previous is not None:
        yield from _renewal(profile, ask, ask.previous)
    yield from _names(profile, ask, device)
    yield from _extensions(profile, ask.csr)
    if ask.csr.voucher is not None:
        yield from _vouched(ask, ask.csr.voucher)
    if ask.csr.change is not None:
        yield from _change(profile, ask, device)


def _at_par(profile: Profile, ask: Ask, device: DeviceId | None) -> Iterator[Violation]:
    """Yield what may stay at a renewal because the certificate has it: a stricter profile must not strand a fleet."""
    if ask.previous is None or not profile.renewal.at_par:
        return
    if ask.csr.key.name == ask.previous.key_name:
        yield from _key(profile, ask)
    if ask.change is None:
        yield from _names(profile, ask, device)  # that they are the same, rule 4 sees to


def _identity(profile: Profile, ask: Ask, device: DeviceId | None) -> Iterator[Violation]:
    identity, own = ask.identity, ask.identity.certificate
    renews_itself = own is not None and ask.previous is not None and ask.previous.serial == own.serial
    kind = IdentityKind.CERTIFICATE if renews_itself else identity.kind  # a station's own renewal is like any other
    if kind not in profile.requesters:
        allowed = ", ".join(profile.requesters)
        yield Violation(f"profile {profile.name} is given to: {allowed}; this is a {kind}", authority=True)
    if identity.labels is not None and ask.label not in identity.labels:
        yield Violation(f"{identity} may not use the label {ask.label or '(none)'!r}", authority=True)
    if device is None:
        where = " or ".join(profile.device_id)
        yield Violation(f"the subject must carry one device id (lower case, at most 64 characters) as {where}")
    elif not all(
        names.any_device(allowed, device) for allowed in (identity.devices, identity.within) if allowed is not None
    ):
        yield Violation(f"{identity} may not name the device {device}", authority=True)
    vouches = own is not None and ask.csr.voucher is not None and ask.csr.voucher.serial == own.serial
    if own is not None and device == own.device and own.profile != profile.name and not vouches:
        yield Violation(f"a certificate of profile {own.profile} does not open profile {profile.name}", authority=True)


def _vouched(ask: Ask, voucher: CertificateRecord) -> Iterator[Violation]:
    if not names.same_subject(ask.names.subject, voucher.subject):
        asked, has = names.subject_text(ask.names.subject), names.subject_text(voucher.subject)
        yield Violation(f"the subject {asked!r} is not {has!r}, of the certificate that vouches for it", authority=True)
    for name in ask.names.san:
        if name not in voucher.san:
            yield Violation(f"the certificate that vouches for the key does not have the name {name}", authority=True)


def _key(profile: Profile, ask: Ask) -> Iterator[Violation]:
    csr, limits = ask.csr, profile.constraints
    kind = "RSA" if csr.key.algorithm == "RSA" else csr.key.name
    low, high = limits.rsa_bits
    if kind not in limits.key_types or (kind == "RSA" and not low <= csr.key.bits <= high):
        had = ask.previous.key_name if ask.previous is not None and profile.renewal.at_par else csr.key.name
        stay = "" if had == csr.key.name else f"; this renewal may also stay with {had}"
        yield Violation(f"{csr.key.name} offered; profile {profile.name} takes {key_types_text(profile)}{stay}")
    if csr.signature_hash and csr.signature_hash not in limits.signature_hashes:
        yield Violation(f"signed with {csr.signature_hash}; profile {profile.name} takes {limits.signature_hashes}")


def key_types_text(profile: Profile) -> str:
    """List the key types a profile takes, for people."""
    low, high = profile.constraints.rsa_bits
    return ", ".join(f"RSA {low} to {high}" if kind == "RSA" else kind for kind in profile.constraints.key_types)


def _renewal(profile: Profile, ask: Ask, previous: CertificateRecord) -> Iterator[Violation]:
    csr = ask.csr
    if previous.profile != profile.name:
        yield Violation(
            f"the certificate being renewed has the profile {previous.profile}, not {profile.name}", authority=True
        )
    if not names.same_subject(csr.subject, previous.subject):
        yield Violation(
            f"the subject differs from the certificate being renewed: {names.subject_text(csr.subject)!r} "
            f"instead of {names.subject_text(previous.subject)!r} (RFC 7030 §4.2.2)",
            authority=True,
        )
    if csr.san != previous.san:
        asked, had = (" ".join(map(str, san)) or "none" for san in (csr.san, previous.san))
        yield Violation(f"the SAN differs from the certificate being renewed: {asked} instead of {had}", authority=True)
    if csr.key.name != previous.key_name and not profile.renewal.may_change_algorithm:
        yield Violation(f"profile {profile.name} renews {previous.key_name} with {previous.key_name} only")


def _change(profile: Profile, ask: Ask, device: DeviceId | None) -> Iterator[Violation]:
    if ask.change is None:
        yield Violation("ChangeSubjectName is for renewals: put the names to certify into subject and SAN")
        return
    if profile.renewal.change_names == "never":
        yield Violation(f"profile {profile.name} changes no names at a renewal: leave out ChangeSubjectName")
    if ask.change.subject and device_of(profile, ask.change) != device:
        asked = names.subject_text(ask.change.subject)
        yield Violation(f"the new subject {asked!r} does not name the device {device}", authority=True)


def _names(profile: Profile, ask: Ask, device: DeviceId | None) -> Iterator[Violation]:
    if device is None:
        return
    if not ask.names.subject and not profile.renewal.empty_subject:
        yield Violation(f"profile {profile.name} wants a subject; one that ChangeSubjectName leaves out is to be empty")
    if not ask.names.subject and not ask.names.san:
        yield Violation("neither a subject nor a SAN would be left: one of them has to name the device")
    yield from _subject(profile, ask, device)
    yield from _san(profile, ask, device)


def _subject(profile: Profile, ask: Ask, device: DeviceId) -> Iterator[Violation]:
    rules, seen = profile.allowed.subject, set[str]()
    for attribute in ask.names.subject:
        name = names.attribute_name(attribute.oid)
        rule = rules.get(name)
        if rule is None:
            yield Violation(f"profile {profile.name} allows no {name} in the subject; it allows {', '.join(rules)}")
            continue
        if name in seen:
            yield Violation(f"the subject has {name} twice")
        seen.add(name)
        if not any(names.matches("text", value.replace("{device}", device), attribute.value) for value in rule.values):
            yield Violation(f"{name} {attribute.value!r} does not fit {_patterns(rule, device)}")
        yield from map(Violation, misfits(name, attribute.value))
    yield from (
        Violation(f"profile {profile.name} requires {name} in the subject")
        for name, rule in rules.items()
        if rule.required and name not in seen
    )


def misfits(name: str, value: str) -> Iterator[str]:
    """Say why a certificate cannot hold this value of a subject attribute."""
    low, high = (2, 2) if name == "country" else (1, ATTRIBUTE_MAX_CHARS)
    if not low <= len(value) <= high:
        yield f"{name} has {len(value)} characters; {low} to {high} fit (RFC 5280 appendix A)"
    if name in _PRINTABLE and not names.is_printable_string(value):
        yield f"{name} {value!r} has characters that a PrintableString cannot hold"


def _san(profile: Profile, ask: Ask, device: DeviceId) -> Iterator[Violation]:
    rules = profile.allowed.san
    for name in ask.names.san:
        rule = rules.get(name.kind)
        if rule is None:
            yield Violation(f"profile {profile.name} allows no {name.kind} names in the SAN")
        elif not _san_allowed(rule, name, ask, device):
            yield Violation(f"{ask.identity} may not have the name {name}", authority=True)
    kinds = {name.kind for name in ask.names.san}
    yield from (
        Violation(f"profile {profile.name} requires a {kind} name in the SAN")
        for kind, rule in rules.items()
        if rule.required and kind not in kinds
    )


def _san_allowed(rule: NameRule, name: GeneralName, ask: Ask, device: DeviceId) -> bool:
    had = [one for one in (ask.identity.certificate, ask.previous) if one is not None and one.device == device]
    if rule.identity and any(name in certificate.san for certificate in had):
        return True
    given = ask.identity.names if rule.identity else ()
    patterns = [f"{name.kind}:{value.replace('{device}', device)}" for value in rule.values]
    return any(names.name_matches(pattern, name) for pattern in (*patterns, *given))


def _patterns(rule: NameRule, device: DeviceId) -> str:
    return " or ".join(value.replace("{device}", device) for value in rule.values)


def _extensions(profile: Profile, csr: Csr) -> Iterator[Violation]:
    if csr.ca:
        yield Violation("a CA certificate is asked for (basicConstraints CA:TRUE)", authority=True)
    for wish in csr.extensions:
        if wish.critical and wish.oid not in _MAY_BE_CRITICAL:
            yield Violation(f"extension {wish.oid} is marked critical and is none that this server sets")
    if csr.key_usage is not None and not key_usage(profile, csr):
        asked, given = ", ".join(csr.key_usage) or "none", ", ".join(_key_usages(profile, csr))
        yield Violation(f"key usage {asked} asked; profile {profile.name} gives {given}")
    if csr.extended_key_usage is not None and not extended_key_usage(profile, csr):
        asked, given = ", ".join(csr.extended_key_usage), ", ".join(profile.certificate.extended_key_usage) or "none"
        yield Violation(f"extended key usage {asked} asked; profile {profile.name} gives {given}")


def _key_usages(profile: Profile, csr: Csr) -> tuple[str, ...]:
    if csr.key.name in ESTABLISHING:
        return (ESTABLISHING[csr.key.name],)
    return profile.certificate.key_usage_rsa if csr.key.algorithm == "RSA" else profile.certificate.key_usage


def key_usage(profile: Profile, csr: Csr) -> tuple[str, ...]:
    """Return what the profile gives and the request, if it says anything, asks: a wish only ever narrows."""
    given = _key_usages(profile, csr)
    return given if csr.key_usage is None else tuple(usage for usage in given if usage in csr.key_usage)


def extended_key_usage(profile: Profile, csr: Csr) -> tuple[str, ...]:
    """Return the purposes, as dotted OIDs, by the same rule as `key_usage`."""
    given = tuple(EXTENDED_KEY_USAGES[name] for name in profile.certificate.extended_key_usage)
    return given if csr.extended_key_usage is None else tuple(oid for oid in given if oid in csr.extended_key_usage)


def _grant(profile: Profile, ask: Ask, device: DeviceId, tolerated: tuple[str, ...]) -> Grant:
    rules, csr = profile.certificate, ask.csr
    not_before = ask.now - rules.backdate
    wanted = NEVER if rules.lifetime == "never" else ask.now + rules.lifetime
    not_after = min(wanted, ask.issuer_not_after)
    return Grant(
        operation=ask.operation,
        label=ask.label,
        profile=profile.name,
        requester=str(ask.identity),
        credential=ask.identity.name if ask.identity.kind is IdentityKind.CREDENTIAL else ask.identity.credential,
        device=device,
        csr=csr,
        subject=ask.names.subject,
        san=ask.names.san,
        extensions=usage_extensions(key_usage(profile, csr), extended_key_usage(profile, csr)),
        not_before=not_before,
        not_after=not_after,
        renew_after=ask.now + (not_after - ask.now) * rules.renew_at,
        predecessor=ask.previous.serial if ask.previous is not None else None,
        key_reuse=profile.renewal.key_reuse == "same-device",
        binding=ask.binding,
        peer_address=ask.peer_address,
        holder=profile.holder,
        apart_from=ask.apart_from,
        request_id=ask.request_id,
        approval=profile.approval == "required",
        tolerated=tolerated,
    )


@lru_cache
def usage_extensions(usages: tuple[str, ...], purposes: tuple[str, ...]) -> tuple[Extension, ...]:
    """Encode key usage (critical, RFC 5280 §4.2.1.3) and extended key usage, leaving out what is empty."""
    extensions = []
    if usages:
        bits = x509.KeyUsage(**{bit: bit in usages for bit in KEY_USAGE_BITS})
        extensions.append(Extension(bits.oid.dotted_string, critical=True, value=Der(bits.public_bytes())))
    if purposes:
        ekus = x509.ExtendedKeyUsage([x509.ObjectIdentifier(oid) for oid in purposes])
        extensions.append(Extension(ekus.oid.dotted_string, critical=False, value=Der(ekus.public_bytes())))
    return tuple(extensions)
