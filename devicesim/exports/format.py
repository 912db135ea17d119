"""What a format of an export is. One file in `formats/` with a `FORMAT` in it makes one, and nothing else knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from devicesim.exports.provisioned import FIELDS, IN_THE_CERTIFICATE, Facts, Provisioned
from devicesim.transport import ClientIdentity
from devicesim.trust import TrustAnchors


@dataclass(frozen=True, slots=True)
class Occasion:
    """For which batch something is exported, how many units it has, and who signs for it."""

    batch: str
    count: int
    station: ClientIdentity


@dataclass(frozen=True, slots=True)
class Problem:
    """What of a unit a format cannot take: the field, and what is wrong with it."""

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One entry of a signed manifest: where it stands, whom it is about, who signed it, what is wrong with it."""

    position: int
    device_id: str
    signer: str
    problem: str


Write = Callable[[Iterator[Provisioned], Path, Occasion], None]
Read = Callable[[Path], Iterator[Facts]]
Check = Callable[[Provisioned], Iterator[Problem]]
Verify = Callable[[Path, TrustAnchors, datetime], Iterator[Judged]]


def no_limits(_: Provisioned) -> Iterator[Problem]:
    """Take every unit."""
    return iter(())


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write units down.

    Attributes:
        name: as the command line has it.
        title: what it is for, in one line.
        holds: the fields of `Provisioned` that come back from `read`, all of them and no others.
        write: puts the units into an empty directory; one file or folder in it, unless the format is a tree.
        read: reads them back from that directory, in the same order.
        check: what a unit must be for the format to take it.
        limits: the same in words, for people.
        manifest: the name of its signed file, which `verify` reads; empty when nothing in it is signed.
    """

    name: str
    title: str
    holds: frozenset[str]
    write: Write
    read: Read
    check: Check = no_limits
    limits: tuple[str, ...] = field(default=())
    manifest: str = ""
    verify: Verify | None = None

    def missing(self) -> tuple[str, ...]:
        """Return the fields that the format does not hold, not even inside the certificate."""
        held = self.holds | (IN_THE_CERTIFICATE if "certificate" in self.holds else frozenset())
        return tuple(name for name in FIELDS if name not in held)
