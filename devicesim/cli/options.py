"""The options that several commands share, and what they become."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from devicesim.challenge import Credentials
from devicesim.client import ChannelBinding, EstClient
from devicesim.csr import KEY_TYPES, key_type
from devicesim.envelope import Decryptor, OwnCertificate, SharedKey, load_decryption_key
from devicesim.errors import ConfigInvalid, StorageError, UsageProblem
from devicesim.keystore import load_key
from devicesim.transport import ClientIdentity, TlsChoice
from devicesim.trust import TrustAnchors, load_certificates

_SECRET_MAX_BYTES = 4096

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
key_type_option = click.option(
    "--key-type",
    metavar="TYPE",
    callback=lambda _context, _option, value: None if value is None else key_type(value).name,
    help=f"Kind of key to make: {', '.join(KEY_TYPES)}. Default: what the server wishes, else EC-P256.",
)
san_option = click.option(
    "--san", multiple=True, metavar="NAME", help="Subject alternative name: dns:…, ip:…, uri:…, email:…; repeatable."
)
allow_name_option = click.option(
    "--allow-name",
    multiple=True,
    metavar="PATTERN",
    help="A name the server's CSR attributes may give this device, as dns:*.plant.example; repeatable.",
)
pop_option = click.option(
    "--pop",
    type=click.Choice(["required", "auto", "off"]),
    default="auto",
    help="Bind the request to its TLS connection: or else stop; where there is a binding (default); never.",
)


@dataclass(frozen=True, slots=True)
class Target:
    """Which server, and how to speak with it."""

    url: str
    trust: Path | None
    label: str
    tls: TlsChoice
    timeout_seconds: float
    redirect_to: tuple[str, ...]

    def client(self, who: Who | None = None, *, pop: ChannelBinding = "auto", store: Path | None = None) -> EstClient:
        """Return a client for it; it needs a trust anchor: the one given, else what the device in `store` learnt."""
        learnt = store / "trust.pem" if store is not None else None
        anchors = self.trust or (learnt if learnt and learnt.exists() else None)
        if anchors is None:
            raise UsageProblem("no trust anchor", advice="give --trust FILE (get it with `devicesim est cacerts`)")
        return EstClient(
            self.url,
            trust=TrustAnchors.from_file(anchors),
            label=self.label,
            tls=self.tls,
            timeout_seconds=self.timeout_seconds,
            credentials=who.credentials() if who else None,
            identity=who.identity() if who else None,
            redirect_origins=self.redirect_to,
            pop=pop,
        )


@dataclass(frozen=True, slots=True)
class Who:
    """Who is asking: a name and a password, a certificate and its key, or both."""

    user: str | None
    password_file: Path | None
    cert: Path | None
    key: Path | None
    passphrase_file: Path | None

    def credentials(self) -> Credentials | None:
        """Return the name and password to answer a challenge with."""
        secret = read_secret(self.password_file)
        if secret is None:
            if self.user is not None:
                raise UsageProblem("--user needs --password-file", advice="a password is not for the command line")
            return None
        return Credentials(self.user or "", secret)

    def identity(self) -> ClientIdentity | None:
        """Return the certificate and key to show in the handshake."""
        if self.cert is None and self.key is None:
            return None
        if self.cert is None or self.key is None:
            raise UsageProblem("--cert and --key belong together")
        key = load_key(read_bytes(self.key), self.key, self.passphrase())
        return ClientIdentity(load_certificates(self.cert), key)

    def passphrase(self) -> bytes | None:
        """Return the passphrase of private keys, read and written."""
        return read_secret(self.passphrase_file)


@dataclass(frozen=True, slots=True)
class Decryption:
    """How a key that the server makes is to be sealed for the device (RFC 7030 §4.4.1)."""

    decrypt_key_id: str | None
    decrypt_cert: Path | None
    decrypt_key: Path | None

    def decryptor(self, who: Who) -> Decryptor | None:
        """Return what opens the key; None when it is to come in clear."""
        if self.decrypt_key is None and self.decrypt_key_id is None and self.decrypt_cert is None:
            return None
        if self.decrypt_key is None or (self.decrypt_key_id is None) == (self.decrypt_cert is None):
            raise UsageProblem(
                "how is the key to be opened?",
                advice="give --decrypt-key with either --decrypt-key-id or --decrypt-cert",
            )
        if self.decrypt_cert is not None:
            key = load_decryption_key(read_bytes(self.decrypt_key), self.decrypt_key, who.passphrase())
            return OwnCertificate(load_certificates(self.decrypt_cert)[0], key)
        try:
            name, secret = bytes.fromhex(self.decrypt_key_id or ""), bytes.fromhex(_secret_text(self.decrypt_key))
        except ValueError:
            name = secret = b""
        if not name or len(secret) not in (16, 24, 32):
            raise ConfigInvalid(
                "the shared key or its name is not hexadecimal, or not of a right length",
                advice="a key has 16, 24 or 32 bytes",
            )
        return SharedKey(name, secret)


def _secret_text(path: Path) -> str:
    return (read_secret(path) or b"").decode("ascii", "replace").strip()


_SERVER = (
    click.option("--server", "url", required=True, metavar="URL", help="https://HOST:PORT of the EST server."),
    click.option(
        "--trust",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="PEM of the trust anchors; a device that has enrolled knows its own.",
    ),
    click.option("--label", default="", help="The CA label on the server."),
    click.option("--tls", type=click.Choice(["auto", "1.2", "1.3"]), default="auto", help="TLS version to speak."),
    click.option(
        "--timeout",
        "timeout_seconds",
        type=click.FloatRange(0.1, 600),
        default=30.0,
        metavar="SECONDS",
        help="For connecting, and for each exchange.",
    ),
    click.option(
        "--redirect-to",
        multiple=True,
        metavar="URL",
        help="Another https://HOST:PORT to which the server may redirect requests; repeatable.",
    ),
)
_AUTHENTICATION = (
    click.option("--user", metavar="NAME", help="Name for HTTP Digest or Basic."),
    click.option(
        "--password-file",
        type=click.Path(path_type=Path, allow_dash=True),
        metavar="FILE",
        help="Its password, on the first line; - is stdin.",
    ),
    click.option("--cert", type=click.Path(path_type=Path), metavar="FILE", help="Client certificate and chain."),
    click.option("--key", type=click.Path(path_type=Path), metavar="FILE", help="Its private key, PEM."),
    click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Passphrase of private keys, read and written.",
    ),
)


_DECRYPTION = (
    click.option("--decrypt-key-id", metavar="HEX", help="Name of a symmetric key that the server has too."),
    click.option("--decrypt-cert", type=click.Path(path_type=Path), metavar="FILE", help="A certificate to seal for."),
    click.option(
        "--decrypt-key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The symmetric key in hexadecimal, or the certificate's private key in PEM.",
    ),
)


def server_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add what every command needs that talks to a server, as one argument `target`."""
    return _gathered(command, "target", Target, _SERVER)


def authentication_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the ways to say who is asking, as one argument `who`."""
    return _gathered(command, "who", Who, _AUTHENTICATION)


def decryption_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the ways to have a key sealed, as one argument `decryption`."""
    return _gathered(command, "decryption", Decryption, _DECRYPTION)


def _gathered(
    command: Callable[..., object],
    name: str,
    kind: type[Target | Who | Decryption],
    options: Sequence[Callable[[Callable[..., object]], Callable[..., object]]],
) -> Callable[..., object]:
    """Let several options arrive as one value."""

    @functools.wraps(command)
    def gathered(**given: Any) -> object:  # noqa: ANN401 - each option has its own type, made by click
        parts = {part.name: given.pop(part.name) for part in dataclasses.fields(kind)}
        return command(**given, **{name: kind(**parts)})

    wrapped: Callable[..., object] = gathered
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def read_secret(path: Path | None) -> bytes | None:
    """Read the first line of a file, or of standard input for `-`."""
    if path is None:
        return None
    secret = read_bytes(path, _SECRET_MAX_BYTES).split(b"\n", 1)[0].rstrip(b"\r")
    if not secret:
        raise ConfigInvalid(f"{path} holds no secret", advice="put it on the first line")
    return secret


def wipe_secret(path: Path) -> None:
    """Overwrite a file and remove it, durably; what a file system or a flash chip copied is beyond reach."""
    try:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StorageError(
            f"the certificate is installed, but {path} could not be wiped: {error.strerror}", advice="remove it by hand"
        ) from error


def read_bytes(path: Path, max_bytes: int = 1 << 20) -> bytes:
    """Read a file of the user's, `-` being standard input."""
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(max_bytes)
        with path.open("rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}") from error


def write_public(path: Path, data: bytes) -> None:
    """Write a file that is no secret, all of it or nothing."""
    beside = path.with_name(path.name + ".new")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        raise ConfigInvalid(f"cannot write {path}: {error.strerror}") from error


def echo_json(data: Mapping[str, Any]) -> None:
    """Print an object."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True))
