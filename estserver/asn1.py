"""All ASN.1, CMS and base64 of the server: strict and bounded on input, plain DER on output.

Rules:
- A body is base64 of one DER value, whatever Content-Transfer-Encoding says; white space is ignored (RFC 8951 §3).
- DER is read with definite, minimal lengths only; nothing recurses, so nothing can be nested too deep.
- Octets that a signature or a comparison covers are sliced out as they arrived, never re-encoded.
- A certs-only message carries certificates and nothing else (RFC 7030 §4.1.3, RFC 5272 §4.1).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from asn1crypto import core, x509

from estserver.errors import MalformedRequest
from estserver.model import Der, NameAttribute

OID_EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
OID_EXTENSION_REQUEST_MS = "1.3.6.1.4.1.311.2.1.14"
OID_CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"  # noqa: S105 - an object identifier
OID_SMIME_CAPABILITIES = "1.2.840.113549.1.9.15"
OID_DECRYPT_KEY_ID = "1.2.840.113549.1.9.16.2.37"
OID_ASYMMETRIC_DECRYPT_KEY_ID = "1.2.840.113549.1.9.16.2.54"
OID_CHANGE_SUBJECT_NAME = "1.3.6.1.5.5.7.7.36"
OID_SAN = "2.5.29.17"

_SEQUENCE, _SET, _INTEGER, _OID, _CONTEXT_0, _CONTEXT_1 = 0x30, 0x31, 0x02, 0x06, 0xA0, 0xA1
_OID_MAX_BYTES = 64
OIDS_REMEMBERED_MAX = 512
_STRING_CODECS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be"}
_PEM = re.compile(rb"\A\s*-----BEGIN [A-Z ]+-----\s(.*?)-----END [A-Z ]+-----\s*\Z", re.DOTALL)
_WHITE_SPACE = bytes.maketrans(b"", b""), b" \t\r\n"


# --- base64 ---------------------------------------------------------------------------------------------------------


def decode_body(body: bytes) -> Der:
    """Turn the body of a request into DER (RFC 8951 §3); PEM armour is tolerated, raw DER is not.

    Raises:
        MalformedRequest: not base64, or nothing in it.
    """
    armoured = _PEM.match(body)
    text = (armoured[1] if armoured else body).translate(*_WHITE_SPACE)
    try:
        der = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        hint = "it looks like raw DER" if body[:1] == b"\x30" else "check for a cut or a URL-safe alphabet"
        raise MalformedRequest(f"the body is not base64 (RFC 4648 §4): {hint}") from None
    if not der:
        raise MalformedRequest("the body is empty: a base64 PKCS#10 request belongs there")
    return Der(der)


def encode_body(der: Der, *, columns: int | None = None) -> bytes:
    """Write a body as base64 with a final newline; on one line, or wrapped at `columns`."""
    text = base64.b64encode(der)
    if columns is None:
        return text + b"\n"
    return b"".join(text[i : i + columns] + b"\n" for i in range(0, len(text), columns))


# --- strict DER, one level at a time --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tlv:
    """One DER value: its tag byte, its content, and all its octets."""

    tag: int
    content: bytes
    octets: bytes


def read_tlv(data: bytes, offset: int = 0) -> tuple[Tlv, int]:
    """Read the DER value at `offset`; return it and the offset behind it (X.690 §10.1).

    Raises:
        MalformedRequest: cut, indefinite or non-minimal length, or a multi-byte tag.
    """
    try:
        tag, length = data[offset], data[offset + 1]
    except IndexError:
        raise MalformedRequest("the DER ends in the middle of a value") from None
    start = offset + 2
    if length >= 0x80:
        count = length & 0x7F
        length_octets = data[start : start + count]
        length = int.from_bytes(length_octets)
        if not 1 <= count <= 4 or len(length_octets) != count or length < 0x80 or length_octets[0] == 0:
            raise MalformedRequest("a DER length is not definite and minimal (X.690 §10.1)")
        start += count
    end = start + length
    if tag & 0x1F == 0x1F or end > len(data):
        raise MalformedRequest("the DER ends in the middle of a value")
    return Tlv(tag, data[start:end], data[offset:end]), end


def read_children(content: bytes, *, most: int = 1024) -> list[Tlv]:
    """Read the values inside a constructed one, at most `most` of them."""
    children, offset = [], 0
    while offset < len(content):
        child, offset = read_tlv(content, offset)
        children.append(child)
        if len(children) > most:
            raise MalformedRequest(f"more than {most} values in one place")
    return children


def _expect(tlv: Tlv, tag: int, what: str) -> Tlv:
    if tlv.tag != tag:
        raise MalformedRequest(f"{what} is missing or of another type")
    return tlv


def write_tlv(tag: int, *content: bytes) -> bytes:
    """Write one DER value: its tag byte, the minimal length, the content."""
    body = b"".join(content)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + body


# --- PKCS#10 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestParts:
    """The pieces of a CertificationRequestInfo that must not be re-encoded (RFC 2986 §4.1).

    Attributes:
        der: octets of the whole request.
        subject, spki: octets of the Name and the SubjectPublicKeyInfo.
        attributes: (dotted OID, values) in their order, each value as octets.
    """

    der: Der
    subject: Der
    spki: Der
    attributes: tuple[tuple[str, tuple[Tlv, ...]], ...]


def request_parts(der: Der) -> RequestParts:
    """Take a PKCS#10 request apart without interpreting it.

    Raises:
        MalformedRequest: the structure is not a CertificationRequest, or something follows it.
    """
    request, end = read_tlv(der)
    if end != len(der):
        raise MalformedRequest(f"{len(der) - end} bytes follow the request")
    fields = read_children(_expect(request, _SEQUENCE, "the CertificationRequest").content, most=3)
    if len(fields) != 3:
        raise MalformedRequest("a CertificationRequest has three parts (RFC 2986 §4.2)")
    info = read_children(_expect(fields[0], _SEQUENCE, "the CertificationRequestInfo").content, most=4)
    if len(info) != 4:
        raise MalformedRequest("version, subject, key and attributes [0] must all be there (RFC 2986 §4.1)")
    _expect(info[0], _INTEGER, "the version")
    _expect(info[1], _SEQUENCE, "the subject")
    _expect(info[2], _SEQUENCE, "the public key")
    _expect(info[3], _CONTEXT_0, "the attributes [0]")
    attributes = tuple(_attribute(tlv) for tlv in read_children(info[3].content, most=64))
    return RequestParts(der, Der(info[1].octets), Der(info[2].octets), attributes)


def _attribute(tlv: Tlv) -> tuple[str, tuple[Tlv, ...]]:
    fields = read_children(_expect(tlv, _SEQUENCE, "an attribute").content, most=2)
    if len(fields) != 2:
        raise MalformedRequest("an attribute has a type and a set of values")
    oid = _expect(fields[0], _OID, "an attribute's type")
    values = _expect(fields[1], _SET, "an attribute's set of values")
    return dotted(oid.octets), tuple(read_children(values.content, most=64))


def changed_names(value: Tlv) -> tuple[Der | None, Der | None]:
    """Take a ChangeSubjectName apart: octets of the new Name and of the new GeneralNames; None for what is left out.

    RFC 6402 §2.8 gives `subjectAlt` no tag, so that the first value in it tells it from a Name; the draft that replaces
    RFC 5272 tags it `[1]`.

    Raises:
        MalformedRequest: neither of them, one twice, or in another order.
    """
    parts = read_children(_expect(value, _SEQUENCE, "a ChangeSubjectName").content, most=2)
    tagged = [(_is_general_names(part), part) for part in parts]
    kinds = [names for names, _ in tagged]
    if kinds not in ([False], [True], [False, True]):
        raise MalformedRequest(
            "a ChangeSubjectName has a subject, a subjectAlt, or one after the other (RFC 6402 §2.8)"
        )
    subject = next((Der(part.octets) for names, part in tagged if not names), None)
    san = next((Der(write_tlv(_SEQUENCE, part.content)) for names, part in tagged if names), None)
    return subject, san


def _is_general_names(part: Tlv) -> bool:
    if part.tag == _CONTEXT_1:
        return True
    content = _expect(part, _SEQUENCE, "a name in the ChangeSubjectName").content
    return bool(content) and content[0] & 0xC0 == 0x80  # a Name is made of SETs, these have tags of their own


def unsigned_request(spki: Der, extensions: Der) -> Der:
    """Write a request that nobody signed, for the extensions in it to be read like those of any other."""
    wish = write_tlv(_SEQUENCE, oid_der(OID_EXTENSION_REQUEST), write_tlv(_SET, extensions))
    info = write_tlv(_SEQUENCE, b"\x02\x01\x00", b"\x30\x00", spki, write_tlv(_CONTEXT_0, wish))
    return Der(write_tlv(_SEQUENCE, info, algorithm_identifier(OID_EXTENSION_REQUEST), b"\x03\x01\x00"))


def capabilities(value: Tlv) -> list[tuple[str, str | None]]:
    """Read SMIMECapabilities (RFC 8551 §2.5.2): each algorithm, and the one that its parameters name (RFC 5753 §7)."""
    found = []
    for one in read_children(_expect(value, _SEQUENCE, "SMIMECapabilities").content, most=64):
        fields = read_children(_expect(one, _SEQUENCE, "a capability").content, most=2)
        inner = read_children(fields[1].content, most=2) if len(fields) == 2 and fields[1].tag == _SEQUENCE else []
        oid = _expect(fields[0] if fields else one, _OID, "a capability's algorithm")
        within = dotted(inner[0].octets) if inner and inner[0].tag == _OID else None
        found.append((dotted(oid.octets), within))
    return found


@lru_cache(OIDS_REMEMBERED_MAX)
def dotted(oid_octets: bytes) -> str:
    """Write an encoded OBJECT IDENTIFIER with dots."""
    if len(oid_octets) > _OID_MAX_BYTES:
        raise MalformedRequest("an object identifier is too long")
    try:
        found = str(core.ObjectIdentifier.load(oid_octets).dotted)
        if core.ObjectIdentifier(found).dump() == oid_octets:  # the library reads more than there is to be written
            return found
    except (ValueError, TypeError, IndexError):
        pass
    raise MalformedRequest("an object identifier is not encoded right")


def directory_string(value: Tlv) -> str:
    """Read a DirectoryString or IA5String of any type as text (RFC 5280 §4.1.2.4).

    Raises:
        MalformedRequest: another type, or octets that are no such text.
    """
    codec = _STRING_CODECS.get(value.tag)
    if codec is None:
        raise MalformedRequest(f"a name or password is not a character string (tag 0x{value.tag:02x})")
    try:
        return value.content.decode(codec)
    except UnicodeDecodeError:
        raise MalformedRequest("a character string holds bytes that are not of its type") from None


def name_attributes(name: Der) -> tuple[NameAttribute, ...]:
    """Read a distinguished name in its order.

    Raises:
        MalformedRequest: not a Name, or an RDN with several attributes, which no profile can express.
    """
    attributes = []
    outer, _ = read_tlv(name)
    for rdn in read_children(_expect(outer, _SEQUENCE, "a distinguished name").content, most=32):
        pairs = read_children(_expect(rdn, _SET, "an RDN").content, most=8)
        if len(pairs) != 1:
            raise MalformedRequest("an RDN of the subject has several attributes: put each into its own")
        fields = read_children(_expect(pairs[0], _SEQUENCE, "a name attribute").content, most=2)
        if len(fields) != 2:
            raise MalformedRequest("a name attribute has a type and a value")
        oid = dotted(_expect(fields[0], _OID, "a name attribute's type").octets)
        attributes.append(NameAttribute(oid, directory_string(fields[1])))
    return tuple(attributes)


# --- certificates ---------------------------------------------------------------------------------------------------

_UTC_TIME_ENDS = 2050
_NO_MARKS = str.maketrans("", "", "-:T")
_VERSION_3 = b"\xa0\x03\x02\x01\x02"


def tbs_certificate(
    *,
    serial: int,
    algorithm: Der,
    issuer: Der,
    not_before: datetime,
    not_after: datetime,
    subject: Der,
    spki: Der,
    extensions: Iterable[tuple[str, bool, Der]],
) -> Der:
    """Write what a CA signs (RFC 5280 §4.1.2), of parts that are taken over octet for octet.

    Args:
        algorithm: AlgorithmIdentifier of the signature to come.
        issuer, subject: Names; `extensions` as for `extensions_der`.
    """
    validity = write_tlv(_SEQUENCE, time_der(not_before), time_der(not_after))
    wrapped = write_tlv(0xA3, extensions_der(extensions))
    number = write_tlv(_INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1))
    return Der(write_tlv(_SEQUENCE, _VERSION_3, number, algorithm, issuer, validity, subject, spki, wrapped))


def certificate_parts(tbs: Der) -> tuple[Der, Der, Der]:
    """Take issuer, subject and SubjectPublicKeyInfo out of what was signed, as octets.

    Raises:
        MalformedRequest: the structure is not a TBSCertificate of version 3.
    """
    fields = read_children(_expect(read_tlv(tbs)[0], _SEQUENCE, "the TBSCertificate").content, most=8)
    if len(fields) != 8:
        raise MalformedRequest("a TBSCertificate of version 3 with extensions has eight parts")
    return Der(fields[3].octets), Der(fields[5].octets), Der(fields[6].octets)


def signed(tbs: Der, algorithm: Der, signature: bytes) -> Der:
    """Put a signature to what was signed: a Certificate (RFC 5280 §4.1.1)."""
    return Der(write_tlv(_SEQUENCE, tbs, algorithm, write_tlv(0x03, b"\x00", signature)))


def key_identifier(spki: Der) -> bytes:
    """Return the SHA-1 of the key's bits: an identifier, not a protection (RFC 5280 §4.2.1.2, method 1)."""
    bits = read_children(read_tlv(spki)[0].content, most=2)[1]
    return hashlib.sha1(bits.content[1:], usedforsecurity=False).digest()


def octet_string(data: bytes) -> Der:
    """Encode an OCTET STRING."""
    return Der(write_tlv(0x04, data))


def time_der(at: datetime) -> bytes:
    """Encode a time as UTCTime up to 2049 and as GeneralizedTime from then on (RFC 5280 §4.1.2.5)."""
    text = at.astimezone(UTC).isoformat()[:19].translate(_NO_MARKS).encode() + b"Z"
    return write_tlv(0x17, text[2:]) if 1950 <= at.year < _UTC_TIME_ENDS else write_tlv(0x18, text)


# --- answers --------------------------------------------------------------------------------------------------------

_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
LISTS = 0xA1
_DATA_CONTENT = bytes.fromhex("300b06092a864886f70d010701")


def certs_only(certificates: Iterable[Der], *, tag: int = _CONTEXT_0) -> Der:
    """Wrap certificates, or lists with `LISTS`, in a CMS message without content or signers (RFC 5652 §5.1)."""
    bag = write_tlv(tag, *sorted(certificates))  # DER orders a SET OF by its octets (X.690 §11.6)
    signed_data = write_tlv(_SEQUENCE, b"\x02\x01\x01", b"\x31\x00", _DATA_CONTENT, bag, b"\x31\x00")
    return Der(write_tlv(_SEQUENCE, _SIGNED_DATA, write_tlv(_CONTEXT_0, signed_data)))


@lru_cache(OIDS_REMEMBERED_MAX)
def oid_der(oid: str) -> Der:
    """Encode a dotted object identifier."""
    return Der(core.ObjectIdentifier(oid).dump())


def integer_der(value: int) -> Der:
    """Encode an INTEGER."""
    return Der(core.Integer(value).dump())


def extensions_der(extensions: Iterable[tuple[str, bool, Der]]) -> Der:
    """Encode Extensions (RFC 5280 §4.1.2.9) from (dotted OID, critical, value)."""
    return Der(
        write_tlv(
            _SEQUENCE,
            *(
                write_tlv(_SEQUENCE, oid_der(oid), b"\x01\x01\xff" if critical else b"", write_tlv(0x04, value))
                for oid, critical, value in extensions
            ),
        )
    )


def algorithm_identifier(oid: str, *, curve: str | None = None, null: bool = False) -> Der:
    """Encode an AlgorithmIdentifier with a curve, with NULL, or without parameters."""
    parameters = oid_der(curve) if curve else b"\x05\x00" if null else b""
    return Der(write_tlv(_SEQUENCE, oid_der(oid), parameters))


# --- names for comparison -------------------------------------------------------------------------------------------


def issuer_and_serial(certificate: Der) -> tuple[Der, int]:
    """Return the issuer's Name octets and the serial number of a certificate."""
    parsed = x509.Certificate.load(certificate)
    return Der(parsed.issuer.dump()), int(parsed.serial_number)
