"""A line without a network: a CA on paper that keeps the server's promises, and a station to run units on."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.cacerts import CaCerts
from devicesim.codec import CsrAttrs
from devicesim.csr import CsrDraft, spki
from devicesim.errors import EstRefused, Unreachable
from devicesim.line.assembly import place
from devicesim.line.batch import Batch, EnrolBy, load_batch
from devicesim.line.labelling import Labels
from devicesim.line.ledger import Ledger, UnitRow
from devicesim.line.runner import Line
from devicesim.line.settings import Settings
from devicesim.line.states import Failure, State, Way
from devicesim.line.steps import World
from devicesim.line.voice import Voice
from devicesim.transport import ClientIdentity
from tests.mqtt_pki import CLIENT, Party, Pki

HEADER = "device_id,serial,model,mac,se_id"


@dataclass
class PaperEst:
    """An EST server's memory: the same requester's same key gets the same certificate; no device gets a second one.

    `faults` are taken one at each request: "lost" issues and loses the answer, "down" never hears the request,
    "refused" says no, "other-name" and "expired" return a certificate that must not be used.
    """

    pki: Pki
    faults: deque[str] = field(default_factory=deque)
    issued: dict[bytes, x509.Certificate] = field(default_factory=dict)
    holders: dict[str, set[bytes]] = field(default_factory=dict)
    asked: list[tuple[str, EnrolBy, bytes | CsrDraft]] = field(default_factory=list)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def open(self, label: str, by: EnrolBy) -> PaperDoor:
        return PaperDoor(self, label, by)

    def take(self, label: str, by: EnrolBy, csr: bytes | CsrDraft) -> x509.Certificate:
        with self.mutex:
            self.asked.append((label, by, csr))
            fault = self.faults.popleft() if self.faults else ""
            if fault == "down":
                raise Unreachable("nobody answers")
            if fault == "refused":
                raise EstRefused("the server refused: not on the list", status=403)
            der = csr.sign() if isinstance(csr, CsrDraft) else csr
            certificate = self._issue(x509.load_der_x509_csr(der), fault)
            if fault == "lost":
                raise Unreachable("the connection broke after the request was sent")
            return certificate

    def _issue(self, request: x509.CertificateSigningRequest, fault: str) -> x509.Certificate:
        if fault in {"other-name", "expired"}:
            return self._sign(request, "somebody-else" if fault == "other-name" else name_of(request), fault)
        key, name = spki(request), name_of(request)
        self.holders.setdefault(name, set()).add(key)
        if key not in self.issued:
            self.issued[key] = self._sign(request, name, fault)
        return self.issued[key]

    def _sign(self, request: x509.CertificateSigningRequest, name: str, fault: str) -> x509.Certificate:
        until = -timedelta(hours=1) if fault == "expired" else timedelta(days=30)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(self.pki.root.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.pki.at - timedelta(days=1))
            .not_valid_after(self.pki.at + until)
            .add_extension(x509.ExtendedKeyUsage([CLIENT]), critical=False)
            .sign(self.pki.key, hashes.SHA256())
        )


@dataclass
class PaperDoor:
    """An EST client without a wire."""

    est: PaperEst
    label: str
    by: EnrolBy

    def cacerts(self) -> CaCerts:
        return CaCerts((self.est.pki.root,), self.est.pki.trust)

    def csrattrs(self) -> CsrAttrs:
        return CsrAttrs()

    def simpleenroll(self, csr: CsrDraft | bytes) -> x509.Certificate:
        return self.est.take(self.label, self.by, csr)

    def close(self) -> None:
        pass


def name_of(request: x509.CertificateSigningRequest) -> str:
    return str(request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


@dataclass
class Watching:
    """A progress that remembers."""

    to_do: int = -1
    ends: list[tuple[str, str]] = field(default_factory=list)

    def begin(self, total: int, to_do: int) -> None:
        self.to_do = to_do

    def step(self, slot: int, device_id: str, state: State) -> None:
        pass

    def ended(self, unit: UnitRow, failure: Failure | None) -> None:
        self.ends.append((unit.device_id, failure.code.value if failure else "pass"))


@dataclass
class PaperLine:
    """A station in a folder; `session()` opens what one process would, so that a test can crash and start again."""

    directory: Path
    at: datetime
    server_at: datetime | None = None
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pki = Pki(self.directory / "pki", self.at)
        self.est = PaperEst(self.pki)
        self.station: Party = self.pki.station()
        document = {
            "site": {"id": "hh1", "line": "l2", "station": "s-07"},
            "est": {
                "url": "https://est.example",
                "trust": self.pki.trust_path,
                "cert": self.station.files.certificate_path,
                "key": self.station.files.key_path,
                "retries": 2,
            },
            "key": {"devices": self.directory / "devices"},
            "ledger": {"path": self.directory / "line.db"},
        }
        self.settings = Settings.model_validate(document)
        Ledger.create(self.settings.ledger.path, clock=self.clock, place=place(self.settings)).close()

    def clock(self) -> datetime:
        return self.at

    def batch(self, count: int = 3, *, batch_id: str = "b1", first: int = 1, more: str = "") -> Batch:
        rows = [f"sn-{n:04d},S{n:04d},sensor,,\n" for n in range(first, first + count)]
        return write_batch(self.directory / batch_id, rows, more=more, batch_id=batch_id)

    @contextmanager
    def session(
        self, ledger_type: Callable[..., Ledger] = Ledger, *, labels: Labels | None = None
    ) -> Iterator[tuple[Line, Ledger]]:
        stop, ticks = threading.Event(), iter(range(1_000_000))
        world = World(self.clock, lambda: next(ticks) / 1000, self.wait, lambda: 0.5, os.urandom)
        identity = ClientIdentity((self.station.certificate,), self.station.key)
        voice = Voice(self.settings.site, identity, "est", self.settings.est.url, self.clock, world.randomness)
        way = {"way": Way.through(State.LABELLED)} if labels else {}
        with ledger_type(self.settings.ledger.path, clock=self.clock, **way) as ledger:
            yield (
                Line(
                    self.settings,
                    ledger,
                    self.pki.trust,
                    self.est.open,
                    lambda: self.server_at,
                    voice,
                    None,
                    world,
                    stop,
                    labels,
                ),
                ledger,
            )

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return False

    def run(self, batch: Batch, *, slots: int = 1) -> tuple[Watching, Failure | None]:
        watching = Watching()
        with self.session() as (line, _):
            return watching, line.run(batch, slots=slots, progress=watching)


def write_batch(
    directory: Path, rows: list[str], *, more: str = "", batch_id: str = "b1", header: str = HEADER
) -> Batch:
    """Write a batch of one product, and read it."""
    return load_batch(write_files(directory, rows, more=more, batch_id=batch_id, header=header))


def write_files(
    directory: Path, rows: list[str], *, more: str = "", batch_id: str = "b1", header: str = HEADER
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "units.csv").write_text(header + "\n" + "".join(rows), encoding="utf-8")
    path = directory / "batch.toml"
    path.write_text(f'id = "{batch_id}"\nquantity = {len(rows)}\n[product.sensor]\n{more}', encoding="utf-8")
    return path


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
