"""What can go wrong, as the rest of the server says it.

    EstError
    ├── RequestError            the bytes of the request are at fault
    │   ├── MalformedRequest
    │   ├── ProofOfPossessionFailed
    │   └── WeakKey
    ├── AuthenticationError     who is asking was not established
    │   ├── NotAuthenticated        nothing was offered: challenge for it
    │   └── BadCredentials          something was offered and is not good
    ├── Refused                 we know who asks, and they may not have it
    │   ├── NotAuthorized
    │   ├── ChannelBindingFailed
    │   └── PolicyRefused
    ├── StateError              it collides with what was issued before
    │   ├── KeyReused
    │   ├── UnknownLabel
    │   ├── NotOffered
    │   └── NotFound
    ├── AwaitingApproval        accepted, and an operator has not decided yet
    ├── CapacityError           try again later
    │   ├── QueueFull
    │   ├── RateLimited
    │   └── StorageUnavailable
    ├── ConfigError             a file or an argument of the operator's is wrong
    └── InternalError           our fault, never the client's

Every error has a stable `code` for machines, one line of text a client may be shown, all `reasons` when there are
several, and `advice` for the human who has to do something. No HTTP in here: `estserver.web` owns that one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Known:
    """What was known of a request when it was refused; None for what was not.

    Attributes:
        requester: `kind:name`, as in the audit row.
    """

    requester: str
    device: str | None = None
    spki_sha256: str | None = None


class EstError(Exception):
    """Root of everything this server raises on purpose.

    Attributes:
        code: stable reason code, lower-case words joined by hyphens; part of the interface.
        reasons: every reason, in plain words; never empty.
        advice: what the reader can do about it; may be empty.
        retry_after: how long to wait before the same request can succeed, or None.
        known: set where the refusal is written down.
    """

    code = "error"
    advice = ""
    known: Known | None = None

    def __init__(
        self,
        *reasons: str,
        code: str | None = None,
        advice: str | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        self.reasons: tuple[str, ...] = reasons or (self.code.replace("-", " "),)
        self.code = code or self.code
        self.advice = self.advice if advice is None else advice
        self.retry_after = retry_after
        super().__init__("; ".join(self.reasons))


class RequestError(EstError):
    """The bytes of the request are at fault."""

    code = "bad-request"


class MalformedRequest(RequestError):
    """The body is not what the operation takes: base64, DER, PKCS#10."""

    code = "malformed-request"


class ProofOfPossessionFailed(RequestError):
    """The CSR's signature does not verify with the key in it (RFC 7030 §4.2.1, RFC 5272 §3.1)."""

    code = "proof-of-possession-failed"


class WeakKey(RequestError):
    """The public key is one that nobody should have: too short, out of range, off the curve."""

    code = "weak-key"


class AuthenticationError(EstError):
    """Who is asking was not established."""

    code = "not-authenticated"


class NotAuthenticated(AuthenticationError):
    """No certificate and no credential came with the request (RFC 7030 §3.2.3)."""


class BadCredentials(AuthenticationError):
    """A credential was offered that is unknown, wrong, spent or expired; the text never says which."""

    code = "bad-credentials"


class Refused(EstError):
    """We know who asks, and they may not have it."""

    code = "refused"


class NotAuthorized(Refused):
    """The requester, or the certificate it showed, may not use this operation (RFC 7030 §3.7)."""

    code = "not-authorized"


class ChannelBindingFailed(Refused):
    """The CSR is bound to another TLS connection, or cannot be checked on this one (RFC 7030 §3.5)."""

    code = "channel-binding-failed"


class PolicyRefused(Refused):
    """The profile does not allow what the CSR asks; every violation is in `reasons`."""

    code = "policy-refused"


class StateError(EstError):
    """The request collides with what was issued before, or names what does not exist."""

    code = "conflict"


class KeyReused(StateError):
    """The key was certified before: for another device, or for this one where the profile wants a new key."""

    code = "key-reused"


class UnknownLabel(StateError):
    """No such label, or no such operation under it (RFC 7030 §3.2.2)."""

    code = "unknown-label"


class NotOffered(StateError):
    """An optional operation that this server does not offer behind this label."""

    code = "not-implemented"


class NotFound(StateError):
    """The named certificate, credential, station or anchor does not exist."""

    code = "not-found"


class AwaitingApproval(EstError):
    """The request was accepted and an operator has not decided yet; `retry_after` says when to ask again.

    No refusal: it is queued, and the same request finds out what became of it (RFC 7030 §4.2.3).
    """

    code = "awaiting-approval"
    advice = "repeat the request after that time, with the same key"


class CapacityError(EstError):
    """The server cannot do it now; `retry_after` says when to come back."""

    code = "unavailable"


class StorageUnavailable(CapacityError):
    """The inventory could not be read or written: locked, full, read-only. Nothing was issued."""

    code = "storage-unavailable"


class QueueFull(CapacityError):
    """As many requests wait for an operator as may; nothing was queued."""

    code = "queue-full"


class RateLimited(CapacityError):
    """Somebody asked more often than the limits allow; `retry_after` is in whole seconds.

    Attributes:
        limit: which limit, as `[limits]` calls it.
        owner: who has used it up, as `kind:name`.
    """

    code = "rate-limited"

    def __init__(
        self,
        *reasons: str,
        advice: str | None = None,
        retry_after: timedelta | None = None,
        limit: str = "",
        owner: str = "",
    ) -> None:
        super().__init__(*reasons, advice=advice, retry_after=retry_after)
        self.limit = limit
        self.owner = owner


class ConfigError(EstError):
    """A file, an argument or the state of the home directory is wrong; the operator can mend it."""

    code = "config-error"


class InternalError(EstError):
    """Our own check failed; nothing left the server."""

    code = "internal-error"
