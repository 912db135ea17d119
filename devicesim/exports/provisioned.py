"""One provisioned unit, as every export sees it: a neutral value that knows no ledger and no cloud.

Nothing in it is secret: no private key, no password. What is not known is the empty string.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

Fact = str | int | bytes | tuple[bytes, ...]
Facts = Mapping[str, Fact]


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A unit that has passed.

    Attributes:
        certificate, csr: DER.
        chain: DER of the issuers, from the certificate's own to the trust anchor.
        cert_serial, cert_sha256, spki_sha256: lower-case hexadecimal.
        not_before, not_after, provisioned_at: RFC 3339, UTC, with milliseconds.
        ledger_seq, ledger_head: the row of the ledger that says PASS, and its hash.
    """

    device_id: str
    serial: str
    batch: str
    model: str
    hw_rev: str
    mac: str
    se_id: str
    group: str
    certificate: bytes
    chain: tuple[bytes, ...]
    csr: bytes
    cert_serial: str
    cert_sha256: str
    spki_sha256: str
    issuer: str
    not_before: str
    not_after: str
    key_alg: str
    key_store: str
    site: str
    line: str
    station: str
    operator: str
    shift: str
    provisioned_at: str
    attempts: int
    outcome: str
    label: str
    ledger_seq: int
    ledger_head: str


FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Provisioned))
IN_THE_CERTIFICATE = frozenset(
    {"cert_serial", "cert_sha256", "spki_sha256", "issuer", "not_before", "not_after", "key_alg"}
)
"""What whoever holds the certificate holds too."""

_BINARY = frozenset({"certificate", "csr"})
_NUMBERS = frozenset({"attempts", "ledger_seq"})


def facts_of(unit: Provisioned, holds: frozenset[str] = frozenset(FIELDS)) -> dict[str, Fact]:
    """Return the facts of a unit that a format holds."""
    return {name: getattr(unit, name) for name in FIELDS if name in holds}


def as_json(facts: Facts) -> dict[str, Any]:
    """Return facts as JSON has them: octets in base64 (RFC 4648 §4)."""
    return {name: _to_json(value) for name, value in facts.items()}


def from_json(document: Mapping[str, Any]) -> dict[str, Fact]:
    """Return the facts of a JSON object; a field of another kind or name is a ValueError."""
    return {name: _from_json(name, value) for name, value in document.items()}


def pem(certificate: bytes) -> str:
    """Write a certificate as PEM, lines ended by \\n."""
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode("ascii")


def unpem(text: str) -> tuple[bytes, ...]:
    """Read PEM certificates, none for an empty text."""
    found = x509.load_pem_x509_certificates(text.encode()) if text else []
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in found)


def _to_json(value: Fact) -> str | int | list[str]:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, tuple):
        return [base64.b64encode(each).decode("ascii") for each in value]
    return value


def _from_json(name: str, value: object) -> Fact:
    if name not in FIELDS:
        raise ValueError(f"{name[:40]!r} is no field of a unit")
    if name in _NUMBERS and isinstance(value, int):
        return value
    if name == "chain" and isinstance(value, list):
        return tuple(_octets(each) for each in value)
    if name in _BINARY:
        return _octets(value)
    if isinstance(value, str) and name not in _NUMBERS and name != "chain":
        return value
    raise ValueError(f"{name} is of the wrong kind")


def _octets(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("base64 text expected")  # noqa: TRY004 - a value of a file's, not a type of the caller's
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
