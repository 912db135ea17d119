"""The station: its certificate, whom it trusts, and the doors at which its units ask for theirs.

Most units are asked for by the station, as registration authority, over one connection that each slot keeps. A unit
with a one-time password or a factory certificate asks for itself, over a connection of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

from cryptography import x509

from devicesim.address import EstAddress
from devicesim.cacerts import CaCerts
from devicesim.challenge import Credentials
from devicesim.client import EstClient
from devicesim.codec import CsrAttrs
from devicesim.csr import CsrDraft, spki
from devicesim.errors import ConfigInvalid, DeviceSimError, KeyStoreError
from devicesim.keystore import load_key
from devicesim.line.batch import ByIdevid, ByOneTimePassword, EnrolBy
from devicesim.line.findings import Finding, InputInvalid, read_bounded
from devicesim.line.settings import Est as EstSection
from devicesim.line.settings import Settings
from devicesim.mqtt.connection import common_name
from devicesim.replies import http_date
from devicesim.transport import ClientIdentity, Connection, TlsSettings
from devicesim.trust import TrustAnchors, load_certificates

SECRET_MAX_BYTES = 1 << 16
T = TypeVar("T")


class Est(Protocol):
    """What a line asks of an EST client."""

    def cacerts(self) -> CaCerts:
        """Fetch the CA certificates (RFC 7030 §4.1)."""

    def csrattrs(self) -> CsrAttrs:
        """Ask what a request should contain (RFC 7030 §4.5)."""

    def simpleenroll(self, csr: CsrDraft | bytes) -> x509.Certificate:
        """Get a certificate for a request (RFC 7030 §4.2.1)."""

    def close(self) -> None:
        """Let go of the connection."""


Hear = Callable[[datetime], None]
"""Hears the EST server's own time with every answer."""
OpenEst = Callable[[str, EnrolBy, Hear], Est]
"""Opens the way to the EST server: under a label, as whoever asks."""


@dataclass(frozen=True)
class Door:
    """One kept way to the EST server; what the server tells everybody is asked once."""

    est: Est

    @cached_property
    def cacerts(self) -> CaCerts:
        """The CA certificates, of which a path is built."""
        return self.est.cacerts()

    @cached_property
    def csrattrs(self) -> CsrAttrs:
        """What a request should contain."""
        return self.est.csrattrs()


@dataclass(frozen=True, slots=True)
class Station:
    """A station's own identity and its trust, read once.

    Attributes:
        identity: the certificate it shows and signs its events with.
        trust: the explicit anchors of the EST server and of what it issues.
    """

    settings: Settings
    identity: ClientIdentity
    trust: TrustAnchors

    @classmethod
    def load(cls, settings: Settings, *, file: Path) -> Station:
        """Read the files `line.toml` names; every problem with them is reported at once."""
        findings: list[Finding] = []

        def tried(key: str, read: Callable[[], T]) -> T | None:
            try:
                return read()
            except DeviceSimError as error:
                findings.append(Finding(str(file), 0, key, error.line))
                return None

        trust = tried("est.trust", lambda: TrustAnchors.from_file(settings.est.trust))
        identity = tried("est.cert", lambda: read_identity(settings.est.cert, settings.est.key))
        tried("est.url", lambda: EstAddress.parse(settings.est.url, settings.est.label))
        if identity is not None and common_name(identity.certificates[0]) != settings.site.station:
            text = f"names {common_name(identity.certificates[0])!r}, but site.station is {settings.site.station!r}"
            findings.append(Finding(str(file), 0, "est.cert", text))
        if findings or trust is None or identity is None:
            raise InputInvalid(findings)
        return cls(settings, identity, trust)

    def open_est(self, label: str, by: EnrolBy, hear: Hear | None = None) -> EstClient:
        """Return a client that asks as the station, or as the unit itself."""
        est = self.settings.est
        credentials: Credentials | None = None
        shown: ClientIdentity | None = self.identity
        if isinstance(by, ByOneTimePassword):
            credentials, shown = Credentials(by.user, read_password(by.password_file)), None
        elif isinstance(by, ByIdevid):
            shown = read_identity(by.cert, by.key)
        return EstClient(
            est.url,
            trust=self.trust,
            label=label or est.label,
            credentials=credentials,
            identity=shown,
            timeout_seconds=est.timeout.total_seconds(),
            on_date=hear,
        )

    def server_time(self) -> datetime | None:
        """Ask the EST server what time it has: its `Date` header (RFC 9110 §6.6.1), or None when it sends none."""
        return server_time(self.settings.est, self.identity, self.trust)


def server_time(est: EstSection, identity: ClientIdentity, trust: TrustAnchors) -> datetime | None:
    """Read the clock of an EST server from any answer of its."""
    address = EstAddress.parse(est.url, est.label)
    connection = Connection(address.origin, TlsSettings(trust, identity, timeout_seconds=est.timeout.total_seconds()))
    try:
        answer = connection.exchange("GET", address.path("cacerts"), {"User-Agent": "devicesim", "Accept": "*/*"})
    finally:
        connection.close()
    return http_date(answer.headers.get("date", ""))


def read_password(path: Path) -> bytes:
    """Read a password from a file that nobody else can read: its first line."""
    _private(path)
    password = read_bounded(path, SECRET_MAX_BYTES).split(b"\n", 1)[0].rstrip(b"\r")
    if not password:
        raise ConfigInvalid(f"{path} holds no password", advice="write it on the first line")
    return password


def read_identity(cert: Path, key: Path) -> ClientIdentity:
    """Read a certificate, its intermediates and its key, which nobody else may be able to read."""
    certificates = load_certificates(cert)
    _private(key)
    loaded = load_key(read_bounded(key, SECRET_MAX_BYTES), key)
    if spki(loaded) != spki(certificates[0]):
        raise KeyStoreError(f"{key} is not the key of {cert}", advice="name the key the certificate was made for")
    return ClientIdentity(certificates, loaded)


def _private(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}") from error
    if mode & 0o077:
        raise KeyStoreError(f"{path} can be read by others", advice=f"chmod 600 {path}")
