"""Client processes: everything that can be made beforehand is, and answers are checked after the clock has stopped.

One process is one client that does one thing after the other, as a device or a station does, so that the number of
processes is the number of requests in flight.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import multiprocessing
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key, pkcs7
from OpenSSL import SSL
from rig import Home

TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
PATIENCE_SECONDS = 20
SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
IP_BIND_ADDRESS_NO_PORT = 24


@dataclass(frozen=True, slots=True)
class Job:
    """What every client does in one round.

    Attributes:
        tls: the only TLS version offered.
        keep_alive: one connection for all requests, opened before the clock starts.
        enrols: enrol a new device with each request; otherwise fetch the static page.
        group: the key-exchange group.
    """

    port: int
    count: int
    tls: int
    keep_alive: bool = False
    enrols: bool = True
    group: str = "X25519"


class Outcome(NamedTuple):
    """What one client, or all of them, saw: seconds of each request, certificates answered, what went wrong."""

    seconds: list[float]
    issued: dict[int, str]
    problems: list[str]


@dataclass(slots=True)
class Asked:
    """One request, its key and what came back."""

    octets: bytes
    device: str
    spki: bytes
    answer: bytes = field(default=b"")


# --- TLS ------------------------------------------------------------------------------------------------------------


class Identity(NamedTuple):
    """A key and what is shown for it: its certificate, and the chain above."""

    key: ec.EllipticCurvePrivateKey
    chain: list[x509.Certificate]


def station_of(home: Home) -> Identity:
    """Return the station of a home."""
    key = load_pem_private_key(home.station_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Identity(key, x509.load_pem_x509_certificates(home.station_chain.read_bytes()))


def tls_context(home: Home, tls: int, group: str, identity: Identity | None = None) -> SSL.Context:
    """Make the context of a client that verifies the server, and shows its certificate if it has one."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(tls)
    context.set_max_proto_version(tls)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.load_verify_locations(str(home.path / "root.pem"))
    context.set_verify(SSL.VERIFY_PEER, None)
    _offer(context, group)
    if identity is not None:
        leaf, *rest = identity.chain
        context.use_privatekey(identity.key)
        context.use_certificate(leaf)
        for certificate in rest:
            context.add_extra_chain_cert(certificate)
    return context


def _offer(context: SSL.Context, group: str) -> None:
    """Offer one key-exchange group, so that two servers do the same work; P-256 is named for the certificates' keys."""
    from OpenSSL._util import lib  # noqa: PLC0415  (pyOpenSSL ships the call and does not wrap it)

    if lib.SSL_CTX_set1_curves_list(context._context, f"{group}:P-256".encode()) != 1:  # noqa: SLF001  (as above)
        raise SystemExit(f"error: this OpenSSL does not know {group}")


def connect(port: int, source: str, *, window_bytes: int | None = None) -> socket.socket:
    """Open a TCP connection from an address of 127.0.0.0/8, each of which has ephemeral ports of its own.

    `window_bytes` is how much the client takes before it reads; None leaves it to the system.
    """
    sock = socket.socket()
    if window_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((source, 0))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", PATIENCE_SECONDS, 0))
    sock.connect(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Wire:
    """One TLS connection that asks and reads answers by their Content-Length."""

    def __init__(self, context: SSL.Context, port: int, source: str) -> None:
        self.socket = connect(port, source)
        self.tls = SSL.Connection(context, self.socket)
        self.tls.set_tlsext_host_name(b"localhost")
        self.tls.set_connect_state()
        self.tls.do_handshake()

    def ask(self, octets: bytes) -> bytes:
        """Send a request and read the whole answer."""
        self.tls.sendall(octets)
        got = b""
        while (end := got.find(b"\r\n\r\n")) < 0:
            got += self.tls.recv(16384)
        head = got[:end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        while len(got) < end + 4 + length:
            got += self.tls.recv(16384)
        return got

    def close(self) -> None:
        """End the connection; the server may have been first."""
        with contextlib.suppress(SSL.Error):
            self.tls.shutdown()
        self.socket.close()


# --- EST ------------------------------------------------------------------------------------------------------------


def csr(key: ec.EllipticCurvePrivateKey, device: str, names: x509.SubjectAlternativeName | None = None) -> bytes:
    """Ask for a certificate for this key, device and, if any, these names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)])
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def post(operation: str, der: bytes, fields: bytes = b"") -> bytes:
    """Write the whole request; `fields` are further lines of its head."""
    body = base64.b64encode(der)
    return (
        b"POST /.well-known/est/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
        b"Content-Length: %d\r\n%s\r\n%s" % (operation.encode(), len(body), fields, body)
    )


def certificate_in(answer: bytes) -> x509.Certificate:
    """Read the one certificate that an answer holds."""
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.partition(b"\r\n\r\n")[2]))
    return certificate


# --- one client -----------------------------------------------------------------------------------------------------


class Client:
    """The body of one client process."""

    def __init__(self, home: Home, number: int) -> None:
        self._home = home
        self._source = f"127.0.{number + 1}.1"
        self._names = (f"sn-{number}-{n:06d}" for n in itertools.count())
        self._contexts: dict[tuple[int, str], SSL.Context] = {}
        self._issuing = x509.load_pem_x509_certificate((home.path / "issuing.pem").read_bytes())

    def serve(self, pipe: Pipe) -> None:
        """Do jobs, each in four steps that the conductor gives the sign for: make ready, go, check."""
        while (job := pipe.recv()) is not None:
            problems: list[str] = []
            asked = [self._make(job) for _ in range(job.count)]
            context = self._context(job)
            held = Wire(context, job.port, self._source) if job.keep_alive else None
            if held is not None:
                warm = self._make(job)
                warm.answer = held.ask(warm.octets)
            pipe.send("ready")
            pipe.recv()
            seconds = [self._ask(job, context, each, held, problems) for each in asked]
            pipe.send("done")
            pipe.recv()
            if held is not None:
                held.close()
                asked.append(warm)
            issued = dict(self._check(each, problems) for each in asked) if job.enrols else {}
            if not job.enrols:
                problems += ["not a page" for each in asked if not each.answer.startswith(b"HTTP/1.1 200 ")]
            issued.pop(0, None)
            pipe.send(Outcome(seconds, issued, problems))

    def _context(self, job: Job) -> SSL.Context:
        kind = job.tls, job.group
        if kind not in self._contexts:
            self._contexts[kind] = tls_context(self._home, *kind, station_of(self._home))
        return self._contexts[kind]

    def _make(self, job: Job) -> Asked:
        connection = b"" if job.keep_alive else b"Connection: close\r\n"
        if not job.enrols:
            return Asked(b"GET /page HTTP/1.1\r\nHost: localhost\r\n" + connection + b"\r\n", "", b"")
        device, key = next(self._names), ec.generate_private_key(ec.SECP256R1())
        octets = post("simpleenroll", csr(key, device), connection)
        return Asked(octets, device, key.public_key().public_bytes(*SPKI))

    def _ask(self, job: Job, context: SSL.Context, asked: Asked, held: Wire | None, problems: list[str]) -> float:
        """Ask once; return the seconds from connect, or from the first octet on an open connection, to the answer."""
        start = time.perf_counter()
        try:
            wire = held or Wire(context, job.port, self._source)
            asked.answer = wire.ask(asked.octets)
        except (SSL.Error, OSError, ValueError) as error:
            problems.append(f"{asked.device}: {error!r}")
            return time.perf_counter() - start
        seconds = time.perf_counter() - start
        if held is None:
            wire.close()
        return seconds

    def _check(self, asked: Asked, problems: list[str]) -> tuple[int, str]:
        """Hold an answer against its request: one certificate of this CA, of this name and key."""
        head, _, body = asked.answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            problems.append(f"{asked.device}: {head[:40]!r} {body[:80]!r}")
            return 0, ""
        certificate = certificate_in(asked.answer)
        certificate.verify_directly_issued_by(self._issuing)
        name = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
        if name != asked.device or certificate.public_key().public_bytes(*SPKI) != asked.spki:
            problems.append(f"{asked.device}: a certificate for something else")
        return certificate.serial_number, hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


# --- all clients ----------------------------------------------------------------------------------------------------


class Clients:
    """A number of client processes on one core."""

    def __init__(self, home: Home, number: int, core: int) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipes: list[Pipe] = []
        self._processes = []
        for index in range(number):
            ours, theirs = fork.Pipe()
            process = fork.Process(target=_client, args=(home, index, core, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def number(self) -> int:
        """Return how many there are."""
        return len(self._pipes)

    def prepare(self, job: Job) -> None:
        """Let every client make its keys, requests and held connections."""
        self._tell(job)

    def go(self) -> float:
        """Let them all run; return the seconds until the last was done."""
        start = time.perf_counter()
        self._tell("go")
        return time.perf_counter() - start

    def check(self) -> Outcome:
        """Let them check what they got."""
        whole = Outcome([], {}, [])
        for pipe in self._pipes:
            pipe.send("check")
        for pipe in self._pipes:
            part: Outcome = pipe.recv()
            whole.seconds.extend(part.seconds)
            whole.issued.update(part.issued)
            whole.problems.extend(part.problems)
        return whole

    def close(self) -> None:
        """End them."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()

    def _tell(self, message: object) -> None:
        for pipe in self._pipes:
            pipe.send(message)
        for pipe in self._pipes:
            pipe.recv()


def _client(home: Home, number: int, core: int, pipe: Pipe) -> None:
    os.sched_setaffinity(0, {core})
    Client(home, number).serve(pipe)
