"""OCSP: what became of a certificate, asked one at a time (RFC 6960, RFC 9919).

Rules:
- The inventory is looked at for every request: no answer is older than the last revocation. What costs is the
  signature, and that is kept for as long as it is true and half of its life lies ahead.
- Who asks about what was never issued here, or by a CA that is not ours, learns nothing: unauthorized.
- A nonce gets an answer of its own, which is not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from estserver import ocsp
from estserver.errors import MalformedRequest
from estserver.inventory.takeback import Takeback
from estserver.key_ids import subject_key_id
from estserver.model import Der
from estserver.ocsp import Asked, Delegate, Verdict
from estserver.status.delegate import DelegateFile

KEPT_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Reply:
    """Octets of an answer, and from when to when others may keep it; None: they may not."""

    octets: bytes
    this_update: datetime | None = None
    next_update: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Kept:
    verdict: Verdict
    delegate: Delegate
    reply: Reply
    until: datetime


class Responder:
    """Answers for some CAs.

    Args:
        cas: certificate of each, and where its responder's key is.
        lifetime: from thisUpdate to nextUpdate.
    """

    def __init__(self, cas: Mapping[Der, DelegateFile], takeback: Takeback, *, lifetime: timedelta) -> None:
        self._issuers = {
            issuer: (subject_key_id(certificate), file)
            for certificate, file in cas.items()
            for issuer in ocsp.issuer_hashes(certificate)
        }
        self._takeback = takeback
        self._lifetime = lifetime
        self._kept = OrderedDict[Asked, _Kept]()

    def respond(self, octets: bytes, now: datetime) -> Reply:
        """Answer a request.

        Raises:
            StorageUnavailable, ConfigError: it cannot be found out.
        """
        try:
            asked = ocsp.read(octets)
        except MalformedRequest:
            return Reply(ocsp.MALFORMED)
        key_id, file = self._issuers.get(asked.issuer, ("", None))
        found = None if file is None else self._takeback.status(asked.serial)
        if file is None or found is None or found.issuer != key_id:
            return Reply(ocsp.UNAUTHORIZED)
        delegate = file.current()
        if delegate is None or now > delegate.certificate.not_valid_after_utc:
            return Reply(ocsp.TRY_LATER)
        return self._answer(asked, Verdict(found.revoked_at, found.reason), delegate, now)

    def _answer(self, asked: Asked, verdict: Verdict, delegate: Delegate, now: datetime) -> Reply:
        kept = self._kept.get(asked)
        if kept is not None and kept.verdict == verdict and kept.delegate is delegate and now < kept.until:
            self._kept.move_to_end(asked)
            return kept.reply
        ends = now + self._lifetime
        signed = ocsp.answer(asked, verdict, delegate, now, ends)
        if asked.nonce is not None:
            return Reply(signed)
        reply = Reply(signed, now, ends)
        self._kept[asked] = _Kept(verdict, delegate, reply, now + self._lifetime / 2)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return reply
