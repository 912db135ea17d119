"""What the tests of the TLS front share: a small PKI, the server as a process, and raw clients."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@dataclass(frozen=True)
class Holder:
    """A certificate with its key and the chain above it."""

    certificate: x509.Certificate
    key: Any
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def write(self, directory: Path, name: str, passphrase: bytes | None = None) -> tuple[Path, Path]:
        """Write NAME.pem (leaf and chain) and NAME.key."""
        pem, key = directory / f"{name}.pem", directory / f"{name}.key"
        pem.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in (self.certificate, *self.chain)))
        encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return pem, key


def certify(name: str, issuer: Holder | None = None, *, ca: bool = False, age: timedelta = DAY, key=None) -> Holder:
    """Make a certificate, by default valid from `age` ago for two days, signed by the issuer or by itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    signer = issuer.key if issuer else key
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.now(UTC) - age
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + 2 * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(signer, hashes.SHA256() if isinstance(signer, ec.EllipticCurvePrivateKey) else None)
    )
    above = (issuer.certificate, *issuer.chain) if issuer else ()
    return Holder(certificate, key, tuple(c for c in above if c.subject != c.issuer))


class Server:
    """One run of `serving_program`."""

    def __init__(self, directory: Path, **options: Any) -> None:
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tests.e2e.serving_program",
            str(directory),
            json.dumps(options),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.directory = directory
        self.stderr = ""
        self._reader = threading.Thread(target=self._read_stderr)
        self._reader.start()
        line = self.process.stdout.readline()
        assert line.startswith("ready 127.0.0.1 "), self.stop()
        self.port = int(line.split()[2])

    def _read_stderr(self) -> None:
        for line in self.process.stderr:
            self.stderr += line

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        """Wait for the end; give the exit status."""
        status = self.process.wait(seconds)
        self._reader.join()
        self.process.stderr.close()
        self.process.stdout.close()
        return status

    def stop(self) -> str:
        """End it, however it stands, and give what it logged."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        self.wait()
        return self.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.stop()

    # --- clients -----------------------------------------------------------------------------------------------------

    def context(self, version: ssl.TLSVersion | None = None, client: Holder | None = None) -> ssl.SSLContext:
        """A client's context that trusts the test root."""
        context = ssl.create_default_context(cafile=str(self.directory / "root.pem"))
        if version:
            context.minimum_version = context.maximum_version = version
        if client:
            context.load_cert_chain(*client.write(self.directory, f"client-{client.certificate.serial_number}"))
        return context

    def plain(self) -> socket.socket:
        """A TCP connection on which nothing has been said."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def connect(self, version: ssl.TLSVersion | None = None, client: Holder | None = None) -> ssl.SSLSocket:
        """A connection after its handshake."""
        return self.context(version, client).wrap_socket(self.plain(), server_hostname="localhost")

    @contextlib.contextmanager
    def connected(self, *args: Any, **kwargs: Any) -> Iterator[ssl.SSLSocket]:
        with self.connect(*args, **kwargs) as sock:
            yield sock

    def get(self, path: str = "/", **kwargs: Any) -> dict[str, Any]:
        """One request on a connection of its own; what the application saw."""
        with self.connected(**kwargs) as sock:
            return ask(sock, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).facts


@dataclass(frozen=True)
class Answer:
    """What a client read."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def facts(self) -> dict[str, Any]:
        assert self.status == 200, self
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


def ask(sock: ssl.SSLSocket, octets: bytes, method: str = "GET") -> Answer:
    """Send octets and read one answer."""
    sock.sendall(octets)
    return read_answer(sock, method)


def read_answer(sock: ssl.SSLSocket, method: str = "GET") -> Answer:
    """Read one answer, as the standard library understands it."""
    response = HTTPResponse(sock, method=method)
    response.begin()
    body = response.read()
    answer = Answer(response.status, response.getheaders(), body)
    response.close()
    return answer


class _OneFile:
    """A socket whose reading file is shared by the answers that come one after another on it."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")

    def makefile(self, _mode: str) -> Any:
        return io.BufferedReader(_Unclosed(self._file), 1)


class _Unclosed(io.RawIOBase):
    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(1)
        buffer[: len(data)] = data
        return len(data)


def read_answers(sock: socket.socket, count: int) -> list[Answer]:
    """Read several answers that may have come in one piece."""
    shared = _OneFile(sock)
    return [read_answer(shared) for _ in range(count)]


def at_end(sock: socket.socket) -> bool:
    """Wait until the server ends the connection; False if it speaks instead."""
    try:
        return sock.recv(1) == b""
    except (ConnectionError, ssl.SSLError):
        return True


def until(condition, seconds: float = 15) -> Any:
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + seconds
    while not (it := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
    return it


def make_directory(directory: Path) -> Holder:
    """Write root.pem and the server's files; give the root, to issue clients from."""
    root = certify("Test Root", ca=True)
    issuing = certify("Test Issuing", root, ca=True)
    root.write(directory, "root")
    certify("localhost", issuing).write(directory, "server")
    return Holder(issuing.certificate, issuing.key, issuing.chain)
