"""One request and what became of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request that the application answered; None is what was not known or not asked for.

    Attributes:
        id: the request's own, also in its audit row.
        peer, tls: address and TLS version of the connection it came over.
        operation, label: only ever ones that this server has; the default label is empty.
        path: what was asked for instead, when it is none of them; never with its query.
        reason: stable code of why it was refused.
        requester: `kind:name` of who asked, as in the audit.
        device, serial, spki_sha256: of the certificate that was issued or asked for; the serial in hex.
        seconds: from the complete request to its answer.
    """

    id: str
    peer: str
    tls: str
    method: str
    status: int
    seconds: float
    operation: str | None = None
    label: str | None = None
    path: str | None = None
    reason: str | None = None
    requester: str | None = None
    device: str | None = None
    serial: str | None = None
    spki_sha256: str | None = None
