"""A certificate revocation list, written entry by entry (RFC 5280 §5).

Rules:
- Version 2, with the authority key identifier and the CRL number, neither critical; nextUpdate is always there; a list
  of nobody has no revokedCertificates at all (§5.1.2.6).
- An entry is serial, date and reason; a reason that says nothing is left out (§5.3.1).
- However long the list, a batch of its entries is in memory, no more: they go to a file, and what is signed is that
  file, mapped.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from estserver import asn1
from estserver.model import Der, Serial

REASON_CODES = {
    "keyCompromise": 1,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
    "privilegeWithdrawn": 9,
}
"""Reason → CRLReason (RFC 5280 §5.3.1); `unspecified` is said by saying nothing."""

_SEQUENCE, _INTEGER, _VERSION_2 = 0x30, 0x02, b"\x02\x01\x01"
_HEADER_MAX_BYTES = 6
_BATCH = 4096
_AKI = ExtensionOID.AUTHORITY_KEY_IDENTIFIER.dotted_string
_CRL_NUMBER = ExtensionOID.CRL_NUMBER.dotted_string
_REASON = CRLEntryExtensionOID.CRL_REASON.dotted_string

Sign = Callable[[bytes | memoryview], bytes]


class Revoked(NamedTuple):
    """What a list says of one certificate."""

    serial: Serial
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Head:
    """What a list says of itself.

    Attributes:
        issuer: Name of the CA; `authority_key` is its AuthorityKeyIdentifier, `algorithm` that of its signature.
    """

    issuer: Der
    authority_key: Der
    algorithm: Der
    number: int
    this_update: datetime
    next_update: datetime


def write(spool: BinaryIO, head: Head, entries: Iterable[Revoked], sign: Sign) -> tuple[int, int]:
    """Write a signed CertificateList into an empty file.

    Returns:
        the offset at which it begins, and how many entries it has; it ends where the file does.
    """
    known = b"".join(
        (
            _VERSION_2,
            head.algorithm,
            head.issuer,
            asn1.time_der(head.this_update),
            asn1.time_der(head.next_update),
        )
    )
    gap = len(known) + 3 * _HEADER_MAX_BYTES
    spool.seek(gap)
    count = _write_entries(spool, entries)
    listed = _header(spool.tell() - gap) if count else b""
    number = asn1.integer_der(head.number)
    extensions = asn1.extensions_der([(_AKI, False, head.authority_key), (_CRL_NUMBER, False, number)])
    spool.write(asn1.write_tlv(0xA0, extensions))
    begin = _put_before(spool, gap, known + listed)
    begin = _put_before(spool, begin, _header(spool.seek(0, 2) - begin))
    signature = asn1.write_tlv(0x03, b"\x00", _signature(spool, begin, sign))
    spool.write(head.algorithm + signature)
    return _put_before(spool, begin, _header(spool.seek(0, 2) - begin)), count


def _write_entries(spool: BinaryIO, entries: Iterable[Revoked]) -> int:
    count, batch = 0, list[bytes]()
    for serial, at, reason in entries:
        number = serial.to_bytes(serial.bit_length() // 8 + 1)
        batch.append(asn1.write_tlv(_SEQUENCE, bytes((_INTEGER, len(number))), number, _date_and_reason(at, reason)))
        if len(batch) == _BATCH:
            spool.write(b"".join(batch))
            count += len(batch)
            batch.clear()
    spool.write(b"".join(batch))
    return count + len(batch)


@lru_cache(_BATCH)
def _date_and_reason(at: datetime, reason: str) -> bytes:
    code = REASON_CODES.get(reason)
    if code is None:
        return asn1.time_der(at)
    return asn1.time_der(at) + asn1.extensions_der([(_REASON, False, Der(bytes((0x0A, 1, code))))])


def _header(length: int) -> bytes:
    """Write tag and length of a SEQUENCE whose content is elsewhere."""
    if length < 0x80:
        return bytes((_SEQUENCE, length))
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((_SEQUENCE, 0x80 | len(octets))) + octets


def _put_before(spool: BinaryIO, offset: int, octets: bytes) -> int:
    begin = offset - len(octets)
    spool.seek(begin)
    spool.write(octets)
    return begin


def _signature(spool: BinaryIO, begin: int, sign: Sign) -> bytes:
    """Sign from an offset to the end; the file is left there."""
    spool.flush()
    spool.seek(0, 2)
    mapped = mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ)
    with mapped, memoryview(mapped) as view, view[begin:] as signed:
        return sign(signed)
