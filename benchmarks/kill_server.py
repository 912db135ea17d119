"""Kill the server at random, again and again, and count what that broke.

    python benchmarks/kill_server.py --seeds 100

Each seed has devices enrol and renew at one server, on one growing inventory, while workers die at random stages and at
random moments, and now and then the whole server, master and all; then it starts again and must say what was left over.
After each seed everything the devices hold is compared with everything the inventory says.
Exit status 1 if anything was lost or doubled.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.est_server import Est, found_home
from tests.kill_server import STAGES
from tests.kill_support import Asked, KillableServer, enrolment, live, open_serials, told_void, violations

WHOLE_SERVER = 0.1
"""The part of the kills that takes master and workers at once."""


def life(server: KillableServer, seed: int, arguments: argparse.Namespace, told: list[Asked]) -> Counter[str]:
    """One seed: load and kills, until every device has all its certificates."""
    rng = random.Random(seed)
    first, planned = server.requests + 1, server.kills
    expected = arguments.devices * (arguments.renewals + 1)
    server.plan((first + at, rng.choice(STAGES)) for at in range(2 * expected) if rng.random() < 0.2)
    firsts = [enrolment(server.home, f"sn-{seed}-{number}") for number in range(arguments.devices)]
    counts = Counter[str]()
    with ThreadPoolExecutor(arguments.clients) as pool:
        lives: list[Future[None]] = [
            pool.submit(
                live,
                Est(server),
                one,
                renewals=arguments.renewals,
                rng=random.Random(f"{seed} {one.device}"),
                told=told,
            )
            for one in firsts
        ]
        while not all(one.done() for one in lives):
            time.sleep(rng.expovariate(1 / arguments.kill_every_seconds))
            if rng.random() < WHOLE_SERVER:
                counts += restart(server)
            else:
                counts["kills at random moments"] += server.kill_worker(rng)
    counts["violations"] += sum(_failed(one) for one in lives)
    counts["kills at a stage"] = server.kills - planned
    return counts + restart(server) + report(violations(server.home, told))


def _failed(one: Future[None]) -> bool:
    error = one.exception()
    if error is not None:
        print(f"violation: {error!r}", flush=True)
    return error is not None


def restart(server: KillableServer) -> Counter[str]:
    """Kill master and workers and start again: exactly what was left open must be told, and void."""
    server.kill()
    left = open_serials(server.home)
    told = told_void(server.start().said)
    counts = Counter({"kills of the whole server": 1, "reservations void and told": len(told)})
    return counts + report([f"left over {sorted(left)}, told {sorted(told)}"] if told != left else [])


def report(found: list[str]) -> Counter[str]:
    for one in found:
        print(f"violation: {one}", flush=True)
    return Counter({"violations": len(found)})


def totals(told: list[Asked]) -> Counter[str]:
    return Counter(
        {
            "requests of devices": len(told),
            "certificates": sum(len(set(one.certificates)) for one in told),
            "attempts": sum(one.attempts for one in told),
            "retries without an answer": sum(one.attempts - one.answers for one in told),
            "repeats that got the same bytes": sum(max(0, len(one.certificates) - 1) for one in told),
        }
    )


def run(arguments: argparse.Namespace) -> Counter[str]:
    counts, told, ends_at = Counter[str](), list[Asked](), time.monotonic() + arguments.minutes * 60
    with tempfile.TemporaryDirectory() as directory:
        home = found_home(Path(directory) / "home")
        server = KillableServer(home, Path(directory) / "levers", workers=arguments.workers).start()
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            counts += life(server, seed, arguments, told)
            counts["seeds"] += 1
            if sys.stderr.isatty():
                print(f"\r{counts['seeds']} seeds, {counts['violations']} violations ", end="", file=sys.stderr)
            if counts["violations"] or time.monotonic() > ends_at:
                break
        server.stop()
    return counts + totals(told)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20, help="begin no further seed after this time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4, help="devices at the same time")
    parser.add_argument("--devices", type=int, default=6, help="for each seed")
    parser.add_argument("--renewals", type=int, default=3, help="of each device")
    parser.add_argument("--kill-every-seconds", type=float, default=0.25, help="mean time between kills")
    return parser.parse_args()


def main() -> int:
    arguments, begun = parse(), time.monotonic()
    counts = run(arguments)
    names = (
        *("seeds", "kills at a stage", "kills at random moments", "kills of the whole server"),
        *("requests of devices", "certificates", "attempts", "retries without an answer"),
        *("repeats that got the same bytes", "reservations void and told", "violations"),
    )
    for name in names:
        print(f"{name:<32} {counts[name]:>8}")
    print(f"{'seconds':<32} {time.monotonic() - begun:>8.0f}")
    if counts["seeds"] < arguments.seeds:
        print(f"not all {arguments.seeds} seeds were run")
    return 1 if counts["violations"] or not counts["seeds"] else 0


if __name__ == "__main__":
    sys.exit(main())
