"""The other side of the wire for the client's tests: a small PKI and an EST server that does what it is told.

`StubServer` speaks TLS with pyOpenSSL, so that it can see channel bindings, client certificates and connections; each
test gives it a function from `Seen` (one request) to bytes (one whole HTTP answer) or None (hang up).
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass(slots=True)
class Authority:
    """A CA that signs whatever a test wants."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def root(cls, common_name: str = "Test Root", **kwargs) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(build(name(common_name), key.public_key(), name(common_name), key, ca=True, **kwargs), key)

    def intermediate(self, common_name: str = "Test Issuing CA") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        return Authority(self.issue(name(common_name), key.public_key(), ca=True), key)

    def issue(self, subject: x509.Name, public_key, **kwargs) -> x509.Certificate:
        return build(subject, public_key, self.certificate.subject, self.key, **kwargs)

    def server(self, *san: x509.GeneralName, **kwargs) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        names = san or (x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost"))
        kwargs.setdefault("eku", (ExtendedKeyUsageOID.SERVER_AUTH,))
        return self.issue(name("127.0.0.1"), key.public_key(), san=names, **kwargs), key

    def from_csr(self, csr: x509.CertificateSigningRequest, **kwargs) -> x509.Certificate:
        if "san" not in kwargs:
            with contextlib.suppress(x509.ExtensionNotFound):
                kwargs["san"] = tuple(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        kwargs.setdefault("eku", (ExtendedKeyUsageOID.CLIENT_AUTH,))
        return self.issue(kwargs.pop("subject", csr.subject), csr.public_key(), **kwargs)


def build(subject, public_key, issuer, issuer_key, *, ca=False, san=(), eku=(), start=None, days=365, path_length=None):
    start = start or datetime.now(UTC) - timedelta(hours=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if ca:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    if eku:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def certs_only(*certificates: x509.Certificate) -> bytes:
    return base64.b64encode(pkcs7.serialize_certificates(list(certificates), Encoding.DER))


def answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def cms(*certificates: x509.Certificate) -> bytes:
    return answer(200, certs_only(*certificates), Content_Type="application/pkcs7-mime; smime-type=certs-only")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, and what the connection it came over was."""

    connection: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    binding: bytes
    peer: x509.Certificate | None

    @property
    def csr(self) -> x509.CertificateSigningRequest:
        return x509.load_der_x509_csr(base64.b64decode(self.body))

    @property
    def challenge(self) -> bytes | None:
        """The channel binding inside the request."""
        for attribute in self.csr.attributes:
            if attribute.oid == x509.oid.AttributeOID.CHALLENGE_PASSWORD:
                return base64.b64decode(attribute.value, validate=True)
        return None


Handler = Callable[[Seen], bytes | None]


@dataclass
class StubServer:
    """Serves TLS on a port of 127.0.0.1 until it is closed; one thread per connection."""

    identity: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
    handler: Handler
    client_trust: x509.Certificate | None = None
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def paths(self) -> list[str]:
        return [seen.path.rpartition("/")[2] for seen in self.seen]

    def close(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _context(self) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.use_certificate(self.identity[0])
        context.use_privatekey(self.identity[1])
        if self.client_trust is not None:
            context.get_cert_store().add_cert(crypto.X509.from_cryptography(self.client_trust))
            context.set_verify(SSL.VERIFY_PEER, lambda *facts: bool(facts[-1]))
        else:
            context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        context.set_session_id(b"stub")
        return context

    def _accept(self) -> None:
        while not self._stopped.is_set():
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            raw, _ = self._listener.accept()
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(raw, self.connections), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, raw: socket.socket, number: int) -> None:
        raw.settimeout(None)
        tls = SSL.Connection(self._context(), raw)
        tls.set_accept_state()
        with contextlib.suppress(SSL.Error, OSError), contextlib.closing(raw):
            _shake_hands(tls, raw)
            stream = _stream(tls, raw, self._stopped)
            while (request := _read_request(stream)) is not None:
                self.seen.append(_seen(number, tls, *request))
                reply = self.handler(self.seen[-1])
                if reply is None:
                    return
                tls.sendall(reply)
                if b"\r\nConnection: close" in reply:
                    break
            tls.shutdown()


def _shake_hands(tls: SSL.Connection, raw: socket.socket) -> None:
    """Shake hands; when that fails let the client see why, rather than a reset for what it has sent meanwhile."""
    try:
        tls.do_handshake()
    except SSL.Error:
        raw.shutdown(socket.SHUT_WR)
        raw.settimeout(2)
        while raw.recv(16384):
            pass
        raise


def _stream(tls: SSL.Connection, raw: socket.socket, stopped: threading.Event) -> Iterator[bytes]:
    while not stopped.is_set():
        if tls.pending() or select.select([raw], [], [], 0.05)[0]:
            try:
                yield tls.recv(16384)
            except SSL.ZeroReturnError:
                return


def _read_request(stream: Iterator[bytes]) -> tuple[bytes, bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = next(stream, None)
        if part is None:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += next(stream)
    return head, body


def _seen(number: int, tls: SSL.Connection, head: bytes, body: bytes) -> Seen:
    first, *rest = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in rest)}
    if tls.get_protocol_version_name() == "TLSv1.3":
        binding = tls.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
    else:
        binding = tls.get_peer_finished()
    peer = tls.get_peer_certificate(as_cryptography=True)
    return Seen(number, method, path, headers, body, binding, peer)


class EstStub:
    """A whole EST server in a handler: it answers what is right unless a test puts something else in its place."""

    def __init__(self, root: Authority, issuing: Authority) -> None:
        self.root, self.issuing = root, issuing
        self.issued: dict[bytes, x509.Certificate] = {}
        self.instead: list[Callable[[Seen], bytes | None]] = []
        self.only_for: str | None = None
        self.csrattrs = answer(204)

    def put(self, *handlers: Handler | bytes | None, operation: str | None = None) -> None:
        """Answer the next requests (of one operation) with these, in turn, then normally again."""
        self.only_for = operation
        self.instead += [handler if callable(handler) else (lambda _, fixed=handler: fixed) for handler in handlers]

    def __call__(self, seen: Seen) -> bytes | None:
        operation = seen.path.rpartition("/")[2]
        if self.instead and self.only_for in {None, operation}:
            return self.instead.pop(0)(seen)
        return self.normally(seen)

    def normally(self, seen: Seen) -> bytes:
        operation = seen.path.rpartition("/")[2]
        if operation == "cacerts":
            return cms(self.root.certificate, self.issuing.certificate)
        if operation == "csrattrs":
            return self.csrattrs
        if seen.challenge not in {None, seen.binding}:
            return answer(403, b"bound to another connection", Content_Type="text/plain")
        spki = seen.csr.public_key().public_bytes(Encoding.DER, serialization_spki())
        certificate = self.issued.setdefault(spki, self.issuing.from_csr(seen.csr))
        return cms(certificate)


def serialization_spki():
    from cryptography.hazmat.primitives.serialization import PublicFormat

    return PublicFormat.SubjectPublicKeyInfo


def write_pem(path: Path, *certificates: x509.Certificate) -> Path:
    path.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates))
    return path
