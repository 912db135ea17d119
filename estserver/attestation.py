"""The attestation of a key in its request: id-aa-attestation (draft-ietf-lamps-csr-attestation).

    AttestationBundle ::= SEQUENCE { attestations SEQUENCE SIZE (1..MAX) OF AttestationStatement,
                                     certs SEQUENCE SIZE (1..MAX) OF LimitedCertChoices OPTIONAL }
    AttestationStatement ::= SEQUENCE { type OBJECT IDENTIFIER, … }

Rules:
- At most one attribute, and exactly one bundle in it, of this form; else the request is malformed.
- What the statements say is not judged: a request is decided on as if there were none. The bundle stays with the
  request, its digest and size go to the audit, nothing of it goes into the certificate.
"""

from __future__ import annotations

import hashlib

from estserver.asn1 import RequestParts, Tlv, read_children
from estserver.errors import MalformedRequest
from estserver.model import Attestation

OID_ATTESTATION = "1.2.840.113549.1.9.16.2.59"
STATEMENTS_MAX = CERTIFICATES_MAX = 64
_SEQUENCE, _OID = 0x30, 0x06


def of(parts: RequestParts) -> Attestation | None:
    """Return which attestation came with a request, if any.

    Raises:
        MalformedRequest: more than one, or one that is no bundle.
    """
    found = [values for oid, values in parts.attributes if oid == OID_ATTESTATION]
    if not found:
        return None
    if len(found) > 1 or len(found[0]) != 1:
        raise MalformedRequest("more than one attestation: one attribute with one AttestationBundle is taken")
    bundle = found[0][0]
    if not _is_bundle(bundle):
        raise MalformedRequest("the attestation is no AttestationBundle (draft-ietf-lamps-csr-attestation)")
    return Attestation(hashlib.sha256(bundle.octets).hexdigest(), len(bundle.octets))


def _is_bundle(value: Tlv) -> bool:
    lists = read_children(value.content, most=2) if value.tag == _SEQUENCE else []
    if not lists or any(one.tag != _SEQUENCE or not one.content for one in lists):
        return False
    read_children(lists[-1].content, most=CERTIFICATES_MAX)
    return all(map(_is_statement, read_children(lists[0].content, most=STATEMENTS_MAX)))


def _is_statement(value: Tlv) -> bool:
    fields = read_children(value.content, most=8) if value.tag == _SEQUENCE else []
    return len(fields) > 1 and fields[0].tag == _OID and bool(fields[0].content)
