"""Certification requests of every kind, sound and unsound, in DER of our own, so that nothing need be well-formed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from asn1crypto import core
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CN, SERIAL_NUMBER, ORGANIZATION = "2.5.4.3", "2.5.4.5", "2.5.4.10"
EXTENSION_REQUEST, CHALLENGE_PASSWORD = "1.2.840.113549.1.9.14", "1.2.840.113549.1.9.7"
CHANGE_SUBJECT_NAME = "1.3.6.1.5.5.7.7.36"
UTF8, PRINTABLE, IA5, T61, BMP = 0x0C, 0x13, 0x16, 0x14, 0x1E
_CODECS = {UTF8: "utf-8", PRINTABLE: "ascii", IA5: "ascii", T61: "latin-1", BMP: "utf-16-be"}

_RSA_SIGNATURES = {
    "MD5": "1.2.840.113549.1.1.4",
    "SHA1": "1.2.840.113549.1.1.5",
    "SHA224": "1.2.840.113549.1.1.14",
    "SHA256": "1.2.840.113549.1.1.11",
    "SHA384": "1.2.840.113549.1.1.12",
    "SHA512": "1.2.840.113549.1.1.13",
}
_ECDSA_SIGNATURES = {
    "SHA1": "1.2.840.10045.4.1",
    "SHA224": "1.2.840.10045.4.3.1",
    "SHA256": "1.2.840.10045.4.3.2",
    "SHA384": "1.2.840.10045.4.3.3",
    "SHA512": "1.2.840.10045.4.3.4",
}
_PLAIN_SIGNATURES: tuple[tuple[type, str], ...] = (
    (ed25519.Ed25519PrivateKey, "1.3.101.112"),
    (ed448.Ed448PrivateKey, "1.3.101.113"),
    (mldsa.MLDSA44PrivateKey, "2.16.840.1.101.3.4.3.17"),
    (mldsa.MLDSA65PrivateKey, "2.16.840.1.101.3.4.3.18"),
    (mldsa.MLDSA87PrivateKey, "2.16.840.1.101.3.4.3.19"),
)


# --- DER ------------------------------------------------------------------------------------------------------------


def tlv(tag: int, *content: bytes) -> bytes:
    body = b"".join(content)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + body


def sequence(*content: bytes) -> bytes:
    return tlv(0x30, *content)


def set_of(*content: bytes) -> bytes:
    return tlv(0x31, *sorted(content))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    octets = b""
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        octets += bytes(reversed(groups))
    return tlv(0x06, octets)


def text(value: str, tag: int = UTF8) -> bytes:
    return tlv(tag, value.encode(_CODECS[tag]))


def bits(octets: bytes) -> bytes:
    return tlv(0x03, b"\x00", octets)


def values(octets: bytes) -> list[bytes]:
    """The values inside a constructed one, read strictly: minimal lengths, nothing left over."""
    header, length = 2, octets[1]
    if length & 0x80:
        header += length & 0x7F
        length = int.from_bytes(octets[2:header])
        assert length >= 0x80
        assert octets[2]
    assert len(octets) == header + length, octets.hex()
    found, rest = [], octets[header:]
    while rest:
        count = rest[1] & 0x7F if rest[1] & 0x80 else 0
        size = int.from_bytes(rest[2 : 2 + count]) if count else rest[1]
        found.append(rest[: 2 + count + size])
        rest = rest[2 + count + size :]
    return found


def dotted(octets: bytes) -> str:
    return str(core.ObjectIdentifier.load(octets, strict=True).dotted)


# --- the parts of a request -----------------------------------------------------------------------------------------

Name = str | Sequence[tuple[str, str]] | bytes


def name(subject: Name, tag: int = UTF8) -> bytes:
    """A Name: from a common name, from (OID, text) pairs, or DER as it is."""
    if isinstance(subject, bytes):
        return subject
    pairs = [(CN, subject)] if isinstance(subject, str) else subject
    return sequence(*(set_of(sequence(oid(kind), text(value, tag))) for kind, value in pairs))


def extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    return sequence(oid(dotted), b"\x01\x01\xff" if critical else b"", tlv(0x04, value))


def known(value: x509.ExtensionType, *, critical: bool = False) -> bytes:
    return extension(value.oid.dotted_string, value.public_bytes(), critical=critical)


def usage(*names: str) -> x509.KeyUsage:
    every = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{bit: bit in names for bit in every})


def purposes(*dotted: str) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([x509.ObjectIdentifier(one) for one in dotted])


def names(*san: str) -> x509.SubjectAlternativeName:
    """`dns:a.example`, `ip:192.0.2.1`, `uri:urn:x`, `email:a@b.example`."""
    import ipaddress

    kinds = {
        "dns": x509.DNSName,
        "ip": lambda value: x509.IPAddress(ipaddress.ip_address(value)),
        "uri": x509.UniformResourceIdentifier,
        "email": x509.RFC822Name,
    }
    return x509.SubjectAlternativeName([kinds[kind](value) for kind, _, value in (one.partition(":") for one in san)])


def attribute(dotted: str, *values: bytes) -> bytes:
    return sequence(oid(dotted), set_of(*values))


def extension_request(*extensions: bytes) -> bytes:
    return attribute(EXTENSION_REQUEST, sequence(*extensions))


def challenge(value: str | bytes, tag: int = UTF8) -> bytes:
    """The channel binding's carrier; octets are written as base64."""
    return attribute(
        CHALLENGE_PASSWORD, text(base64.b64encode(value).decode() if isinstance(value, bytes) else value, tag)
    )


def spki(key: Any) -> bytes:
    public = key.public_key() if hasattr(key, "public_key") else key
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# --- the request ----------------------------------------------------------------------------------------------------


def info(subject: Name, public: bytes, *attributes: bytes, version: int = 0, tag: int = UTF8) -> bytes:
    return sequence(tlv(0x02, bytes((version,))), name(subject, tag), public, tlv(0xA0, *sorted(attributes)))


def signature(key: Any, octets: bytes, hash_name: str = "SHA256") -> tuple[bytes, bytes]:
    """AlgorithmIdentifier and signature."""
    for kind, dotted in _PLAIN_SIGNATURES:
        if isinstance(key, kind):
            return sequence(oid(dotted)), key.sign(octets)
    algorithm = {"MD5": hashes.MD5, "SHA1": hashes.SHA1, "SHA224": hashes.SHA224, "SHA256": hashes.SHA256,
                 "SHA384": hashes.SHA384, "SHA512": hashes.SHA512}[hash_name]()  # fmt: skip
    if isinstance(key, rsa.RSAPrivateKey):
        parts = sequence(oid(_RSA_SIGNATURES[hash_name]), b"\x05\x00")
        return parts, key.sign(octets, padding.PKCS1v15(), algorithm)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return sequence(oid(_ECDSA_SIGNATURES[hash_name])), key.sign(octets, ec.ECDSA(algorithm))


def request(
    key: Any,
    subject: Name = "sn-1",
    *attributes: bytes,
    san: Sequence[str] = (),
    extensions: Sequence[bytes] = (),
    binding: bytes | str | None = None,
    public: bytes | None = None,
    hash_name: str = "SHA256",
    tag: int = UTF8,
) -> bytes:
    """A signed request; `public` replaces the key's own SubjectPublicKeyInfo."""
    wanted = [*extensions, *([known(names(*san))] if san else [])]
    every = [
        *([extension_request(*wanted)] if wanted else []),
        *([challenge(binding)] if binding is not None else []),
        *attributes,
    ]
    signed = info(subject, public or spki(key), *every, tag=tag)
    algorithm, value = signature(key, signed, hash_name)
    return sequence(signed, algorithm, bits(value))


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def base64_lines(der: bytes, columns: int = 0, end: bytes = b"\n") -> bytes:
    """A body: on one line, or wrapped."""
    encoded = base64.b64encode(der)
    width = columns or len(encoded)
    return b"".join(encoded[i : i + width] + end for i in range(0, len(encoded), width))
