"""Which CAs there are, and what can be fetched about them: their lists and their certificates, by key.

A path names the key of a CA, not its name: what a certificate says of where to look it up holds when the CA has a new
key. For people a CA's name stands for the key that it has now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from estserver.ca import StatusUrls
from estserver.inventory.crls import CrlRecord, Crls
from estserver.key_ids import subject_key_id
from estserver.model import Der

CACHED_MAX_BYTES = 4 << 20
"""Longer lists are read anew each time, and are not kept in memory."""


class Directory:
    """What a server has to tell of its CAs.

    Args:
        hierarchies: by name of the CA, its certificate first, then those above it.
    """

    def __init__(self, hierarchies: Mapping[str, Iterable[Der]], crls: Crls) -> None:
        self._names = {name: [subject_key_id(der) for der in chain] for name, chain in hierarchies.items()}
        self._certificates = {subject_key_id(der): der for chain in hierarchies.values() for der in chain}
        self._crls = crls
        self._cached = dict[str, tuple[int, bytes]]()

    def key_id(self, name: str) -> str | None:
        """Return the key that a path names, by its identifier or by the name of the CA that has it now."""
        if name in self._names:
            return self._names[name][0]
        return name if name in self._certificates else None

    def certificate(self, key_id: str) -> Der:
        """Return the certificate of a CA's key."""
        return self._certificates[key_id]

    def crl(self, key_id: str) -> tuple[CrlRecord, bytes] | None:
        """Return the newest list of a key, and its octets; None before there is one."""
        record = self._crls.published(key_id)
        if record is None:
            return None
        number, octets = self._cached.get(key_id, (0, b""))
        if number != record.number:
            octets = b"".join(self._crls.parts(record))
            if record.size_bytes <= CACHED_MAX_BYTES:
                self._cached[key_id] = record.number, octets
        return record, octets

    def crls(self, hierarchy: Iterable[Der]) -> list[Der]:
        """Return the newest list of every CA of a hierarchy that has one."""
        found = [self.crl(subject_key_id(der)) for der in hierarchy]
        return [Der(one[1]) for one in found if one is not None]


def status_urls(base: str, key_id: str) -> StatusUrls:
    """Return where the status of a CA's certificates is found below a base URL, as `estserver.web` serves it."""
    if not base:
        return StatusUrls()
    base = base.rstrip("/")
    return StatusUrls(f"{base}/crl/{key_id}.crl", f"{base}/ocsp", f"{base}/ca/{key_id}.cer")
