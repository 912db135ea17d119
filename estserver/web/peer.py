"""TLS facts of the connection → `Peer`, once for each request, before anything is done about it.

The facts come from our own front through the environ of this very request, or from a proxy that was configured
(`estserver.web.proxy`). Beside our own front no header is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from wsgiref.types import WSGIEnvironment

from estserver.model import ChannelBinding, Der, Peer, SpkiHash
from estserver.serving import TlsPeer
from estserver.web.proxy import Proxy

_PEER = "estline.peer"
_FIRST_BOUND = "estline.first-bound"


def establish_peer(environ: WSGIEnvironment, proxy: Proxy) -> None:
    """Find out who is at the other end.

    Raises:
        NotAuthorized: nobody who is believed says that the request came over TLS (RFC 7030 §3.3).
        MalformedRequest: what the proxy says cannot be read.
    """
    facts = environ.get("tls.peer")
    environ[_PEER] = _of_front(environ, facts) if isinstance(facts, TlsPeer) else proxy.peer(environ)


def peer_of(environ: Mapping[str, object]) -> Peer:
    """Return who is at the other end, which has been established."""
    peer = environ[_PEER]
    assert isinstance(peer, Peer)
    return peer


def known_peer(environ: Mapping[str, object]) -> Peer:
    """Return who is at the other end as far as that is known: perhaps an address alone."""
    peer = environ.get(_PEER)
    return peer if isinstance(peer, Peer) else Peer(_address(environ))


def _of_front(environ: Mapping[str, object], facts: TlsPeer) -> Peer:
    return Peer(
        address=_address(environ),
        tls_version=facts.version,
        certificate=None if facts.certificate is None else Der(facts.certificate),
        intermediates=tuple(map(Der, facts.chain)),
        binding=_binding(facts),
        cipher=facts.cipher,
        first_bound=partial(_first_bound, facts),
    )


def _address(environ: Mapping[str, object]) -> str:
    return str(environ.get("REMOTE_ADDR", ""))


def _first_bound(facts: TlsPeer, spki_sha256: SpkiHash) -> SpkiHash:
    first: SpkiHash = facts.memory.setdefault(_FIRST_BOUND, spki_sha256)
    return first


def _binding(facts: TlsPeer) -> ChannelBinding | None:
    """Take the one binding that fits the TLS version: tls-unique (RFC 5929) or tls-exporter (RFC 9266)."""
    if facts.tls_exporter is not None:
        return ChannelBinding("tls-exporter", facts.tls_exporter)
    return None if facts.tls_unique is None else ChannelBinding("tls-unique", facts.tls_unique)
