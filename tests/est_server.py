"""A whole EST server in its own process, and clients that speak to it over real TLS.

Every answer through `Wire` is held against the rules that all answers have (`Answer.check`): a length, header names in
canonical case, few headers, text for errors, an empty body and a challenge with 401.
"""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs7
from OpenSSL import SSL, crypto

from estserver.assembly import enrollment_of, inventory_of
from estserver.config import Settings, load_settings
from estserver.enroll import Enrollment
from estserver.home import Plan, found
from estserver.identity.credentials import verifier_for_generated
from estserver.inventory import Inventory
from estserver.model import Der
from estserver.records import AnchorRecord, CredentialRecord, StationRecord
from tests import csr_maker

EST = "/.well-known/est"
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
DEVICE_KINDS = ("device", "gateway", "workload", "station", "server", "service")
TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
DAY = timedelta(days=1)
_numbers = itertools.count(1)


def today() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def fresh_id(stem: str = "sn") -> str:
    """A device id nobody has had yet."""
    return f"{stem}-{next(_numbers):04d}"


# --- a home ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Home:
    """A founded PKI home and what an operator does in it, without a process for each command."""

    path: Path
    fingerprint: str

    @property
    def settings(self) -> Settings:
        return load_settings(self.path)

    @property
    def root(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.path / "root.pem").read_bytes())

    @property
    def issuing(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.path / "issuing.pem").read_bytes())

    def inventory(self) -> Inventory:
        return inventory_of(self.settings)

    def credential(
        self,
        devices: str,
        *,
        label: str = "",
        uses: int | None = 1,
        names: Sequence[str] = (),
        name: str | None = None,
        nameless: bool = False,
    ) -> tuple[str, str]:
        """Make a credential; return its name, as a client says it, and secret."""
        name, secret = name or f"cred-{next(_numbers)}", base64.b32encode(os.urandom(15)).decode().lower()
        pepper = (self.path / "private" / "credential.key").read_bytes()
        record = CredentialRecord(
            name=name,
            scheme="hmac-sha256",
            verifier=verifier_for_generated(secret.encode(), pepper),
            salt=b"",
            label=label,
            devices=(devices,),
            names=tuple(names),
            uses=uses,
            spent=0,
            created_at=today(),
            expires_at=None,
            nameless=nameless,
        )
        with self.inventory() as inventory:
            inventory.credential_add(record, "operator:test")
        return "" if nameless else name, secret

    def station(self, name: str, *devices: str) -> None:
        with self.inventory() as inventory:
            inventory.station_add(StationRecord(name, devices, today()), "operator:test")

    def anchor(self, name: str, certificate: x509.Certificate, device_id: str = "{serial}", devices: str = "*") -> None:
        record = AnchorRecord(name, Der(certificate.public_bytes(Encoding.DER)), device_id, (devices,), today())
        with self.inventory() as inventory:
            inventory.anchor_add(record, "operator:test")

    def revoke(self, certificate: x509.Certificate) -> None:
        with self.inventory() as inventory:
            inventory.revoke(certificate.serial_number, "keyCompromise", "operator:test", today(), lambda _record: [])

    def audit(self) -> list[dict[str, Any]]:
        with self.inventory() as inventory:
            return [json.loads(line) for line in inventory.audit_lines()]

    @contextlib.contextmanager
    def enrollment(self, clock: Callable[[], datetime]) -> Iterator[Enrollment]:
        """The enrolment path of this home in this process, at another time."""
        with self.inventory() as inventory:
            yield enrollment_of(self.settings, inventory, clock=clock, random=os.urandom)

    def configure(self, sections: str, top: str = "") -> None:
        """Add to the configuration."""
        file = self.path / "estserver.toml"
        file.write_text(top + file.read_text("utf-8") + sections, "utf-8")


def found_home(directory: Path, *, now: datetime | None = None, key_kind: str = "P-256", idevid: bool = False) -> Home:
    """Make a home as `estserver init` does."""
    plan = Plan(directory, "Acme", ("localhost", "127.0.0.1"), key_kind, idevid=idevid)
    return Home(directory, found(plan, now=now or today(), random=os.urandom))


# --- the server -----------------------------------------------------------------------------------------------------


class RunningServer:
    """`estserver serve` as its own process, from its `ready` line to SIGTERM; a traceback on stderr fails the test."""

    def __init__(self, home: Home, *arguments: str) -> None:
        self.home = home
        self.stderr = ""
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-m", "estserver", "serve", "--home", str(home.path)),
                *("--listen", "127.0.0.1:0", *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.process.stdout is not None
        ready = re.fullmatch(r"ready https?://127\.0\.0\.1:(\d+)/\.well-known/est\n", self.process.stdout.readline())
        if ready is None:
            self._end()
            raise AssertionError(self.stderr)
        self.port = int(ready[1])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line

    def _end(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}{EST}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        status = self._end()
        assert "Traceback" not in self.stderr, self.stderr
        assert status == 0, self.stderr


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    method: str = "GET"

    def __getitem__(self, header: str) -> str:
        return dict(self.headers)[header]

    def get(self, header: str) -> str | None:
        return dict(self.headers).get(header)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def der(self) -> bytes:
        assert self.status == 200, (self.status, self.text)
        return base64.b64decode(self.body, validate=False)

    @property
    def certificates(self) -> list[x509.Certificate]:
        return pkcs7.load_der_pkcs7_certificates(self.der)

    @property
    def certificate(self) -> x509.Certificate:
        (certificate,) = self.certificates
        return certificate

    def check(self) -> Self:
        """What holds for every answer to every client (S-H12, S-H13, S-R08, S-R10)."""
        names = [name for name, _ in self.headers]
        assert "Content-Length" in names or self.status == 304, self
        assert "Transfer-Encoding" not in names, self
        assert len(names) <= 14, self
        assert len(set(names)) == len(names), self
        assert all(re.fullmatch(r"([A-Z][a-z0-9]*|WWW|ETag)(-[A-Z][a-z0-9]*)*", name) for name in names), self
        assert "Set-Cookie" not in names, self
        if self.status == 401:
            assert self["WWW-Authenticate"].startswith("Basic realm="), self
            assert self.body == b"", self
        elif self.status >= 400:
            assert self["Content-Type"] == "text/plain; charset=utf-8" or self["Content-Type"] == "text/plain", self
            assert self.method == "HEAD" or self.text.strip(), self
            assert not re.search(r"<html|Traceback|File \"|/private/|site-packages|sqlalchemy", self.text), self
        if self.status == 405:
            assert self["Allow"], self
        return self


# --- who asks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """A key, its certificate, and what to present above it."""

    key: Any = field(repr=False)
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def device(self) -> str:
        return str(self.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)

    def write(self, directory: Path, stem: str = "client") -> tuple[Path, Path]:
        """Write STEM.pem (leaf and chain) and STEM.key."""
        pem, key = directory / f"{stem}.pem", directory / f"{stem}.key"
        pem.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in (self.certificate, *self.chain)))
        key.touch(0o600)
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return pem, key


def basic(credential: tuple[str, str]) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(":".join(credential).encode()).decode()}


# --- one connection -------------------------------------------------------------------------------------------------


class Wire:
    """One TLS connection by pyOpenSSL: it can show an EC or ML-DSA certificate and knows its channel binding."""

    def __init__(
        self,
        port: int,
        trust: x509.Certificate,
        *,
        client: Holder | None = None,
        tls: int = TLS13,
        options: int = 0,
        suites: str = "",
        resume: Wire | None = None,
    ) -> None:
        self.context = resume.context if resume is not None else _context(trust, client, tls, options)
        if suites:
            choose = self.context.set_cipher_list if tls == TLS12 else self.context.set_tls13_ciphersuites
            choose(suites.encode())
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0))
        self._tls12 = tls == TLS12
        self.tls = SSL.Connection(self.context, self._socket)
        self.tls.set_connect_state()
        self.tls.set_tlsext_host_name(b"localhost")
        if resume is not None:
            session = resume.tls.get_session()
            assert session is not None
            self.tls.set_session(session)
        try:
            self.tls.do_handshake()
        except SSL.Error:
            self._socket.close()
            raise
        self._file = io.BufferedReader(_Reading(self.tls))

    @property
    def binding(self) -> bytes:
        """tls-unique (RFC 5929) or tls-exporter (RFC 9266) of this very connection."""
        if self._tls12:
            value = self.tls.get_finished()
            assert value is not None
            return value
        return self.tls.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")

    def send(self, octets: bytes) -> None:
        self.tls.sendall(octets)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        fields = {
            "Host": "localhost",
            **({} if body is None else {"Content-Length": str(len(body))}),
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + (body or b""))
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        """Read one answer, by its Content-Length alone."""
        status, headers = self.head()
        length = int(dict(headers).get("Content-Length", "0"))
        body = b"" if method == "HEAD" else self._file.read(length)
        return Answer(status, headers, body, method).check()

    def head(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        line = self._file.readline().decode("latin-1")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) [ -~]+\r\n", line)
        assert match, f"no answer but {line!r}"
        headers = []
        while (line := self._file.readline().decode("latin-1")) != "\r\n":
            name, _, value = line.rstrip("\r\n").partition(": ")
            headers.append((name, value))
        return int(match[1]), tuple(headers)

    def at_end(self) -> bool:
        """Wait for the server to end the connection."""
        return self._file.read(1) == b""

    def close(self) -> None:
        with contextlib.suppress(SSL.Error):
            self.tls.shutdown()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Reading(io.RawIOBase):
    def __init__(self, tls: SSL.Connection) -> None:
        self._tls = tls

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._tls.recv_into(buffer)
        except SSL.ZeroReturnError:
            return 0
        except SSL.SysCallError as error:
            if error.args[0] in (-1, 104):
                return 0
            raise


def _context(trust: x509.Certificate, client: Holder | None, tls: int, options: int) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(tls)
    context.set_max_proto_version(tls)
    context.set_options(options)
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(trust))
    context.set_verify(SSL.VERIFY_PEER, lambda _c, _x, _e, _d, ok: bool(ok))
    if client is not None:
        _present(context, client)
    return context


def _present(context: SSL.Context, client: Holder) -> None:
    pem = client.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, pem))  # it takes an ML-DSA key in no other form
    context.use_certificate(client.certificate)
    for above in client.chain:
        context.add_extra_chain_cert(above)


# --- actions --------------------------------------------------------------------------------------------------------

Draft = Callable[[bytes], bytes]
"""Makes a CSR for the channel binding of the connection that will carry it."""


@dataclass(frozen=True)
class Est:
    """What a client does, one connection for each action, so that tests read as stories."""

    server: RunningServer
    tls: int = TLS13
    trust: x509.Certificate | None = None

    @property
    def home(self) -> Home:
        return self.server.home

    def over(self, tls: int) -> Est:
        return replace(self, tls=tls)

    def wire(self, client: Holder | None = None, **options: Any) -> Wire:
        return Wire(self.server.port, self.trust or self.home.root, client=client, **{"tls": self.tls, **options})

    def get(self, path: str, headers: Mapping[str, str] | None = None, client: Holder | None = None) -> Answer:
        with self.wire(client) as wire:
            return wire.request("GET", path if path.startswith("/") else f"{EST}/{path}", headers=headers)

    def post(
        self,
        csr: bytes | Draft,
        *,
        operation: str = "simpleenroll",
        label: str = "",
        credential: tuple[str, str] | None = None,
        client: Holder | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        tls: int | None = None,
    ) -> Answer:
        """Post a CSR in DER (or a draft of one, or a body as it is)."""
        with self.wire(client, tls=tls or self.tls) as wire:
            der = csr if isinstance(csr, bytes) else csr(wire.binding)
            sent = base64.b64encode(der) if body is None else body
            fields = {
                "Content-Type": "application/pkcs10",
                **(basic(credential) if credential else {}),
                **(headers or {}),
            }
            path = f"{EST}/{label}/{operation}" if label else f"{EST}/{operation}"
            return wire.request("POST", path, sent, {k: v for k, v in fields.items() if v})

    def enroll(self, csr: bytes | Draft, **how: Any) -> Answer:
        """Enrol with a credential for whatever the CSR names, unless told how."""
        if not {"credential", "client"} & how.keys():
            how["credential"] = self.home.credential("*", label=how.get("label", ""), names=how.pop("names", ()))
        return self.post(csr, **how)

    def reenroll(self, csr: bytes | Draft, client: Holder, **how: Any) -> Answer:
        return self.post(csr, operation="simplereenroll", client=client, **how)

    def device(self, device: str | None = None, *, key: Any = None, label: str = "", **request: Any) -> Holder:
        """A device with its first certificate."""
        device, key = device or fresh_id(), key or csr_maker.new_key()
        san = request.get("san", ())
        answer = self.enroll(csr_maker.request(key, device, **request), label=label, names=san)
        chain = (self.home.issuing,)
        return Holder(key, answer.certificate, chain)

    def station(self, *devices: str) -> Holder:
        """A registration authority for these devices."""
        name = fresh_id("line")
        holder = self.device(name, label="station")
        self.home.station(name, *devices)
        return holder
