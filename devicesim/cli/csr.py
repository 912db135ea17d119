"""`devicesim csr`: make and explain certificate requests, offline."""

from __future__ import annotations

import os
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from devicesim import codec
from devicesim.cli.options import (
    allow_name_option,
    echo_json,
    json_option,
    key_type_option,
    read_bytes,
    read_secret,
    san_option,
    write_public,
)
from devicesim.codec import CsrAttrs
from devicesim.csr import KEY_TYPES, PrivateKey, key_type_of, load_csr, parse_subject
from devicesim.errors import ConfigInvalid, UsageProblem
from devicesim.explain import request_facts, request_lines
from devicesim.keystore import load_key
from devicesim.profile import Profile
from devicesim.wishes import LocalPolicy, OwnNames, choose_key_type, draft

EXIT_NO = 14
"""The answer to a yes/no question is no."""

profile_option = click.option(
    "--profile",
    "profile_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A profile of the server's (TOML): say what it would make of the request.",
)


@click.group()
def csr() -> None:
    """Make and explain certificate requests, offline."""


@csr.command()
@click.option(
    "--key",
    "key_path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The private key, PEM; made there (0600) when there is none.",
)
@click.option("--subject", required=True, metavar="NAME", help="Device id, or a whole subject: 'CN=sn-00042,O=Acme'.")
@san_option
@key_type_option
@click.option(
    "--from-csrattrs",
    "csrattrs_path",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Meet the wishes of an answer of /csrattrs, DER or base64.",
)
@allow_name_option
@profile_option
@click.option("--passphrase-file", type=click.Path(path_type=Path), metavar="FILE", help="Passphrase of the key.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the request there, PEM.")
@json_option
def new(
    key_path: Path,
    subject: str,
    san: tuple[str, ...],
    key_type: str | None,
    csrattrs_path: Path | None,
    allow_name: tuple[str, ...],
    profile_path: Path | None,
    passphrase_file: Path | None,
    out: Path | None,
    *,
    as_json: bool,
) -> int:
    """Make a request, and the key for it if there is none.

    \b
    devicesim csr new --key sn-00042.key --subject sn-00042 --san dns:sn-00042 --out sn-00042.csr
    """
    name = parse_subject(subject)
    wishes = CsrAttrs() if csrattrs_path is None else _csrattrs(csrattrs_path)
    policy = LocalPolicy(tuple(KEY_TYPES) if key_type is None else (key_type,), allow_name)
    own = OwnNames(_device_id(name), san, name)
    profile = None if profile_path is None else Profile.parse(read_bytes(profile_path))
    passphrase = read_secret(passphrase_file)
    if key_path.exists():
        key = load_key(read_bytes(key_path), key_path, passphrase)
        if key_type is not None and key_type_of(key) != key_type:
            raise UsageProblem(f"the key in {key_path} is {key_type_of(key)}, not {key_type}")
        made = draft(key, own, wishes, policy)
    else:
        key = KEY_TYPES[choose_key_type(wishes.key, key_type or "EC-P256", policy)].generate()
        made = draft(key, own, wishes, policy)  # before the key is written: a request that cannot be made leaves none
        _write_key(key_path, key, passphrase)
    request = x509.load_der_x509_csr(made.sign())
    pem = request.public_bytes(Encoding.PEM)
    if out is not None:
        write_public(out, pem)
    elif not as_json:
        click.echo(pem.decode("ascii"), nl=False)
    return _tell(request, profile, as_json=as_json, aloud=out is not None or as_json)


@csr.command()
@click.argument("request_path", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@profile_option
@json_option
def show(request_path: Path, profile_path: Path | None, *, as_json: bool) -> int:
    """Say in plain words what a request asks for: key, names, extensions, binding, signature.

    With --profile also what that profile would say; exit code 14 when it would refuse.

    \b
    devicesim csr show sn-00042.csr --profile certs/profiles/device.toml
    """
    request = load_csr(read_bytes(request_path))
    profile = None if profile_path is None else Profile.parse(read_bytes(profile_path))
    return _tell(request, profile, as_json=as_json, aloud=True)


# --- parts ----------------------------------------------------------------------------------------------------------


def _tell(request: x509.CertificateSigningRequest, profile: Profile | None, *, as_json: bool, aloud: bool) -> int:
    opinions = () if profile is None else profile.opinions(request)
    refused = any(opinion.verdict == "refused" for opinion in opinions)
    if as_json:
        rows = [{"what": opinion.what, "verdict": opinion.verdict} for opinion in opinions]
        echo_json(request_facts(request) | ({} if profile is None else {"profile": rows, "allowed": not refused}))
    elif aloud:
        click.echo("\n".join([*request_lines(request), *(f"profile     {opinion}" for opinion in opinions)]))
    elif opinions:
        click.echo("\n".join(map(str, opinions)), err=True)
    return EXIT_NO if refused else 0


def _csrattrs(path: Path) -> CsrAttrs:
    """Read CSR attributes from a file: DER as it is, or the base64 that travels."""
    data = read_bytes(path)
    return codec.parse_csrattrs(data if data[:1] == b"\x30" else codec.decode_body(data))


def _device_id(name: x509.Name) -> str:
    for oid in (NameOID.COMMON_NAME, NameOID.SERIAL_NUMBER):
        for found in name.get_attributes_for_oid(oid):
            return str(found.value)
    raise UsageProblem("the subject names no device", advice="it needs a CN or a serialNumber")


def _write_key(path: Path, key: PrivateKey, passphrase: bytes | None) -> None:
    """Write a new private key, 0600 from its first moment; one that is there is never touched."""
    protection: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        protection = BestAvailableEncryption(passphrase)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigInvalid(f"cannot write {path}: {error.strerror}") from error
