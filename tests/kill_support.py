"""A server that is killed, devices that do not give up, and what must be true whatever happened."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from tests import csr_maker
from tests.est_server import Answer, Est, Holder, Home

PATIENCE_SECONDS = 60
LATER = (429, 503)
"""Come back: nothing was done."""


# --- the server -----------------------------------------------------------------------------------------------------


class KillableServer:
    """`tests.kill_server` with its levers; `start` as often as it was killed."""

    def __init__(self, home: Home, levers: Path, *, workers: int = 1) -> None:
        self.home, self.levers, self.port, self._workers = home, levers, 0, workers
        levers.mkdir(exist_ok=True)

    def start(self) -> Self:
        """Start, and wait until it serves; `said` is what it wrote to stderr."""
        self.said, self._said_lock = "", threading.Lock()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.kill_server", str(self.levers), "serve"),
                *("--home", str(self.home.path), "--listen", f"127.0.0.1:{self.port}"),
                *("--workers", str(self._workers)),
            ],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.process.stdout is not None
        ready = re.search(r":(\d+)/", self.process.stdout.readline())
        if ready is None:
            self.stop()
            raise AssertionError(self.said)
        self.port = int(ready[1])
        return self

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    def worker_pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(FileNotFoundError):
            return [int(pid) for pid in children.read_text().split()]
        return []

    def kill_worker(self, rng: random.Random) -> bool:
        """SIGKILL one of the workers, whatever it is doing."""
        with contextlib.suppress(IndexError, ProcessLookupError):
            os.kill(rng.choice(self.worker_pids()), signal.SIGKILL)
            return True
        return False

    def kill(self) -> None:
        """SIGKILL everything at once, as a power cut would that leaves the disk intact."""
        self.process.send_signal(signal.SIGSTOP)  # no new workers while the others die
        for pid in (*self.worker_pids(), self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._ended()

    def stop(self) -> int:
        """End by SIGTERM; return the exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self._ended()

    def _ended(self) -> int:
        status = self.process.wait(PATIENCE_SECONDS)
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    # --- levers ---

    @property
    def requests(self) -> int:
        """How many enrolments have reached any worker so far."""
        path = self.levers / "requests"
        return path.stat().st_size if path.exists() else 0

    @property
    def kills(self) -> int:
        """How many workers died at a stage."""
        path = self.levers / "kills"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def plan(self, stages: Iterable[tuple[int, str]]) -> None:
        """Say which enrolments, by number, kill their worker at which stage."""
        (self.levers / "plan.new").write_text("".join(f"{number} {stage}\n" for number, stage in stages))
        (self.levers / "plan.new").rename(self.levers / "plan")

    def set_clock(self, seconds: int) -> None:
        (self.levers / "clock_seconds").write_text(str(seconds))


# --- the devices ----------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """One request of one device: asked until it is answered, and every certificate that came for it."""

    operation: str
    device: str
    key: Any = field(default_factory=csr_maker.new_key, repr=False)
    credential: tuple[str, str] | None = field(default=None, repr=False)
    client: Holder | None = None
    attempts: int = 0
    answers: int = 0
    certificates: list[bytes] = field(default_factory=list, repr=False)
    refusals: list[str] = field(default_factory=list)

    def once(self, est: Est) -> Answer | None:
        """Ask; None when no answer came, which says nothing about what was done."""
        self.attempts += 1
        csr = csr_maker.request(self.key, self.device)  # signed anew each time, as a channel binding would have it
        try:
            answer = est.post(csr, operation=self.operation, credential=self.credential, client=self.client)
        except (SSL.Error, OSError):
            return None
        except AssertionError as error:
            if not str(error).startswith("no answer but ''"):
                raise
            return None
        self.answers += 1
        if answer.status == 200:
            self.certificates.append(answer.certificate.public_bytes(Encoding.DER))
        elif answer.status not in LATER:
            self.refusals.append(f"{answer.status} {answer.text.strip()}")
        return answer

    def until_answered(self, est: Est) -> Holder:
        """Ask again and again; return what the device then holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (answer := self.once(est)) is None or answer.status in LATER:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self} was not answered in {PATIENCE_SECONDS} s")
            time.sleep(0.02)
        assert answer.status == 200, (self, answer)
        return Holder(self.key, answer.certificate, (est.home.issuing,))


def enrolment(home: Home, device: str) -> Asked:
    """A device's first request, paid for by a one-time credential of its own."""
    return Asked("simpleenroll", device, credential=home.credential(device, name=f"for-{device}"))


def renewal(holder: Holder) -> Asked:
    """A device's renewal, with a new key."""
    return Asked("simplereenroll", holder.device, client=holder)


def live(est: Est, first: Asked, *, renewals: int, rng: random.Random, told: list[Asked]) -> None:
    """One device: enrols, renews, and now and then asks again for what it has; `told` keeps every request."""
    asked = first
    for _ in range(renewals + 1):
        told.append(asked)
        holder = asked.until_answered(est)
        if rng.random() < 0.3:
            asked.until_answered(est)
        asked = renewal(holder)


# --- what must be true ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def database(home: Home) -> Iterator[Any]:
    """What was written down, for questions in SQL; read-only, so that it stays as it was left."""
    connection = sqlite3.connect(f"file:{home.path / 'estserver.db'}?mode=ro", uri=True)
    yield lambda query: connection.execute(query).fetchall()
    connection.close()


def open_serials(home: Home) -> set[str]:
    """The serials that are reserved, and neither recorded nor void."""
    with database(home) as rows:
        return {serial.lstrip("0") for (serial,) in rows("SELECT serial FROM reservation WHERE state = 'open'")}


def told_void(said: str) -> set[str]:
    """The serials that a start said were void."""
    return set(re.findall(r"void: serial ([0-9a-f]+) was reserved for \S+ and never recorded", said))


def violations(home: Home, asked: Iterable[Asked]) -> list[str]:
    """Hold everything the clients have against everything the server wrote down; best when nothing is being asked."""
    return [*_of_clients(home, list(asked)), *_of_inventory(home), *_of_audit(home), *_of_credentials(home)]


def _of_clients(home: Home, asked: list[Asked]) -> Iterator[str]:
    with home.inventory() as inventory:
        for one in asked:
            what = f"{one.operation} of {one.device}"
            if len(set(one.certificates)) > 1:
                yield f"{what}: {len(set(one.certificates))} different certificates for one request"
            for refusal in one.refusals:
                yield f"{what}: refused: {refusal}"
            for der in set(one.certificates):
                record = inventory.certificate(sha256(der).hexdigest())
                if record is None or record.certificate != der:
                    yield f"{what}: the device holds a certificate that is not in the inventory"
    with database(home) as rows:
        issued = Counter(spki for (spki,) in rows("SELECT spki_sha256 FROM certificate"))
    for one in asked:
        count = issued[sha256(csr_maker.spki(one.key)).hexdigest()]
        if count > 1:
            yield f"{one.operation} of {one.device}: {count} certificates were issued for one request"


DOUBLES = {
    "serial reserved": "SELECT serial FROM reservation GROUP BY serial HAVING count(*) > 1",
    "serial issued": "SELECT serial FROM certificate GROUP BY serial HAVING count(*) > 1",
    "key certified": "SELECT spki_sha256 FROM certificate GROUP BY spki_sha256 HAVING count(*) > 1",
    "certificate current": "SELECT device FROM certificate WHERE superseded_by IS NULL AND profile = 'device' "
    "GROUP BY device HAVING count(*) > 1",
    "request answered": "SELECT fingerprint FROM reservation WHERE state = 'recorded' "
    "GROUP BY fingerprint HAVING count(*) > 1",
}
ORPHANS = {
    "certificate without its recorded reservation": "SELECT c.serial FROM certificate c LEFT JOIN reservation r "
    "ON r.id = c.id AND r.serial = c.serial AND r.state = 'recorded' WHERE r.id IS NULL",
    "recorded reservation without its certificate": "SELECT r.serial FROM reservation r LEFT JOIN certificate c "
    "ON r.id = c.id WHERE r.state = 'recorded' AND c.id IS NULL",
    "certificate of a key that is not marked certified": "SELECT c.serial FROM certificate c JOIN device_key k "
    "ON k.spki_sha256 = c.spki_sha256 WHERE NOT k.certified OR k.device <> c.device",
    "certificate whose two events are not both there, once": "SELECT serial FROM certificate LEFT JOIN "
    "(SELECT json_extract(data, '$.cert.serial') AS about, count(*) AS events FROM outbox GROUP BY 1) "
    "ON about = ltrim(serial, '0') WHERE requester NOT LIKE 'operator:%' AND coalesce(events, 0) <> 2",
    "superseding certificate that does not exist": "SELECT c.serial FROM certificate c LEFT JOIN certificate n "
    "ON n.serial = c.superseded_by WHERE c.superseded_by IS NOT NULL AND n.serial IS NULL",
}


def _of_inventory(home: Home) -> Iterator[str]:
    with database(home) as rows:
        for what, query in DOUBLES.items():
            yield from (f"{what} twice: {value}" for (value,) in rows(query))
        for what, query in ORPHANS.items():
            yield from (f"{what}: {value}" for (value,) in rows(query))
        if rows("PRAGMA integrity_check") != [("ok",)]:
            yield "the database is damaged"
        if rows("PRAGMA foreign_key_check"):
            yield "a row points at none"
        counters = dict(rows("SELECT name, value FROM counter"))
        ((issued,), (void,)) = rows("SELECT count(*) FROM certificate") + rows(
            "SELECT count(*) FROM reservation WHERE state = 'void'"
        )
        if (counters.get("issued", 0), counters.get("voided", 0)) != (issued, void):
            yield f"{issued} certificates and {void} void serials, the counters say {counters}"


def _of_audit(home: Home) -> Iterator[str]:
    with home.inventory() as inventory:
        report = inventory.audit_verify()
        rows = Counter((row.action, row.detail.get("serial")) for row in inventory.audit_rows())
    if not report.ok:
        yield f"the audit chain breaks at {report.first_bad}: {report.reason}"
    with database(home) as query:
        for action, state in (("issue", "recorded"), ("void", "void")):
            written = {s.lstrip("0") for (s,) in query(f"SELECT serial FROM reservation WHERE state = '{state}'")}
            told = {serial: count for (name, serial), count in rows.items() if name == action}
            if set(told) != written or set(told.values()) - {1}:
                yield f"the audit's {action} rows are not the serials that are {state}, each once"


def _of_credentials(home: Home) -> Iterator[str]:
    """A one-time credential is spent exactly when a certificate came of it, or can still come."""
    with database(home) as rows:
        spent = dict(rows("SELECT name, spent FROM credential"))
        used = dict(
            rows("SELECT c.name, count(*) FROM credential_use u JOIN credential c ON c.id = u.credential_id GROUP BY 1")
        )
        paid = Counter(name.removeprefix("credential:") for (name,) in rows("SELECT requester FROM certificate"))
        pending = {device for (device,) in rows("SELECT device FROM reservation WHERE state = 'open'")}
    for name, count in spent.items():
        allowed = {paid[name], 1} if name.removeprefix("for-") in pending else {paid[name]}
        if count not in allowed or count != used.get(name, 0):
            yield f"credential {name}: spent {count}, used {used.get(name, 0)}, {paid[name]} certificates"
