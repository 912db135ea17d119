"""What the EST commands have in common: which device, which request, how long to go on, and how it is told."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from devicesim.cli import now
from devicesim.cli.options import Who, echo_json, read_bytes
from devicesim.csr import CsrDraft, load_csr, parse_subject, spki
from devicesim.device import Device, DeviceIdentity
from devicesim.errors import Unreachable, UsageProblem
from devicesim.explain import certificate_facts, certificate_lines
from devicesim.keystore import FileKeyStore, load_key
from devicesim.retry import Patience, retrying
from devicesim.wishes import LocalPolicy

T = TypeVar("T")


def device_at(out: Path | None, subject: str | None, passphrase: bytes | None, policy: LocalPolicy) -> Device:
    """Return the device whose store is at `out`, named by its subject or by the certificate it has."""
    if out is None:
        raise UsageProblem("where is the device to keep its key?", advice="give --out DIR, or --csr FILE")
    store = FileKeyStore(out, passphrase)
    if subject is None:
        current = store.current()
        if current is None:
            raise UsageProblem(
                "which device is it?", advice="give --subject DEVICE-ID, or the --out of an enrolled one"
            )
        name = current.certificate.subject
    else:
        name = parse_subject(subject)
    for oid in (NameOID.COMMON_NAME, NameOID.SERIAL_NUMBER):
        for found in name.get_attributes_for_oid(oid):
            return Device(str(found.value), store=store, clock=now, policy=policy, subject=name, tell=say)
    raise UsageProblem("the subject names no device", advice="it needs a CN or a serialNumber")


def reject_with_csr(subject: str | None, san: tuple[str, ...], key_type: str | None, out: Path | None) -> None:
    """Refuse what contradicts a request that is complete."""
    if subject or san or key_type or out:
        raise UsageProblem(
            "--csr brings its own key and names", advice="leave out --subject, --san, --key-type and --out"
        )


def given_request(path: Path, key_file: Path | None, who: Who) -> CsrDraft | bytes:
    """Read a request made elsewhere: as it was signed there, or to be signed again here by the key that it is for."""
    request = load_csr(read_bytes(path))
    if key_file is None:
        return request.public_bytes(Encoding.DER)
    key = load_key(read_bytes(key_file), key_file, who.passphrase())
    if spki(key) != spki(request):
        raise UsageProblem(f"{key_file} is not the key of {path}")
    return CsrDraft.resuming(request, key)


def trusted(device: Device) -> tuple[x509.Certificate, ...]:
    """Return the anchors a device trusts; none when it has no identity."""
    return device.identity.trust.explicit if device.identity else ()


def say(line: str) -> None:
    """Tell the user something that is no result."""
    click.echo(line, err=True)


def patiently(action: Callable[[], T], wait_seconds: float) -> T:
    """Do it; while it is "not now", again for so long, saying so."""
    patience = Patience(attempts=10_000 if wait_seconds else 1, total_seconds=wait_seconds)
    return retrying(action, sleep=time.sleep, random=random.random, patience=patience, tell=_tell)


def _tell(error: Unreachable, seconds: float) -> None:
    click.echo(f"{error}; trying again in {seconds:.0f} s", err=True)


def print_certificate(certificate: x509.Certificate, *, as_json: bool) -> None:
    """Print a certificate: PEM, or what a program wants to know with the PEM in it."""
    if as_json:
        echo_json({**certificate_facts(certificate), "pem": certificate.public_bytes(Encoding.PEM).decode("ascii")})
    else:
        click.echo(certificate.public_bytes(Encoding.PEM).decode("ascii"), nl=False)


def what_happened(before: DeviceIdentity | None, after: DeviceIdentity) -> str:
    """Say whether an enrolment brought something new."""
    same = before is not None and before.certificate == after.certificate
    return "is enrolled already; nothing was asked for" if same else "enrolled"


def print_identity(identity: DeviceIdentity, what: str, *, as_json: bool) -> None:
    """Print what a device is now, and where other programs find it."""
    paths = {
        "certificate_path": str(identity.certificate_path),
        "key_path": str(identity.key_path),
        "chain_path": str(identity.chain_path),
        "trust_path": str(identity.trust_path),
    }
    if as_json:
        echo_json({"device_id": identity.device_id, "result": what, **certificate_facts(identity.certificate), **paths})
        return
    click.echo(f"{identity.device_id} {what}")
    click.echo("\n".join([*certificate_lines(identity.certificate), f"  files    {identity.certificate_path.parent}"]))
