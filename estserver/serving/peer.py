"""What one handshake proved about the client: the value handed to the application as `environ["tls.peer"]`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from OpenSSL import SSL, crypto

from estserver.serving.binding import extended_master_secret, session_reused

EXPORTER_LABEL = b"EXPORTER-Channel-Binding"  # RFC 9266 §4: 32 octets, zero-length context
EXPORTER_BYTES = 32


@dataclass(frozen=True, slots=True)
class TlsPeer:
    """The client's side of one TLS connection, as presented; nothing in it has been trusted yet.

    Attributes:
        version: `TLSv1.2` or `TLSv1.3`.
        cipher: OpenSSL's name of the cipher suite.
        certificate: the client's certificate in DER, or None if it sent none; possession of its key is proved.
        chain: the certificates it sent after that one, in its order, in DER.
        tls_unique: RFC 5929 channel binding; TLS 1.2 with extended master secret only.
        tls_exporter: RFC 9266 channel binding; TLS 1.3 only.
        extended_master_secret: RFC 7627 on TLS 1.2; None on TLS 1.3, where it has no meaning.
        memory: what the application notes of this connection; it ends with it.
    """

    version: str
    cipher: str
    certificate: bytes | None
    chain: tuple[bytes, ...]
    tls_unique: bytes | None
    tls_exporter: bytes | None
    extended_master_secret: bool | None
    memory: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


def peer_of(connection: SSL.Connection) -> TlsPeer:
    """Collect the facts of a finished handshake."""
    leaf = connection.get_peer_certificate()
    rest = connection.get_peer_cert_chain() if leaf else None  # on this side of TLS it does not repeat the leaf
    tls12 = connection.get_protocol_version() == SSL.TLS1_2_VERSION
    secret = extended_master_secret(connection) if tls12 else None
    return TlsPeer(
        version=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "",
        certificate=_der(leaf) if leaf else None,
        chain=tuple(_der(certificate) for certificate in rest or ()),
        tls_unique=_tls_unique(connection) if secret else None,
        tls_exporter=None if tls12 else connection.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES, b""),
        extended_master_secret=secret,
    )


def _der(certificate: crypto.X509) -> bytes:
    """Give the certificate's octets without reading them: whether they make sense is the application's question."""
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def _tls_unique(connection: SSL.Connection) -> bytes | None:
    """Give the first Finished of the handshake (RFC 5929 §3.1): the client's, because no session is ever resumed."""
    return None if session_reused(connection) else connection.get_peer_finished()
