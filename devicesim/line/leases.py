"""Leases: which station makes which part of a batch, so that two lines that never hear of each other never collide.

Whoever plans the batch splits it into a folder, the lease book: one file a lease, naming batch, content, station, and
the places of the units from first to last. A later split goes on behind the last lease in the book. A lease is bound to
the batch's content by its hash and to itself by another: an edit of either is noticed. It is no proof of who wrote it;
the EST server's list of what a station may ask for stays the guard against a station that lies.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from devicesim.errors import Conflict, StorageError, UsageProblem
from devicesim.line.batch import Batch, Span
from devicesim.line.findings import Finding, InputInvalid, decode_utf8, findings_of, read_bounded
from devicesim.line.ledger.disk import json_text
from devicesim.line.settings import Identifier, Section, Whole
from devicesim.line.units_csv import UNITS_MAX

FILE_MAX_BYTES = 16 << 10
Place = Annotated[Whole, Field(ge=1, le=UNITS_MAX)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = tuple[str, int]
"""A station and how many units it is to make."""


class _LeaseFile(Section):
    """A lease as it is written."""

    lease: Literal[1]
    batch: Identifier
    content_sha256: Hash
    station: Identifier
    first: Place
    last: Place
    first_serial: str
    last_serial: str
    sha256: Hash


_FILE = TypeAdapter(_LeaseFile)


@dataclass(frozen=True, slots=True)
class Lease:
    """A part of a batch for one station."""

    batch: str
    content_sha256: str
    station: str
    span: Span
    first_serial: str
    last_serial: str

    @classmethod
    def of(cls, batch: Batch, station: str, span: Span) -> Lease:
        """Lease a part of a batch."""
        first, last = batch.units[span.first - 1], batch.units[span.last - 1]
        return cls(batch.id, batch.sha256(), station, span, first.serial, last.serial)

    def facts(self) -> dict[str, object]:
        """Return what the file says, but for its own hash."""
        return {
            "lease": 1,
            "batch": self.batch,
            "content_sha256": self.content_sha256,
            "station": self.station,
            "first": self.span.first,
            "last": self.span.last,
            "first_serial": self.first_serial,
            "last_serial": self.last_serial,
        }

    @property
    def sha256(self) -> str:
        """Identify the lease."""
        return sha256(json_text(self.facts()).encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """Return its name in the book."""
        return f"{self.batch}.{self.span.first:06}-{self.span.last:06}.{self.station}.lease.json"

    def part_of(self, batch: Batch, station: str) -> Batch:
        """Return what a station may make of a batch under this lease, or raise Conflict."""
        if self.station != station:
            raise Conflict(
                f"the lease is that of station {self.station}, and this is {station}",
                advice="take the lease file that was made for this station",
            )
        if self.batch != batch.id:
            raise Conflict(f"the lease is one of batch {self.batch}, not of {batch.id}", advice="take the right one")
        if self.content_sha256 != batch.sha256() or self != Lease.of(batch, station, self.span):
            raise Conflict(
                f"the lease was made of another content of batch {batch.id}",
                advice="take batch.toml and units.csv as they were split, or split the batch anew under another id",
            )
        return batch.part(self.span)


def allotted(batch: Batch, lease_file: Path | None, station: str) -> Batch:
    """Return what a station may make: its part under a lease, or a whole batch that is not leased out."""
    if lease_file is not None:
        return load_lease(lease_file).part_of(batch, station)
    if batch.leased:
        raise UsageProblem(
            f"batch {batch.id} is made under leases (leased = true)",
            advice="give --lease FILE; `devicesim line lease split` makes them",
        )
    return batch


def load_lease(path: Path) -> Lease:
    """Read a lease; one that is not as it was written is an InputInvalid."""
    text = decode_utf8(path, read_bounded(path, FILE_MAX_BYTES))
    try:
        found = _FILE.validate_python(json.loads(text))
    except (ValueError, RecursionError) as error:
        findings = findings_of(path, error) if isinstance(error, ValidationError) else []
        raise InputInvalid(findings or [Finding(str(path), 0, "", "is not JSON")]) from error
    span = Span(found.first, found.last)
    names = (found.batch, found.content_sha256, found.station)
    lease = Lease(*names, span, found.first_serial, found.last_serial)
    if span.last < span.first or lease.sha256 != found.sha256:
        raise InputInvalid([Finding(str(path), 0, "sha256", "is not that of this lease: it was altered; split anew")])
    return lease


def split(batch: Batch, shares: Sequence[Share], book: Path) -> list[Path]:
    """Lease the next units of a batch to stations and write the leases into the book; all of them or none.

    Raises Conflict when the batch has too few units left, or the book has leases of another content of it.
    """
    with _writing(book):
        taken = [load_lease(path) for path in sorted(book.glob(f"{batch.id}.*.lease.json"))]
        if any(lease.content_sha256 != batch.sha256() for lease in taken):
            raise Conflict(
                f"{book} has leases of another content of batch {batch.id}",
                advice="a batch does not change once it is leased: give the new one another id",
            )
        begun = max((lease.span.last for lease in taken), default=0)
        wanted, left = sum(count for _, count in shares), len(batch.units) - begun
        if wanted > left:
            raise Conflict(f"batch {batch.id} has {left} units left, not {wanted}", advice="lease fewer")
        leases, place = [], begun + 1
        for station, count in shares:
            leases.append(Lease.of(batch, station, Span(place, place + count - 1)))
            place += count
        return _write(book, leases)


@contextmanager
def _writing(book: Path) -> Iterator[None]:
    """Let one split at a time write into the book."""
    try:
        book.mkdir(parents=True, exist_ok=True)
        handle = os.open(book, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot use {book}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(book: Path, leases: list[Lease]) -> list[Path]:
    """Write new files, each whole or not at all; after a failure none of them is left."""
    made: list[Path] = []
    try:
        for lease in leases:
            path = book / lease.file_name
            beside = path.with_suffix(".new")
            made += [beside, path]
            with beside.open("w", encoding="utf-8") as file:
                file.write(json.dumps({**lease.facts(), "sha256": lease.sha256}, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        raise StorageError(f"cannot write the leases into {book}: {error.strerror}") from error
    return made[1::2]
