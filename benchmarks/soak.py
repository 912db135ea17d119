"""Ten minutes at full rate with everything that goes wrong in a year mixed in, and the accounts compared at the end.

    python benchmarks/soak.py [--seconds 600]

`estserver serve` with two workers, over mutual TLS. Stations and devices ask as fast as they are answered, while slow
clients are held open, others misuse the port, workers are killed and the server renews its own TLS certificate and
reloads. Reloads come in the first quarter of the run and at its end, and between them a kill takes the younger worker,
so that one lives for most of the run and its memory can be read. Exit status 1 if anything is not as it has to be.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from clients import TLS13, Identity, Wire, tls_context
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from holding import Holding
from nuisance import Nuisance
from OpenSSL import SSL
from rig import Home, Server, make_home, start_estline
from soak_accounts import Disturbance, Run, figures, known, violations
from soak_clients import GROUP, Client, Crowd, Wanted
from soak_memory import Memory

SLOW = {"idle": 60, "half-open": 60, "slow head": 30, "slow body": 30, "not reading": 10}
EVERY_SECONDS = 12.0
"""Mean time between kills, and between reloads while there are any."""
STORMY = ((0.0, 0.25), (0.9, 1.0))
"""The parts of the run in which there are reloads, and kills of any worker."""
LIMITS = "\n[limits]\n" + "".join(
    f'{name}_rate = "100000/1m"\n' for name in ("station", "credential", "device", "stranger", "guess")
)
RELOAD_SECONDS = 20
REST_SECONDS = 30


class Conductor:
    """Disturbs a running server, and watches it."""

    def __init__(self, home: Home, server: Server, seconds: float, seed: int) -> None:
        self.disturbances: list[Disturbance] = []
        self.memory = Memory(server)
        self.renewer = Client(home, server.port, 250, lambda: False)
        self._home, self._server, self._rng = home, server, random.Random(seed)
        self._begun, self._seconds = time.monotonic(), seconds
        self._every = min(EVERY_SECONDS, seconds / 8)
        self._kill_at = self._reload_at = self._begun + self._every

    def run(self, crowd: Crowd) -> None:
        """Disturb until the time is over; once a second see how the server stands."""
        while (now := time.monotonic()) < self._begun + self._seconds and not crowd.broken():
            self.memory.sample()
            part = (now - self._begun) / self._seconds
            stormy = any(begin <= part < end for begin, end in STORMY)
            if now >= self._kill_at:
                self._kill_at = now + self._rng.expovariate(1 / self._every)
                self._kill(youngest=not stormy)
            if stormy and now >= self._reload_at:
                self._reload_at = now + self._every
                self._reload()
            if sys.stderr.isatty():
                print(f"\r{now - self._begun:.0f} s, {len(self.disturbances)} disturbances ", end="", file=sys.stderr)
            time.sleep(1)

    def _kill(self, *, youngest: bool) -> None:
        workers = self._server.tree()[1:]
        if len(workers) < 2:
            return
        victim = max(workers, key=started_at) if youngest else self._rng.choice(workers)
        self._note("kill")
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)

    def _reload(self) -> None:
        """Let the server renew its TLS certificate at itself, and wait until new connections see it."""
        pem, path = self._home.path / "tls.pem", self._home.path / "private" / "tls.key"
        chain = x509.load_pem_x509_certificates(pem.read_bytes())
        old = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(old, ec.EllipticCurvePrivateKey)
        names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        name = str(chain[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        wanted = Wanted("server/simplereenroll", name, ec.generate_private_key(ec.SECP256R1()), names=names)
        new = self.renewer.ask(wanted, tls_context(self._home, TLS13, GROUP, Identity(old, chain)))
        if new is None:
            return
        path.write_bytes(wanted.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        pem.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in (new, *chain[1:])))
        self._note("reload")
        self._server.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + RELOAD_SECONDS
        while self._shown() != new.serial_number:
            if time.monotonic() > until:
                self.renewer.tally.problems.append("a reload did not bring the new TLS certificate")
                return
            time.sleep(0.2)

    def _shown(self) -> int:
        """Return the serial number of the certificate that a new connection gets to see."""
        try:
            wire = Wire(tls_context(self._home, TLS13, GROUP), self._server.port, "127.0.251.1")
        except (SSL.Error, OSError):
            return 0
        shown = wire.tls.get_peer_certificate(as_cryptography=True)
        wire.close()
        return shown.serial_number if shown is not None else 0

    def _note(self, kind: str) -> None:
        self.disturbances.append(Disturbance(kind, time.monotonic(), time.time()))


def started_at(pid: int) -> int:
    """Return when a process began, in the kernel's ticks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def soak(home: Home, arguments: argparse.Namespace) -> Run:
    """Run it all, stop gracefully, and start once more to hear what was left over."""
    with start_estline(home, None, workers=2) as server:
        conductor = Conductor(home, server, arguments.seconds, arguments.seed)
        conductor.memory.rest(REST_SECONDS)
        with Nuisance(home, server.port) as nuisance, Holding(home, server.port, None, SLOW) as holding:
            with Crowd(home, server.port, arguments.stations, arguments.devices) as crowd:
                conductor.run(crowd)
            held = holding.count()
        conductor.memory.rest(REST_SECONDS)
        server.stop()
        said = server.errors()
    crowd.tally.add(conductor.renewer.tally)
    with start_estline(home, None) as again:
        again.stop()
        said_again = again.errors()
    return Run(
        arguments.seconds, crowd.tally, nuisance.did, held, conductor.disturbances, conductor.memory, said, said_again
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--stations", type=int, default=2, help="client processes that are stations")
    parser.add_argument("--devices", type=int, default=4, help="client processes that are devices, one after the other")
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which workers are killed")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    with tempfile.TemporaryDirectory() as directory:
        home = make_home(Path(directory))
        with (home.path / "estserver.toml").open("a") as config:
            config.write(LIMITS)
        before = known(home)
        run = soak(home, arguments)
        broken = violations(home, run, before)
        for name, value in figures(home, run):
            print(f"{name:<44} {value}")
    for one in broken:
        print(f"violation: {one}")
    print("everything is accounted for" if not broken else f"{len(broken)} violations")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
