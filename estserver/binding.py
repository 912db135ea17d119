"""Linking identity and proof of possession (RFC 7030 §3.5): is this CSR bound to this TLS connection.

Rules:
- A binding that is there is checked, whatever the policy: base64 of tls-unique on TLS 1.2 (12 octets), of tls-exporter
  on TLS 1.3 (32 octets, RFC 9266); the whole value, in constant time.
- Where the connection gives none that is safe to trust (no extended master secret, a proxy in between), a CSR that
  carries one is refused.
- The binding of one connection vouches for one key (RFC 9266 §4.1): what is bound for a second one is refused, unless
  the label says otherwise; the same key may ask again. It is not known behind a proxy, which mixes its clients.
- A registration authority posts what others signed on other connections; it has checked the binding itself (§3.7).
  What it asks for itself is bound like anybody's.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from estserver.errors import ChannelBindingFailed
from estserver.model import Csr, DeviceId, Identity, Peer
from estserver.policy.decide import BindingResult


def check(
    csr: Csr, peer: Peer, identity: Identity, device: DeviceId | None, *, required: bool, many_keys: bool = False
) -> BindingResult:
    """Return how the request is bound.

    Args:
        device: whom the request is for.
        many_keys: the label lets one binding vouch for more than one key.

    Raises:
        ChannelBindingFailed: bound to another connection or for a second key, unverifiable here, or missing where it
            is required.
    """
    own = identity.certificate
    asserted = identity.may_assert_binding and own is not None and device != own.device
    if csr.binding is None:
        if required and not asserted:
            raise ChannelBindingFailed(
                "linking of identity and proof of possession is required here: put the base64 tls-unique (TLS 1.2) or "
                "tls-exporter (TLS 1.3) value of this connection into challengePassword (RFC 7030 §3.5, RFC 9266)"
            )
        return "asserted" if asserted else "absent"
    if peer.binding is not None and hmac.compare_digest(_decoded(csr.binding), peer.binding.value):
        if not (many_keys or asserted):
            _require_first(csr, peer)
        return "verified"
    if asserted:
        return "asserted"
    if peer.binding is None:
        raise ChannelBindingFailed(
            "the challengePassword holds a channel binding, and this connection offers none to compare it with"
        )
    raise ChannelBindingFailed(
        f"the challengePassword is not the {peer.binding.kind} of this connection: sign the CSR after the handshake, "
        "on the connection that sends it (RFC 7030 §3.5)"
    )


def _require_first(csr: Csr, peer: Peer) -> None:
    """RFC 9266 §4.1: one binding, one authentication."""
    if peer.first_bound is not None and peer.first_bound(csr.spki_sha256) != csr.spki_sha256:
        raise ChannelBindingFailed(
            "the channel binding of this connection has vouched for another key: open a new connection for each key "
            "(RFC 9266 §4.1)"
        )


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        return b""
