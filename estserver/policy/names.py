r"""Which names there are and how a pattern speaks of them.

Rules:
- A device id is lower case letters, digits, `.`, `_` and `-`, at most 64 of them, so that
  it is at once a common name (RFC 5280 ub-common-name), one MQTT topic level and a file name.
- `*` in a pattern stays inside one level: no dot in a DNS name, no `/ ? # @ \` in a URI, anything in a device id.
- A pattern never grants a name with a wildcard in it, and costs no more than the square of the name's length.
- Names are compared as RFC 5280 §7.1 wants: without case and without repeated spaces, string types ignored.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from estserver.model import DeviceId, GeneralName, NameAttribute

DEVICE_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")

OIDS = {
    "common_name": "2.5.4.3",
    "serial_number": "2.5.4.5",
    "country": "2.5.4.6",
    "locality": "2.5.4.7",
    "state": "2.5.4.8",
    "organization": "2.5.4.10",
    "organizational_unit": "2.5.4.11",
    "title": "2.5.4.12",
    "domain_component": "0.9.2342.19200300.100.1.25",
    "user_id": "0.9.2342.19200300.100.1.1",
}
NAMES = {oid: name for name, oid in OIDS.items()}

_LEVEL = {"device": ".", "dns": "[^.]", "uri": r"[^/?#@\\]", "text": "."}


def device_id(text: str) -> DeviceId | None:
    """Read a device id from a name, in any case; None when it does not have the form of one."""
    lower = text.lower()
    return DeviceId(lower) if text.isascii() and DEVICE_ID.fullmatch(lower) else None  # KELVIN SIGN lowers to k


def attribute_name(oid: str) -> str:
    """Name a subject attribute as profiles do; an unknown one by its OID."""
    return NAMES.get(oid, oid)


@lru_cache(maxsize=4096)
def _compiled(kind: str, pattern: str) -> re.Pattern[str]:
    """Turn a pattern into a regular expression that, once past a `*`, never goes back to it (atomic groups)."""
    any_one = _LEVEL[kind]
    first, *rest = ("".join(any_one if c == "?" else re.escape(c) for c in part) for part in pattern.split("*"))
    middle = "".join(f"(?>{any_one}*?{part})" for part in rest[:-1])
    return re.compile(first + middle + "".join(f"{any_one}*{part}" for part in rest[-1:]), re.DOTALL)


def matches(kind: str, pattern: str, value: str) -> bool:
    """Return whether `value` fits a shell-style pattern of the kind `device`, `dns`, `uri` or `text`."""
    if kind in ("dns", "text"):
        pattern, value = pattern.lower(), value.lower()
    if "*" not in pattern and "?" not in pattern:
        return pattern == value  # most are the device's own name, each compiled for one request
    return _compiled(kind, pattern).fullmatch(value) is not None


def is_printable_string(text: str) -> bool:
    """Return whether an ASN.1 PrintableString can hold the text (X.680 §41.4)."""
    return re.fullmatch(r"[A-Za-z0-9 '()+,\-./:=?]*", text) is not None


def any_device(patterns: Collection[str], device: str) -> bool:
    """Return whether one of the patterns covers the device id."""
    return device in patterns or any(
        matches("device", pattern, device) for pattern in patterns if "*" in pattern or "?" in pattern
    )


def name_matches(pattern: str, name: GeneralName) -> bool:
    """Return whether a `kind:pattern` covers a subject alternative name; an IP pattern may be a network."""
    kind, _, rest = pattern.partition(":")
    if kind != name.kind:
        return False
    if kind == "ip":
        try:
            return ipaddress.ip_address(name.value) in ipaddress.ip_network(rest, strict=False)
        except ValueError:
            return False
    if kind == "dns" and "*" in name.value:
        return False  # `*.plant.example` stands for one host of the plant, not for all of them
    return matches(kind if kind in _LEVEL else "text", rest, name.value)


def same_subject(left: Iterable[NameAttribute], right: Iterable[NameAttribute]) -> bool:
    """Compare distinguished names by value (RFC 5280 §7.1): strongSwan and openssl choose different string types."""
    return [(a.oid, _folded(a.value)) for a in left] == [(b.oid, _folded(b.value)) for b in right]


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def subject_text(subject: Iterable[NameAttribute]) -> str:
    """Write a subject for humans: `common_name=sn-1, organization=Acme`."""
    return ", ".join(f"{attribute_name(a.oid)}={a.value}" for a in subject)
