"""Requests, certificates and CSR attributes in plain words, and the same as facts for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import AttributeOID, ExtensionOID

from devicesim import codec
from devicesim.codec import CsrAttrs, ExtensionWish
from devicesim.csr import alternative_names, public_key_type
from devicesim.errors import DeviceSimError
from devicesim.trust import fingerprint
from devicesim.wishes import describe_key

_SHA1 = "sha1"
_EXTENSION_NAMES = {
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME.dotted_string: "subject alternative name",
    ExtensionOID.KEY_USAGE.dotted_string: "key usage",
    ExtensionOID.EXTENDED_KEY_USAGE.dotted_string: "extended key usage",
    ExtensionOID.BASIC_CONSTRAINTS.dotted_string: "basic constraints",
    ExtensionOID.SUBJECT_KEY_IDENTIFIER.dotted_string: "subject key identifier",
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER.dotted_string: "authority key identifier",
    ExtensionOID.CRL_DISTRIBUTION_POINTS.dotted_string: "CRL distribution points",
}
_ATTRIBUTE_NAMES = {"2.5.4.3": "CN", "2.5.4.5": "serialNumber", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.6": "C"}
_PURPOSES = {
    "1.3.6.1.5.5.7.3.1": "TLS server",
    "1.3.6.1.5.5.7.3.2": "TLS client",
    "1.3.6.1.5.5.7.3.9": "OCSP signing",
    "1.3.6.1.5.5.7.3.28": "registration authority",
}


# --- certificates ---------------------------------------------------------------------------------------------------


def certificate_facts(certificate: x509.Certificate) -> dict[str, Any]:
    """Return what a program wants to know about a certificate."""
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "names": sorted(_names(certificate)),
        "key": public_key_type(certificate.public_key()),
        "sha256": fingerprint(certificate),
    }


def certificate_lines(certificate: x509.Certificate) -> list[str]:
    """Say what a certificate is."""
    facts = certificate_facts(certificate)
    return [
        f"  subject  {facts['subject']}" + (f"  ({', '.join(facts['names'])})" if facts["names"] else ""),
        f"  issuer   {facts['issuer']}",
        f"  valid    {facts['not_before']} to {facts['not_after']}",
        f"  key      {facts['key']}   serial {facts['serial']}",
        f"  sha256   {facts['sha256']}",
    ]


def _names(thing: x509.Certificate | x509.CertificateSigningRequest) -> frozenset[str]:
    try:
        return alternative_names(thing.extensions)
    except ValueError:
        return frozenset({"unreadable"})


# --- requests -------------------------------------------------------------------------------------------------------


def request_facts(request: x509.CertificateSigningRequest) -> dict[str, Any]:
    """Return what a request asks for, and whether its signature proves possession of the key."""
    return {
        "subject": request.subject.rfc4514_string(),
        "key": _request_key(request),
        "names": sorted(_names(request)),
        "extensions": [_extension_facts(extension) for extension in _extensions(request)],
        "bound_to_a_connection": _is_bound(request),
        "signature": _signature(request),
    }


def request_lines(request: x509.CertificateSigningRequest) -> list[str]:
    """Say in plain words what a request asks for."""
    facts = request_facts(request)
    lines = [
        f"subject     {facts['subject'] or '(empty)'}",
        f"key         {facts['key']}",
        f"names       {', '.join(facts['names']) or 'none'}",
    ]
    lines += [f"asks for    {found['text']}" for found in facts["extensions"]]
    bound = "bound to one TLS connection; it is refused on any other" if facts["bound_to_a_connection"] else "unbound"
    return [*lines, f"binding     {bound}", f"signature   {facts['signature']}"]


def _extensions(request: x509.CertificateSigningRequest) -> Iterable[x509.Extension[x509.ExtensionType]]:
    try:
        return tuple(request.extensions)
    except ValueError:
        return ()


def _extension_facts(extension: x509.Extension[x509.ExtensionType]) -> dict[str, Any]:
    oid = extension.oid.dotted_string
    return {
        "oid": oid,
        "critical": extension.critical,
        "text": _EXTENSION_NAMES.get(oid, oid) + _value_text(extension.value) + (", critical" * extension.critical),
    }


def _value_text(value: x509.ExtensionType) -> str:
    match value:
        case x509.BasicConstraints():
            return ": to be a CA" if value.ca else ": not to be a CA"
        case x509.ExtendedKeyUsage():
            return ": " + ", ".join(_PURPOSES.get(use.dotted_string, use.dotted_string) for use in value)
        case x509.KeyUsage():
            return ": " + ", ".join(_key_uses(value))
        case _:
            return ""


def _key_uses(value: x509.KeyUsage) -> Iterator[str]:
    uses = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    for use in (*uses, "key_cert_sign", "crl_sign"):
        if getattr(value, use):
            yield use.replace("_", " ")


def _is_bound(request: x509.CertificateSigningRequest) -> bool:
    try:
        return any(attribute.oid == AttributeOID.CHALLENGE_PASSWORD for attribute in request.attributes)
    except ValueError:
        return False


def _request_key(request: x509.CertificateSigningRequest) -> str:
    try:
        return public_key_type(request.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return "unreadable"


def _signature(request: x509.CertificateSigningRequest) -> str:
    """Say whether the signature is good; one over SHA-1 is not looked at, however good it may be."""
    try:
        digest = request.signature_hash_algorithm
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "of a kind that cannot be checked"
    if digest is not None and digest.name == _SHA1:
        return "made with SHA-1, which nobody should accept"
    return "valid: made with the key in it" if valid else "INVALID: not made with the key in it"


# --- CSR attributes -------------------------------------------------------------------------------------------------


def csrattrs_facts(wishes: CsrAttrs) -> dict[str, Any]:
    """Return what a server would like to find in a request."""
    return {
        "from_template": wishes.from_template,
        "subject": [[{"oid": one.oid, "value": one.value} for one in rdn] for rdn in wishes.subject or ()],
        "key": describe_key(wishes.key) if wishes.key else None,
        "extensions": [
            {"oid": one.oid, "critical": one.critical, "value": None if one.value is None else one.value.hex()}
            for one in wishes.extensions
        ],
        "binding": wishes.binding,
        "oids": list(wishes.oids),
    }


def csrattrs_lines(wishes: CsrAttrs) -> list[str]:
    """Say in plain words what a server would like to find in a request."""
    lines = [f"key         {describe_key(wishes.key)}"] if wishes.key else []
    if wishes.subject:
        lines.append(f"subject     {', '.join(_rdn_text(one.oid, one.value) for rdn in wishes.subject for one in rdn)}")
    lines += [f"extension   {_wish_text(wish)}" for wish in wishes.extensions]
    if wishes.binding:
        lines.append("binding     the request must be bound to its TLS connection")
    return lines or ["the server has no wishes"]


def _rdn_text(oid: str, value: str | None) -> str:
    return f"{_ATTRIBUTE_NAMES.get(oid, oid)}={'(the device fills it in)' if value is None else value}"


def _wish_text(wish: ExtensionWish) -> str:
    name = _EXTENSION_NAMES.get(wish.oid, wish.oid) + (", critical" * wish.critical)
    if wish.value is None:
        return f"{name}: the device fills it in"
    if wish.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME.dotted_string:
        return f"{name}: {_san_text(wish.value)}"
    return f"{name}: as the server gives it"


def _san_text(value: bytes) -> str:
    try:
        names = codec.san_wishes(value)
    except DeviceSimError:
        return "unreadable"
    return ", ".join(f"{name.kind}:(the device fills it in)" if name.partial else name.text for name in names)
