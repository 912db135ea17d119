"""The little DER that no library writes for us: values of any tag, and requests with attributes of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from asn1crypto import core
from asn1crypto import csr as asn1_csr


def der_value(tag: int, *content: bytes) -> bytes:
    """Write one value: tag byte, minimal length, content (X.690 §10.1)."""
    body = b"".join(content)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + body


def oid_value(dotted: str) -> bytes:
    """Write an OBJECT IDENTIFIER."""
    return bytes(core.ObjectIdentifier(dotted).dump())


def with_attributes(request: bytes, attributes: Iterable[tuple[str, bytes]], sign: Callable[[bytes], bytes]) -> bytes:
    """Put attributes, each with one value, into a request that was built without them, and sign it again."""
    parsed = asn1_csr.CertificationRequest.load(request)
    info = parsed["certification_request_info"]
    there = [one.dump() for one in info["attributes"]]
    more = [der_value(0x30, oid_value(oid), der_value(0x31, value)) for oid, value in attributes]
    kept = [info[name].dump() for name in ("version", "subject", "subject_pk_info")]
    covered = der_value(0x30, *kept, der_value(0xA0, *sorted([*there, *more])))
    signature = der_value(0x03, b"\x00", sign(covered))
    return der_value(0x30, covered, parsed["signature_algorithm"].dump(), signature)
