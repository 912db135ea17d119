"""TLS facts of the connection → `Peer`.

The facts come from the front through the environ of this very request, never from an HTTP header.
"""

from __future__ import annotations

from collections.abc import Mapping

from estserver.errors import NotAuthorized
from estserver.model import ChannelBinding, Der, Peer
from estserver.serving import TlsPeer


def peer_of(environ: Mapping[str, object]) -> Peer:
    """Return who is at the other end.

    Raises:
        NotAuthorized: the request did not come through the TLS front (RFC 7030 §3.3).
    """
    facts = environ.get("tls.peer")
    if not isinstance(facts, TlsPeer):
        raise NotAuthorized("this server answers over TLS only", code="no-tls")
    return Peer(
        address=str(environ.get("REMOTE_ADDR", "")),
        tls_version=facts.version,
        certificate=None if facts.certificate is None else Der(facts.certificate),
        intermediates=tuple(map(Der, facts.chain)),
        binding=_binding(facts),
    )


def _binding(facts: TlsPeer) -> ChannelBinding | None:
    """Take the one binding that fits the TLS version: tls-unique (RFC 5929) or tls-exporter (RFC 9266)."""
    if facts.tls_exporter is not None:
        return ChannelBinding("tls-exporter", facts.tls_exporter)
    return None if facts.tls_unique is None else ChannelBinding("tls-unique", facts.tls_unique)
