"""The answer to `/csrattrs` in DER: a list of wishes (RFC 8951 §4) and the template of a request (RFC 9908 §3.4).

What is wished for is `estserver.policy`'s to say; here it is written. A value that is left out is the device's to fill.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509

from estserver.asn1 import OID_EXTENSION_REQUEST, extensions_der, integer_der, oid_der, read_tlv, write_tlv
from estserver.model import Der

OID_CSR_TEMPLATE = "1.2.840.113549.1.9.16.2.61"
OID_EXTENSION_TEMPLATE = "1.2.840.113549.1.9.16.2.62"
_SEQUENCE, _SET = 0x30, 0x31
_NAME_TAGS = {"email": 0x81, "dns": 0x82, "uri": 0x86, "ip": 0x87}


@dataclass(frozen=True, slots=True)
class CsrAttribute:
    """One item of the answer: a bare OID, or an attribute with values in DER (RFC 8951 §4)."""

    oid: str
    values: tuple[Der, ...] | None = None


def csr_attrs(items: Sequence[CsrAttribute]) -> Der:
    """Encode CsrAttrs (RFC 8951 §4): SEQUENCE OF CHOICE { OID, Attribute }."""
    return Der(write_tlv(_SEQUENCE, *map(_attr_or_oid, items)))


def _attr_or_oid(item: CsrAttribute) -> bytes:
    if item.values is None:
        return oid_der(item.oid)
    return write_tlv(_SEQUENCE, oid_der(item.oid), write_tlv(_SET, *sorted(item.values)))


def request_template(
    *,
    subject: Sequence[Der],
    key: Der | None,
    extensions: Sequence[tuple[str, bool, Der]],
    partial: bool = False,
) -> Der:
    """Encode a CertificationRequestInfoTemplate (RFC 9908 §3.4).

    Args:
        subject: what `rdn` wrote.
        key: AlgorithmIdentifier of the wanted key, and what `rsa_placeholder` wrote; or None.
        extensions: given extensions; none leaves the mandatory `attributes [1]` empty.
        partial: something in an extension is for the device to fill in, and only then their type says so.
    """
    name = write_tlv(_SEQUENCE, *subject) if subject else b""
    wanted_key = write_tlv(0xA0, key) if key is not None else b""
    kind = OID_EXTENSION_TEMPLATE if partial else OID_EXTENSION_REQUEST
    wish = write_tlv(_SEQUENCE, oid_der(kind), write_tlv(_SET, extensions_der(extensions)))
    attributes = write_tlv(0xA1, wish) if extensions else b"\xa1\x00"
    return Der(write_tlv(_SEQUENCE, b"\x02\x01\x00", name, wanted_key, attributes))


def rsa_placeholder(bits: int) -> Der:
    """Write the subjectPublicKey that says of a wanted RSA key nothing but its size (RFC 9908 §3.4)."""
    key = write_tlv(_SEQUENCE, integer_der((1 << bits) - 1), integer_der(65537))
    return Der(write_tlv(0x03, b"\x00", key))


def rdn(oid: str, value: str | None) -> Der:
    """Write a name attribute for a template."""
    if value is None:
        return Der(write_tlv(_SET, write_tlv(_SEQUENCE, oid_der(oid))))
    name = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), value)])
    return Der(read_tlv(name.public_bytes())[0].content)


def alternative_names(names: Iterable[tuple[str, str | None]]) -> Der:
    """Write a subjectAltName from kinds (`dns`, `ip`, `uri`, `email`) and values."""
    return Der(write_tlv(_SEQUENCE, *(write_tlv(_NAME_TAGS[kind], _octets(kind, value)) for kind, value in names)))


def _octets(kind: str, value: str | None) -> bytes:
    if value is None:
        return b""
    return ipaddress.ip_address(value).packed if kind == "ip" else value.encode("ascii")
