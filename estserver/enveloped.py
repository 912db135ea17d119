"""How a private key is written that leaves encrypted: AsymmetricKeyPackage in SignedData in EnvelopedData.

Rules (RFC 7030 §4.4.2):
- The key package (RFC 5958 §2) is signed by whoever made the key, with signed attributes, in DER (RFC 5652 §5.3).
- What is encrypted is the bare SignedData value: the content type beside it, id-signedData, says so. A reader should
  take a whole ContentInfo too, since RFC 5652 §6.1 leaves it open.
- One recipient: a shared key (kekri), an RSA key (ktri) or a key for key agreement (kari).

Nothing is encrypted or signed in here; `estserver.sealing` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from estserver.asn1 import dotted, issuer_and_serial, octet_string, oid_der, read_children, read_tlv, write_tlv
from estserver.errors import MalformedRequest
from estserver.model import Der

_SEQUENCE, _SET, _INTEGER = 0x30, 0x31, 0x02
_SIGNED_DATA, _ENVELOPED_DATA = "1.2.840.113549.1.7.2", "1.2.840.113549.1.7.3"
_KEY_PACKAGE = "2.16.840.1.101.2.1.2.78.5"  # id-ct-KP-aKeyPackage, RFC 5958 §3
_CONTENT_TYPE, _MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"


def algorithm(oid: str, *parameters: Der) -> Der:
    """Write an AlgorithmIdentifier with the parameters given, or without any."""
    return Der(write_tlv(_SEQUENCE, oid_der(oid), *parameters))


def algorithm_oid(identifier: Der) -> str:
    """Return the dotted OID of an AlgorithmIdentifier."""
    return dotted(read_children(read_tlv(identifier)[0].content, most=2)[0].octets)


def oaep_parameters(digest: str, mask: str) -> Der:
    """Write RSAES-OAEP-params with this digest, for the mask too (RFC 4055 §4.1)."""
    inner = algorithm(digest)
    return Der(write_tlv(_SEQUENCE, write_tlv(0xA0, inner), write_tlv(0xA1, algorithm(mask, inner))))


def key_package(pkcs8: Der) -> Der:
    """Write an AsymmetricKeyPackage of one key: a SEQUENCE OF around the PKCS#8 (RFC 5958 §2)."""
    return Der(write_tlv(_SEQUENCE, pkcs8))


# --- SignedData -----------------------------------------------------------------------------------------------------


def signed_attributes(digest: bytes) -> Der:
    """Write what is signed: content type and digest of the package, as the SET OF that the signature covers (§5.4)."""
    kind = write_tlv(_SEQUENCE, oid_der(_CONTENT_TYPE), write_tlv(_SET, oid_der(_KEY_PACKAGE)))
    value = write_tlv(_SEQUENCE, oid_der(_MESSAGE_DIGEST), write_tlv(_SET, octet_string(digest)))
    return Der(write_tlv(_SET, *sorted((kind, value))))


def signed_data(
    package: Der,
    *,
    certificates: tuple[Der, ...],
    digest_algorithm: Der,
    attributes: Der,
    signature_algorithm: Der,
    signature: bytes,
) -> Der:
    """Write SignedData v3 over a key package (RFC 5652 §5.1); the first certificate is the signer's."""
    issuer, serial = issuer_and_serial(certificates[0])
    signer = write_tlv(
        _SEQUENCE,
        _version(1),
        _issuer_and_serial(issuer, serial),
        digest_algorithm,
        b"\xa0" + attributes[1:],  # IMPLICIT here, a SET OF where it is signed
        signature_algorithm,
        octet_string(signature),
    )
    content = write_tlv(_SEQUENCE, oid_der(_KEY_PACKAGE), write_tlv(0xA0, octet_string(package)))
    digests, bag = write_tlv(_SET, digest_algorithm), write_tlv(0xA0, *sorted(certificates))
    return Der(write_tlv(_SEQUENCE, _version(3), digests, content, bag, write_tlv(_SET, signer)))


# --- who can open it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecipientId:
    """How a certificate is named: by its SubjectKeyIdentifier, or else by issuer and serial number."""

    key_id: bytes | None
    issuer: Der
    serial: int


def read_issuer_and_serial(value: bytes) -> tuple[Der, int] | None:
    """Read an identifier as IssuerAndSerialNumber; None when it is none."""
    try:
        outer, end = read_tlv(value)
        fields = read_children(outer.content, most=2) if outer.tag == _SEQUENCE and end == len(value) else []
    except MalformedRequest:
        return None
    if [field.tag for field in fields] != [_SEQUENCE, _INTEGER]:
        return None
    return Der(fields[0].octets), int.from_bytes(fields[1].content, signed=True)


def kek_recipient(key_id: bytes, wrap: Der, wrapped: bytes) -> Der:
    """Write a KEKRecipientInfo (RFC 5652 §6.2.3)."""
    name = write_tlv(_SEQUENCE, octet_string(key_id))
    return Der(write_tlv(0xA2, _version(4), name, wrap, octet_string(wrapped)))


def transport_recipient(who: RecipientId, transport: Der, encrypted: bytes) -> Der:
    """Write a KeyTransRecipientInfo: version 2 with a key identifier, 0 with issuer and serial (RFC 5652 §6.2.1)."""
    if who.key_id is not None:
        version, name = _version(2), write_tlv(0x80, who.key_id)
    else:
        version, name = _version(0), _issuer_and_serial(who.issuer, who.serial)
    return Der(write_tlv(_SEQUENCE, version, name, transport, octet_string(encrypted)))


def agreement_recipient(who: RecipientId, originator: Der, agreement: Der, wrapped: bytes) -> Der:
    """Write a KeyAgreeRecipientInfo with the originator's public key in it (RFC 5652 §6.2.2, RFC 5753 §3.1.1).

    Args:
        originator: SubjectPublicKeyInfo, of which the tag changes.
    """
    name = _issuer_and_serial(who.issuer, who.serial)
    if who.key_id is not None:
        name = write_tlv(0xA0, octet_string(who.key_id))
    sender = write_tlv(0xA0, b"\xa1" + originator[1:])
    keys = write_tlv(_SEQUENCE, write_tlv(_SEQUENCE, name, octet_string(wrapped)))
    return Der(write_tlv(0xA1, _version(3), sender, agreement, keys))


def shared_info(wrap: Der, bits: int) -> Der:
    """Write ECC-CMS-SharedInfo: for which algorithm and length a key is derived (RFC 5753 §7.2)."""
    length = write_tlv(0xA2, octet_string(bits.to_bytes(4)))
    return Der(write_tlv(_SEQUENCE, wrap, length))


def enveloped_data(recipient: Der, cipher: Der, encrypted: bytes) -> Der:
    """Write ContentInfo with EnvelopedData for one recipient (RFC 5652 §6.1)."""
    plain = recipient[0] == _SEQUENCE and read_children(read_tlv(recipient)[0].content)[0].octets == b"\x02\x01\x00"
    content = write_tlv(_SEQUENCE, oid_der(_SIGNED_DATA), cipher, write_tlv(0x80, encrypted))
    enveloped = write_tlv(_SEQUENCE, _version(0 if plain else 2), write_tlv(_SET, recipient), content)
    return Der(write_tlv(_SEQUENCE, oid_der(_ENVELOPED_DATA), write_tlv(0xA0, enveloped)))


def _version(number: int) -> bytes:
    return write_tlv(_INTEGER, bytes((number,)))


def _issuer_and_serial(issuer: Der, serial: int) -> bytes:
    return write_tlv(_SEQUENCE, issuer, write_tlv(_INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, signed=True)))
