"""`devicesim est`: the EST operations, for scripts and people."""

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
from devicesim.cli.options import (
    Decryption,
    Target,
    Who,
    allow_name_option,
    authentication_options,
    decryption_options,
    echo_json,
    json_option,
    key_type_option,
    read_bytes,
    san_option,
    server_options,
    write_public,
)
from devicesim.client import CaCerts, bootstrap
from devicesim.csr import KEY_TYPES, load_csr, parse_subject
from devicesim.device import Device, DeviceIdentity
from devicesim.errors import Unreachable, UsageProblem
from devicesim.explain import certificate_facts, certificate_lines, csrattrs_facts, csrattrs_lines
from devicesim.keystore import FileKeyStore
from devicesim.retry import Patience, retrying
from devicesim.wishes import LocalPolicy

T = TypeVar("T")

wait_option = click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0, 7 * 24 * 3600),
    default=0.0,
    metavar="SECONDS",
    help="Keep trying for so long while the server cannot be reached or the request waits for approval.",
)
out_option = click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The device's store.")


@click.group()
def est() -> None:
    """Talk to an EST server (RFC 7030)."""


@est.command()
@server_options
@click.option("--fingerprint", metavar="HEX", help="SHA-256 of the CA certificate, when there is no trust anchor yet.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write PEM there.")
@click.option("--all", "everything", is_flag=True, help="Write the intermediates too, not only the anchors.")
@json_option
def cacerts(target: Target, fingerprint: str | None, out: Path | None, *, everything: bool, as_json: bool) -> None:
    """Fetch the CA certificates; print the trust anchors as PEM.

    \b
    devicesim est cacerts --server https://127.0.0.1:8443 --fingerprint 5E:A0:… --out root.pem
    """
    if (fingerprint is None) == (target.trust is None):
        raise UsageProblem("give either --trust or --fingerprint", advice="the fingerprint is for the first time")
    found = _bootstrap(target, fingerprint) if fingerprint is not None else _cacerts(target)
    intermediates = found.intermediates(now())
    written = (*found.trust.explicit, *(intermediates if everything else ()))
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in written)
    if out is not None:
        write_public(out, pem)
    if as_json:
        rows = [certificate_facts(certificate) for certificate in (*found.trust.explicit, *intermediates)]
        echo_json({"anchors": rows[: len(found.trust.explicit)], "intermediates": rows[len(found.trust.explicit) :]})
    elif out is None:
        click.echo(pem.decode("ascii"), nl=False)
    else:
        click.echo("\n".join(line for one in written for line in certificate_lines(one)))


def _bootstrap(target: Target, fingerprint: str) -> CaCerts:
    return bootstrap(
        target.url, fingerprint, label=target.label, tls=target.tls, timeout_seconds=target.timeout_seconds
    )


def _cacerts(target: Target) -> CaCerts:
    with target.client() as client:
        return client.cacerts()


@est.command()
@server_options
@authentication_options
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the DER there.")
@json_option
def csrattrs(
    target: Target,
    who: Who,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Say what the server would like to find in a request.

    \b
    devicesim est csrattrs --server https://127.0.0.1:8443 --trust root.pem
    """
    with target.client(who) as client:
        wishes = client.csrattrs()
    if out is not None:
        write_public(out, wishes.der)
    if as_json:
        echo_json(csrattrs_facts(wishes))
    else:
        click.echo("\n".join(csrattrs_lines(wishes)))


@est.command()
@server_options
@authentication_options
@key_type_option
@click.option("--subject", metavar="NAME", help="Device id, or a whole subject: 'CN=sn-00042,O=Acme'.")
@san_option
@allow_name_option
@click.option(
    "--csr", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help="A request made elsewhere."
)
@out_option
@wait_option
@json_option
def enroll(
    target: Target,
    who: Who,
    key_type: str | None,
    subject: str | None,
    san: tuple[str, ...],
    allow_name: tuple[str, ...],
    csr: Path | None,
    out: Path | None,
    wait_seconds: float,
    *,
    as_json: bool,
) -> None:
    """Get the first certificate: make a key in DIR, enrol it, check the answer, install it.

    After an error or a lost answer run it again: the same key is enrolled. A device with a valid certificate keeps it.

    \b
    devicesim est enroll --server https://127.0.0.1:8443 --trust root.pem --user line-1 --password-file pw \\
        --subject sn-00042 --out devices/sn-00042
    """
    with target.client(who) as client:
        if csr is not None:
            _reject_with_csr(subject, san, key_type, out)
            data = _csr_bytes(csr)
            _print_certificate(_patiently(lambda: client.simpleenroll(data), wait_seconds), as_json=as_json)
            return
        policy = LocalPolicy(tuple(KEY_TYPES) if key_type is None else (key_type,), allow_name)
        device = _device(out, subject, who.passphrase(), policy)
        before = device.identity
        identity = _patiently(lambda: device.enroll(client, key_type=key_type or "EC-P256", san=san), wait_seconds)
    _print_identity(identity, _what_happened(before, identity), as_json=as_json)


@est.command()
@server_options
@authentication_options
@click.option(
    "--csr", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help="A request made elsewhere."
)
@click.option("--same-key", is_flag=True, help="Keep the key; most servers want a new one.")
@out_option
@wait_option
@json_option
def reenroll(
    target: Target,
    who: Who,
    csr: Path | None,
    out: Path | None,
    wait_seconds: float,
    *,
    same_key: bool,
    as_json: bool,
) -> None:
    """Renew the certificate in DIR with a new key; the old one authenticates, and stays in use until then.

    \b
    devicesim est reenroll --server https://127.0.0.1:8443 --trust root.pem --out devices/sn-00042
    """
    with target.client(who) as client:
        if csr is not None:
            _reject_with_csr(None, (), None, out)
            data = _csr_bytes(csr)
            _print_certificate(_patiently(lambda: client.simplereenroll(data), wait_seconds), as_json=as_json)
            return
        device = _device(out, None, who.passphrase(), LocalPolicy())
        identity = _patiently(lambda: device.renew(client, new_key=not same_key), wait_seconds)
    _print_identity(identity, "renewed", as_json=as_json)


@est.command()
@server_options
@authentication_options
@key_type_option
@click.option("--subject", metavar="NAME", help="Device id, or a whole subject: 'CN=sn-00042,O=Acme'.")
@san_option
@allow_name_option
@decryption_options
@out_option
@wait_option
@json_option
def serverkeygen(
    target: Target,
    who: Who,
    decryption: Decryption,
    key_type: str | None,
    subject: str | None,
    san: tuple[str, ...],
    allow_name: tuple[str, ...],
    out: Path | None,
    wait_seconds: float,
    *,
    as_json: bool,
) -> None:
    """Get a key that the server makes, with its certificate: for a device that cannot make its own.

    With --decrypt-key-id or --decrypt-cert the key is sealed for the device, and one that comes in clear is refused.
    A lost answer loses the key in it; run it again for another one.

    \b
    devicesim est serverkeygen --server https://127.0.0.1:8443 --trust root.pem --label made \\
        --user line-1 --password-file pw --subject sn-00042 --out devices/sn-00042
    """
    decryptor = decryption.decryptor(who)
    policy = LocalPolicy(tuple(KEY_TYPES) if key_type is None else (key_type,), allow_name)
    with target.client(who) as client:
        device = _device(out, subject, who.passphrase(), policy)
        identity = _patiently(
            lambda: device.receive(client, key_type=key_type or "EC-P256", san=san, decryptor=decryptor), wait_seconds
        )
    _print_identity(identity, "has a key made by the server", as_json=as_json)


# --- parts ----------------------------------------------------------------------------------------------------------


def _device(out: Path | None, subject: str | None, passphrase: bytes | None, policy: LocalPolicy) -> Device:
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
            return Device(str(found.value), store=store, clock=now, policy=policy, subject=name)
    raise UsageProblem("the subject names no device", advice="it needs a CN or a serialNumber")


def _reject_with_csr(subject: str | None, san: tuple[str, ...], key_type: str | None, out: Path | None) -> None:
    if subject or san or key_type or out:
        raise UsageProblem(
            "--csr brings its own key and names", advice="leave out --subject, --san, --key-type and --out"
        )


def _csr_bytes(path: Path) -> bytes:
    return load_csr(read_bytes(path)).public_bytes(Encoding.DER)


def _patiently(action: Callable[[], T], wait_seconds: float) -> T:
    patience = Patience(attempts=10_000 if wait_seconds else 1, total_seconds=wait_seconds)
    return retrying(action, sleep=time.sleep, random=random.random, patience=patience, tell=_tell)


def _tell(error: Unreachable, seconds: float) -> None:
    click.echo(f"{error}; trying again in {seconds:.0f} s", err=True)


def _print_certificate(certificate: x509.Certificate, *, as_json: bool) -> None:
    if as_json:
        echo_json(certificate_facts(certificate))
    else:
        click.echo(certificate.public_bytes(Encoding.PEM).decode("ascii"), nl=False)


def _what_happened(before: DeviceIdentity | None, after: DeviceIdentity) -> str:
    same = before is not None and before.certificate == after.certificate
    return "is enrolled already; nothing was asked for" if same else "enrolled"


def _print_identity(identity: DeviceIdentity, what: str, *, as_json: bool) -> None:
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
