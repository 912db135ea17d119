"""What becomes of a request that is refused: one audit row with all its reasons, paid for, or a row a minute.

A mere lack of credentials is a question, not a refusal. What could not be written down is logged, and answered all the
same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import datetime

from estserver import events
from estserver.attempt import Attempt, Request
from estserver.errors import (
    AwaitingApproval,
    BadCredentials,
    CapacityError,
    EstError,
    InternalError,
    KeyReused,
    Known,
    NotAuthenticated,
    RateLimited,
)
from estserver.inventory import Inventory
from estserver.limits import Bucket, Limits, Throttle
from estserver.model import Event, Identity, Refusal

_log = logging.getLogger(__name__)


class Refusals:
    """Tells of requests that end in an error."""

    def __init__(
        self, inventory: Inventory, limits: Limits, throttle: Throttle, random: Callable[[int], bytes]
    ) -> None:
        self._inventory = inventory
        self._limits = limits
        self._throttle = throttle
        self._random = random

    def tell(self, attempt: Attempt, error: EstError, now: datetime) -> EstError:
        """Tell of a request that ends in an error; return the error it is answered with."""
        if isinstance(error, RateLimited):
            self._note_often(attempt, error, now)
        elif isinstance(error, CapacityError):
            _log.warning("%s of label %r not served: %s", attempt.request.operation, attempt.request.label, error)
        elif not isinstance(error, (AwaitingApproval, NotAuthenticated, InternalError)):
            return self._write_down(attempt, error, now)
        return error

    def _write_down(self, attempt: Attempt, error: EstError, now: datetime) -> EstError:
        request = attempt.request
        refusal = Refusal(
            code=error.code,
            reasons=error.reasons,
            operation=request.operation,
            label=request.label,
            requester=f"unrecognised:{_claimed(request)}" if attempt.identity is None else str(attempt.identity),
            peer_address=request.peer.address,
            device=attempt.device,
            spki_sha256=None if attempt.csr is None else attempt.csr.spki_sha256,
            request_id=request.id,
        )
        error.known = Known(refusal.requester, refusal.device, refusal.spki_sha256)
        payment = self._payment(request, attempt.identity, error)
        try:
            self._throttle.check(payment, now)
            self._inventory.refuse(refusal, now, self._findings(attempt, error, now), payment)
        except RateLimited as limited:
            self._note_often(attempt, limited, now)
            return limited
        except CapacityError as problem:
            _log.error("%s; a refusal could not be written down: %r", problem, refusal)
        return error

    def _payment(self, request: Request, identity: Identity | None, error: EstError) -> tuple[Bucket, ...]:
        """Say who pays for a refusal."""
        if identity is not None:
            return self._limits.of_identity(identity, request.peer)
        guessed = request.credentials if isinstance(error, BadCredentials) else None
        return self._limits.of_stranger(request.peer, guessed)

    def _note_often(self, attempt: Attempt, error: RateLimited, now: datetime) -> None:
        refusal = Refusal(
            code=error.code,
            reasons=error.reasons,
            operation=attempt.request.operation,
            label=attempt.request.label,
            requester=error.owner,
            peer_address=attempt.request.peer.address,
            request_id=attempt.request.id,
        )
        error.known = Known(refusal.requester)
        self._throttle.note(error, refusal, now)

    def _findings(self, attempt: Attempt, error: EstError, now: datetime) -> list[Event]:
        asked, device = attempt.csr, attempt.device
        if not isinstance(error, KeyReused) or asked is None or device is None:
            return []
        owner = self._inventory.key_device(asked.spki_sha256)
        if owner is None or owner == device:
            return []
        return [events.key_reused(device, owner, asked, now, ca=attempt.door.ca_name, random=self._random)]


def _claimed(request: Request) -> str:
    """Say who it was, for the audit, when it was not established who it is."""
    if request.credentials is not None:
        return request.credentials.name
    leaf = request.peer.certificate
    return "anonymous" if leaf is None else f"sha256-{hashlib.sha256(leaf).hexdigest()}"
