"""What a run of `enrol.py` prints: medians of rounds, ratios within rounds, targets, and the profile."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROBLEMS_SHOWN = 10
NGINX_13, EST_13 = "nginx page, new connection, TLS 1.3", "enrolment, new connection, TLS 1.3"
NGINX_12, EST_12 = "nginx page, new connection, TLS 1.2", "enrolment, new connection, TLS 1.2"
KEEP_ALIVE, HELD_13 = "enrolment, keep-alive", "the same, connections held"
WAITING = "waiting for sockets"


@dataclass(frozen=True, slots=True)
class Round:
    """One scenario in one round.

    Attributes:
        cpu_us: server CPU for each request.
        rate: requests in a second, all clients together.
        busy: the part of the time that the server's core was at work for it; below 1 the clients, or the disk, limit.
    """

    cpu_us: float
    rate: float
    busy: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float], cpu_seconds: float, wall_seconds: float) -> Round:
        """Sum up what the clients and the meter saw."""
        percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
        return cls(
            cpu_us=cpu_seconds / len(seconds) * 1e6,
            rate=len(seconds) / wall_seconds,
            busy=cpu_seconds / wall_seconds,
            p50_ms=percentiles[49] * 1e3,
            p99_ms=percentiles[98] * 1e3,
        )


Rounds = Mapping[str, Sequence[Round]]


def median(rounds: Sequence[Round], fact: Callable[[Round], float]) -> float:
    return statistics.median(map(fact, rounds))


def ratio(rounds: Rounds, above: str, below: str, fact: Callable[[Round], float]) -> tuple[float, float, float] | None:
    """Compare two scenarios round by round; return median, least and greatest."""
    if above not in rounds or below not in rounds:
        return None
    found = [fact(a) / fact(b) for a, b in zip(rounds[above], rounds[below], strict=True)]
    return statistics.median(found), min(found), max(found)


def cpu(seen: Round) -> float:
    return seen.cpu_us


def p99(seen: Round) -> float:
    return seen.p99_ms


def print_results(rounds: Rounds) -> None:
    count = len(next(iter(rounds.values())))
    heads = f"{'CPU us':>7} {'least':>6} {'per s':>7} {'busy':>5} {'p50 ms':>7} {'p99 ms':>7}"
    print(f"\n{f'median of {count} rounds':40} {heads}")
    for name, seen in rounds.items():
        least = min(map(cpu, seen))
        busy = f"{median(seen, lambda r: r.busy):.0%}"
        rate, p50 = median(seen, lambda r: r.rate), median(seen, lambda r: r.p50_ms)
        print(
            f"{name:40} {median(seen, cpu):7.0f} {least:6.0f} {rate:7.0f} {busy:>5} {p50:7.1f} {median(seen, p99):7.1f}"
        )


def print_targets(rounds: Rounds, megabytes: Mapping[str, float]) -> None:
    """Print the ratios that are aimed at, and whether they were reached."""
    print("\nratios within rounds: median (least to greatest)")
    _target("CPU, TLS 1.3: enrolment / nginx page", ratio(rounds, EST_13, NGINX_13, cpu), 2.2)
    _target("CPU, TLS 1.2: enrolment / nginx page", ratio(rounds, EST_12, NGINX_12, cpu), 2.2)
    _target("CPU: keep-alive / new connection", ratio(rounds, KEEP_ALIVE, EST_13, cpu), 0.45)
    _target("p99: connections held / not held", ratio(rounds, HELD_13, EST_13, p99), 2.0)
    memory = ", ".join(f"{value:.0f} MB {when}" for when, value in megabytes.items())
    print(f"  worker's resident memory: {memory}; target <= 120: {_verdict(max(megabytes.values()), 120)}")


def _target(name: str, found: tuple[float, float, float] | None, limit: float) -> None:
    if found is None:
        print(f"  {name}: not measured, nginx is missing")
        return
    middle, least, greatest = found
    print(f"  {name}: {middle:.2f} ({least:.2f} to {greatest:.2f}); target <= {limit}: {_verdict(middle, limit)}")


def _verdict(value: float, limit: float) -> str:
    return "reached" if value <= limit else "NOT reached"


# --- the profile ----------------------------------------------------------------------------------------------------


Profile = Mapping[str, Any]


def print_profile(profiles: Mapping[str, Profile], plain_us: Mapping[str, float]) -> None:
    """Print where the time of an enrolment goes: rooms with their sums, and under each its stages."""
    names = list(profiles)
    print("\nwhere an enrolment's time goes: CPU us | wall us | calls, of each enrolment; no stage contains another")
    print(f"{'':44}" + "".join(f"{name.removeprefix('enrolment, '):>28}" for name in names))
    for room, stages in _rooms(profiles).items():
        if stages != [room]:
            print(
                f"{room:44}" + "".join(f"{sum(_us(profiles[name], s) for s in stages):12.0f}{'':16}" for name in names)
            )
        for stage in stages:
            shown = stage if stages == [room] else f"  {stage.removeprefix(room).removeprefix(':').strip() or 'itself'}"
            print(f"{shown:44}" + "".join(_cell(profiles[name], stage) for name in names))
    for name, profile in profiles.items():
        total = sum(_us(profile, stage) for stage in profile["cpu_ns"])
        plain = f"{profile['metered_us']:.0f} us metered, {plain_us[name]:.0f} us without clocks in it"
        print(f"{name}: {total:.0f} us in stages, {plain}; {_database(profile)}")


def _rooms(profiles: Mapping[str, Profile]) -> dict[str, list[str]]:
    """Group stages by room, the dearest first, as the first profile has it."""
    first = next(iter(profiles.values()))
    stages = sorted({stage for profile in profiles.values() for stage in profile["cpu_ns"]})
    rooms: dict[str, list[str]] = {}
    for stage in sorted(stages, key=lambda stage: -_us(first, stage)):
        rooms.setdefault(stage.partition(":")[0].partition(" +")[0], []).append(stage)
    return dict(sorted(rooms.items(), key=lambda room: -sum(_us(first, stage) for stage in room[1])))


def _us(profile: Profile, stage: str, what: str = "cpu_ns") -> float:
    return float(profile[what].get(stage, 0)) / profile["requests"] / 1e3


def _cell(profile: Profile, stage: str) -> str:
    wall = "-" if stage == WAITING else f"{_us(profile, stage, 'wall_ns'):.0f}"
    return f"{_us(profile, stage):12.0f} {wall:>7} {profile['calls'].get(stage, 0) / profile['requests']:7.2f}"


def _database(profile: Profile) -> str:
    """Sum up what the inventory does, over all rooms."""
    parts = {
        part: sum(_us(profile, stage) for stage in profile["cpu_ns"] if stage.endswith(f" +{part}"))
        for part in ("statements", "begin", "commit")
    }
    statements = sum(calls for stage, calls in profile["calls"].items() if stage.endswith(" +statements"))
    spent = ", ".join(f"{part} {us:.0f}" for part, us in parts.items())
    return f"{statements / profile['requests']:.1f} statements: {spent} us"


def print_checks(answered: int, recorded: int, audit: str, problems: Sequence[str]) -> None:
    print(f"\n{answered} enrolments answered, each checked: 200 and a certificate of this CA for its name and key")
    print(f"{recorded} in the inventory; audit chain: {audit}")
    for problem in problems[:PROBLEMS_SHOWN]:
        print(f"error: {problem}")
    print("all as answered" if not problems else f"error: {len(problems)} problems")
