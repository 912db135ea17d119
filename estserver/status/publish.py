"""Lists published by themselves: when something was revoked, and before the last list ends.

Rules:
- A list is regular once in half of its life, counted from the last regular one, whatever was published in between:
  whoever fetches lists by their nextUpdate sees what was revoked and has expired since (RFC 5280 §3.3).
- What was revoked is published at once. Where building takes long, that is bounded to a tenth of a core, and what is
  revoked meanwhile is on the next list: the server itself and its OCSP answers never wait for a list.
- A number is taken, a list built, its parts written, and then it is published; whatever is killed in between is done
  again with the next number.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import BinaryIO

from estserver.ca import IssuingCa
from estserver.inventory.crls import CrlRecord, Crls, Standing

PART_BYTES = 1 << 20
REST_FACTOR = 9
"""How many times as long as a build took nothing is built because of a revocation."""


class Publisher:
    """Publishes the lists of some CAs.

    Args:
        cas: whose keys are at hand.
        lifetime: from thisUpdate to nextUpdate.
        seconds: a clock that is not set, for how long a build takes.
    """

    def __init__(
        self,
        cas: Iterable[IssuingCa],
        crls: Crls,
        *,
        lifetime: timedelta,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cas = tuple({ca.key_id: ca for ca in cas}.values())
        self._crls = crls
        self._lifetime = lifetime
        self._seconds = seconds
        self._rests_until = dict[str, float]()

    def publish_due(self, now: datetime) -> Iterator[str]:
        """Publish what has to be published at this moment; tell what was."""
        for ca in self._cas:
            standing = self._crls.standing(ca.key_id)
            regular = self._is_time(standing, now)
            rested = self._seconds() >= self._rests_until.get(ca.key_id, 0.0)
            if regular or (standing.news and rested):
                record = self._publish(ca, now, regular=regular)
                if record is not None:
                    yield f"CRL {record.number} of {ca.name} is published: {record.entries} entries"

    def publish(self, ca: IssuingCa, now: datetime) -> CrlRecord | None:
        """Publish the list of one CA, due or not; None when another server is at it, or was quicker."""
        return self._publish(ca, now, regular=self._is_time(self._crls.standing(ca.key_id), now))

    def _is_time(self, standing: Standing, now: datetime) -> bool:
        return standing.regular_at is None or now >= standing.regular_at + self._lifetime / 2

    def _publish(self, ca: IssuingCa, now: datetime, *, regular: bool) -> CrlRecord | None:
        build = self._crls.begin(ca.key_id, now, regular=regular)
        if build is None:
            return None
        begun, ends = self._seconds(), now + self._lifetime
        with tempfile.TemporaryFile() as spool:
            start, entries = ca.write_crl(
                spool, self._crls.entries(build), number=build.number, this_update=now, next_update=ends
            )
            size_bytes = spool.seek(0, 2) - start
            self._crls.put(build, _parts(spool, start), now)
        record = CrlRecord(ca.key_id, build.number, now, ends, entries, size_bytes)
        done = self._seconds()
        self._rests_until[ca.key_id] = done + REST_FACTOR * (done - begun)
        return record if self._crls.publish(build, record, now) else None


def _parts(spool: BinaryIO, start: int) -> Iterator[bytes]:
    spool.seek(start)
    while octets := spool.read(PART_BYTES):
        yield octets
