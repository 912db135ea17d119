"""`estserver trust`: the manufacturers whose IDevIDs may bootstrap (implicit trust anchors, RFC 7030 §3.3.2)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.cli.arguments import DEVICE_PATTERN, NAME
from estserver.cli.common import actor, emit, home_option, json_option, now, open_inventory, read_file
from estserver.cli.trust_crl import trust_crl
from estserver.errors import ConfigError
from estserver.identity.paths import key_of
from estserver.model import Der, SpkiHash
from estserver.records import AnchorRecord, BlockedRecord

_COLUMNS = ("name", "subject", "not_after", "device_id", "devices", "sha256")
_BLOCKED_COLUMNS = ("spki_sha256", "subject", "reason", "created_at")


@click.group()
def trust() -> None:
    """Say whose factory certificates (IDevIDs) may enrol: manufacturers, and which of their devices may not."""


@trust.command("add")
@click.argument("name", type=NAME)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--device-id", default="{serial}", show_default=True, help="Device id made of the IDevID's serialNumber.")
@click.option(
    "--devices", multiple=True, type=DEVICE_PATTERN, help="Devices it may vouch for (repeat). [default: all its ids]"
)
@home_option
@json_option
def add(name: str, file: Path, device_id: str, devices: tuple[str, ...], home: Path, as_json: bool) -> None:
    """Let devices with an IDevID under the CA certificate in FILE enrol.

    \b
    estserver trust add acme acme-ca.pem --device-id 'acme-{serial}'
    """
    at = now()
    der = _ca_certificate(file, at)
    own = _pattern_of(device_id)
    record = AnchorRecord(name, der, device_id, devices or (own,), at)
    with open_inventory(home) as inventory:
        same = [anchor.name for anchor in inventory.anchors() if anchor.certificate == der]
        if same and name not in same:
            raise ConfigError(f"{file} is trusted already, as {same[0]}", advice="a device must have one id, not two")
        inventory.anchor_add(record, actor())
    emit(_row(record), as_json=as_json)


@trust.command("list")
@home_option
@json_option
def list_(home: Path, as_json: bool) -> None:
    """List the manufacturers that are trusted.

    \b
    estserver trust list --json
    """
    with open_inventory(home) as inventory:
        emit([_row(record) for record in inventory.anchors()], as_json=as_json, columns=_COLUMNS)


@trust.command("remove")
@click.argument("name", type=NAME)
@home_option
def remove(name: str, home: Path) -> None:
    """Trust a manufacturer no more; certificates its devices got from this CA stay.

    \b
    estserver trust remove acme
    """
    with open_inventory(home) as inventory:
        inventory.anchor_remove(name, actor(), now())


@trust.command("block")
@click.argument("idevid", metavar="FILE.pem|SHA256")
@click.option("--reason", required=True, help="Why; the device is told, and the audit.")
@home_option
@json_option
def block(idevid: str, reason: str, home: Path, as_json: bool) -> None:
    """Refuse one IDevID from now on, by its certificate or by the SHA-256 of its SubjectPublicKeyInfo.

    \b
    estserver trust block stolen.pem --reason 'stolen in transit'
    """
    spki_sha256, subject = _idevid(idevid)
    record = BlockedRecord(spki_sha256, subject, reason, now())
    with open_inventory(home) as inventory:
        inventory.blocked.add(record, actor())
    emit(asdict(record), as_json=as_json)


@trust.command("blocked")
@home_option
@json_option
def blocked(home: Path, as_json: bool) -> None:
    """List the IDevIDs that are refused.

    \b
    estserver trust blocked --json
    """
    with open_inventory(home) as inventory:
        emit([asdict(record) for record in inventory.blocked.all()], as_json=as_json, columns=_BLOCKED_COLUMNS)


@trust.command("unblock")
@click.argument("idevid", metavar="FILE.pem|SHA256")
@home_option
def unblock(idevid: str, home: Path) -> None:
    """Take an IDevID again.

    \b
    estserver trust unblock stolen.pem
    """
    with open_inventory(home) as inventory:
        inventory.blocked.remove(_idevid(idevid)[0], actor(), now())


def _idevid(text: str) -> tuple[SpkiHash, str]:
    """Read which key is meant: its hash, or the first certificate of a file; and the subject, where that is known."""
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return SpkiHash(text.lower()), ""
    advice = "name a file with the IDevID in PEM, or the SHA-256 of its SubjectPublicKeyInfo in hex"
    try:
        leaf = x509.load_pem_x509_certificates(read_file(Path(text), advice=advice))[0]
        subject, spki_sha256 = leaf.subject.rfc4514_string(), key_of(Der(leaf.public_bytes(Encoding.DER)))
    except ValueError:
        spki_sha256 = None
    if spki_sha256 is None:
        raise ConfigError(f"{text} holds no certificate in PEM that can be read", advice=advice)
    return spki_sha256, subject


trust.add_command(trust_crl)


def _ca_certificate(file: Path, at: datetime) -> Der:
    data = read_file(file, advice="name a file with one CA certificate in PEM")
    try:
        certificates = x509.load_pem_x509_certificates(data)
        problem = _unfit(certificates, at)
    except ValueError:
        certificates, problem = [], "holds no certificate in PEM that can be read"
    if problem:
        raise ConfigError(f"{file} {problem}", advice="name a file with one CA certificate of the manufacturer in PEM")
    return Der(certificates[0].public_bytes(Encoding.DER))


def _unfit(certificates: list[x509.Certificate], at: datetime) -> str:
    """Say why a file is no trust anchor; RFC 5280 §4.2.1.9 and §4.2.1.3."""
    if len(certificates) != 1:
        return f"holds {len(certificates)} certificates, not one"
    (certificate,) = certificates
    if at > certificate.not_valid_after_utc:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "is not a CA certificate"
    except x509.ExtensionNotFound:
        return "is not a CA certificate: it has no basicConstraints"
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return ""
    return "" if usage.key_cert_sign else "may not sign certificates: its keyUsage lacks keyCertSign"


def _pattern_of(device_id: str) -> str:
    """Turn `acme-{serial}` into `acme-*`: what its devices are called."""
    pattern = device_id.replace("{serial}", "*")
    if device_id.count("{serial}") != 1 or not re.fullmatch(r"[a-z0-9._*-]{1,64}", pattern) or pattern.count("*") != 1:
        raise click.UsageError(f"--device-id {device_id!r} must hold {{serial}} once, and else only a-z 0-9 . _ -")
    return pattern


def _row(record: AnchorRecord) -> dict[str, object]:
    certificate = x509.load_der_x509_certificate(record.certificate)
    return {
        "name": record.name,
        "subject": certificate.subject.rfc4514_string(),
        "not_after": certificate.not_valid_after_utc,
        "device_id": record.device_id,
        "devices": record.devices,
        "sha256": hashlib.sha256(record.certificate).hexdigest(),
        "created_at": record.created_at,
    }


trust.add_command(trust_crl)
