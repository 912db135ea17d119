"""How TLS is spoken: one OpenSSL context for each process, made from the options and never changed once used.

The rules:
* TLS 1.2 and 1.3 only (RFC 8996), or 1.3 alone; ephemeral key exchange and AEAD ciphers only (RFC 9325 §4.2), the
  strongest first, as TLS 1.3 has them already: a key of the server's making may need one (RFC 7030 §4.4).
* Key exchange: X25519MLKEM768 first, then X25519, P-256, P-384.
* A client certificate is asked for, never required; the request names no CAs, because a client whose chain does not
  end in a named one may send nothing at all. Every chain is taken as it comes, so that the application, which alone
  knows whom to trust, can answer a stranger in words; possession of the leaf's key is proved all the same.
* No session is resumed: neither tickets nor cache (a resumed session shows no chain). A client
  that offers one gets a full handshake, for which the session id context must be set.
* No renegotiation (RFC 5746 is moot where there is none), no compression.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from estserver.serving.binding import set_groups, take_any_certificate
from estserver.serving.errors import CannotServe
from estserver.serving.options import ServeOptions

GROUPS = "X25519MLKEM768:X25519:P-256:P-384"
CIPHERS_TLS12 = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AESCCM:!AESCCM8:!aNULL:!eNULL:!PSK:!SRP:@STRENGTH"
LEAF_ALONE = -2
"""Depth at which OpenSSL looks for no issuer, not even among what the client sent, and so checks no signature of the
chain: the application judges it, and one that nobody reads would cost as much as the client's own."""

_OPTIONS = SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE


def build_context(options: ServeOptions) -> SSL.Context | None:
    """Read certificate and key and make the context of one process; None where no TLS is spoken.

    Raises:
        CannotServe: a file cannot be read, or certificate and key do not fit each other.
    """
    if options.plain:
        return None
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION if options.tls13_only else SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_cipher_list(CIPHERS_TLS12)
    if not set_groups(context, GROUPS):
        raise CannotServe(f"this OpenSSL does not know all of {GROUPS} — install cryptography 50 or newer from PyPI")
    context.set_options(_OPTIONS)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"serving")
    take_any_certificate(context)
    context.set_verify_depth(LEAF_ALONE)
    _use_identity(context, options)
    return context


def _use_identity(context: SSL.Context, options: ServeOptions) -> None:
    """Load the server's chain and key."""
    chain, key = options.certificate_path, options.private_key
    _readable(chain, "certificate")
    try:
        context.use_certificate_chain_file(str(chain))
    except SSL.Error as error:
        raise CannotServe(f"{chain} holds no certificate in PEM form — give the server's chain") from error
    pkey = _private_key(_readable(key, "private key"), key, options)
    try:
        with warnings.catch_warnings():
            # A cryptography key is what pyOpenSSL would rather have, but it takes no ML-DSA key in that form.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.use_privatekey(pkey)
        context.check_privatekey()
    except SSL.Error as error:
        raise CannotServe(f"{key} is not the key of the certificate in {chain} — give the two that fit") from error


def _readable(path: Path, what: str) -> bytes:
    """Give the octets of a file the operator named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CannotServe(f"cannot read the {what} {path}: {error.strerror} — check the path and its mode") from error


def _private_key(pem: bytes, path: Path, options: ServeOptions) -> crypto.PKey:
    """Decrypt and load the private key; errors name the file, never what is in it."""
    passphrase = options.passphrase() if options.passphrase and b"ENCRYPTED" in pem else None
    try:
        load_pem_private_key(pem, passphrase)
        return crypto.load_privatekey(crypto.FILETYPE_PEM, pem, passphrase)
    except TypeError as error:
        raise CannotServe(f"the key in {path} is encrypted — give its passphrase") from error
    except (ValueError, crypto.Error) as error:
        cause = (
            "the passphrase is wrong or the file is damaged" if passphrase else "it holds no private key in PEM form"
        )
        raise CannotServe(f"cannot load the key in {path}: {cause}") from error
