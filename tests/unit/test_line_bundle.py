"""A sealed bundle: out, carried, in; killed anywhere and run again; altered anywhere and named, unit and field."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from devicesim.errors import ConfigInvalid, Unreachable
from devicesim.line.airgap import AgainstLedger, FileDoor, ask_for_all, fit_for_a_bundle, send_out, take_in
from devicesim.line.airgap import without_network as offline
from devicesim.line.batch import Batch, ByStation
from devicesim.line.bundle import Answer, BundleAltered, open_answers, open_requests, seal_answers
from devicesim.line.ledger import Ledger, Why
from devicesim.line.pacing import Gate
from devicesim.line.reasons import Reason
from devicesim.line.statements import CERT_BUNDLE, CSR_BUNDLE, sealing
from devicesim.line.states import State
from devicesim.mqtt import dsse
from devicesim.mqtt.events import canonical_json
from devicesim.transport import ClientIdentity
from tests.line_support import PaperLine, Watching
from tests.mqtt_pki import Party

PLACE = {"site": "hh1", "line": "l2", "station": "s-07"}


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


def identity(party: Party) -> ClientIdentity:
    return ClientIdentity((party.certificate,), party.key)


def send(paper: PaperLine, batch: Batch, bundle: str = "bundle-1", ledger_type: type[Ledger] = Ledger) -> bytes:
    with paper.session(ledger_type) as (line, ledger):
        ledger.seal = sealing(identity(paper.station), PLACE)
        ready = offline(line, FileDoor(paper.pki.trust))
        ledger.open_batch(batch)
        watching = Watching()
        assert ready.walk(batch.id, batch.units, slots=2, progress=watching, until=State.DRAFTED) is None
        assert watching.ends == []  # nothing has passed
        return send_out(ledger, batch.id, bundle, paper.at)[0]


def carry(paper: PaperLine, data: bytes) -> bytes:
    requests = open_requests(data, paper.pki.trust)
    with paper.session() as (line, _):
        gate = Gate(paper.settings.est, line.world)
        door = lambda label: paper.est.open(label, ByStation(), lambda _at: None)  # noqa: E731
        answers, cacerts = ask_for_all(requests, door, gate, lambda _answer: None)
    return seal_answers(requests, answers, cacerts, sealing(identity(paper.station), PLACE), paper.at)


def receive(paper: PaperLine, data: bytes, ledger_type: type[Ledger] = Ledger) -> Watching:
    watching = Watching()
    with paper.session(ledger_type) as (line, ledger):
        answers = open_answers(data, paper.pki.trust, AgainstLedger(ledger, paper.pki.trust, paper.at).objections)
        ready, units = take_in(line, answers)
        ready.walk(answers.batch, units, slots=1, progress=watching)
    return watching


def resealed(paper: PaperLine, data: bytes, kind: str, change: Callable[[Any], object]) -> bytes:
    """What somebody with a station's key makes of a bundle."""
    fields = json.loads(dsse.envelope_payload(data))
    change(fields)
    signer = identity(paper.station)
    return dsse.seal(canonical_json(fields), kind, key=signer.key, chain=signer.certificates)


def edited(data: bytes, change: Callable[[Any], object]) -> bytes:
    """What somebody with an editor makes of it."""
    envelope = json.loads(data)
    fields = json.loads(base64.b64decode(envelope["payload"]))
    change(fields)
    envelope["payload"] = base64.b64encode(canonical_json(fields)).decode()
    return json.dumps(envelope).encode()


def test_out_carried_and_in(paper):
    batch = paper.batch(3)
    data = send(paper, batch)
    assert paper.est.asked == []
    assert b"PRIVATE" not in base64.b64decode(json.loads(data)["payload"])
    with paper.session() as (_, ledger):
        assert [row.state for row in ledger.units("b1")] == [State.DRAFTED] * 3
    back = carry(paper, data)
    watching = receive(paper, back)
    assert watching.ends == [(unit.device_id, "pass") for unit in batch.units]
    assert receive(paper, back).to_do == 0
    with paper.session() as (_, ledger):
        rows = ledger.units("b1")
        assert all(row.passed and row.attempts == 1 for row in rows)
        ledger.verify_chain()
    assert {len(keys) for keys in paper.est.holders.values()} == {1}
    assert len(paper.est.asked) == 3


def test_each_leg_can_be_repeated_and_gives_the_same(paper):
    batch = paper.batch(2)
    first, second = send(paper, batch), send(paper, batch, "bundle-2")
    csrs = [[unit.csr for unit in open_requests(data, paper.pki.trust).units] for data in (first, second)]
    assert csrs[0] == csrs[1]
    one, two = carry(paper, first), carry(paper, second)
    assert json.loads(dsse.envelope_payload(one))["answers"] == json.loads(dsse.envelope_payload(two))["answers"]
    assert receive(paper, two).ends == [("sn-0001", "pass"), ("sn-0002", "pass")]
    assert receive(paper, one).to_do == 0


def test_a_carrier_that_loses_its_network_makes_nothing_of_it(paper):
    data = send(paper, paper.batch(2))
    paper.est.faults.extend(["", *["down"] * 9])
    with pytest.raises(Unreachable):
        carry(paper, data)
    paper.est.faults.clear()
    assert len(receive(paper, carry(paper, data)).ends) == 2
    assert {len(keys) for keys in paper.est.holders.values()} == {1}


def test_a_unit_that_the_server_refuses_fails_with_its_words_and_the_others_pass(paper):
    data = send(paper, paper.batch(2))
    paper.est.faults.extend(["refused"])
    assert receive(paper, carry(paper, data)).ends == [("sn-0001", "E-EST-DENY"), ("sn-0002", "pass")]
    with paper.session() as (_, ledger):
        failure = ledger.unit("sn-0001").failure
        assert failure is not None
        assert "not on the list" in failure.text
    again = carry(paper, send(paper, paper.batch(2), "bundle-2"))
    assert receive(paper, again).ends == [("sn-0001", "pass")]


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("leg", ["out", "in"])
@pytest.mark.parametrize("at", range(1, 9))
def test_killed_at_any_write_of_either_leg(paper, leg, at):
    left = [at]

    class Dying(Ledger):
        def advance(self, *args: Any, **kwargs: Any) -> Any:
            return self._dying(super().advance, args, kwargs)

        def record(self, *args: Any, **kwargs: Any) -> Any:
            return self._dying(super().record, args, kwargs)

        def tell(self, *args: Any, **kwargs: Any) -> Any:
            return self._dying(super().tell, args, kwargs)

        def _dying(self, write: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            result = write(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return result

    batch = paper.batch(2)
    try:
        data = send(paper, batch, ledger_type=Dying if leg == "out" else Ledger)
    except Killed:
        data = send(paper, batch, "bundle-2")
    back = carry(paper, data)
    try:
        receive(paper, back, Dying if leg == "in" else Ledger)
    except Killed:
        receive(paper, back)
    with paper.session() as (_, ledger):
        assert all(row.passed and row.attempts == 1 for row in ledger.units("b1"))
        assert ledger.owed() == 2
        ledger.verify_chain()
    assert {len(keys) for keys in paper.est.holders.values()} == {1}


# --- what was altered is named ----------------------------------------------------------------------------------------


def swap_csr(fields: Any) -> None:
    fields["units"][0]["csr"], fields["units"][1]["csr"] = fields["units"][1]["csr"], fields["units"][0]["csr"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap_csr, ["sn-0001: csr: ", "sn-0002: csr: "]),
        (lambda f: f["units"][1].update(csr="AAAA"), ["sn-0002: csr: cannot be read"]),
        (lambda f: f["units"].pop(), ["count: is 3, and there are 2 units"]),
        (lambda f: f["units"][2].update(device_id="sn-0001"), ["sn-0001: device_id: is there 2 times"]),
        (lambda f: f["units"][2].update(device_id="sn-0009"), ["sn-0009: csr: is for sn-0003"]),
        (lambda f: f.update(batch=3), ["batch: is missing"]),
    ],
)
def test_altered_requests_are_named(paper, change, named):
    data = send(paper, paper.batch(3))
    with pytest.raises(BundleAltered) as caught:
        open_requests(edited(data, change), paper.pki.trust)
    for start in named:
        assert any(problem.startswith(start) for problem in caught.value.problems), caught.value.problems
    assert any(problem.startswith("signature: ") for problem in caught.value.problems)
    with pytest.raises(BundleAltered):
        open_requests(resealed(paper, data, CSR_BUNDLE, change), paper.pki.trust)


def swap_certificates(fields: Any) -> None:
    rows = fields["answers"]
    rows[0]["certificate"], rows[1]["certificate"] = rows[1]["certificate"], rows[0]["certificate"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap_certificates, ["sn-0001: certificate: ", "sn-0002: certificate: "]),
        (lambda f: f["answers"][1].update(certificate="AAAA"), ["sn-0002: certificate: cannot be read"]),
        (lambda f: f["answers"].pop(), ["count: ", "sn-0003: certificate: is missing"]),
        (lambda f: f["answers"][0].update(device_id="sn-0007"), ["sn-0007: device_id: was not in the bundle"]),
        (lambda f: f.update(bundle="bundle-9"), ["bundle: bundle-9 was never sent out"]),
        (lambda f: f.update(batch="b9"), ["batch: is b9"]),
        (lambda f: f.update(cacerts=["AAAA"]), ["cacerts: certificate 1 cannot be read"]),
    ],
)
def test_altered_certificates_are_named_whoever_sealed_them_again(paper, change, named):
    back = carry(paper, send(paper, paper.batch(3)))
    for altered in (edited(back, change), resealed(paper, back, CERT_BUNDLE, change)):
        with pytest.raises(BundleAltered) as caught:
            receive(paper, altered)
        for start in named:
            if start.startswith(("count", "sn-0003")) and any(p.startswith("count") for p in caught.value.problems):
                continue
            assert any(problem.startswith(start) for problem in caught.value.problems), caught.value.problems
    with paper.session() as (_, ledger):
        assert {row.state for row in ledger.units("b1")} == {State.DRAFTED}


def test_a_bundle_of_before_a_reissue_is_refused_and_named(paper):
    batch = paper.batch(2)
    old = carry(paper, send(paper, batch))
    receive(paper, old)
    with paper.session() as (_, ledger):
        ledger.reissue("sn-0001", Why(Reason.COMPONENT_REPLACED), old="lapse")
    new = send(paper, batch, "bundle-2")
    with pytest.raises(BundleAltered, match="sn-0001: csr: the unit has another request now"):
        receive(paper, old)
    assert receive(paper, carry(paper, new)).ends == [("sn-0001", "pass")]


def test_a_carrier_that_nobody_trusts_a_certificate_of_another_ca_and_rubbish(paper, tmp_path, now):
    data = send(paper, paper.batch(1))
    back = carry(paper, data)
    for rubbish in (b"", b"{}", b"[]", b"\xff" * 100, data):
        with pytest.raises(BundleAltered):
            receive(paper, rubbish)
    other = PaperLine(tmp_path / "other", now)
    requests = open_requests(data, paper.pki.trust)
    mine = open_answers(back, paper.pki.trust, lambda _answers: ())
    stranger = sealing(identity(other.station), PLACE)
    with pytest.raises(BundleAltered, match="signature: "):
        receive(paper, seal_answers(requests, mine.units, mine.cacerts, stranger, now))
    foreign = other.est.take("", ByStation(), requests.units[0].csr)
    seal = sealing(identity(paper.station), PLACE)
    with pytest.raises(BundleAltered, match=r"sn-0001: certificate: .*trust anchor"):
        receive(paper, seal_answers(requests, [Answer("sn-0001", foreign)], [other.pki.root], seal, now))


def test_what_no_bundle_can_do_is_said_before_anything_is_made(paper):
    batch = paper.batch(2, more='[unit."sn-0002"]\nenrol = "otp"\npassword_file = "p"\n')
    with pytest.raises(ConfigInvalid, match="sn-0002"):
        fit_for_a_bundle(batch)
    with paper.session() as (line, ledger):
        ledger.seal = sealing(identity(paper.station), PLACE)
        ledger.open_batch(replace(batch, id="b1"))
        with pytest.raises(ConfigInvalid, match="waits for a certificate"):
            send_out(ledger, "b1", "bundle-1", paper.at)
        assert line.ledger is ledger
