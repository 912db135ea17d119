"""Send a million hostile requests to the server and look for whatever it should not have done.

    python benchmarks/fuzz.py                        # 1 000 000 requests, in memory: no sockets, no TLS, all the rest
    python benchmarks/fuzz.py --tls 20000            # and some over real TLS to `estserver serve`
    python benchmarks/fuzz.py --requests 0 --soak-memory     # 100 000 over real TLS: does the worker grow?
    python benchmarks/fuzz.py --seed 1 --first 5268 --requests 1     # one of them again

Each request is sound but for one layer (`tests/hostile_requests.py`) and goes through the front's own parser and
connection to the WSGI app and the whole enrolment path on a real SQLite home, one home for each process. Limits are set
to their highest, or most answers would be 429. Every answer must be 2xx, or 4xx with a text, or 501 where the operation
is not offered, or the connection ends; nothing may be raised but refusals, nothing logged as an error; at the end the
inventory holds exactly what was answered and the audit chain verifies. Exit status 1 if not, with the offending octets.
"""

from __future__ import annotations

import argparse
import base64
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import fuzz_tls
from estserver.web import create_app
from tests.est_server import Answer, Home, found_home
from tests.hostile_requests import LAYERS, Attempt, Attempts, World, populate
from tests.kill_support import DOUBLES, ORPHANS
from tests.plain_front import Outcome, PlainFront

TENTHS = 10
SLOWEST_KEPT = 3
TOO_MANY_FAULTS = 100
SLOW_QUERY = "certificate whose two events are not both there, once"
"""Takes the square of the number of certificates."""


@dataclass
class Tally:
    """What one process, or all of them, did and saw."""

    layers: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    warned: Counter[str] = field(default_factory=Counter)
    cpu_seconds: Counter[str] = field(default_factory=Counter)
    silent: int = 0
    certificates: int = 0
    slowest: list[tuple[float, int, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    memory: list[list[float]] = field(default_factory=list)
    """Resident MB of each process: with the server loaded, and after each tenth of its requests."""

    def add(self, attempt: Attempt, outcome: Outcome, seconds: float) -> None:
        """Count one request."""
        self.layers[attempt.layer] += 1
        self.statuses.update(answer.status for answer in outcome.answers)
        self.codes.update(outcome.codes)
        self.cpu_seconds[attempt.layer] += seconds  # type: ignore[assignment]  # a sum, not a count
        self.silent += not outcome.answers
        self.slowest = sorted([*self.slowest, (seconds, attempt.number, attempt.layer)], reverse=True)[:SLOWEST_KEPT]

    def merge(self, other: Tally) -> None:
        """Add what another process did."""
        for name in ("layers", "statuses", "codes", "warned", "cpu_seconds"):
            getattr(self, name).update(getattr(other, name))
        self.silent += other.silent
        self.certificates += other.certificates
        self.faults += other.faults
        self.memory += other.memory
        self.slowest = sorted([*self.slowest, *other.slowest], reverse=True)[:SLOWEST_KEPT]


# --- one process ----------------------------------------------------------------------------------------------------


def work(arguments: argparse.Namespace, share: int, done: Synchronized[int]) -> Tally:
    """Do every n-th request on a home of its own, and look at the home afterwards."""
    os.nice(arguments.nice)
    numbers = range(arguments.first + share, arguments.first + arguments.requests, arguments.processes)
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory) as directory,
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("default")
        home = found_home(Path(directory) / "home")
        world = populate(home)
        tally, answered = send_all(arguments, world, numbers, done)
        tally.warned.update(str(one.message).split("\n")[0] for one in told)
        tally.faults += violations(home, answered)
        tally.certificates = len(answered)
    return tally


def send_all(
    arguments: argparse.Namespace, world: World, numbers: range, done: Synchronized[int]
) -> tuple[Tally, set[bytes]]:
    """Send the requests of these numbers; return what was seen and the digests of all certificates in the answers."""
    tally, answered, attempts = Tally(), set[bytes](), Attempts(world, arguments.seed)
    front = PlainFront(create_app(world.home.settings))
    sizes = [resident_megabytes()]
    for count, number in enumerate(numbers):
        if count and count % max(1, len(numbers) // TENTHS) == 0:
            sizes.append(resident_megabytes())
        attempt = attempts.attempt(number)
        began = time.process_time()
        outcome = front.exchange(attempt.pieces, attempt.peer)
        tally.add(attempt, outcome, time.process_time() - began)
        answered.update(digest for answer in outcome.answers for digest in digests(answer))
        if outcome.faults:
            tally.faults += [f"{number} ({attempt.layer}): {fault}" for fault in outcome.faults]
            save(arguments.faults, arguments.seed, attempt)
            if len(tally.faults) > TOO_MANY_FAULTS:
                break
        with done.get_lock():
            done.value += 1
    front.close()
    tally.memory.append([*sizes, resident_megabytes()])
    return tally, answered


def digests(answer: Answer) -> Iterator[bytes]:
    """Yield the digest of the certificate in the answer to an enrolment; `/cacerts` has two in it."""
    if answer.status == 200 and answer.method == "POST":
        found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.body))
        yield from (sha256(one.public_bytes(Encoding.DER)).digest() for one in found)


def violations(home: Home, answered: set[bytes]) -> Iterator[str]:
    """Whatever is wrong with the home now: exactly what was answered must be there, and the audit chain must hold."""
    with home.inventory() as inventory:
        report = inventory.audit_verify()
        missing = sum(inventory.certificate(digest.hex()) is None for digest in answered)
    if not report.ok:
        yield f"the audit chain breaks at {report.first_bad}: {report.reason}"
    if missing:
        yield f"{missing} certificates were answered and are not in the inventory"
    with closing(sqlite3.connect(home.path / "estserver.db")) as rows:
        for what, query in {**DOUBLES, **ORPHANS}.items():
            found = [] if what == SLOW_QUERY else rows.execute(query).fetchall()
            yield from (f"{what}: {value}" for (value,) in found[:3])
        ((recorded,),) = rows.execute("SELECT count(*) FROM certificate WHERE requester LIKE '%:%' "
                                      "AND requester NOT LIKE 'operator:%'")  # fmt: skip
        if rows.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            yield "the database is damaged"
    if recorded != len(answered) + ENROLLED_BEFORE:
        yield f"{len(answered)} certificates were answered, {recorded - ENROLLED_BEFORE} are in the inventory"


ENROLLED_BEFORE = 2
"""The device and the station that `populate` enrols."""


def save(directory: Path, seed: int, attempt: Attempt) -> None:
    """Keep what went wrong: the request, and the certificate that was shown with it."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = directory / f"{seed}-{attempt.number}"
    stem.with_suffix(".request").write_bytes(b"".join(attempt.pieces))
    for place, certificate in enumerate((attempt.peer.certificate, *attempt.peer.chain)):
        if certificate is not None:
            stem.with_suffix(f".peer{place}.der").write_bytes(certificate)


def resident_megabytes(pid: int | str = "self") -> float:
    """Return what a process keeps in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


# --- all processes --------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> Tally:
    """Share the requests among the processes."""
    total, context = Tally(), multiprocessing.get_context("fork")
    done = context.Value("q", 0)
    with context.Pool(arguments.processes, _adopt, (done,)) as pool:
        shares = [pool.apply_async(_work, (arguments, share)) for share in range(arguments.processes)]
        while not all(share.ready() for share in shares):
            shares[0].wait(1)
            if sys.stderr.isatty():
                print(f"\r{done.value:>9,} of {arguments.requests:,} ", end="", file=sys.stderr, flush=True)
        for share in shares:
            total.merge(share.get())
    return total


_done: Synchronized[int]


def _adopt(done: Synchronized[int]) -> None:
    global _done  # noqa: PLW0603  (a shared counter reaches a pool's process only this way)
    _done = done


def _work(arguments: argparse.Namespace, share: int) -> Tally:
    return work(arguments, share, _done)


# --- the report -----------------------------------------------------------------------------------------------------


def report(tally: Tally, arguments: argparse.Namespace, seconds: float) -> None:
    """Print what was done and seen."""
    count = tally.layers.total()
    print(f"{count:,} requests of seed {arguments.seed} in {seconds / 60:.1f} min, {arguments.processes} processes")
    rows = [(layer, tally.layers[layer], tally.cpu_seconds[layer] / max(1, tally.layers[layer])) for layer in LAYERS]
    print("\n| layer | requests | CPU us each |\n|---|---|---|")
    print("\n".join(f"| {layer} | {number:,} | {each * 1e6:.0f} |" for layer, number, each in rows))
    print("\n| answer | times |\n|---|---|")
    print("\n".join(f"| {status} | {number:,} |" for status, number in sorted(tally.statuses.items())))
    print(f"| connection ended without one | {tally.silent:,} |")
    print("\n| reason | times |\n|---|---|")
    print("\n".join(f"| {code} | {number:,} |" for code, number in tally.codes.most_common()))
    print(f"\n{tally.certificates:,} certificates were issued, each of them answered and in the inventory")
    for spent, number, layer in tally.slowest:
        print(f"slowest: {spent * 1000:.1f} ms of CPU, --seed {arguments.seed} --first {number} --requests 1 ({layer})")
    for sizes in tally.memory:
        print("memory of a process, loaded and after each tenth: " + " ".join(f"{size:.0f}" for size in sizes) + " MB")
    for text, number in tally.warned.most_common():
        print(f"warned {number} times: {text}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="in memory")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="begin with this one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tls", type=int, default=0, metavar="REQUESTS", help="over real TLS as well")
    parser.add_argument("--soak-memory", action="store_true", help="100 000 over real TLS: does the worker grow?")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=None, help="where homes are made, such as /dev/shm")
    parser.add_argument("--faults", type=Path, default=Path("fuzz-faults"), help="where offending requests are kept")
    return parser.parse_args()


def main() -> int:
    arguments, faults = parse(), list[str]()
    if arguments.requests:
        begun = time.monotonic()
        tally = run(arguments)
        report(tally, arguments, time.monotonic() - begun)
        faults += tally.faults
    if arguments.tls:
        faults += fuzz_tls.run(arguments, arguments.tls, soak=False)
    if arguments.soak_memory:
        faults += fuzz_tls.run(arguments, fuzz_tls.SOAK_REQUESTS, soak=True)
    for fault in faults[:TOO_MANY_FAULTS]:
        print(f"violation: {fault}")
    print(f"violations: {len(faults)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
