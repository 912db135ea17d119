"""Who signs OCSP answers for a CA: a key of the server's own and a certificate for nothing else, renewed by itself.

Rules:
- The certificate is issued by the CA whose certificates it answers for, with the purpose OCSPSigning alone and
  id-pkix-ocsp-nocheck, and lives a month: it cannot be taken back (RFC 6960 §4.2.2.2.1).
- It is reserved, signed and recorded as any other; its name is one that no device gets.
- Key and certificate are one file, replaced as a whole: who reads it finds two that belong together.
- The CA's key is not needed to answer, only to renew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from estserver import csr
from estserver.ca import SERIAL_BYTES, IssuingCa, serial_from, write_name
from estserver.errors import ConfigError, InternalError
from estserver.inventory import Inventory
from estserver.keys import FileSigner
from estserver.model import Der, DeviceId, Extension, Grant, NameAttribute, Operation, Reservation
from estserver.ocsp import Delegate
from estserver.policy.names import device_id

LIFETIME = timedelta(days=30)
BACKDATE = timedelta(minutes=5)
PROFILE = "ocsp"
_COMMON_NAME = "2.5.4.3"
_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
_EXTENSIONS = (
    Extension(ExtensionOID.KEY_USAGE.dotted_string, critical=True, value=Der(_USAGE.public_bytes())),
    Extension(
        ExtensionOID.EXTENDED_KEY_USAGE.dotted_string,
        critical=False,
        value=Der(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]).public_bytes()),
    ),
    Extension(ExtensionOID.OCSP_NO_CHECK.dotted_string, critical=False, value=Der(x509.OCSPNoCheck().public_bytes())),
)


def responder_name(key_id: str, server_id: str) -> DeviceId:
    """Return the name of a server's responder for a CA's key; no device gets it."""
    name = device_id(f"ocsp-{key_id[:8]}-{server_id}"[:64].rstrip("._-"))
    assert name is not None  # both parts are made of what a device id is made of
    return name


def delegate_path(home: Path, key_id: str) -> Path:
    """Return the file of a CA's responder."""
    return home / "private" / f"ocsp-{key_id}.pem"


@dataclass(slots=True)
class DelegateFile:
    """A responder's file, read again when it was replaced."""

    path: Path
    _read: tuple[tuple[int, int], Delegate] | None = field(default=None, repr=False)

    def current(self) -> Delegate | None:
        """Return who signs; None before there is one.

        Raises:
            ConfigError: the file is there and cannot be used.
        """
        try:
            found = os.stat(self.path)  # noqa: PTH116 - for every answer: no Path is made for it
        except FileNotFoundError:
            return None
        version = found.st_ino, found.st_mtime_ns
        if self._read is None or self._read[0] != version:
            signer = FileSigner.load(self.path)
            try:
                certificate = x509.load_pem_x509_certificate(self.path.read_bytes())
            except (OSError, ValueError):
                raise ConfigError(f"{self.path} holds no certificate", advice="remove it: another is made") from None
            self._read = version, Delegate(certificate, signer)
        return self._read[1]


def renew_due(
    ca: IssuingCa,
    file: DelegateFile,
    inventory: Inventory,
    *,
    server_id: str,
    now: datetime,
    random: Callable[[int], bytes],
) -> bool:
    """Make a new key and certificate when there is none that is good, or it has passed half of its life."""
    if _is_fresh(file, now):
        return False
    work = file.path.with_name(f".{file.path.name}.new")
    work.unlink(missing_ok=True)  # a run that was killed left it
    signer = FileSigner.generate(_kind_for(ca), work)
    name = responder_name(ca.key_id, server_id)
    grant = _grant(ca, signer, name, now)
    reservation = inventory.reserve(grant, serial_from(random(SERIAL_BYTES)), now)
    if not isinstance(reservation, Reservation):
        raise InternalError("a new key was certified before")
    issued = inventory.record(reservation, ca.issue(reservation), [], now)
    with work.open("ab") as out:
        out.write(x509.load_der_x509_certificate(issued.certificate).public_bytes(Encoding.PEM))
        out.flush()
        os.fsync(out.fileno())
    work.replace(file.path)
    return True


def _is_fresh(file: DelegateFile, now: datetime) -> bool:
    try:
        delegate = file.current()
    except ConfigError:
        return False  # whatever spoilt it, a new one can be made
    if delegate is None:
        return False
    begins, ends = delegate.certificate.not_valid_before_utc, delegate.certificate.not_valid_after_utc
    return begins <= now < begins + (ends - begins) / 2


def _kind_for(ca: IssuingCa) -> str:
    """Take a key that is quick to sign with, and no weaker than the CA's against a quantum computer."""
    classical = isinstance(ca.public_key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey))
    return "P-256" if classical else "ML-DSA-65"


def _grant(ca: IssuingCa, signer: FileSigner, name: DeviceId, now: datetime) -> Grant:
    subject = (NameAttribute(_COMMON_NAME, name),)
    builder = x509.CertificateSigningRequestBuilder().subject_name(write_name(subject))
    request = csr.parse(Der(signer.sign_request(builder).public_bytes(Encoding.DER)))
    ends = min(now + LIFETIME, ca.not_after)
    return Grant(
        operation=Operation.SIMPLEENROLL,
        label="",
        profile=PROFILE,
        requester="server:ocsp",
        credential=None,
        device=name,
        csr=request,
        subject=subject,
        san=(),
        extensions=_EXTENSIONS,
        not_before=max(now - BACKDATE, ca.not_before),
        not_after=ends,
        renew_after=now + (ends - now) / 2,
        holder="site",
    )
