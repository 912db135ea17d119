"""`devicesim est`: the EST operations, for scripts and people."""

from __future__ import annotations

from pathlib import Path

import click
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.anchor import bootstrap
from devicesim.cacerts import CaCerts
from devicesim.cli import now
from devicesim.cli.asking import (
    device_at,
    given_request,
    patiently,
    print_certificate,
    print_identity,
    reject_with_csr,
    trusted,
    what_happened,
)
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
    pop_option,
    read_secret,
    san_option,
    server_options,
    wipe_secret,
    write_public,
)
from devicesim.client import ChannelBinding
from devicesim.csr import KEY_TYPES
from devicesim.errors import UsageProblem
from devicesim.explain import certificate_facts, certificate_lines, csrattrs_facts, csrattrs_lines
from devicesim.wishes import LocalPolicy

wait_option = click.option(
    "--wait",
    "--wait-seconds",
    "wait_seconds",
    type=click.FloatRange(0, 7 * 24 * 3600),
    default=0.0,
    metavar="SECONDS",
    help="Keep trying for so long while the server cannot be reached or the request waits for approval.",
)
csr_option = click.option(
    "--csr", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help="A request made elsewhere."
)
csr_key_option = click.option(
    "--csr-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The key of that request: it is signed again here, bound to its connection.",
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

    A new root is among them when the one that is trusted vouches for it, never otherwise.

    \b
    devicesim est cacerts --server https://127.0.0.1:8443 --fingerprint 5E:A0:… --out root.pem
    """
    if (fingerprint is None) == (target.trust is None):
        raise UsageProblem("give either --trust or --fingerprint", advice="the fingerprint is for the first time")
    found = _bootstrap(target, fingerprint) if fingerprint is not None else _cacerts(target)
    after = found.succession(now())
    if after.note:
        click.echo(after.note, err=True)
    anchors, intermediates = after.trust.explicit, found.intermediates(now())
    written = (*anchors, *(intermediates if everything else ()))
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in written)
    if out is not None:
        write_public(out, pem)
    if as_json:
        bags = {"anchors": anchors, "intermediates": intermediates}
        echo_json({name: [certificate_facts(one) for one in bag] for name, bag in bags.items()})
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
@csr_option
@csr_key_option
@pop_option
@click.option("--wipe", is_flag=True, help="Overwrite and delete the password file once the certificate is installed.")
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
    csr_key: Path | None,
    pop: ChannelBinding,
    out: Path | None,
    wait_seconds: float,
    *,
    wipe: bool,
    as_json: bool,
) -> None:
    """Get the first certificate: make a key in DIR, enrol it, check the answer, install it.

    After an error or a lost answer run it again: the same key is enrolled. A device with a valid certificate keeps it.

    \b
    devicesim est enroll --server https://127.0.0.1:8443 --trust root.pem --user line-1 --password-file pw \\
        --subject sn-00042 --out devices/sn-00042
    """
    if wipe and (who.password_file is None or str(who.password_file) == "-" or csr is not None):
        raise UsageProblem("--wipe is for the --password-file of a device that enrols", advice="leave it out")
    with target.client(who, pop=pop) as client:
        if csr is not None:
            reject_with_csr(subject, san, key_type, out)
            request = given_request(csr, csr_key, who)
            print_certificate(patiently(lambda: client.simpleenroll(request), wait_seconds), as_json=as_json)
            return
        policy = LocalPolicy(tuple(KEY_TYPES) if key_type is None else (key_type,), allow_name)
        device = device_at(out, subject, who.passphrase(), policy)
        before = device.identity
        identity = patiently(lambda: device.enroll(client, key_type=key_type or "EC-P256", san=san), wait_seconds)
        client.forget_password()
    if wipe and who.password_file is not None:
        wipe_secret(who.password_file)
    print_identity(identity, what_happened(before, identity), as_json=as_json)


@est.command()
@server_options
@authentication_options
@csr_option
@csr_key_option
@click.option("--same-key", is_flag=True, help="Keep the key; most servers want a new one.")
@pop_option
@out_option
@wait_option
@json_option
def reenroll(
    target: Target,
    who: Who,
    csr: Path | None,
    csr_key: Path | None,
    pop: ChannelBinding,
    out: Path | None,
    wait_seconds: float,
    *,
    same_key: bool,
    as_json: bool,
) -> None:
    """Renew the certificate in DIR with a new key; the old one authenticates, and stays in use until then.

    Without --trust the anchors in DIR count; they follow the CA from root to root.

    \b
    devicesim est reenroll --server https://127.0.0.1:8443 --out devices/sn-00042
    """
    with target.client(who, pop=pop, store=out) as client:
        if csr is not None:
            reject_with_csr(None, (), None, out)
            request = given_request(csr, csr_key, who)
            print_certificate(patiently(lambda: client.simplereenroll(request), wait_seconds), as_json=as_json)
            return
        device = device_at(out, None, who.passphrase(), LocalPolicy())
        identity = patiently(lambda: device.renew(client, new_key=not same_key), wait_seconds)
    print_identity(identity, "renewed", as_json=as_json)


@est.command()
@server_options
@click.option("--always", is_flag=True, help="Do it even when it is not due.")
@click.option(
    "--passphrase-file", type=click.Path(path_type=Path), metavar="FILE", help="Passphrase of the key in DIR."
)
@out_option
@json_option
def refresh(target: Target, passphrase_file: Path | None, out: Path | None, *, always: bool, as_json: bool) -> None:
    """Fetch the CA certificates of the device in DIR again, when they are due: monthly, sooner when one ends soon.

    A new root is trusted when the old one vouches for it; the old one stays until the new one has proven itself.

    \b
    devicesim est refresh --server https://127.0.0.1:8443 --out devices/sn-00042
    """
    device = device_at(out, None, read_secret(passphrase_file), LocalPolicy())
    before = trusted(device)
    with target.client(store=out) as client:
        identity = device.refresh(client, always=always)
    what = "trusts what it trusted" if before == trusted(device) else "trusts other CA certificates now"
    print_identity(identity, what, as_json=as_json)


@est.command()
@server_options
@authentication_options
@key_type_option
@click.option("--subject", metavar="NAME", help="Device id, or a whole subject: 'CN=sn-00042,O=Acme'.")
@san_option
@allow_name_option
@decryption_options
@pop_option
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
    pop: ChannelBinding,
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
    with target.client(who, pop=pop) as client:
        device = device_at(out, subject, who.passphrase(), policy)
        identity = patiently(
            lambda: device.receive(client, key_type=key_type or "EC-P256", san=san, decryptor=decryptor), wait_seconds
        )
    print_identity(identity, "has a key made by the server", as_json=as_json)
