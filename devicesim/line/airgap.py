"""A line without a network: units go as far as their requests, a bundle brings the certificates, and the line goes on.

The line itself is the same one: what changes is the door at which it asks. On the way out there is nobody behind it; on
the way back there is the file, which answers as the server did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256

from cryptography import x509

from devicesim.cacerts import CaCerts
from devicesim.check import check_certificate
from devicesim.codec import CsrAttrs
from devicesim.csr import CsrDraft, load_csr, spki
from devicesim.errors import ConfigInvalid, EstRefused, Unreachable, VerificationFailed
from devicesim.line.batch import Batch, ByStation, EnrolBy, Unit, unit_of
from devicesim.line.bundle import Answer, Answers, Request, Requests, seal_requests
from devicesim.line.ledger import Ledger, UnitRow
from devicesim.line.pacing import Gate
from devicesim.line.runner import Line
from devicesim.line.states import State, has_come_to
from devicesim.line.station import Est, Hear
from devicesim.trust import TrustAnchors

SENT, TAKEN_IN = "bundle-out", "bundle-in"


@dataclass(frozen=True, slots=True)
class FileDoor:
    """An EST client without a wire: what a file brought, by the key it is for; without a file there is nobody."""

    trust: TrustAnchors
    cacerts_found: tuple[x509.Certificate, ...] = ()
    certificates: Mapping[bytes, Answer] | None = None

    def cacerts(self) -> CaCerts:
        """Return the CA certificates that came with the certificates."""
        return CaCerts(self.cacerts_found, self.trust)

    def csrattrs(self) -> CsrAttrs:
        """Return no wishes: nobody can be asked for them."""
        return CsrAttrs()

    def simpleenroll(self, csr: CsrDraft | bytes) -> x509.Certificate:
        """Return the certificate that came for a request."""
        key = spki(load_csr(csr) if isinstance(csr, bytes) else csr.key)
        answer = (self.certificates or {}).get(key)
        if answer is None:
            raise Unreachable("no certificate came for this request", advice="send it out with a bundle")
        if answer.certificate is None:
            raise EstRefused(f"the server refused: {answer.refused}", status=403, body_text=answer.refused)
        return answer.certificate

    def close(self) -> None:
        """Nothing is open."""


def without_network(line: Line, door: FileDoor) -> Line:
    """Return the same line at another door, with no server whose clock could be asked."""

    def open_est(_label: str, _by: EnrolBy, _hear: Hear) -> Est:
        return door

    return replace(line, open_est=open_est, server_time=lambda: None)


# --- out --------------------------------------------------------------------------------------------------------------


def fit_for_a_bundle(batch: Batch) -> None:
    """Raise unless the station asks for every unit: the others ask for themselves, and need a network."""
    alone = [unit.device_id for unit in batch.units if not isinstance(unit.enrol_by, ByStation)]
    if alone:
        raise ConfigInvalid(
            f"these units ask for themselves, which no bundle can: {', '.join(alone[:10])}",
            advice="let the station enrol them, or run them where there is a network",
        )


def send_out(ledger: Ledger, batch_id: str, bundle: str, at: datetime) -> tuple[bytes, int]:
    """Return the bundle of every unit of a batch that waits for its certificate, and how many; the ledger tells of it.

    Raises ConfigInvalid when none does.
    """
    assert ledger.seal is not None
    units = [
        Request(row.device_id, row.facts["label"], row.csr)
        for row in ledger.units(batch_id)
        if row.state is State.DRAFTED and row.csr is not None
    ]
    if not units:
        raise ConfigInvalid(f"no unit of {batch_id} waits for a certificate", advice="see `devicesim line status`")
    sent = {unit.device_id: sha256(unit.csr).hexdigest() for unit in units}
    place = ledger.tell(SENT, {"bundle": bundle, "batch": batch_id, "units": sent})
    return seal_requests(bundle, batch_id, units, place, ledger.seal, at), len(units)


# --- carried ----------------------------------------------------------------------------------------------------------


def ask_for_all(
    requests: Requests, open_est: Callable[[str], Est], gate: Gate, told: Callable[[Answer], None]
) -> tuple[list[Answer], list[x509.Certificate]]:
    """Ask an EST server for each certificate; asked again, it gives the ones it gave.

    Raises Unreachable when it does not answer: then nothing was made of it, and a rerun asks for the same.
    """
    answers, bag, doors = list[Answer](), list[x509.Certificate](), dict[str, Est]()
    try:
        for unit in requests.units:
            if unit.label not in doors:
                doors[unit.label] = open_est(unit.label)
                found = gate.patiently(doors[unit.label].cacerts).certificates
                bag += [certificate for certificate in found if certificate not in bag]
            answers.append(_asked(unit, doors[unit.label], gate))
            told(answers[-1])
    finally:
        for door in doors.values():
            door.close()
    return answers, bag


def _asked(unit: Request, door: Est, gate: Gate) -> Answer:
    try:
        return Answer(unit.device_id, gate.patiently(lambda: door.simpleenroll(unit.csr), enrols=True))
    except EstRefused as error:
        if error.status in {None, 401}:  # it is the carrier that is turned away, and so it would be for every unit
            raise
        return Answer(unit.device_id, refused=error.body_text or str(error))


# --- back -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgainstLedger:
    """Holds an answer against what the ledger says of the bundle that was sent, and of each unit now."""

    ledger: Ledger
    trust: TrustAnchors
    now: datetime

    def objections(self, answers: Answers) -> Iterator[str]:
        """Name everything that does not fit, unit and field."""
        sent = next((event.facts for event in self.ledger.told(SENT) if event.facts["bundle"] == answers.bundle), None)
        if sent is None:
            yield f"bundle: {answers.bundle} was never sent out by this station"
            return
        if sent["batch"] != answers.batch:
            yield f"batch: is {answers.batch}, and the bundle was of {sent['batch']}"
            return
        rows = {row.device_id: row for row in self.ledger.units(answers.batch)}
        came = {answer.device_id for answer in answers.units}
        yield from (f"{name}: certificate: is missing" for name in sent["units"] if name not in came)
        for answer in answers.units:
            if answer.device_id not in sent["units"]:
                yield f"{answer.device_id}: device_id: was not in the bundle that was sent"
            else:
                yield from self._of_unit(answer, rows[answer.device_id], sent["units"], answers.cacerts)

    def _of_unit(
        self, answer: Answer, row: UnitRow, sent: Mapping[str, str], chain: Iterable[x509.Certificate]
    ) -> Iterator[str]:
        if row.state is State.SCRAPPED or answer.certificate is None:
            return
        if row.csr is None or sha256(row.csr).hexdigest() != sent[row.device_id]:
            yield f"{row.device_id}: csr: the unit has another request now; the bundle is of before it was re-issued"
            return
        try:
            check_certificate(answer.certificate, load_csr(row.csr), chain=chain, trust=self.trust, now=self.now)
        except VerificationFailed as error:
            yield f"{row.device_id}: certificate: {error}"


def take_in(line: Line, answers: Answers) -> tuple[Line, list[Unit]]:
    """Return the line at the door of a file that came back, and the units for which it brings something."""
    by_key = dict[bytes, Answer]()
    units = []
    for answer in answers.units:
        row = line.ledger.unit(answer.device_id)
        if row.csr is None or row.state is State.SCRAPPED:
            continue
        by_key[spki(load_csr(row.csr))] = answer
        if not has_come_to(State.RECORDED, row.state) or row.birth == "pending":
            units.append(unit_of(row.facts))
    line.ledger.tell(TAKEN_IN, {"bundle": answers.bundle, "batch": answers.batch, "units": len(answers.units)})
    return without_network(line, FileDoor(line.trust, answers.cacerts, by_key)), units
