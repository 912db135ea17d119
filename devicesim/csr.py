"""Requests, made on the device: which key, which names, which extensions, bound to which connection.

Rules:
- A request is signed with the key in it (proof of possession, RFC 7030 §4.2.1).
- The channel binding is the challengePassword, standard base64, and is known only after the handshake: a `CsrDraft` is
  everything but that, and is signed anew for every connection that carries it (RFC 7030 §3.5).
- A re-enrolment repeats subject and subject alternative name byte for byte (RFC 7030 §4.2.2).
"""

from __future__ import annotations

import base64
import ipaddress
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID, ExtensionOID, NameOID

from devicesim import codec
from devicesim.codec import KeyWish
from devicesim.der import with_attributes
from devicesim.errors import ConfigInvalid, KeyStoreError, UsageProblem

PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)
_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512


@dataclass(frozen=True, slots=True)
class KeyType:
    """One kind of key a device can make.

    Attributes:
        name: as the user says it.
        wish: how a server names it in its CSR attributes.
        generate: makes one.
        digest: the hash its signatures use; None where the algorithm brings its own.
    """

    name: str
    wish: KeyWish
    generate: Callable[[], PrivateKey]
    digest: _Hash | None


def _elliptic(name: str, curve: ec.EllipticCurve, oid: str, digest: _Hash) -> KeyType:
    wish = KeyWish(codec.EC_PUBLIC_KEY, curve=oid)
    return KeyType(name, wish, lambda: ec.generate_private_key(curve), digest)


def _rsa(bits: int) -> KeyType:
    wish = KeyWish(codec.RSA_ENCRYPTION, bits=bits)
    return KeyType(f"RSA-{bits}", wish, lambda: rsa.generate_private_key(65537, bits), hashes.SHA256())


_ROWS = (
    _elliptic("EC-P256", ec.SECP256R1(), "1.2.840.10045.3.1.7", hashes.SHA256()),
    _elliptic("EC-P384", ec.SECP384R1(), "1.3.132.0.34", hashes.SHA384()),
    _elliptic("EC-P521", ec.SECP521R1(), "1.3.132.0.35", hashes.SHA512()),
    _rsa(2048),
    _rsa(3072),
    _rsa(4096),
    KeyType("Ed25519", KeyWish(codec.ED25519), ed25519.Ed25519PrivateKey.generate, None),
    KeyType("ML-DSA-44", KeyWish(codec.ML_DSA_44), mldsa.MLDSA44PrivateKey.generate, None),
    KeyType("ML-DSA-65", KeyWish(codec.ML_DSA_65), mldsa.MLDSA65PrivateKey.generate, None),
    KeyType("ML-DSA-87", KeyWish(codec.ML_DSA_87), mldsa.MLDSA87PrivateKey.generate, None),
)
KEY_TYPES: dict[str, KeyType] = {row.name: row for row in _ROWS}
"""Every kind of key a device can make, by name."""

_SIGNATURE_DIGESTS: dict[str, type[_Hash]] = {
    "1.2.840.10045.4.3.2": hashes.SHA256,
    "1.2.840.10045.4.3.3": hashes.SHA384,
    "1.2.840.10045.4.3.4": hashes.SHA512,
    "1.2.840.113549.1.1.11": hashes.SHA256,
    "1.2.840.113549.1.1.12": hashes.SHA384,
    "1.2.840.113549.1.1.13": hashes.SHA512,
}


def key_type(name: str) -> KeyType:
    """Return the row of a kind of key, by the name users give."""
    for known, row in KEY_TYPES.items():
        if known.lower() == name.lower():
            return row
    raise UsageProblem(f"unknown key type {name!r}", advice=f"one of {', '.join(KEY_TYPES)}")


def key_type_of(key: PrivateKey) -> str:
    """Return the name of the kind a private key is of."""
    return public_key_type(key.public_key())


def public_key_type(public: object) -> str:
    """Return the name of the kind a public key is of; one that is in no row is named for what it is."""
    if isinstance(public, ec.EllipticCurvePublicKey):
        names = {"secp256r1": "EC-P256", "secp384r1": "EC-P384", "secp521r1": "EC-P521"}
        return names.get(public.curve.name, public.curve.name)
    if isinstance(public, rsa.RSAPublicKey):
        return f"RSA-{public.key_size}"
    plain = type(public).__name__.removesuffix("PublicKey")
    return _PLAIN_NAMES.get(plain, plain)


_PLAIN_NAMES = {"MLDSA44": "ML-DSA-44", "MLDSA65": "ML-DSA-65", "MLDSA87": "ML-DSA-87"}


def digest_for(key: PrivateKey, signature_oids: Iterable[str] = ()) -> _Hash | None:
    """Return the hash to sign with: the one the server named if it fits the key, else the key's own (RFC 9908 §3.2)."""
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        return None
    family = "1.2.840.10045.4.3." if isinstance(key, ec.EllipticCurvePrivateKey) else "1.2.840.113549.1.1."
    for oid in signature_oids:
        if oid in _SIGNATURE_DIGESTS and oid.startswith(family):
            return _SIGNATURE_DIGESTS[oid]()
    row = KEY_TYPES.get(key_type_of(key))
    return row.digest if row else hashes.SHA256()


def spki(key: PrivateKey | x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """Return the SubjectPublicKeyInfo of whatever has one, for comparing keys by their octets."""
    try:
        return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyStoreError(f"the public key cannot be read: {error}") from error


# --- names ----------------------------------------------------------------------------------------------------------


_NAME_READERS: dict[str, Callable[[str], x509.GeneralName]] = {
    "dns": x509.DNSName,
    "ip": lambda text: x509.IPAddress(ipaddress.ip_address(text)),
    "uri": x509.UniformResourceIdentifier,
    "email": x509.RFC822Name,
}
_NAME_WRITERS: dict[type[x509.GeneralName], Callable[[Any], str]] = {
    x509.DNSName: lambda name: f"dns:{name.value.lower()}",
    x509.IPAddress: lambda name: f"ip:{name.value}",
    x509.UniformResourceIdentifier: lambda name: f"uri:{name.value}",
    x509.RFC822Name: lambda name: f"email:{name.value}",
    x509.DirectoryName: lambda name: f"dirname:{name.value.rfc4514_string()}",
    x509.OtherName: lambda name: f"other:{name.type_id.dotted_string}={name.value.hex()}",
    x509.RegisteredID: lambda name: f"rid:{name.value.dotted_string}",
}


def general_name(text: str) -> x509.GeneralName:
    """Read `dns:…`, `ip:…`, `uri:…` or `email:…`."""
    advice = "write dns:NAME, ip:ADDRESS, uri:URI or email:ADDRESS"
    kind, _, value = text.partition(":")
    reader = _NAME_READERS.get(kind.lower())
    if reader is None or not value:
        raise UsageProblem(f"not a subject alternative name: {text!r}", advice=advice)
    try:
        return reader(value)
    except ValueError as error:
        raise UsageProblem(f"not a subject alternative name: {text!r} ({error})", advice=advice) from error


def name_text(name: x509.GeneralName) -> str:
    """Return the text of a general name, as `general_name` reads it; case of DNS names does not matter."""
    return _NAME_WRITERS[type(name)](name)


def alternative_names(extensions: x509.Extensions) -> frozenset[str]:
    """Return the subject alternative names as a set of texts; empty when there are none."""
    try:
        return frozenset(map(name_text, extensions.get_extension_for_class(x509.SubjectAlternativeName).value))
    except x509.ExtensionNotFound:
        return frozenset()


def parse_subject(text: str) -> x509.Name:
    """Read a subject: RFC 4514 (`CN=sn-1,O=Acme`), or one bare word as the common name."""
    try:
        if "=" not in text:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        return x509.Name.from_rfc4514_string(text, {"serialNumber": NameOID.SERIAL_NUMBER, "E": NameOID.EMAIL_ADDRESS})
    except ValueError as error:
        raise UsageProblem(f"not a subject: {text!r} ({error})", advice="write it like 'CN=sn-00042,O=Acme'") from error


def san_extension(names: Iterable[str], *, critical: bool = False) -> x509.Extension[x509.ExtensionType]:
    """Make the extension that asks for these names."""
    value = x509.SubjectAlternativeName([general_name(name) for name in names])
    return x509.Extension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, critical, value)


# --- the draft ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CsrDraft:
    """A request that lacks nothing but its channel binding and its signature.

    Attributes:
        key: made on the device; signs the request.
        subject: the name asked for.
        extensions: the extensions asked for.
        digest: the hash to sign with, None where the key's algorithm brings its own.
        binding_required: the server wants the request bound to its connection (RFC 7030 §3.5).
        attributes: further attributes, each as dotted OID and one value in DER.
    """

    key: PrivateKey = field(repr=False)
    subject: x509.Name
    extensions: tuple[x509.Extension[x509.ExtensionType], ...] = ()
    digest: _Hash | None = None
    binding_required: bool = False
    attributes: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(cls, key: PrivateKey, subject: x509.Name | str, *, san: Iterable[str] = ()) -> CsrDraft:
        """Ask for a subject and alternative names for a key, nothing else."""
        names = tuple(san)
        extensions = (san_extension(names),) if names else ()
        name = parse_subject(subject) if isinstance(subject, str) else subject
        return cls(key, name, extensions, digest_for(key))

    @classmethod
    def renewing(cls, certificate: x509.Certificate, key: PrivateKey) -> CsrDraft:
        """Ask for the same names again, octet by octet, for this key (RFC 7030 §4.2.2)."""
        oid = ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        raw = codec.raw_extension(certificate, oid.dotted_string)
        if raw is None:
            return cls(key, certificate.subject, (), digest_for(key))
        critical = certificate.extensions.get_extension_for_oid(oid).critical
        extension = x509.Extension(oid, critical, x509.UnrecognizedExtension(oid, raw))
        return cls(key, certificate.subject, (extension,), digest_for(key))

    @classmethod
    def resuming(cls, request: x509.CertificateSigningRequest, key: PrivateKey) -> CsrDraft:
        """Take up a draft that was written down as a request without binding."""
        digest = request.signature_hash_algorithm
        known = digest if isinstance(digest, (hashes.SHA256, hashes.SHA384, hashes.SHA512)) else digest_for(key)
        extensions = tuple(raw_extension(extension) for extension in request.extensions)
        return cls(key, request.subject, extensions, known)

    def sign(self, binding: bytes | None = None) -> bytes:
        """Return the PKCS#10 in DER, bound to one connection when its channel binding is given (RFC 7030 §3.5)."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(self.subject)
        for extension in self.extensions:
            builder = builder.add_extension(extension.value, critical=extension.critical)
        if binding is not None:
            builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, base64.b64encode(binding))
        request = builder.sign(self.key, self.digest).public_bytes(Encoding.DER)
        return with_attributes(request, self.attributes, self._signature) if self.attributes else request

    def _signature(self, data: bytes) -> bytes:
        """Sign octets as the builder does."""
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            assert self.digest is not None
            return self.key.sign(data, ec.ECDSA(self.digest))
        if isinstance(self.key, rsa.RSAPrivateKey):
            assert self.digest is not None
            return self.key.sign(data, padding.PKCS1v15(), self.digest)
        return bytes(self.key.sign(data))


def raw_extension(extension: x509.Extension[x509.ExtensionType]) -> x509.Extension[x509.ExtensionType]:
    """Return an extension as octets, so that it is written again as it was read."""
    value = extension.value
    raw = value if isinstance(value, x509.UnrecognizedExtension) else None
    return x509.Extension(
        extension.oid, extension.critical, raw or x509.UnrecognizedExtension(extension.oid, value.public_bytes())
    )


def load_csr(data: bytes) -> x509.CertificateSigningRequest:
    """Read a PKCS#10 in PEM, DER or bare base64, as a user may have it in a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd name is the server's to judge
            if b"-----BEGIN" in data:
                return x509.load_pem_x509_csr(data)
            if data[:1] == b"0":
                try:
                    return x509.load_der_x509_csr(data)
                except ValueError:
                    return x509.load_der_x509_csr(codec.decode_body(data))
            return x509.load_der_x509_csr(codec.decode_body(data))
    except Exception as error:
        raise ConfigInvalid(f"not a certificate request: {error}", advice="expected PKCS#10 in PEM or DER") from error
