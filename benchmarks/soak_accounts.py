"""What must be true after the soak, and its figures.

What the clients hold, what the server wrote down and what was done to it are three accounts of the same run, and each
has to explain the others.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rig import Home
from soak_clients import Tally
from soak_memory import Memory

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import kill_support
from tests.est_server import Home as TestHome

CUT_SECONDS = {"kill": 3.0, "reload": 6.0}
"""For how long after it a cut connection is explained by it: a reload reads the home and starts workers first."""
JUDGED_SECONDS = 120
"""A worker that lived for less is still growing warm."""
GROWTH_MAX_MEGABYTES = 8.0
DESCRIPTORS_MORE = 12
"""Connections to the inventory, which are opened at the first request and kept: three files each."""
OVERTAKEN = (
    "SELECT ltrim(serial, '0') FROM reservation mine WHERE state = 'void' AND EXISTS "
    "(SELECT 1 FROM reservation other WHERE other.fingerprint = mine.fingerprint AND other.state = 'recorded')"
)
"""Reservations of requests whose client was gone, and whose repeat was answered first, perhaps superseded since."""


class Disturbance(NamedTuple):
    """What was done to the server and when, by the monotonic clock and by the calendar's."""

    kind: str
    at: float
    calendar: float


@dataclass(frozen=True, slots=True)
class Run:
    """Everything seen from outside."""

    seconds: float
    tally: Tally
    misuses: Counter[str]
    held: dict[str, int]
    disturbances: list[Disturbance]
    memory: Memory
    said: str
    said_again: str


def violations(home: Home, run: Run, before: set[str]) -> list[str]:
    """Return everything that is not as it has to be."""
    return [
        *run.tally.problems,
        *kill_support.violations(TestHome(home.path, ""), []),
        *_certificates(home, run, before),
        *_left_over(home, run),
        *_answers(run),
        *_resources(run),
    ]


def known(home: Home) -> set[str]:
    """Return the keys that have certificates."""
    with kill_support.database(TestHome(home.path, "")) as rows:
        return {spki for (spki,) in rows("SELECT spki_sha256 FROM certificate")}


def _certificates(home: Home, run: Run, before: set[str]) -> Iterator[str]:
    """Find what is held and was not issued, or issued and not asked for; doubles are `kill_support`'s."""
    with kill_support.database(TestHome(home.path, "")) as rows:
        issued = {
            sha256: (spki, device)
            for sha256, spki, device in rows("SELECT sha256, spki_sha256, device FROM certificate")
        }
    asked = run.tally.asked
    for sha256, spki in run.tally.held.items():
        if issued.get(sha256, ("", ""))[0] != spki:
            yield f"{asked.get(spki)} holds a certificate that is not in the inventory"
    for spki, device in issued.values():
        if spki not in before and asked.get(spki) != device:
            yield f"{device} has a certificate that nobody asked for"
        if spki in run.tally.denied:
            yield f"{device} has a certificate for what was refused"


def _left_over(home: Home, run: Run) -> Iterator[str]:
    """Find what was left reserved by no kill, or not told at the next start; a retry may overtake its own request."""
    with kill_support.database(TestHome(home.path, "")) as rows:
        void = rows("SELECT ltrim(serial, '0'), at, reason FROM reservation WHERE state = 'void'")
        answered = {serial for (serial,) in rows(OVERTAKEN)}
    left = {serial: at for serial, at, reason in void if reason == "left over"}
    if kill_support.told_void(run.said_again) != left.keys():
        yield f"left over {sorted(left)}, told otherwise"
    kills = [one.calendar for one in run.disturbances if one.kind == "kill"]
    for serial, at in left.items():
        if not any(-2 <= kill - at <= 5 for kill in kills):
            yield f"serial {serial} was left reserved, and no worker was killed"
    yield from (f"serial {serial} is void: {why}" for serial, _, why in void if serial not in left.keys() | answered)


def _answers(run: Run) -> Iterator[str]:
    for status, count in run.tally.answers.items():
        if status not in {200, 400, 401, 403, 503}:
            yield f"{count} answers {status}"
    for at in run.tally.cut_at:
        if not any(0 <= at - one.at <= CUT_SECONDS[one.kind] for one in run.disturbances):
            yield f"a connection was cut {_since(run, at):.1f} s after the last disturbance"
    if "Traceback" in run.said + run.said_again:
        yield f"a traceback on stderr:\n{run.said[run.said.index('Traceback') :][:4000]}"


def _since(run: Run, at: float) -> float:
    return min((at - one.at for one in run.disturbances if one.at <= at), default=at)


def _resources(run: Run) -> Iterator[str]:
    life = run.memory.of_longest()
    if life.seconds >= JUDGED_SECONDS and life.growth > GROWTH_MAX_MEGABYTES:
        yield f"a worker grew by {life.growth:.1f} MB in {life.seconds:.0f} s"
    before, after = run.memory.at_rest
    if after > before + DESCRIPTORS_MORE:
        yield f"{after} descriptors open at rest, {before} before"


def figures(home: Home, run: Run) -> Iterator[tuple[str, object]]:
    """Return the rows of the table."""
    tally, life, every = run.tally, run.memory.of_longest(), run.memory.of_all()
    seconds = sorted(tally.seconds)
    yield "seconds", f"{run.seconds:.0f}"
    yield "answers", f"{len(seconds)}, {len(seconds) / run.seconds:.0f} a second"
    yield (
        "p50, p99, longest",
        ", ".join(f"{1000 * seconds[int(q * (len(seconds) - 1))]:.0f} ms" for q in (0.5, 0.99, 1)),
    )
    for name, count in sorted(tally.did.items()):
        yield name, count
    yield "answers by status", ", ".join(f"{status}: {count}" for status, count in sorted(tally.answers.items()))
    for kind, count in Counter(one.kind for one in run.disturbances).items():
        yield f"{kind}s", count
    yield "connections cut by them", len(tally.cut_at)
    yield "slow clients held at the end", ", ".join(f"{name} {count}" for name, count in run.held.items())
    yield "misuses", ", ".join(f"{name} {count}" for name, count in sorted(run.misuses.items()))
    yield "certificates held, distinct", len(tally.held)
    with kill_support.database(TestHome(home.path, "")) as rows:
        ((issued,),) = rows("SELECT count(*) FROM certificate")
    yield "certificates in the inventory", issued
    yield "reservations void and told", len(kill_support.told_void(run.said_again))
    with home.inventory() as inventory:
        yield "audit rows verified", inventory.audit_verify().rows
    yield (
        "longest-lived worker, first and last quarter",
        f"{life.first:.1f} and {life.last:.1f} MB in {life.seconds:.0f} s",
    )
    yield "all processes, first and last quarter", f"{every.first:.1f} and {every.last:.1f} MB"
    yield (
        "descriptors of a worker: before, most, after",
        "{0}, {2}, {1}".format(*run.memory.at_rest, run.memory.most_descriptors()),
    )
