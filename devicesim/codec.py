"""How EST's bytes are read on this side: base64, certs-only CMS, CsrAttrs and the RFC 9908 template.

Rules:
- Whatever comes in, the only exception that leaves is `BadAnswer`.
- Base64 with any white space (RFC 8951 §3.1). BER is tolerated in CMS, an empty `crls` and unsorted sets too.
- The order of certificates means nothing (RFC 5272 §4.1).
- In CsrAttrs, what is unknown or malformed is ignored (RFC 7030 §4.5.2), except inside a template.
- Where a template is present, the legacy list beside it is not looked at (RFC 9908 §4), but for the demand of a channel
  binding, where more is never wrong.

The server's codec is not shared, so that each checks the other.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import ipaddress
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from asn1crypto import cms, core, keys
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.errors import BadAnswer
from devicesim.trust import readable_ones

CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"  # noqa: S105 - an OID
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
TEMPLATE = "1.2.840.113549.1.9.16.2.61"  # id-aa-certificationRequestInfoTemplate
EXTENSION_REQUEST_TEMPLATE = "1.2.840.113549.1.9.16.2.62"
# RFC 9908 §3.4 prints the identifier without its arc `16.2` in the example; its module and IANA say otherwise.
EXTENSION_REQUEST_TEMPLATE_MISPRINTED = "1.2.840.113549.1.9.62"

EC_PUBLIC_KEY = "1.2.840.10045.2.1"
RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
ED25519 = "1.3.101.112"
ML_DSA_44, ML_DSA_65, ML_DSA_87 = (f"2.16.840.1.101.3.4.3.{arc}" for arc in (17, 18, 19))
SERIAL_NUMBER = "2.5.4.5"
KEY_USAGE, BASIC_CONSTRAINTS = "2.5.29.15", "2.5.29.19"
KEY_ALGORITHMS = (EC_PUBLIC_KEY, RSA_ENCRYPTION, ED25519, ML_DSA_44, ML_DSA_65, ML_DSA_87)
EXTENSION_REQUESTS = (EXTENSION_REQUEST, EXTENSION_REQUEST_TEMPLATE, EXTENSION_REQUEST_TEMPLATE_MISPRINTED)

_WHITE_SPACE = string.whitespace.encode()
_CERTIFICATES_MAX = 64
_PARSE_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
    x509.InvalidVersion,
)


@dataclass(frozen=True, slots=True)
class AttributeWish:
    """One attribute wanted in the subject; without a value the device fills it in (RFC 9908 §3.4)."""

    oid: str
    value: str | None


@dataclass(frozen=True, slots=True)
class ExtensionWish:
    """One extension wanted in the request; without a value the device fills it in (RFC 9908 §3.4)."""

    oid: str
    critical: bool
    value: bytes | None


@dataclass(frozen=True, slots=True)
class KeyWish:
    """The kind of key wanted: algorithm, and the curve or the RSA modulus size where one is named."""

    algorithm: str
    curve: str | None = None
    bits: int | None = None


@dataclass(frozen=True, slots=True)
class CsrAttrs:
    """What the server would like to find in a request (RFC 7030 §4.5.2, RFC 9908).

    Attributes:
        subject: the relative distinguished names wanted, or None when the server has no opinion.
        key: the kind of key wanted, if any.
        extensions: the extensions wanted.
        binding: the request must be bound to its TLS connection (RFC 7030 §3.5).
        oids: the bare object identifiers, known or not; signature algorithms are among them.
        from_template: the wishes come from an RFC 9908 template and are complete.
        der: the octets they were read from; an empty sequence when there were none.
    """

    subject: tuple[tuple[AttributeWish, ...], ...] | None = None
    key: KeyWish | None = None
    extensions: tuple[ExtensionWish, ...] = ()
    binding: bool = False
    oids: tuple[str, ...] = ()
    from_template: bool = False
    der: bytes = field(default=b"\x30\x00", repr=False)


# --- base64 and CMS -------------------------------------------------------------------------------------------------


def decode_body(body: bytes) -> bytes:
    """Return the DER in the body of an EST answer (RFC 8951 §3)."""
    packed = body.translate(None, _WHITE_SPACE)
    try:
        return base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise BadAnswer(f"the answer is not base64: {error}") from error


def certs_only(der: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a certs-only CMS message, in no meaningful order (RFC 7030 §4.1.3, §4.2.3).

    One that cannot be read, for its key is of an unknown kind perhaps, is left out.
    """
    with _parsing("a certs-only CMS message"):
        content = cms.ContentInfo.load(der, strict=True)
        if content["content_type"].native != "signed_data":
            raise ValueError("not signed data")
        choices = content["content"]["certificates"]
        if not isinstance(choices, core.Void) and len(choices) > _CERTIFICATES_MAX:
            raise ValueError("too many certificates")
        found = [choice.chosen.dump() for choice in choices or () if choice.name == "certificate"]
        certificates = readable_ones(found)
    if not certificates:
        raise BadAnswer("the answer holds no certificate that can be read")
    return certificates


def raw_extension(certificate: x509.Certificate, oid: str) -> bytes | None:
    """Return the octets of an extension as they stand in a certificate, so that they can be repeated (§4.2.2)."""
    with _parsing("a certificate"):
        tbs = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))["tbs_certificate"]
        for extension in tbs["extensions"] or ():
            if extension["extn_id"].dotted == oid:
                return bytes(extension["extn_value"].contents)
    return None


@contextlib.contextmanager
def _parsing(what: str) -> Iterator[None]:
    """Turn everything a parser can raise into the one error of this module."""
    try:
        yield
    except _PARSE_ERRORS as error:
        raise BadAnswer(f"the answer is not {what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


# --- names ----------------------------------------------------------------------------------------------------------

NameKind = Literal["dns", "ip", "uri", "email", "other"]
_NAME_KINDS: dict[str, NameKind] = {
    "dns_name": "dns",
    "ip_address": "ip",
    "uniform_resource_identifier": "uri",
    "rfc822_name": "email",
}


@dataclass(frozen=True, slots=True)
class NameWish:
    """One subject alternative name of a template; `partial` ones are for the device to fill (RFC 9908 §3.4).

    `text` is `dns:…`, `ip:…`, `uri:…`, `email:…`; a name of any other kind is told by its type alone.
    """

    kind: NameKind
    text: str
    der: bytes
    partial: bool


def san_wishes(value: bytes) -> tuple[NameWish, ...]:
    """Read a subjectAltName in which names may be empty; a certificate parser would refuse those."""
    with _parsing("a subject alternative name"):
        return tuple(map(_name_wish, asn1_x509.GeneralNames.load(value, strict=True)))


def _name_wish(name: asn1_x509.GeneralName) -> NameWish:
    kind = _NAME_KINDS.get(name.name, "other")
    contents = bytes(name.chosen.contents)
    texts: dict[str, Callable[[], str]] = {
        "ip": lambda: str(ipaddress.ip_address(contents)),
        "dns": lambda: contents.decode("ascii").lower(),
        "other": lambda: name.chosen["type_id"].dotted if name.name == "other_name" else name.name,
    }
    text = texts.get(kind, lambda: contents.decode("ascii"))() if contents else ""
    return NameWish(kind, f"{kind}:{text}", name.dump(), partial=not contents)


def san_value(names: list[bytes]) -> bytes:
    """Write a subjectAltName from names already in DER."""
    return bytes(asn1_x509.GeneralNames([asn1_x509.GeneralName.load(name) for name in names]).dump())


def asks_for_ca(oid: str, value: bytes) -> bool:
    """Tell whether an extension would make its holder a CA: basicConstraints or keyUsage (RFC 5280 §4.2.1)."""
    with _parsing(f"an extension {oid}"):
        if oid == BASIC_CONSTRAINTS:
            return bool(asn1_x509.BasicConstraints.load(value, strict=True)["ca"].native)
        if oid == KEY_USAGE:
            return not {"key_cert_sign", "crl_sign"}.isdisjoint(asn1_x509.KeyUsage.load(value, strict=True).native)
    return False


# --- CsrAttrs -------------------------------------------------------------------------------------------------------


class _Attribute(core.Sequence):
    _fields: ClassVar = [("type", core.ObjectIdentifier), ("values", core.SetOf, {"spec": core.Any})]


class _AttrOrOid(core.Choice):
    _alternatives: ClassVar = [("oid", core.ObjectIdentifier), ("attribute", _Attribute)]


class _CsrAttrs(core.SequenceOf):
    _child_spec = _AttrOrOid


class _SingleAttributeTemplate(core.Sequence):
    _fields: ClassVar = [("type", core.ObjectIdentifier), ("value", core.Any, {"optional": True})]


class _RelativeDistinguishedNameTemplate(core.SetOf):
    _child_spec = _SingleAttributeTemplate


class _NameTemplate(core.SequenceOf):
    _child_spec = _RelativeDistinguishedNameTemplate


class _AlgorithmIdentifier(core.Sequence):
    _fields: ClassVar = [("algorithm", core.ObjectIdentifier), ("parameters", core.Any, {"optional": True})]


class _SubjectPublicKeyInfoTemplate(core.Sequence):
    _fields: ClassVar = [
        ("algorithm", _AlgorithmIdentifier),
        ("subject_public_key", core.OctetBitString, {"optional": True}),
    ]


class _Attributes(core.SetOf):
    _child_spec = _Attribute


class _CertificationRequestInfoTemplate(core.Sequence):
    _fields: ClassVar = [
        ("version", core.Integer),
        ("subject", _NameTemplate, {"optional": True}),
        ("subject_pk_info", _SubjectPublicKeyInfoTemplate, {"implicit": 0, "optional": True}),
        ("attributes", _Attributes, {"implicit": 1}),
    ]


class _ExtensionTemplate(core.Sequence):
    _fields: ClassVar = [
        ("extn_id", core.ObjectIdentifier),
        ("critical", core.Boolean, {"default": False}),
        ("extn_value", core.OctetString, {"optional": True}),
    ]


class _ExtensionTemplates(core.SequenceOf):
    _child_spec = _ExtensionTemplate


def parse_csrattrs(der: bytes) -> CsrAttrs:
    """Read a CsrAttrs; an empty sequence is "no wishes" (RFC 7030 §4.5.2, RFC 9908)."""
    with _parsing("CSR attributes"):
        items = [item.chosen for item in _CsrAttrs.load(der, strict=True)]
        oids = tuple(item.dotted for item in items if isinstance(item, core.ObjectIdentifier))
        attributes = {
            item["type"].dotted: [value.dump() for value in item["values"]]
            for item in items
            if isinstance(item, _Attribute)
        }
    binding = CHALLENGE_PASSWORD in oids or CHALLENGE_PASSWORD in attributes
    if TEMPLATE in attributes:
        return replace(_from_template(attributes[TEMPLATE], oids, binding=binding), der=der)
    return CsrAttrs(
        subject=_legacy_subject(oids),
        key=_legacy_key(oids, attributes),
        extensions=_legacy_extensions(attributes.get(EXTENSION_REQUEST, [])),
        binding=binding,
        oids=oids,
        der=der,
    )


def _legacy_subject(oids: tuple[str, ...]) -> tuple[tuple[AttributeWish, ...], ...] | None:
    """Take a bare attribute type of a name as: put one into the subject (RFC 9908 §5.5)."""
    wishes = tuple((AttributeWish(oid, None),) for oid in oids if oid == SERIAL_NUMBER)
    return wishes or None


def _legacy_key(oids: tuple[str, ...], attributes: dict[str, list[bytes]]) -> KeyWish | None:
    """Take the attribute whose type is a key algorithm; its value may be left out (RFC 9908 §3.2)."""
    for oid in KEY_ALGORITHMS:
        if oid in attributes:
            with contextlib.suppress(*_PARSE_ERRORS):
                return _key_wish(oid, attributes[oid][0] if attributes[oid] else None)
    return next((KeyWish(oid) for oid in oids if oid in KEY_ALGORITHMS), None)


def _key_wish(oid: str, parameters: bytes | None) -> KeyWish:
    value = None if parameters is None else core.load(parameters, strict=True)
    if oid == EC_PUBLIC_KEY and isinstance(value, core.ObjectIdentifier):
        return KeyWish(oid, curve=value.dotted)
    if oid == RSA_ENCRYPTION and isinstance(value, core.Integer):
        return KeyWish(oid, bits=value.native)
    return KeyWish(oid)


def _legacy_extensions(values: list[bytes]) -> tuple[ExtensionWish, ...]:
    """One value, a list of extensions (RFC 9908 §3.2); anything else, as RFC 7030 §4.5.2 printed it, is ignored."""
    if len(values) == 1:
        with contextlib.suppress(*_PARSE_ERRORS):
            return _extensions(values[0])
    return ()


def _extensions(der: bytes) -> tuple[ExtensionWish, ...]:
    wishes = [
        ExtensionWish(item["extn_id"].dotted, item["critical"].native, _octets(item["extn_value"]))
        for item in _ExtensionTemplates.load(der, strict=True)
    ]
    if len({wish.oid for wish in wishes}) != len(wishes):
        raise ValueError("the same extension twice")
    return tuple(wishes)


def _octets(value: core.OctetString | core.Void) -> bytes | None:
    return None if isinstance(value, core.Void) else bytes(value.contents)


def _from_template(values: list[bytes], oids: tuple[str, ...], *, binding: bool) -> CsrAttrs:
    with _parsing("a certification request template"):
        if len(values) != 1:
            raise ValueError("not exactly one template")
        template = _CertificationRequestInfoTemplate.load(values[0], strict=True)
        if template["version"].native != 0:
            raise ValueError("unknown version")
        attributes = {item["type"].dotted: [v.dump() for v in item["values"]] for item in template["attributes"]}
        wanted = [attributes[oid] for oid in EXTENSION_REQUESTS if oid in attributes]
        if len(wanted) > 1 or any(len(found) != 1 for found in wanted):
            raise ValueError("not exactly one list of extensions")  # RFC 9908 §3.4
        return CsrAttrs(
            subject=_template_subject(template["subject"]),
            key=_template_key(template["subject_pk_info"]),
            extensions=_extensions(wanted[0][0]) if wanted else (),
            binding=binding or CHALLENGE_PASSWORD in attributes,
            oids=oids,
            from_template=True,
        )


def _template_subject(name: _NameTemplate | core.Void) -> tuple[tuple[AttributeWish, ...], ...] | None:
    if isinstance(name, core.Void):
        return None
    return tuple(tuple(AttributeWish(one["type"].dotted, _text(one["value"])) for one in rdn) for rdn in name)


def _text(value: core.Any | core.Void) -> str | None:
    if isinstance(value, core.Void):
        return None
    text = core.load(value.dump(), strict=True).native
    if not isinstance(text, str):
        raise TypeError("a name that is not text")
    return text


def _template_key(info: _SubjectPublicKeyInfoTemplate | core.Void) -> KeyWish | None:
    """Read the key wanted; an RSA size travels as a placeholder key with that many bits (RFC 9908 §3.4)."""
    if isinstance(info, core.Void):
        return None
    oid = info["algorithm"]["algorithm"].dotted
    if oid == RSA_ENCRYPTION and not isinstance(info["subject_public_key"], core.Void):
        placeholder = keys.RSAPublicKey.load(bytes(info["subject_public_key"]), strict=True)
        return KeyWish(oid, bits=placeholder["modulus"].native.bit_length())
    parameters = info["algorithm"]["parameters"]
    return _key_wish(oid, None if isinstance(parameters, core.Void) else parameters.dump())
