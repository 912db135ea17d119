"""Server CPU per durable enrolment, against nginx serving a static page over the same mutual TLS: `make bench`.

Server on one core, clients on another. Every scenario runs once in every round, each round begins with another one,
and what is quoted are medians over rounds and of the ratios within a round, because a shared machine is never the same
for long. Every answer is checked after its round; at the end the inventory must hold exactly what was answered and
its audit chain must verify. A target that is missed is said, and is no failure; a wrong answer is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clients import TLS12, TLS13, Clients, Job
from holding import HELD, Holding
from report import Round, print_checks, print_profile, print_results, print_targets
from rig import Home, Server, make_home, start_estline, start_nginx

DESCRIPTORS = 8192
WARM_UP = 8
"""Requests of each client before the first round, and before a profile counts."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the results."""

    name: str
    server: str
    tls: int = TLS13
    keep_alive: bool = False
    held: bool = False
    group: str = "X25519"

    def job(self, server: Server, count: int) -> Job:
        """Return what each client has to do."""
        return Job(server.port, count, self.tls, self.keep_alive, self.server == "estserver", self.group)


SCENARIOS = (
    Scenario("nginx page, new connection, TLS 1.3", "nginx"),
    Scenario("enrolment, new connection, TLS 1.3", "estserver"),
    Scenario("the same, X25519MLKEM768", "estserver", group="X25519MLKEM768"),
    Scenario("the same, connections held", "estserver", held=True),
    Scenario("nginx page, new connection, TLS 1.2", "nginx", tls=TLS12),
    Scenario("enrolment, new connection, TLS 1.2", "estserver", tls=TLS12),
    Scenario("nginx page, keep-alive", "nginx", keep_alive=True),
    Scenario("enrolment, keep-alive", "estserver", keep_alive=True),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: at most.
        seconds: how long all rounds may take.
        each_seconds: about how long one scenario runs in one round, and a profile.
    """

    rounds: int
    seconds: float
    each_seconds: float


SIZES = {"full": Size(9, 130, 1.5), "quick": Size(3, 26, 0.7)}
REQUESTS_MIN, REQUESTS_MAX = 12, 500
"""Of each client in one round."""


@dataclass(slots=True)
class Bench:
    """One run: the parts, and what has been seen so far."""

    home: Home
    clients: Clients
    servers: dict[str, Server]
    cores: tuple[int, int]
    issued: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)

    def warm(self, scenario: Scenario, seconds: float) -> None:
        """Try a scenario, and choose how many requests make a round of so many seconds."""
        server = self.servers[scenario.server]
        seen = self.run(scenario.job(server, WARM_UP), server)
        if self.problems:
            raise SystemExit(f"error: {scenario.name}: {self.problems[0]}")
        count = int(seen.rate * seconds / self.clients.number)
        self.counts[scenario.name] = min(max(count, REQUESTS_MIN), REQUESTS_MAX)

    def measure(self, scenario: Scenario) -> Round:
        """Run one scenario once, with the held connections if it says so."""
        server, count = self.servers[scenario.server], self.counts[scenario.name]
        if not scenario.held:
            return self.run(scenario.job(server, count), server)
        with Holding(self.home, server.port, self.cores[1]) as holding:
            self._expect_held(holding)
            seen = self.run(scenario.job(server, count), server)
            self._expect_held(holding)
            self._note_memory("with the connections held")
        return seen

    def run(self, job: Job, server: Server) -> Round:
        """Let every client do a job; meter the server from the first request to the last answer."""
        self.clients.prepare(job)
        before = server.cpu_seconds()
        wall = self.clients.go()
        cpu = server.cpu_seconds() - before
        outcome = self.clients.check()
        twice = self.issued.keys() & outcome.issued.keys()
        self.problems += [f"serial {serial:x} was answered twice" for serial in twice]
        self.issued |= outcome.issued
        self.problems += outcome.problems
        return Round.of(outcome.seconds, cpu, wall)

    def all_rounds(self, size: Size) -> None:
        """Run every scenario once a round, until the number or the time is up."""
        present = [scenario for scenario in SCENARIOS if scenario.server in self.servers]
        for scenario in present:
            self.warm(scenario, size.each_seconds)
        self._note_memory("warm")
        start = time.monotonic()
        for number in range(size.rounds):
            for at in range(len(present)):
                scenario = present[(at + number) % len(present)]
                self.rounds.setdefault(scenario.name, []).append(self.measure(scenario))
            spent = time.monotonic() - start
            if spent * (number + 2) / (number + 1) > size.seconds:
                break
        self._note_memory("at the end")

    def profile(self, name: str, directory: Path) -> dict[str, object]:
        """Run a scenario against a server with clocks in it; return what they say, and what the meter says."""
        scenario = next(each for each in SCENARIOS if each.name == name)
        report = directory / f"profile-{len(self.issued)}.json"
        before = self.clients.number * (WARM_UP + (2 if scenario.keep_alive else 0))  # each connection kept is tried
        program = (str(Path(__file__).with_name("stages.py")), str(report), str(before + 1))
        with start_estline(self.home, self.cores[0], program=program) as server:
            self.run(scenario.job(server, WARM_UP), server)
            seen = self.run(scenario.job(server, self.counts[name]), server)
            server.stop()
        counted: dict[str, object] = json.loads(report.read_text())
        return counted | {"metered_us": seen.cpu_us}

    def verify(self, before: dict[int, str]) -> tuple[int, str]:
        """Hold the inventory against what the clients got; return its size and what the audit chain says."""
        after = inventory_contents(self.home)
        added = {serial: digest for serial, digest in after.items() if serial not in before}
        if added != self.issued:
            lost, surplus = len(self.issued.items() - added.items()), len(added.items() - self.issued.items())
            self.problems.append(f"the inventory lacks {lost} of what was answered and has {surplus} that were not")
        with self.home.inventory() as inventory:
            audit = inventory.audit_verify()
        if not audit.ok:
            self.problems.append(f"the audit chain breaks at row {audit.first_bad}: {audit.reason}")
        return len(added), f"{audit.rows} rows {'verify' if audit.ok else 'do not verify'}"

    def _expect_held(self, holding: Holding) -> None:
        counted = holding.count()
        if {kind: counted.get(kind, 0) for kind in HELD} != HELD:
            self.problems.append(f"not all connections were held: {counted}")

    def _note_memory(self, when: str) -> None:
        now = self.servers["estserver"].worker_megabytes()
        self.megabytes[when] = max(now, self.megabytes.get(when, 0.0))


def inventory_contents(home: Home) -> dict[int, str]:
    """Read serial and SHA-256 of every certificate."""
    found: dict[int, str] = {}
    last = None
    with home.inventory() as inventory:
        while page := inventory.list_certificates(after=last, limit=1000):
            found |= {record.serial: record.sha256 for record in page}
            last = page[-1].serial
    return found


@contextlib.contextmanager
def set_up(directory: Path, clients: int) -> Iterator[Bench]:
    """Make the home, the servers and the clients; end them all."""
    available = sorted(os.sched_getaffinity(0))
    cores = available[0], available[-1]
    os.sched_setaffinity(0, {cores[1]})
    home = make_home(directory)
    page = (home.path / "issuing.pem").read_bytes()
    with contextlib.ExitStack() as stack:
        servers = {"estserver": stack.enter_context(start_estline(home, cores[0]))}
        nginx = start_nginx(home, directory / "nginx", cores[0], page)
        if nginx is not None:
            servers["nginx"] = stack.enter_context(nginx)
        bench = Bench(home, Clients(home, clients, cores[1]), servers, cores)
        yield bench
        bench.clients.close()


def describe(bench: Bench, size: Size, place: Path) -> None:
    """Say what is measured and where."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    under = max((m for m in mounts if place.is_relative_to(m[1])), key=lambda m: len(m[1]))
    model = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?")
    print(f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, inventory on {under[2]}")
    print(f"server on core {bench.cores[0]}, {bench.clients.number} clients on core {bench.cores[1]}", end="; ")
    print(f"up to {size.rounds} rounds, load {os.getloadavg()[0]:.1f} at the start")
    if under[2] in {"tmpfs", "ramfs"}:
        print("NOTE: a synced commit costs nothing in memory; give --directory on a disk")
    if bench.cores[0] == bench.cores[1]:
        print("NOTE: one core only: clients and server share it, rates and latencies say nothing")
    if "nginx" not in bench.servers:
        print("NOTE: nginx is missing, its rows and ratios are left out: apt-get install nginx-light")


def main() -> int:
    parser = argparse.ArgumentParser(description="Server CPU per durable enrolment, against nginx's static page.")
    parser.add_argument("--quick", action="store_true", help="about 40 seconds instead of 3 minutes")
    parser.add_argument("--clients", type=int, default=8, help="requests in flight (8)")
    parser.add_argument("--directory", type=Path, help="where the inventory lies: a real disk (the system's default)")
    options = parser.parse_args()
    size = SIZES["quick" if options.quick else "full"]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="estline-bench-", dir=options.directory) as name:
        place = Path(name).resolve()
        with set_up(place, options.clients) as bench:
            before = inventory_contents(bench.home)
            describe(bench, size, place)
            bench.all_rounds(size)
            for server in bench.servers.values():
                server.stop()
            new, kept = "enrolment, new connection, TLS 1.3", "enrolment, keep-alive"
            profiles = {which: bench.profile(which, place) for which in (new, kept)}
            recorded, audit = bench.verify(before)
    print_results(bench.rounds)
    print_targets(bench.rounds, bench.megabytes)
    plain = {which: statistics.median(seen.cpu_us for seen in bench.rounds[which]) for which in profiles}
    print_profile(profiles, plain)
    print_checks(len(bench.issued), recorded, audit, bench.problems)
    print(f"{time.monotonic() - start:.0f} seconds")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
