"""Bytes → `Csr`: strict parse, proof of possession, weak-key screen.

Rules, in their order:
1. The octets are one PKCS#10 request and nothing else (RFC 2986).
2. The public key is of a known kind and survives re-encoding unchanged: what is certified is what was sent.
3. The key is not weak (`estserver.weak_keys`), nor blocked.
4. The signature hash is SHA-256 or better, and the signature verifies with the key in the request (RFC 7030 §4.2.1);
   for a key that cannot sign, with that of the certificate which its statement of possession names (RFC 9883).
5. At most one extensionRequest, one challengePassword and one ChangeSubjectName, each with one value (RFC 2985 §5.4),
   and one attestation with one bundle (draft-ietf-lamps-csr-attestation), of which the audit keeps the digest alone.

Where the server makes the key, 2 to 4 do not apply: key and signature are ignored (RFC 7030 §4.4.1).

Nothing here decides whether anybody may have what is asked: that is `estserver.policy`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa

from estserver import asn1, attestation, possession, weak_keys
from estserver.errors import MalformedRequest, ProofOfPossessionFailed
from estserver.model import (
    CertificateRecord,
    Csr,
    Der,
    GeneralName,
    KeyFacts,
    NameAttribute,
    NameChange,
    RequestedExtension,
    SpkiHash,
)

BINDING_MAX_CHARS = 255  # RFC 2985 §5.4.1: pkcs-9-ub-challengePassword
KEY_USAGE_BITS = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
"""The bits of keyUsage in their order (RFC 5280 §4.2.1.3); the last two mean something beside key_agreement only."""
_EXTENSION_REQUESTS = (asn1.OID_EXTENSION_REQUEST, asn1.OID_EXTENSION_REQUEST_MS)  # cryptography reads either
_READ = (
    *(*_EXTENSION_REQUESTS, asn1.OID_CHALLENGE_PASSWORD, asn1.OID_CHANGE_SUBJECT_NAME),
    *(attestation.OID_ATTESTATION, possession.OID_STATEMENT),
)
SIGNATURE_HASHES = frozenset({"SHA256", "SHA384", "SHA512"})

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_PLAIN_KEYS: tuple[tuple[type, KeyFacts], ...] = (
    (ed25519.Ed25519PublicKey, KeyFacts("Ed25519", "Ed25519")),
    (ed448.Ed448PublicKey, KeyFacts("Ed448", "Ed448")),
    (mldsa.MLDSA44PublicKey, KeyFacts("ML-DSA", "ML-DSA-44")),
    (mldsa.MLDSA65PublicKey, KeyFacts("ML-DSA", "ML-DSA-65")),
    (mldsa.MLDSA87PublicKey, KeyFacts("ML-DSA", "ML-DSA-87")),
)
_DNS_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS = rf"(?:{_DNS_LABEL}\.)*{_DNS_LABEL}"
_FORMS = {
    "dns": re.compile(rf"(?=.{{1,253}}\Z)(?!(?:[0-9]+\.){{3}}[0-9]+\Z)(?:\*\.)?{_DNS}"),
    "uri": re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+"),
    "email": re.compile(rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_DNS}", re.IGNORECASE | re.ASCII),
}
"""What a name of each kind looks like (RFC 5280 §4.2.1.6): a DNS name has no final dot and is no IP address."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What no request may go beyond, whoever asks.

    Attributes:
        names_max: subject alternative names.
        name_max_chars: characters of each, and of each attribute of the subject.
        blocked: SHA-256 of the SubjectPublicKeyInfos that nobody may bring.
    """

    names_max: int = 100
    name_max_chars: int = 2048
    blocked: frozenset[str] = field(default=frozenset(), repr=False)


DEFAULT_BOUNDS = Bounds()
UNKNOWN_KEY = KeyFacts("", "unknown")


Vouch = Callable[[possession.Statement], CertificateRecord]
"""Finds the certificate that a statement of possession names, or raises why it does not count."""


def parse(der: Der, bounds: Bounds = DEFAULT_BOUNDS, vouch: Vouch | None = None) -> Csr:
    """Read and verify a certification request.

    Args:
        vouch: without it no key is taken that cannot sign.

    Raises:
        MalformedRequest, WeakKey, ProofOfPossessionFailed: and nothing else, whatever the bytes are, but for what
            `vouch` raises.
    """
    request, parts = _load(der)
    try:
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedRequest(f"the request cannot be read: {_first_line(error)}") from None
    statement = _single(parts, possession.OID_STATEMENT, "more than one statement of possession (RFC 9883 §3)")
    established = possession.establishing(key) if statement is not None and vouch is not None else None
    facts = established or key_facts(key)
    _same_octets(key, parts.spki)
    weak_keys.screen(key, spki_hash(parts.spki), bounds.blocked)
    if statement is None or vouch is None or established is None:
        _reject_statement(statement)
        return _read(request, parts, bounds, facts, _verify(request))
    hash_name, voucher = _hash_name(request), vouch(possession.statement_of(statement))
    possession.verify(request, voucher.certificate)
    return replace(_read(request, parts, bounds, facts, hash_name), voucher=voucher)


def _reject_statement(statement: asn1.Tlv | None) -> None:
    if statement is not None:
        raise MalformedRequest(
            "a key that can sign proves its possession itself: leave out the statement (RFC 9883 §6)"
        )


def parse_without_key(der: Der, bounds: Bounds = DEFAULT_BOUNDS) -> Csr:
    """Read a request for a key to be made here; the one in it shows at most which kind is wanted (RFC 7030 §4.4.1).

    Raises:
        MalformedRequest: and nothing else, whatever the bytes are.
    """
    request, parts = _load(der)
    try:
        facts = key_facts(request.public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm, MalformedRequest):
        facts = UNKNOWN_KEY
    return _read(request, parts, bounds, facts, "")


def with_key(asked: Csr, spki: Der) -> Csr:
    """Put the key that was made here into the place of the one in the request."""
    facts = key_facts(serialization.load_der_public_key(spki))
    return replace(asked, spki=spki, spki_sha256=spki_hash(spki), key=facts, signature_hash="")


def _load(der: Der) -> tuple[x509.CertificateSigningRequest, asn1.RequestParts]:
    parts = asn1.request_parts(der)
    try:
        return x509.load_der_x509_csr(der), parts
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise MalformedRequest(f"the request cannot be read: {_first_line(error)}") from None


def _read(
    request: x509.CertificateSigningRequest,
    parts: asn1.RequestParts,
    bounds: Bounds,
    facts: KeyFacts,
    signature_hash: str,
) -> Csr:
    wishes = _wishes(request, parts, bounds)
    return Csr(
        der=parts.der,
        spki=parts.spki,
        spki_sha256=spki_hash(parts.spki),
        key=facts,
        signature_hash=signature_hash,
        subject=_subject(parts.subject, bounds),
        san=wishes.san,
        extensions=wishes.extensions,
        key_usage=wishes.key_usage,
        extended_key_usage=wishes.extended_key_usage,
        ca=wishes.ca,
        binding=_binding(parts),
        change=_change(parts, bounds),
        attestation=attestation.of(parts),
        attributes=tuple(oid for oid, _ in parts.attributes if oid not in _READ),
    )


def spki_hash(spki: bytes) -> SpkiHash:
    """Digest a SubjectPublicKeyInfo, octets as they are."""
    return SpkiHash(hashlib.sha256(spki).hexdigest())


def key_facts(key: object) -> KeyFacts:
    """Say what kind of public key this is.

    Raises:
        MalformedRequest: a kind that cannot sign its own request, or that nobody here knows.
    """
    if isinstance(key, ec.EllipticCurvePublicKey):
        name = _CURVES.get(key.curve.name, key.curve.name)
        return KeyFacts("EC", name, key.key_size)
    if isinstance(key, rsa.RSAPublicKey):
        return KeyFacts("RSA", f"RSA-{key.key_size}", key.key_size)
    for kind, facts in _PLAIN_KEYS:
        if isinstance(key, kind):
            return facts
    raise MalformedRequest(
        "the key cannot sign, so possession of it cannot be shown in PKCS#10",
        advice="keys for encryption or key agreement need full CMC or RFC 9883",
    )


def _same_octets(key: object, spki: Der) -> None:
    encoded = key.public_bytes(  # type: ignore[attr-defined]  # key_facts has let only public keys through
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    if encoded != spki:
        raise MalformedRequest(
            "the public key changes when it is encoded again (RSA-PSS parameters, compressed point): "
            "send it as rsaEncryption or as an uncompressed point"
        )


def _hash_name(request: x509.CertificateSigningRequest) -> str:
    """Return the name of the hash that was signed, empty for algorithms that have none."""
    try:
        algorithm = request.signature_hash_algorithm
        name = algorithm.name.upper().replace("-", "") if algorithm is not None else ""
    except (UnsupportedAlgorithm, ValueError, TypeError):  # ValueError: RSASSA-PSS with parameters that make no sense
        raise MalformedRequest("the request is signed with an algorithm that is not supported") from None
    if name and name not in SIGNATURE_HASHES:
        raise ProofOfPossessionFailed(
            f"the request is signed with {name}; SHA-256, SHA-384 or SHA-512 is wanted", code="weak-signature"
        )
    return name


def _verify(request: x509.CertificateSigningRequest) -> str:
    """Check the proof of possession; return the hash's name."""
    name = _hash_name(request)
    if not request.is_signature_valid:
        raise ProofOfPossessionFailed("proof of possession failed: the signature does not verify with the key (POP)")
    return name


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the extensionRequest attribute asks for, field by field as in `Csr`."""

    san: tuple[GeneralName, ...] = ()
    extensions: tuple[RequestedExtension, ...] = ()
    key_usage: tuple[str, ...] | None = None
    extended_key_usage: tuple[str, ...] | None = None
    ca: bool = False


def _wishes(request: x509.CertificateSigningRequest, parts: asn1.RequestParts, bounds: Bounds) -> _Wishes:
    found = [values for oid, values in parts.attributes if oid in _EXTENSION_REQUESTS]
    if not found:
        return _Wishes()
    if len(found) > 1 or len(found[0]) != 1:
        raise MalformedRequest("more than one extensionRequest attribute (RFC 2985 §5.4.2)")
    with _readable():
        asked = list(request.extensions)
        wishes = _Wishes(
            extensions=tuple(
                RequestedExtension(wish.oid.dotted_string, wish.critical, Der(wish.value.public_bytes()))
                for wish in asked
                if wish.oid.dotted_string != asn1.OID_SAN
            )
        )
    for wish in asked:
        wishes = _read_wish(wishes, wish.value, bounds)
    return wishes


@contextmanager
def _readable() -> Iterator[None]:
    """Say of extensions that cannot be read that the request is at fault."""
    try:
        with warnings.catch_warnings():  # what a client sends is no news about our libraries
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, KeyError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise MalformedRequest(f"the requested extensions cannot be read: {_first_line(error)}") from None


def _read_wish(wishes: _Wishes, value: x509.ExtensionType, bounds: Bounds) -> _Wishes:
    match value:
        case x509.SubjectAlternativeName():
            return replace(wishes, san=general_names(value, bounds))
        case x509.KeyUsage():
            bits = KEY_USAGE_BITS if value.key_agreement else KEY_USAGE_BITS[:7]
            return replace(wishes, key_usage=tuple(bit for bit in bits if getattr(value, bit)))
        case x509.ExtendedKeyUsage():
            return replace(wishes, extended_key_usage=tuple(oid.dotted_string for oid in value))
        case x509.BasicConstraints():
            return replace(wishes, ca=value.ca)
    return wishes


def general_names(names: x509.SubjectAlternativeName, bounds: Bounds = DEFAULT_BOUNDS) -> tuple[GeneralName, ...]:
    """Read subject alternative names as a sorted set of text values.

    Raises:
        MalformedRequest: too many, or one that is not well-formed.
    """
    if len(names) > bounds.names_max:
        raise MalformedRequest(f"{len(names)} subject alternative names; at most {bounds.names_max} are taken")
    result = {_NAME_READERS[type(name)](name) for name in names}
    for name in result:
        if len(name.value) > bounds.name_max_chars or _CONTROL.search(name.value):
            raise MalformedRequest(f"a subject alternative name ({name.kind}) is too long or has control characters")
        if name.kind in _FORMS and not _FORMS[name.kind].fullmatch(name.value):
            raise MalformedRequest(f"the subject alternative name {name.kind}:{name.value!a} is not well-formed")
    return tuple(sorted(result))


_NAME_READERS: dict[type[x509.GeneralName], Callable[[Any], GeneralName]] = {
    x509.DNSName: lambda name: GeneralName("dns", name.value.lower() if name.value.isascii() else name.value),
    x509.IPAddress: lambda name: GeneralName("ip", str(name.value)),
    x509.UniformResourceIdentifier: lambda name: GeneralName("uri", name.value),
    x509.RFC822Name: lambda name: GeneralName("email", name.value),
    x509.RegisteredID: lambda name: GeneralName("rid", name.value.dotted_string),
    x509.DirectoryName: lambda name: GeneralName("dirname", name.value.public_bytes().hex()),
    x509.OtherName: lambda name: GeneralName("other", f"{name.type_id.dotted_string}:{name.value.hex()}"),
}
"""Every kind that cryptography reads; of the others it says itself that it does not."""


def _change(parts: asn1.RequestParts, bounds: Bounds) -> NameChange | None:
    """Read a ChangeSubjectName; the names in it are held to what holds for all names."""
    value = _single(parts, asn1.OID_CHANGE_SUBJECT_NAME, "more than one ChangeSubjectName (RFC 6402 §2.8)")
    if value is None:
        return None
    subject, san = asn1.changed_names(value)
    return NameChange(
        () if subject is None else _subject(subject, bounds), () if san is None else _san(san, parts.spki, bounds)
    )


def _san(names: Der, spki: Der, bounds: Bounds) -> tuple[GeneralName, ...]:
    """Read GeneralNames as the extension that they would be."""
    wanted = asn1.extensions_der([(asn1.OID_SAN, False, names)])
    with _readable():
        (found,) = x509.load_der_x509_csr(asn1.unsigned_request(spki, wanted)).extensions
    san = _read_wish(_Wishes(), found.value, bounds).san
    if not san:
        raise MalformedRequest("the subjectAlt of the ChangeSubjectName names nothing: leave it out (RFC 6402 §2.8)")
    return san


def _single(parts: asn1.RequestParts, oid: str, otherwise: str) -> asn1.Tlv | None:
    """Return the one value of an attribute; None when it is not there."""
    found = [values for kind, values in parts.attributes if kind == oid]
    if not found:
        return None
    if len(found) > 1 or len(found[0]) != 1:
        raise MalformedRequest(otherwise)
    return found[0][0]


def _binding(parts: asn1.RequestParts) -> str | None:
    many = "more than one challengePassword (RFC 7030 §3.5 puts one channel binding there)"
    value = _single(parts, asn1.OID_CHALLENGE_PASSWORD, many)
    if value is None:
        return None
    text = asn1.directory_string(value)
    if not 1 <= len(text) <= BINDING_MAX_CHARS:
        raise MalformedRequest(f"the challengePassword is empty or longer than {BINDING_MAX_CHARS} characters")
    return text


def _subject(name: Der, bounds: Bounds) -> tuple[NameAttribute, ...]:
    return tuple(_clean(attribute, bounds) for attribute in asn1.name_attributes(name))


def _clean(attribute: NameAttribute, bounds: Bounds) -> NameAttribute:
    if _CONTROL.search(attribute.value):
        raise MalformedRequest("the subject has control characters in it")
    if len(attribute.value) > bounds.name_max_chars:
        raise MalformedRequest("the subject has an attribute that is too long")
    return attribute


def _first_line(error: Exception) -> str:
    return re.sub(r"[^ -~]", "?", str(error).split("\n", 1)[0])[:160] or type(error).__name__
