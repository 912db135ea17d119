"""The four calls of OpenSSL that pyOpenSSL ships and does not wrap so; the only private names this room touches.

All are in pyOpenSSL's own binding (`OpenSSL._util.lib`), so they act on the very objects it holds.
"""

# ruff: noqa: SLF001  (that is what this module is for: no public name reaches these objects)

from __future__ import annotations

from OpenSSL import SSL
from OpenSSL._util import ffi, lib


def set_groups(context: SSL.Context, groups: str) -> bool:
    """Offer these key-exchange groups, best first; False if OpenSSL does not know them all."""
    return bool(lib.SSL_CTX_set1_curves_list(context._context, groups.encode("ascii")) == 1)


_accept = ffi.callback("int (*)(int, X509_STORE_CTX *)", lambda _ok, _store: 1)


def take_any_certificate(context: SSL.Context) -> None:
    """Ask for a client certificate and take whatever comes; pyOpenSSL's own callback would read each one first."""
    lib.SSL_CTX_set_verify(context._context, SSL.VERIFY_PEER, _accept)


def extended_master_secret(connection: SSL.Connection) -> bool:
    """Tell whether the TLS 1.2 handshake used the extended master secret (RFC 7627)."""
    return bool(lib.SSL_get_extms_support(connection._ssl) == 1)


def session_reused(connection: SSL.Connection) -> bool:
    """Tell whether the handshake resumed an earlier session."""
    return bool(lib.SSL_session_reused(connection._ssl) == 1)
