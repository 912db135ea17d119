"""What another line has used up, as a file: hashes in order, so that a duplicate is found where it comes in.

The first line is a signed statement (DSSE) of the station whose set it is: how many hashes follow, and their SHA-256.
Then one hash a line, lower-case hex, sorted: SHA-256 over `kind=value`. Serial numbers can be guessed, so this is no
secret; it is small, of one width, and can be searched without being read into objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from devicesim.durable import write_whole
from devicesim.errors import ConfigInvalid, DeviceSimError, VerificationFailed
from devicesim.line.findings import read_bounded
from devicesim.line.statements import KNOWN_SET, Seal, unseal
from devicesim.trust import TrustAnchors

SET_MAX_BYTES = 128 << 20
ROW_BYTES = 65
"""64 digits and the end of the line: at most two million hashes."""


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A set that was proven to be of the station it names."""

    station: Mapping[str, str]
    at: datetime
    rows: memoryview

    def __len__(self) -> int:
        return len(self.rows) // ROW_BYTES

    def has(self, kind: str, value: str) -> bool:
        """Search it by halves."""
        wanted, low, high = hash_of(kind, value).encode(), 0, len(self)
        while low < high:
            middle = (low + high) // 2
            found = bytes(self.rows[middle * ROW_BYTES : middle * ROW_BYTES + ROW_BYTES - 1])
            if found == wanted:
                return True
            low, high = (middle + 1, high) if found < wanted else (low, middle)
        return False


@dataclass(frozen=True, slots=True)
class KnownSets:
    """The sets of all lines a station was told of."""

    sets: tuple[KnownSet, ...] = ()

    def holder(self, kind: str, value: str) -> str | None:
        """Return the station that has used something up, or None."""
        return next((known.station["station"] for known in self.sets if known.has(kind, value)), None)


def hash_of(kind: str, value: str) -> str:
    """Return how a set names something."""
    return sha256(f"{kind}={value}".encode()).hexdigest()


def write_set(path: Path, guards: Iterable[tuple[str, str]], seal: Seal, at: datetime) -> int:
    """Write a station's set, whole or not at all; return how many hashes it has."""
    rows = "".join(f"{row}\n" for row in sorted({hash_of(*guard) for guard in guards})).encode()
    count = len(rows) // ROW_BYTES
    envelope = seal(KNOWN_SET, {"count": count, "sha256": sha256(rows).hexdigest()}, at)
    write_whole(path, envelope + b"\n" + rows)
    return count


def load_sets(paths: Iterable[Path], trust: TrustAnchors, place: Mapping[str, str]) -> KnownSets:
    """Read the sets of other lines; one that cannot be proven, or is this station's own, is refused."""
    return KnownSets(tuple(_load(path, trust, place) for path in paths))


def _load(path: Path, trust: TrustAnchors, place: Mapping[str, str]) -> KnownSet:
    head, _, rows = read_bounded(path, SET_MAX_BYTES).partition(b"\n")
    try:
        statement = unseal(head, KNOWN_SET, trust)
    except DeviceSimError as error:
        raise VerificationFailed(
            f"{path} is no known set: {error}", advice="have the other line export it again"
        ) from error
    if statement.fields.get("sha256") != sha256(rows).hexdigest() or len(rows) % ROW_BYTES:
        raise VerificationFailed(f"{path} is not the set that was signed", advice="have the other line export it again")
    if statement.place == dict(place):
        raise ConfigInvalid(f"{path} is this station's own set", advice="name the sets of other lines")
    return KnownSet(statement.place, statement.at, memoryview(rows))
