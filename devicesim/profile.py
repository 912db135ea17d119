"""What a server's profile would say about a request, told before it is sent.

The file is a profile of the server's (TOML). This side reads only what a request can be measured by: `[allowed]` names
and `[constraints]`. Who asks is known to the server alone, so a name that depends on it is said to depend on it; the
server's own check decides.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cryptography import x509

from devicesim.csr import name_text, public_key_type
from devicesim.errors import ConfigInvalid

Verdict = Literal["allowed", "depends on who asks", "refused"]
_ATTRIBUTES = {
    "2.5.4.3": "common_name",
    "2.5.4.5": "serial_number",
    "2.5.4.6": "country",
    "2.5.4.7": "locality",
    "2.5.4.8": "state",
    "2.5.4.10": "organization",
    "2.5.4.11": "organizational_unit",
    "2.5.4.12": "title",
    "0.9.2342.19200300.100.1.25": "domain_component",
    "0.9.2342.19200300.100.1.1": "user_id",
}
# A `*` in a pattern stays inside one level of a name.
_LEVEL = {"dns": "[^.]", "uri": "[^/]"}


@dataclass(frozen=True, slots=True)
class Rule:
    """What one subject attribute, or one kind of alternative name, may be."""

    values: tuple[str, ...] = ()
    identity: bool = False
    required: bool = False

    def verdict(self, kind: str, value: str, device_id: str) -> Verdict:
        """Say whether a value fits."""
        patterns = (pattern.replace("{device}", device_id) for pattern in self.values)
        if any(_matches(kind, pattern, value) for pattern in patterns):
            return "allowed"
        return "depends on who asks" if self.identity else "refused"


@dataclass(frozen=True, slots=True)
class Opinion:
    """One thing a request asks for, and what the profile says to it."""

    what: str
    verdict: Verdict

    def __str__(self) -> str:
        """Return it as a line."""
        return f"{self.what}: {self.verdict}"


@dataclass(frozen=True, slots=True)
class Profile:
    """The part of a server's profile that a request can be measured by."""

    device_id: tuple[str, ...]
    subject: Mapping[str, Rule]
    san: Mapping[str, Rule]
    key_types: tuple[str, ...]
    rsa_bits: tuple[int, int]

    @classmethod
    def parse(cls, data: bytes) -> Profile:
        """Read a profile."""
        try:
            values = tomllib.loads(data.decode("utf-8"))
            allowed, constraints = values.get("allowed", {}), values["constraints"]
            lowest, highest = constraints.get("rsa_bits", (2048, 4096))
            return cls(
                tuple(values.get("device_id", ("common_name", "serial_number"))),
                _rules(allowed.get("subject", {})),
                _rules(allowed.get("san", {})),
                tuple(constraints["key_types"]),
                (int(lowest), int(highest)),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigInvalid(f"not a profile: {error}", advice="expected a TOML file of profiles/") from error

    def opinions(self, request: x509.CertificateSigningRequest) -> tuple[Opinion, ...]:
        """Say what this profile makes of everything the request asks for."""
        return (self._key(request), *self._subject(request), *self._names(request))

    def names_device(self, request: x509.CertificateSigningRequest) -> str:
        """Return the device id in a request; empty when it has none."""
        found = {_ATTRIBUTES.get(one.oid.dotted_string): str(one.value) for one in request.subject}
        return next((found[name].lower() for name in self.device_id if name in found), "")

    def _key(self, request: x509.CertificateSigningRequest) -> Opinion:
        kind = public_key_type(request.public_key())
        family, _, bits = kind.partition("-")
        if family == "RSA" and "RSA" in self.key_types:
            lowest, highest = self.rsa_bits
            return Opinion(f"key {kind}", "allowed" if lowest <= int(bits) <= highest else "refused")
        known = kind.replace("EC-P", "P-")  # profiles name curves alone
        return Opinion(f"key {kind}", "allowed" if known in self.key_types else "refused")

    def _subject(self, request: x509.CertificateSigningRequest) -> Iterator[Opinion]:
        device_id, present = self.names_device(request), set()
        for found in request.subject:
            name = _ATTRIBUTES.get(found.oid.dotted_string, found.oid.dotted_string)
            present.add(name)
            rule = self.subject.get(name)
            value = str(found.value)
            yield Opinion(f"subject {name}={value}", rule.verdict("text", value, device_id) if rule else "refused")
        yield from _missing("subject", self.subject, present)

    def _names(self, request: x509.CertificateSigningRequest) -> Iterator[Opinion]:
        device_id, present = self.names_device(request), set()
        for name in _alternative_names(request):
            kind, _, value = name_text(name).partition(":")
            present.add(kind)
            rule = self.san.get(kind)
            yield Opinion(f"name {kind}:{value}", rule.verdict(kind, value, device_id) if rule else "refused")
        yield from _missing("name", self.san, present)


def _rules(table: Mapping[str, Any]) -> dict[str, Rule]:
    return {
        name: Rule(tuple(rule.get("values", ())), bool(rule.get("identity")), bool(rule.get("required")))
        for name, rule in table.items()
    }


def _missing(what: str, rules: Mapping[str, Rule], present: set[str]) -> Iterator[Opinion]:
    for name, rule in rules.items():
        if rule.required and name not in present:
            yield Opinion(f"no {what} {name}, which the profile requires", "refused")


def _matches(kind: str, pattern: str, value: str) -> bool:
    any_one = _LEVEL.get(kind, ".")
    parts = (any_one + "*" if char == "*" else any_one if char == "?" else re.escape(char) for char in pattern)
    return re.fullmatch("".join(parts), value, re.DOTALL | re.IGNORECASE) is not None


def _alternative_names(request: x509.CertificateSigningRequest) -> tuple[x509.GeneralName, ...]:
    try:
        return tuple(request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return ()
