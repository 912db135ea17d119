"""Where a device keeps its key and its certificate, so that a power cut at any point loses neither.

A `FileKeyStore` is a directory:

    generations/0001/  key.pem cert.pem chain.pem trust.pem     one identity, complete and never changed;
                       fetched                                  when its CA certificates were
    current -> generations/0002                                 the one switch
    key.pem -> current/key.pem   (cert, chain, trust likewise)  paths that never change
    pending.pem                                                 key and request of an enrolment not finished

Rules:
- Everything is written beside, fsynced, read back and only then moved into place by one rename; the directory is
  fsynced after each move.
- Switching `current` is the only step that changes which identity is in use. Before it the old one stands and the
  pending request can be repeated with the same key; after it the new one stands.
- The generation before the current one is kept: the last known good.
- Directories are 0700 and files 0600; a key that others can read is not used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from devicesim import durable
from devicesim.csr import PrivateKey, key_type, load_csr, spki
from devicesim.errors import DeviceSimError, KeyStoreError, Locked, StorageError
from devicesim.mldsa import ExpandedKeyOnly, seed_form
from devicesim.trust import TrustAnchors

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG})
_NAMES = ("cert.pem", "key.pem", "chain.pem", "trust.pem")
_FILE_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A key and the request made with it, unsigned by any connection: what a retry repeats."""

    key: PrivateKey = field(repr=False)
    request: x509.CertificateSigningRequest


@dataclass(frozen=True, slots=True)
class StoredIdentity:
    """One complete identity as it lies in the store.

    Attributes:
        certificate: the device's own.
        chain: the intermediates, towards the anchor.
        trust: the anchors it was checked against.
        key: the private key.
        fetched_at: when the CA certificates were fetched, if that is known.
        directory: where its files are, and stay.
    """

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    trust: TrustAnchors
    key: PrivateKey = field(repr=False)
    fetched_at: datetime | None = None
    directory: Path | None = None


class KeyStore(Protocol):
    """Where a device's key lives; nothing outside asks for its bytes."""

    @property
    def directory(self) -> Path:
        """The directory of the files with unchanging paths."""

    def generate(self, key_type_name: str) -> PrivateKey:
        """Make a key of a kind named in `devicesim.csr.KEY_TYPES`."""

    def pending(self) -> PendingRequest | None:
        """Return the request that is under way, if any."""

    def write_pending(self, pending: PendingRequest) -> None:
        """Write a request down, durably, before anybody hears of it."""

    def drop_pending(self) -> None:
        """Forget the request under way."""

    def current(self) -> StoredIdentity | None:
        """Return the identity in use, if any."""

    def previous(self) -> StoredIdentity | None:
        """Return the last known good identity before the current one, if any."""

    def install(self, identity: StoredIdentity) -> StoredIdentity:
        """Make this the identity in use, all of it or nothing, and forget the request under way."""

    def refresh(self, identity: StoredIdentity) -> StoredIdentity:
        """Give the identity in use other CA certificates; the last known good one before it stays."""

    def fall_back(self) -> StoredIdentity:
        """Put the last known good identity back into use."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep every other process out while the store is changed."""


class FileKeyStore:
    """A key store in a directory, optionally with the key encrypted under a passphrase."""

    def __init__(self, directory: Path | str, passphrase: bytes | None = None) -> None:
        self.directory = Path(directory)
        self._passphrase = passphrase or None
        self._lock_depth = 0

    def __repr__(self) -> str:
        """Name the directory, never the passphrase."""
        return f"FileKeyStore({str(self.directory)!r})"

    def generate(self, key_type_name: str) -> PrivateKey:
        """Make a key of a kind named in `devicesim.csr.KEY_TYPES`."""
        return key_type(key_type_name).generate()

    # --- the request under way --------------------------------------------------------------------------------------

    def pending(self) -> PendingRequest | None:
        """Return the request under way; one whose certificate is installed already is done with."""
        path = self.directory / "pending.pem"
        with _storage_errors("read", path):
            if not path.exists():
                return None
            data = _read_secret(path)
        key = self._load_key(data, path)
        try:
            request = load_csr(data[data.index(b"-----BEGIN CERTIFICATE REQUEST") :])
        except (ValueError, DeviceSimError) as error:
            raise KeyStoreError(f"{path} is damaged", advice="delete it to start with a new key") from error
        current = self.current()
        if current is not None and spki(current.certificate) == spki(key):
            return None
        return PendingRequest(key, request)

    def write_pending(self, pending: PendingRequest) -> None:
        """Write key and request into one file, durably."""
        data = self._key_pem(pending.key) + pending.request.public_bytes(Encoding.PEM)
        with self.locked(), _storage_errors("write", self.directory):
            durable.replace(self.directory / "pending.pem", data)

    def drop_pending(self) -> None:
        """Forget the request under way."""
        with self.locked(), _storage_errors("write", self.directory):
            (self.directory / "pending.pem").unlink(missing_ok=True)
            durable.sync_directory(self.directory)

    # --- the identity in use ----------------------------------------------------------------------------------------

    def current(self) -> StoredIdentity | None:
        """Return the identity in use, if any."""
        link = self.directory / "current"
        with _storage_errors("read", link):
            return self._read(self.directory / link.readlink()) if link.is_symlink() else None

    def previous(self) -> StoredIdentity | None:
        """Return the last known good identity before the current one, if any."""
        with _storage_errors("read", self.directory):
            directory = self._previous_directory()
            return self._read(directory) if directory else None

    def install(self, identity: StoredIdentity) -> StoredIdentity:
        """Write a new generation, read it back, switch to it."""
        with self.locked(), _storage_errors("write", self.directory):
            written = self._put(identity, self._current_name())
            (self.directory / "pending.pem").unlink(missing_ok=True)
            durable.sync_directory(self.directory)
        return written

    def refresh(self, identity: StoredIdentity) -> StoredIdentity:
        """Give the identity in use other CA certificates; the last known good one before it stays."""
        with self.locked(), _storage_errors("write", self.directory):
            return self._put(identity, self._previous_name())

    def fall_back(self) -> StoredIdentity:
        """Put the last known good identity back into use."""
        with self.locked(), _storage_errors("write", self.directory):
            directory = self._previous_directory()
            if directory is None:
                raise KeyStoreError("there is no earlier identity to fall back to")
            earlier = self._read(directory)
            self._switch(directory)
        return earlier

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out; one process may enter again."""
        if self._lock_depth:
            self._lock_depth += 1
            try:
                yield
            finally:
                self._lock_depth -= 1
            return
        with _storage_errors("write", self.directory):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(handle, self.directory)
            self._lock_depth = 1
            yield
        finally:
            self._lock_depth = 0
            os.close(handle)

    # --- files ------------------------------------------------------------------------------------------------------

    def _put(self, identity: StoredIdentity, last_good: str) -> StoredIdentity:
        """Write a generation, read it back, switch to it; of the others one is kept."""
        directory = self._write_generation(identity)
        written = self._read(directory)
        if written.certificate != identity.certificate or spki(written.key) != spki(identity.certificate):
            raise KeyStoreError("what was written does not read back the same", advice="the disk may be failing")
        self._link_names()
        self._switch(directory)
        self._tidy({directory.name, last_good})
        return written

    def _write_generation(self, identity: StoredIdentity) -> Path:
        """Write everything beside, fsynced, then give it its number."""
        root = self.directory / "generations"
        root.mkdir(mode=0o700, exist_ok=True)
        beside = root / "new"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(mode=0o700)
        chain = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in identity.chain)
        durable.write_new(beside / "key.pem", self._key_pem(identity.key))
        durable.write_new(beside / "cert.pem", identity.certificate.public_bytes(Encoding.PEM) + chain)
        durable.write_new(beside / "chain.pem", chain + identity.trust.pem())
        durable.write_new(beside / "trust.pem", identity.trust.pem())
        if identity.fetched_at is not None:
            durable.write_new(beside / "fetched", f"{identity.fetched_at.isoformat()}\n".encode())
        durable.sync_directory(beside)
        numbered = root / f"{self._next_number():04d}"
        beside.rename(numbered)
        durable.sync_directory(root)
        return numbered

    def _read(self, directory: Path) -> StoredIdentity:
        key = self._load_key(_read_secret(directory / "key.pem"), directory / "key.pem")
        try:
            certificate, *chain = x509.load_pem_x509_certificates((directory / "cert.pem").read_bytes())
            anchors = tuple(x509.load_pem_x509_certificates((directory / "trust.pem").read_bytes()))
        except ValueError as error:
            raise KeyStoreError(f"a certificate in {directory} is damaged") from error
        if spki(certificate) != spki(key):
            raise KeyStoreError(f"key and certificate in {directory} do not belong together")
        return StoredIdentity(
            certificate, tuple(chain), TrustAnchors(anchors), key, _read_time(directory / "fetched"), directory
        )

    def _switch(self, directory: Path) -> None:
        """Let `current` point to a complete generation: the one step that matters."""
        beside = self.directory / "current.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path("generations") / directory.name)
        beside.replace(self.directory / "current")
        durable.sync_directory(self.directory)

    def _link_names(self) -> None:
        """Make the paths that never change."""
        for name in _NAMES:
            link = self.directory / name
            if not link.is_symlink():
                link.symlink_to(Path("current") / name)

    def _tidy(self, kept: set[str]) -> None:
        """Remove what is neither current nor the last known good."""
        for directory in (self.directory / "generations").iterdir():
            if directory.name not in kept:
                shutil.rmtree(directory, ignore_errors=True)

    def _numbers(self) -> list[str]:
        root = self.directory / "generations"
        return sorted((path.name for path in root.iterdir() if path.name.isdecimal()), key=int) if root.exists() else []

    def _next_number(self) -> int:
        return max(map(int, self._numbers()), default=0) + 1

    def _current_name(self) -> str:
        link = self.directory / "current"
        return link.readlink().name if link.is_symlink() else ""

    def _previous_name(self) -> str:
        current = self._current_name()
        earlier = [name for name in self._numbers() if current and int(name) < int(current)]
        return earlier[-1] if earlier else ""

    def _previous_directory(self) -> Path | None:
        name = self._previous_name()
        return self.directory / "generations" / name if name else None

    def _key_pem(self, key: PrivateKey) -> bytes:
        protection: KeySerializationEncryption = NoEncryption()
        if self._passphrase is not None:
            protection = BestAvailableEncryption(self._passphrase)
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)

    def _load_key(self, data: bytes, path: Path) -> PrivateKey:
        return load_key(data, path, self._passphrase)


def load_key(data: bytes, path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """Read a private key in PEM; the errors say what the user can do about it."""
    encrypted = b"ENCRYPTED" in data
    if encrypted and passphrase is None:
        raise KeyStoreError(f"the key in {path} is encrypted", advice="give the file that holds its passphrase")
    try:
        key = _read_key(data, passphrase if encrypted else None)
    except ExpandedKeyOnly as error:
        raise KeyStoreError(f"the key in {path} is {error}", advice="export it with its seed") from error
    except Exception as error:
        advice = "is the passphrase the right one?" if encrypted else "expected a private key in PEM"
        raise KeyStoreError(f"the key in {path} cannot be read", advice=advice) from error
    if not isinstance(key, PrivateKey):
        raise KeyStoreError(f"the key in {path} cannot sign")
    return key


def _read_key(data: bytes, passphrase: bytes | None) -> object:
    try:
        return load_pem_private_key(data, passphrase)
    except ValueError:
        seed = seed_form(data, passphrase)
        if seed is None:
            raise
        return load_der_private_key(seed, None)


@contextlib.contextmanager
def _storage_errors(action: str, path: Path) -> Iterator[None]:
    """Let only our own errors out: a full or failing disk is one thing, a file that is not ours another."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in _FULL:
            raise StorageError(f"cannot {action} {where}: {error.strerror}") from error
        raise KeyStoreError(
            f"cannot {action} {where}: {error.strerror or error}", advice="check the path and whose files they are"
        ) from error


def _lock(handle: int, directory: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Locked(f"another process is working on {directory}") from error


def _read_secret(path: Path) -> bytes:
    """Read a file only its owner may read."""
    with path.open("rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise KeyStoreError(f"{path} can be read by others", advice=f"chmod 600 {path}")
        return file.read(_FILE_MAX_BYTES)


def _read_time(path: Path) -> datetime | None:
    """Read an instant that may not have been written down; one that cannot be read was not."""
    try:
        read = datetime.fromisoformat(path.read_text("ascii").strip())
    except (FileNotFoundError, ValueError):
        return None
    return read if read.tzinfo else None
