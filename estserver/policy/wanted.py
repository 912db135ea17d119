"""Which names a request should have, as far as it is known who will make it.

Rules:
- The subject is to carry the device id and what else the profile requires; the SAN what the profile requires.
- A value is stated where it leaves no choice; the rest is the device's to fill in (RFC 9908 §3.4).
- Of who is recognised more is known: which device it is, and which names it was given. Who has a certificate of the
  profile is told the very names in it, since a renewal has to repeat them (RFC 7030 §4.2.2).
- Who may name several devices, or may not have this profile, is told what everybody is told.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from estserver.model import DeviceId, GeneralName, Identity, IdentityKind
from estserver.policy import names
from estserver.policy.decide import misfits
from estserver.policy.profile import NameRule, Profile


@dataclass(frozen=True, slots=True)
class Wanted:
    """The names to ask for.

    Attributes:
        subject: attributes by OID, None for a value that the device is to fill in.
        san: names as they are to be.
        san_kinds: kinds of names that the device is to fill in.
    """

    subject: tuple[tuple[str, str | None], ...]
    san: tuple[GeneralName, ...] = ()
    san_kinds: tuple[str, ...] = ()


def wanted_names(profile: Profile, label: str, identity: Identity | None) -> Wanted:
    """Say which names a request behind a label should have; `identity` is None for who is not recognised."""
    device = None if identity is None else _device(profile, label, identity)
    if identity is None or device is None:
        return _by_profile(profile, None, ())
    own = identity.certificate
    if own is not None:
        return Wanted(tuple((attribute.oid, attribute.value) for attribute in own.subject), own.san)
    return _by_profile(profile, device, tuple(_given(identity)))


def device_attribute(profile: Profile) -> str:
    """Return the subject attribute for the device id."""
    return next(attribute for attribute in profile.device_id if attribute in profile.allowed.subject)


def _device(profile: Profile, label: str, identity: Identity) -> DeviceId | None:
    """Return the one device that this identity would get this profile for."""
    own = identity.certificate
    kind = identity.kind if own is None else IdentityKind.CERTIFICATE  # a station, too, renews its own
    if kind not in profile.requesters or (identity.labels is not None and label not in identity.labels):
        return None
    if own is not None:
        device: DeviceId | None = own.device if own.profile == profile.name else None
    else:
        device = names.device_id(identity.devices[0]) if len(identity.devices) == 1 else None  # None for a pattern
    if device is None or (identity.within is not None and not names.any_device(identity.within, device)):
        return None
    return device


def _given(identity: Identity) -> Iterator[GeneralName]:
    """Yield the names an identity was given one by one, rather than as a pattern."""
    for pattern in identity.names:
        kind, _, value = pattern.partition(":")
        if kind in ("dns", "uri", "email") and not _is_pattern(value):
            yield GeneralName(kind, value)  # type: ignore[arg-type]  # one of the kinds there are
        elif kind == "ip" and "/" not in value:
            yield GeneralName("ip", str(ipaddress.ip_address(value)))


def _by_profile(profile: Profile, device: DeviceId | None, given: tuple[GeneralName, ...]) -> Wanted:
    rules, san, kinds = profile.allowed.san, list[GeneralName](), list[str]()
    for kind, rule in rules.items():
        known = [name for name in given if name.kind == kind and rule.identity and name.value.isascii()]
        only = _only(rule, device) if rule.required else None
        if not known and only is not None:
            known = [GeneralName(kind, only)]  # type: ignore[arg-type]  # one of the kinds there are
        san += known
        if rule.required and not known:
            kinds.append(kind)
    return Wanted(tuple(_subject(profile, device)), tuple(sorted(san)), tuple(kinds))


def _subject(profile: Profile, device: DeviceId | None) -> Iterator[tuple[str, str | None]]:
    own, rules = device_attribute(profile), profile.allowed.subject
    for name in (own, *(name for name, rule in rules.items() if rule.required and name != own)):
        value = device if name == own and device is not None else _only(rules[name], device)
        yield names.OIDS[name], None if value is None or any(misfits(name, value)) else value


def _only(rule: NameRule, device: DeviceId | None) -> str | None:
    """Return the one value a rule takes, if it takes one."""
    if len(rule.values) != 1 or rule.identity or (device is None and "{device}" in rule.values[0]):
        return None
    value = rule.values[0].replace("{device}", device or "")
    return None if _is_pattern(value) else value


def _is_pattern(value: str) -> bool:
    return "*" in value or "?" in value
