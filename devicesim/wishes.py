"""What the server would like to find in a request, met as far as this device's own policy lets it.

Rules (RFC 7030 §4.5, §6; RFC 9908 §3.4):
- A value given is used as it stands; one left out is filled in by the device, or the wish cannot be met and we stop.
- A partial subject alternative name is filled with the device's own names of that kind.
- What is not understood and has no value is left out.
- The server never makes the device ask for CA rights, for a key its policy does not list, or for names that are
  neither its own nor allowed.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from devicesim import codec
from devicesim.codec import AttributeWish, CsrAttrs, ExtensionWish, KeyWish, NameWish
from devicesim.csr import (
    KEY_TYPES,
    CsrDraft,
    PrivateKey,
    digest_for,
    general_name,
    key_type,
    key_type_of,
    name_text,
    raw_extension,
    san_extension,
)
from devicesim.errors import CannotComply

_IDENTIFYING = frozenset({NameOID.COMMON_NAME.dotted_string, NameOID.SERIAL_NUMBER.dotted_string})
_SAN = ExtensionOID.SUBJECT_ALTERNATIVE_NAME.dotted_string


@dataclass(frozen=True, slots=True)
class LocalPolicy:
    """What a server's wishes may make this device do.

    Attributes:
        key_types: the kinds of key it can make.
        names: patterns (`dns:*.plant.example`) of names it may be given beyond its own.
    """

    key_types: tuple[str, ...] = tuple(KEY_TYPES)
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OwnNames:
    """What the device may say about itself.

    Attributes:
        device_id: its identifier: common name and serialNumber.
        san: its subject alternative names, as `dns:…`, `ip:…`, `uri:…`.
        subject: the subject to ask for where the server has no opinion; the device id as common name when None.
    """

    device_id: str
    san: tuple[str, ...] = ()
    subject: x509.Name | None = None

    def default_subject(self) -> x509.Name:
        """Return the subject to ask for where nobody has another opinion."""
        return self.subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.device_id)])

    def attribute(self, oid: str) -> str | None:
        """Return the value of a subject attribute the device knows about itself."""
        if self.subject is not None:
            for found in self.subject.get_attributes_for_oid(x509.ObjectIdentifier(oid)):
                return str(found.value)
        return self.device_id if oid in _IDENTIFYING else None

    def owns(self, text: str, policy: LocalPolicy) -> bool:
        """Tell whether a name is the device's own, or one its policy lets it be given."""
        own = {name_text(general_name(name)) for name in self.san}
        allowed = text in own or text in {self.device_id, f"dns:{self.device_id.lower()}"}
        return allowed or any(fnmatch.fnmatchcase(text, pattern) for pattern in policy.names)


def choose_key_type(wish: KeyWish | None, preferred: str, policy: LocalPolicy) -> str:
    """Return the kind of key to make: the one wished for, if policy lists it, else the preferred one."""
    preferred = key_type(preferred).name
    if wish is None:
        return preferred
    for name in (preferred, *policy.key_types):
        if name in policy.key_types and fits(KEY_TYPES[name].wish, wish):
            return name
    makes = ", ".join(policy.key_types)
    raise CannotComply(
        f"the server wants a key of another kind ({describe_key(wish)}) than this device makes ({makes})",
        advice="choose a profile or label of the server for such keys",
    )


def fits(kind: KeyWish, wish: KeyWish) -> bool:
    """Tell whether a kind of key is the one wished for; a wish may leave curve and size open."""
    return (
        kind.algorithm == wish.algorithm
        and wish.curve in {None, kind.curve}
        and (wish.bits is None or wish.bits == kind.bits)
    )


def key_fits(key: PrivateKey, wish: KeyWish | None) -> bool:
    """Tell whether an existing key is of the kind wished for (RFC 9908 §3.2)."""
    row = KEY_TYPES.get(key_type_of(key))
    return wish is None or (row is not None and fits(row.wish, wish))


def describe_key(wish: KeyWish) -> str:
    """Return the name of a kind of key, for people."""
    for row in KEY_TYPES.values():
        if row.wish == wish:
            return row.name
    if wish.algorithm == codec.RSA_ENCRYPTION and wish.bits:
        return f"RSA-{wish.bits}"
    return wish.curve or wish.algorithm


def draft(key: PrivateKey, own: OwnNames, wishes: CsrAttrs, policy: LocalPolicy) -> CsrDraft:
    """Return the request for this key that meets the wishes, or say which of them cannot be met."""
    if not key_fits(key, wishes.key):
        assert wishes.key is not None
        raise CannotComply(
            f"the server wants a key of another kind ({describe_key(wishes.key)}) than this one ({key_type_of(key)})",
            advice="use another key, or another profile or label of the server",
        )
    return CsrDraft(
        key,
        _subject(own, wishes, policy),
        _extensions(own, wishes, policy),
        digest_for(key, wishes.oids),
        binding_required=wishes.binding,
    )


# --- subject --------------------------------------------------------------------------------------------------------


def _subject(own: OwnNames, wishes: CsrAttrs, policy: LocalPolicy) -> x509.Name:
    if wishes.subject is None:
        return own.default_subject()
    if not wishes.from_template:  # a legacy list adds to what the device says anyway (RFC 9908 §5.5)
        present = {attribute.oid.dotted_string for attribute in own.default_subject()}
        added = [rdn for rdn in wishes.subject if rdn[0].oid not in present]
        return x509.Name([*own.default_subject().rdns, *(_rdn(rdn, own, policy) for rdn in added)])
    return x509.Name([_rdn(rdn, own, policy) for rdn in wishes.subject])


def _rdn(rdn: tuple[AttributeWish, ...], own: OwnNames, policy: LocalPolicy) -> x509.RelativeDistinguishedName:
    return x509.RelativeDistinguishedName([_attribute(wish, own, policy) for wish in rdn])


def _attribute(wish: AttributeWish, own: OwnNames, policy: LocalPolicy) -> x509.NameAttribute[str]:
    value = own.attribute(wish.oid) if wish.value is None else wish.value
    oid = x509.ObjectIdentifier(wish.oid)
    label = _attribute_label(oid)
    if value is None:
        raise CannotComply(
            f"the server wants {label} in the subject and this device knows none",
            advice="give it with the subject",
        )
    if wish.oid in _IDENTIFYING and wish.value not in {None, own.attribute(wish.oid)} and not own.owns(value, policy):
        raise CannotComply(
            f"the server wants this device to call itself {value!r}",
            advice="if that is right, name the device so, or allow the name",
        )
    try:
        return x509.NameAttribute(oid, value)
    except (ValueError, TypeError) as error:
        raise CannotComply(f"the server wants {label}={value!r}, which cannot be written: {error}") from error


def _attribute_label(oid: x509.ObjectIdentifier) -> str:
    try:
        return x509.NameAttribute(oid, "xx").rfc4514_attribute_name
    except (ValueError, TypeError):  # one whose value is no text
        return oid.dotted_string


# --- extensions -----------------------------------------------------------------------------------------------------


def _key_usage() -> x509.ExtensionType:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


_FILLED: dict[str, Callable[[], x509.ExtensionType]] = {
    ExtensionOID.KEY_USAGE.dotted_string: _key_usage,
    ExtensionOID.EXTENDED_KEY_USAGE.dotted_string: lambda: x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
    ExtensionOID.BASIC_CONSTRAINTS.dotted_string: lambda: x509.BasicConstraints(ca=False, path_length=None),
}


def _extensions(own: OwnNames, wishes: CsrAttrs, policy: LocalPolicy) -> tuple[x509.Extension[x509.ExtensionType], ...]:
    made = [found for wish in wishes.extensions if (found := _extension(wish, own, policy)) is not None]
    asked = {extension.oid.dotted_string for extension in made}
    if own.san and _SAN not in asked:
        made.append(raw_extension(san_extension(own.san)))
    return tuple(made)


def _extension(wish: ExtensionWish, own: OwnNames, policy: LocalPolicy) -> x509.Extension[x509.ExtensionType] | None:
    oid = x509.ObjectIdentifier(wish.oid)
    if wish.oid == _SAN:
        value = _alternative_names(wish.value, own, policy)
    elif wish.value is not None:
        if codec.asks_for_ca(wish.oid, wish.value):  # RFC 7030 §6
            raise CannotComply("the server wants this device to ask for a CA certificate", advice="report it")
        value = wish.value
    elif wish.oid in _FILLED:
        value = _FILLED[wish.oid]().public_bytes()
    else:
        return None  # not understood: left out (RFC 7030 §4.5.2)
    return x509.Extension(oid, wish.critical, x509.UnrecognizedExtension(oid, value))


def _alternative_names(value: bytes | None, own: OwnNames, policy: LocalPolicy) -> bytes:
    """Return the names asked for: those given, the device's own for the partial ones (RFC 9908 §3.4)."""
    if value is None:
        if not own.san:
            raise CannotComply(
                "the server wants a subject alternative name and this device has none", advice="give one"
            )
        return san_extension(own.san).value.public_bytes()
    encoded: list[bytes] = []
    for name in codec.san_wishes(value):
        encoded += _own_names_of(name, own) if name.partial else [_given_name(name, own, policy)]
    return codec.san_value(list(dict.fromkeys(encoded)))


def _own_names_of(name: NameWish, own: OwnNames) -> list[bytes]:
    matching = [text for text in own.san if text.lower().startswith(f"{name.kind}:")]
    if not matching:
        raise CannotComply(
            f"the server wants a subject alternative name of the kind {name.kind!r} and this device has none",
            advice=f"give one: {name.kind}:…",
        )
    return [encoded.der for encoded in codec.san_wishes(san_extension(matching).value.public_bytes())]


def _given_name(name: NameWish, own: OwnNames, policy: LocalPolicy) -> bytes:
    if not own.owns(name.text, policy):
        raise CannotComply(
            f"the server wants this device to ask for the name {name.text!r}, which is not its own",
            advice="if that is right, give the device this name, or allow it",
        )
    return name.der
