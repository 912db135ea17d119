"""Requests and certificates as the policy sees them, without any octets."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from estserver.model import CertificateRecord, Csr, Der, KeyFacts, NameAttribute, Serial, SpkiHash
from estserver.policy.names import device_id

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
CN = "2.5.4.3"


def asked(*subject: tuple[str, str], **changes: Any) -> Csr:
    csr = Csr(
        der=Der(b"csr"),
        spki=Der(b"spki"),
        spki_sha256=SpkiHash("0" * 64),
        key=KeyFacts("EC", "P-256", 256),
        signature_hash="SHA256",
        subject=tuple(NameAttribute(*pair) for pair in subject or [(CN, "sn-1")]),
    )
    return replace(csr, **changes)


def previous(csr: Csr, **changes: Any) -> CertificateRecord:
    record = CertificateRecord(
        serial=Serial(7),
        certificate=Der(b"old"),
        sha256="",
        device=device_id(csr.subject[0].value) or "sn-1",  # type: ignore[arg-type]  # a device id either way
        profile="device",
        label="",
        operation="simpleenroll",
        requester="credential:x",
        spki_sha256=SpkiHash("1" * 64),
        key_name=csr.key.name,
        subject=csr.subject,
        san=csr.san,
        not_before=NOW - timedelta(days=100),
        not_after=NOW + timedelta(days=100),
        renew_after=NOW,
        issued_at=NOW - timedelta(days=100),
    )
    return replace(record, **changes)
