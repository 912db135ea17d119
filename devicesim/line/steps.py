"""One unit, told in the order it happens.

    clock → key on the device → request checked → certificate, checked → installed → read back (→ label, scanned) → PASS

Rules:
- Which step comes next is what the ledger says, so a crash anywhere is an ordinary start.
- The key is made on the device and written down there before the ledger hears of it; the request is in the ledger
  before a byte of it is sent; the certificate is in the ledger before it is installed.
- After a lost answer the same request goes out again, and the server returns the same certificate (design: the same
  requester, key and names).
- PASS is one transaction: the unit recorded, its announcement owed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TypeVar, Unpack

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.check import check_certificate
from devicesim.csr import CsrDraft, key_type_of, load_csr, spki
from devicesim.device import Device, DeviceIdentity
from devicesim.errors import ClockUntrustworthy, VerificationFailed
from devicesim.keystore import FileKeyStore
from devicesim.line.batch import ByStation, Unit
from devicesim.line.labelling import Labels, check_label
from devicesim.line.ledger import Ledger, UnitRow, Why
from devicesim.line.ledger.edges import Learned
from devicesim.line.reasons import Reason
from devicesim.line.settings import Est, Settings
from devicesim.line.states import State
from devicesim.line.station import Door
from devicesim.line.voice import Voice
from devicesim.mqtt.connection import common_name
from devicesim.retry import Patience, retrying
from devicesim.trust import TrustAnchors

T = TypeVar("T")
WAIT_MAX_SECONDS = 120.0
"""How long a unit waits for one answer, in all; a server that asks for more patience has it at the next run."""


@dataclass(frozen=True, slots=True)
class World:
    """What the line takes from outside, so that a test can hand it something else.

    Attributes:
        clock: aware UTC time.
        ticks: seconds that only grow, for durations.
        wait: sleep so long; True when the line is to stop instead.
        jitter: a number in [0, 1).
        randomness: n random bytes.
    """

    clock: Callable[[], datetime]
    ticks: Callable[[], float]
    wait: Callable[[float], bool]
    jitter: Callable[[], float]
    randomness: Callable[[int], bytes]


class Stopped(Exception):
    """The line is stopping; the unit goes on from here at the next run."""


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """No certificate is asked for by a clock that cannot be right.

    Attributes:
        server_at, measured_at: the EST server's time, and our ticks when it said so; None when it sends no `Date`.
    """

    floor: datetime
    max_skew_seconds: float
    server_at: datetime | None
    measured_at: float

    def check(self, now: datetime, ticks: float) -> None:
        """Raise unless `now` is after the floor and agrees with the server's clock as it has gone on since."""
        if now < self.floor:
            raise ClockUntrustworthy(f"the clock says {now:%Y-%m-%d %H:%M} UTC, before {self.floor:%Y-%m-%d}")
        if self.server_at is None:
            return
        skew = abs((now - self.server_at).total_seconds() - (ticks - self.measured_at))
        if skew > self.max_skew_seconds:
            raise ClockUntrustworthy(f"the clock is {skew:.0f} s away from the EST server's")


@dataclass(frozen=True, slots=True)
class Work:
    """One unit on one slot, and what its steps work with."""

    unit: Unit
    slot: int
    door: Door
    device: Device
    store: FileKeyStore
    settings: Settings
    ledger: Ledger
    trust: TrustAnchors
    clock_check: ClockCheck
    voice: Voice | None
    labels: Labels | None
    world: World

    # --- the steps --------------------------------------------------------------------------------------------------

    def make_key(self, row: UnitRow, started: float) -> UnitRow:
        """Have the device make its key and request."""
        self.clock_check.check(self.world.clock(), self.world.ticks())
        self._forget_an_ended_draft(row)
        wishes = self.patiently(lambda: self.door.csrattrs)
        draft = self.device.draft(wishes, key_type=row.facts["key_type"] or self.settings.key.alg)
        return self._advance(row, State.KEYED, started, spki_sha256=sha256(spki(draft.key)).hexdigest())

    def check_request(self, row: UnitRow, started: float) -> UnitRow:
        """Check the device's request before anybody else sees it: its signature, its name, the kind of its key."""
        draft = self._draft(row)
        csr = draft.sign()
        request = load_csr(csr)
        problems = []
        if not request.is_signature_valid:
            problems.append("it does not prove possession of its key")
        names = request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        if [name.value for name in names] != [self.unit.device_id]:
            problems.append(f"its subject is {request.subject.rfc4514_string()!r}, not CN={self.unit.device_id}")
        if problems:
            raise VerificationFailed(f"the request of {self.unit.device_id} is wrong: {'; '.join(problems)}")
        return self._advance(row, State.DRAFTED, started, csr=csr)

    def enrol(self, row: UnitRow, started: float) -> UnitRow:
        """Send the request, and check the certificate that comes back before it is written down."""
        assert row.csr is not None
        self.clock_check.check(self.world.clock(), self.world.ticks())
        csr = row.csr if isinstance(self.unit.enrol_by, ByStation) else self._draft(row)
        certificate = self.patiently(lambda: self.door.est.simpleenroll(csr))
        chain = self.patiently(lambda: self.door.cacerts).certificates
        check_certificate(certificate, load_csr(row.csr), chain=chain, trust=self.trust, now=self.world.clock())
        return self._advance(
            row,
            State.ENROLLED,
            started,
            certificate=certificate.public_bytes(Encoding.DER),
            cert_serial=f"{sha256(certificate.issuer.public_bytes()).hexdigest()[:16]}:{certificate.serial_number:x}",
        )

    def install(self, row: UnitRow, started: float) -> UnitRow:
        """Have the device check and install its certificate, all of it or nothing."""
        chain = self.patiently(lambda: self.door.cacerts).certificates
        self.device.install(_certificate(row), chain=chain, trust=self.trust, now=self.world.clock())
        return self._advance(row, State.INSTALLED, started)

    def verify(self, row: UnitRow, started: float) -> UnitRow:
        """Read back from the device's store what a restart would find there."""
        found = self._held(row)
        if sha256(spki(found.key)).hexdigest() != row.spki_sha256 or common_name(found.certificate) != row.device_id:
            raise VerificationFailed(f"{self.unit.device_id} holds another key than the one it made")
        return self._advance(row, State.VERIFIED, started)

    def label(self, row: UnitRow, started: float) -> UnitRow:
        """Print the unit's label, once, and hold what is scanned on it against what the device itself says."""
        assert self.labels is not None
        if row.label is None:
            label = self.labels.of(row, self._held(row).certificate)
            self.labels.print(row.device_id, label)
            row = self.ledger.printed(row.device_id, label.text)
        read = self._scanned(row, self.labels)
        said = self.labels.of(row, self._found(row).certificate).text
        check_label(read, said, row.device_id)
        self._held(row)
        return self._advance(row, State.LABELLED, started, label=said)

    def record(self, row: UnitRow, started: float) -> UnitRow:
        """PASS: the ledger row and the announcement, in one transaction."""
        announce = None
        if self.voice is not None:
            held = self.device.identity
            assert held is not None
            timing = self.ledger.timing(row)
            before = self.ledger.superseded(row.device_id)[-1] if row.generation > 1 else None
            announce = self.voice.provisioned(row, key_alg=key_type_of(held.key), timing_ms=timing, before=before)
        mqtt = self.settings.mqtt
        return self.ledger.record(
            row.device_id,
            took_ms=self._since(started),
            announce=announce,
            birth=mqtt is not None and mqtt.birth,
        )

    # --- parts ------------------------------------------------------------------------------------------------------

    def patiently(self, ask: Callable[[], T]) -> T:
        """Ask the server, again after a lost answer or a "not now"."""
        return patiently(self.settings.est, self.world, ask)

    def _draft(self, row: UnitRow) -> CsrDraft:
        """Return the device's request as it was written down: the same key and names every time."""
        pending = self.store.pending()
        if pending is None or sha256(spki(pending.key)).hexdigest() != row.spki_sha256:
            raise VerificationFailed(
                f"{row.device_id} no longer holds the key it made",
                advice="take the unit out: its store was changed from outside",
            )
        return CsrDraft.resuming(pending.request, pending.key)

    def _scanned(self, row: UnitRow, labels: Labels) -> str:
        """Return what is read on the label, or was printed; print it once more as often as the operator asks."""
        assert row.label is not None
        if labels.scan is None:
            return row.label
        while (read := labels.scan(self.slot, row.device_id)) is None:
            label = labels.of(row, self._held(row).certificate)
            self.ledger.printed(row.device_id, label.text, Why(Reason.LABEL_DAMAGED))  # first: none without a row
            labels.print(row.device_id, label)
        return read

    def _found(self, row: UnitRow) -> DeviceIdentity:
        """Return what a restart of the device would find in its store, whatever it is."""
        found = open_device(self.settings, row.device_id, self.world.clock)[0].identity
        if found is None:
            raise VerificationFailed(f"{row.device_id} holds no certificate")
        return found

    def _held(self, row: UnitRow) -> DeviceIdentity:
        """Return what a restart of the device would find; it must be the certificate it was given."""
        found = self._found(row)
        if found.certificate != _certificate(row):
            raise VerificationFailed(f"{row.device_id} does not hold the certificate it was given")
        return found

    def _forget_an_ended_draft(self, row: UnitRow) -> None:
        """Have a re-issued unit make a new key, also when its store still holds a request under its old one."""
        pending = self.store.pending()
        if pending is None or row.generation == 1:
            return
        if sha256(spki(pending.key)).hexdigest() in {old.spki_sha256 for old in self.ledger.superseded(row.device_id)}:
            self.device.discard_draft()

    def _advance(self, row: UnitRow, to: State, started: float, **learned: Unpack[Learned]) -> UnitRow:
        return self.ledger.advance(row.device_id, to, took_ms=self._since(started), **learned)

    def _since(self, started: float) -> float:
        return (self.world.ticks() - started) * 1000


STEPS: dict[State, Callable[[Work, UnitRow, float], UnitRow]] = {
    State.KEYED: Work.make_key,
    State.DRAFTED: Work.check_request,
    State.ENROLLED: Work.enrol,
    State.INSTALLED: Work.install,
    State.VERIFIED: Work.verify,
    State.LABELLED: Work.label,
    State.RECORDED: Work.record,
}
"""State → the step that leads to it. Which of them a unit walks, and in which order, is the ledger's `way`."""


def patiently(est: Est, world: World, ask: Callable[[], T]) -> T:
    """Ask the server, again after a lost answer or a "not now", with growing pauses, then give up."""

    def pause(seconds: float) -> None:
        if world.wait(seconds):
            raise Stopped

    patience = Patience(
        attempts=est.retries + 1,
        total_seconds=WAIT_MAX_SECONDS,
        first_seconds=est.backoff.total_seconds(),
        longest_seconds=est.backoff_max.total_seconds(),
    )
    return retrying(ask, sleep=pause, random=world.jitter, patience=patience)


def _certificate(row: UnitRow) -> x509.Certificate:
    assert row.certificate is not None
    return x509.load_der_x509_certificate(row.certificate)


def open_device(settings: Settings, device_id: str, clock: Callable[[], datetime]) -> tuple[Device, FileKeyStore]:
    """Return a simulated device and its store, as a restart would find them."""
    store = FileKeyStore(Path(settings.key.devices) / device_id)
    return Device(device_id, store=store, clock=clock), store


__all__ = ["STEPS", "ClockCheck", "Stopped", "Work", "World", "open_device", "patiently"]
