"""A P-256 factory line, everything durable: how fast it passes units, what that costs, and how it takes up its work.

    .venv/bin/python benchmarks/line.py             # a batch of 10 000
    .venv/bin/python benchmarks/line.py --quick     # about half a minute

The real commands on real files: `estserver serve`, `devicesim broker run` with mosquitto, `devicesim line run`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clients import TLS13, Clients, Job
from line_rig import Seen, Site, run_line, set_up

from devicesim.cli import now
from devicesim.line.assembly import mqtt_identity
from devicesim.line.ledger import Ledger
from devicesim.line.report.times import percentile
from devicesim.mqtt.announcer import Announcer
from devicesim.mqtt.connection import BrokerUrl

BARE_ENROLMENTS = 200
DRAIN_SECONDS = 120
UNITS_GOAL, UNITS_LEAST = 150, 60
DRAIN_GOAL, MEGABYTES_MOST, RESUME_SECONDS_MOST = 5000, 300, 2.0


@dataclass(frozen=True, slots=True)
class Size:
    """How many units pass with the broker there, and how many the large batch has."""

    units: int
    large: int


SIZES = {"quick": Size(300, 400), "full": Size(2000, 10_000)}


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Throughput:
    """A batch with everything there."""

    seen: Seen
    server_cpu_seconds: float
    broker_cpu_seconds: float
    bare_cpu_us: float
    steps_ms: dict[str, list[float]]


def throughput(site: Site, units: int) -> Throughput:
    """Pass a batch with the broker there; then bare enrolments on one open connection, for comparison."""
    batch = site.batch("steady", units)
    with site.broker() as broker:
        run_line(site.batch("warm", 40), site.config, site.slots)
        meters = site.server.cpu_seconds(), broker.cpu_seconds()
        seen = run_line(batch, site.config, site.slots)
        spent = site.server.cpu_seconds() - meters[0], broker.cpu_seconds() - meters[1]
    return Throughput(seen, *spent, bare_enrolment(site), steps(site, "steady"))


def bare_enrolment(site: Site) -> float:
    """Return the server's CPU for an enrolment without a line, in microseconds."""
    clients = Clients(site.home, 1, max(os.sched_getaffinity(0)))
    try:
        clients.prepare(Job(site.server.port, BARE_ENROLMENTS, TLS13, keep_alive=True))
        before = site.server.cpu_seconds()
        clients.go()
        spent = site.server.cpu_seconds() - before
        if problems := clients.check().problems:
            raise SystemExit(f"error: {problems[0]}")
    finally:
        clients.close()
    return spent / BARE_ENROLMENTS * 1e6


def steps(site: Site, batch: str) -> dict[str, list[float]]:
    """Read how long each step took, as the ledger has it, and check that every unit passed."""
    found: dict[str, list[float]] = {}
    with contextlib.closing(sqlite3.connect(site.settings().ledger.path)) as conn:
        rows = conn.execute(
            "SELECT a.outcome, a.timing_ms FROM attempt a JOIN unit u USING (device_id) WHERE u.batch = ?", (batch,)
        ).fetchall()
    for outcome, timing in rows:
        if outcome != "pass":
            raise SystemExit(f"error: an attempt of {batch} ended as {outcome}")
        for step, spent_ms in json.loads(timing).items():
            found.setdefault(step, []).append(spent_ms)
    return found


@dataclass(frozen=True, slots=True)
class Large:
    """A large batch with the broker away: stopped half-way, resumed, run again when it was done, then announced."""

    first: Seen
    resumed: Seen
    again: Seen
    rows: int
    drain_seconds: float


def large(site: Site, units: int) -> Large:
    batch = site.batch("large", units)
    first = run_line(batch, site.config, site.slots, stop_after=units // 2)
    resumed = run_line(batch, site.config, site.slots)
    again = run_line(batch, site.config, site.slots)
    with site.broker():
        rows, seconds = drain(site)
    return Large(first, resumed, again, rows, seconds)


def drain(site: Site) -> tuple[int, float]:
    """Send what is owed; return how much it was, and the seconds from connecting to the last commit."""
    settings = site.settings()
    assert settings.mqtt is not None
    url, identity = BrokerUrl.parse(settings.mqtt.url), mqtt_identity(settings, settings.mqtt)
    with (
        Ledger(settings.ledger.path, clock=now) as ledger,
        Announcer(ledger.connect, url, identity, clock=now) as announcer,
    ):
        owed = ledger.owed()
        start = time.perf_counter()
        done = announcer.drain(DRAIN_SECONDS)
        seconds = time.perf_counter() - start
    if done.pending or done.sent != owed:
        raise SystemExit(f"error: {done.pending} of {owed} announcements still owed: {done.reason}")
    return owed, seconds


def verify(site: Site) -> str:
    """Hold the ledger against the inventory: each unit one certificate, each certificate of a unit known to both."""
    with contextlib.closing(sqlite3.connect(site.settings().ledger.path)) as conn:
        units = {name for (name,) in conn.execute("SELECT device_id FROM unit WHERE state IN ('recorded','announced')")}
        serials = conn.execute("SELECT count(DISTINCT cert_serial) FROM unit").fetchone()[0]
    held: list[str] = []
    last = None
    with site.home.inventory() as inventory:
        while page := inventory.list_certificates(after=last, limit=1000):
            held += [record.device for record in page if record.device in units]
            last = page[-1].serial
    with Ledger(site.settings().ledger.path, clock=now) as ledger:
        ledger.verify_chain()
    if not len(held) == len(set(held)) == len(units) == serials:
        raise SystemExit(f"error: {len(units)} units passed, {serials} serials, {len(held)} certificates in inventory")
    return f"{len(units)} units passed, each with one certificate that ledger and inventory know; the chain verifies"


# --- what is printed ------------------------------------------------------------------------------------------------


def print_throughput(found: Throughput) -> None:
    units, seen = found.seen.passed, found.seen
    us = 1e6 / units
    print(f"\n{units} units, broker there: {units / seen.work_seconds:.1f} units/s, {seen.megabytes:.0f} MB")
    print(f"CPU us of each unit: line {seen.cpu_seconds * us:.0f} (the start of the process included)", end=", ")
    print(f"server {found.server_cpu_seconds * us:.0f}, broker {found.broker_cpu_seconds * us:.0f};", end=" ")
    print(f"a bare enrolment, keep-alive: server {found.bare_cpu_us:.0f}")
    print(f"\n{'wall ms of each step (ledger)':32} {'mean':>8} {'p50':>8} {'p99':>8}")
    whole = [sum(each) for each in zip(*found.steps_ms.values(), strict=True)]
    own = [total - est for total, est in zip(whole, found.steps_ms["enrolled"], strict=True)]
    rows = {**found.steps_ms, "software's share": whole, "the same without the EST step": own}
    for name, spent in rows.items():
        print(f"{name:32} {_row(spent)}")


def _row(spent: Sequence[float]) -> str:
    return f"{statistics.fmean(spent):8.1f} {percentile(spent, 0.5):8.1f} {percentile(spent, 0.99):8.1f}"


def print_large(found: Large) -> None:
    print(f"\n{found.first.passed + found.resumed.passed} units in one batch, broker away:", end=" ")
    print(f"{found.first.passed} passed and SIGTERM, {found.resumed.passed} after the resume,", end=" ")
    print(f"{found.resumed.passed / found.resumed.work_seconds:.1f} units/s")
    assert found.resumed.first_seconds is not None
    print(f"resume half-way: knows what is to do after {found.resumed.begun_seconds:.2f} s,", end=" ")
    print(f"first PASS after {found.resumed.first_seconds:.2f} s; finished batch: {found.again.begun_seconds:.2f} s")
    print(f"{found.rows} announcements drained in {found.drain_seconds:.2f} s")


def print_targets(steady: Throughput, big: Large) -> None:
    rate, drained = steady.seen.passed / steady.seen.work_seconds, big.rows / big.drain_seconds
    memory = max(seen.megabytes for seen in (steady.seen, big.first, big.resumed, big.again))
    resume = max(big.resumed.begun_seconds, big.again.begun_seconds)
    print(f"\n{'target':44} {'measured':>10}")
    for name, value, reached in (
        (f"units/s to durable PASS, goal >= {UNITS_GOAL}", f"{rate:.1f}", rate >= UNITS_GOAL),
        (f"units/s to durable PASS, to reach >= {UNITS_LEAST}", f"{rate:.1f}", rate >= UNITS_LEAST),
        (f"outbox: announcements/s, goal >= {DRAIN_GOAL}", f"{drained:.0f}", drained >= DRAIN_GOAL),
        (f"line's peak memory, MB < {MEGABYTES_MOST}", f"{memory:.0f}", memory < MEGABYTES_MOST),
        (f"resume begins within {RESUME_SECONDS_MOST:.0f} s", f"{resume:.2f}", resume <= RESUME_SECONDS_MOST),
    ):
        print(f"{name:44} {value:>10}  {'reached' if reached else 'NOT reached'}")


def describe(slots: int) -> None:
    model = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?")
    print(f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}; load {os.getloadavg()[0]:.1f}", end="")
    print(f" at the start; {slots} slots, one server worker, line, server and broker share the cores", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Throughput, memory and resume of a factory line.")
    parser.add_argument("--quick", action="store_true", help="about half a minute")
    parser.add_argument("--slots", type=int, default=4, help="units worked on at the same time (4)")
    parser.add_argument("--large", type=int, help="units of the large batch (10 000, or 400 with --quick)")
    parser.add_argument("--directory", type=Path, help="where everything lies: a real disk (the system's default)")
    options = parser.parse_args()
    size = SIZES["quick" if options.quick else "full"]
    if shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin") is None:
        raise SystemExit("error: mosquitto is missing: apt-get install mosquitto")
    start = time.monotonic()
    describe(options.slots)
    with (
        tempfile.TemporaryDirectory(prefix="estline-line-", dir=options.directory) as name,
        set_up(Path(name).resolve(), options.slots) as site,
    ):
        steady = throughput(site, size.units)
        big = large(site, options.large or size.large)
        checked = verify(site)
    print_throughput(steady)
    print_large(big)
    print_targets(steady, big)
    print(f"\n{checked}\n{time.monotonic() - start:.0f} seconds")
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
