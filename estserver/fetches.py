"""Who was given which CA certificates: what a rollover waits for.

Rules:
- Only a device that is recognised by its certificate counts: `/cacerts` is open to all, and anybody can ask often.
- It is noted once for each device and answer, and never in the way of the answer: what cannot be noted now is noted
  when the device asks again.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime

from estserver.errors import EstError
from estserver.identity import Authenticator
from estserver.inventory import Inventory
from estserver.model import Peer

_log = logging.getLogger(__name__)

NOTED_MAX = 100_000
"""How many are remembered in a process, so as not to be written again."""


class Fetches:
    """Notes what devices were given."""

    def __init__(self, authenticator: Authenticator, inventory: Inventory) -> None:
        self._authenticator = authenticator
        self._inventory = inventory
        self._noted = set[tuple[bytes, str, str]]()

    def note(self, peer: Peer, ca: str, answer_sha256: str, now: datetime) -> None:
        """Note that a peer was given this answer, if it is known who it is."""
        if peer.certificate is None:
            return
        digest = hashlib.sha256(peer.certificate)
        mark = (digest.digest(), ca, answer_sha256)
        if mark in self._noted:
            return
        try:
            if self._inventory.certificate(digest.hexdigest()) is None:
                return  # a stranger costs one look-up
            record = self._authenticator.identify(peer, None, "", now).certificate
            if record is None:
                return
            self._inventory.rollovers.note_fetch(record.device, ca, answer_sha256, now)
        except EstError as error:
            _log.debug("not noted who was given the certificates of %s: %s", ca, error)
            return
        if len(self._noted) >= NOTED_MAX:
            self._noted.clear()
        self._noted.add(mark)
