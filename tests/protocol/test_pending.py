"""RFC 7030 §4.2.3: 202, Retry-After, and what an operator says (S-R03 to S-R06); who must come with both (S-A02)."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from devicesim.cli import run
from estserver.enroll import Request
from estserver.errors import AwaitingApproval, BadCredentials, EstError
from estserver.inventory.pending import PendingRequests
from estserver.model import BasicCredentials, DeviceId, Operation, Peer
from estserver.records import PendingRecord
from tests.csr_maker import base64_lines, new_key, request
from tests.est_server import DAY, TLS12, TLS13, Answer, Est, Holder, Home, RunningServer, found_home, fresh_id, today

pytestmark = pytest.mark.e2e
WEEK = 7 * DAY
LABELS = """
[limits]
pending_retry = "90s"

[labels.approved]
profile = "approved"
ca = "acme"

[labels.element]
profile = "element"
ca = "acme"

[labels.both]
profile = "device"
ca = "acme"
authentication = "both"
"""


def home_with_approval(directory: Path) -> Home:
    home = found_home(directory)
    profiles = home.path / "profiles"
    approved = 'approval = "required"\n' + (profiles / "device.toml").read_text("utf-8")
    (profiles / "approved.toml").write_text(approved, "utf-8")
    (profiles / "element.toml").write_text(approved.replace('"never"', '"same-device"'), "utf-8")
    home.configure(LABELS)
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return home_with_approval(tmp_path_factory.mktemp("pending") / "home")


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[RunningServer]:
    with RunningServer(home) as running:
        yield running


@pytest.fixture
def est(server: RunningServer) -> Est:
    return Est(server)


@contextlib.contextmanager
def office(home: Home) -> Iterator[PendingRequests]:
    with home.inventory() as inventory:
        yield inventory.pending


def entries(home: Home, device: str) -> list[PendingRecord]:
    with office(home) as pending:
        return pending.page(today(), device=device)


def approve(home: Home, device: str) -> None:
    with office(home) as pending:
        pending.approve([entry.id for entry in entries(home, device)], "operator:test", today(), WEEK)


def deny(home: Home, device: str, reason: str | None = None) -> None:
    with office(home) as pending:
        pending.deny([entry.id for entry in entries(home, device)], reason, "operator:test", today(), WEEK)


class Applicant:
    """A device with a one-time credential that asks for the same certificate as often as it is told to."""

    def __init__(self, est: Est, label: str = "approved") -> None:
        self.est, self.label = est, label
        self.device, self.key = fresh_id("ap"), new_key()
        self.credential = est.home.credential(self.device, label=label)

    def ask(self, tls: int = TLS13, credential: tuple[str, str] | None = None) -> Answer:
        """Ask on a new connection, with a request signed anew for it."""
        return self.est.post(
            lambda binding: request(self.key, self.device, binding=binding),
            label=self.label,
            credential=credential or self.credential,
            tls=tls,
        )


@pytest.fixture
def applicant(est: Est) -> Applicant:
    return Applicant(est)


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_r03_a_202_says_in_seconds_when_to_come_back(applicant: Applicant, tls: int) -> None:
    answer = applicant.ask(tls)
    assert (answer.status, answer["Retry-After"]) == (202, "90")
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert "operator" in answer.text


def test_s_r04_s_r05_a_repeat_signed_anew_elsewhere_finds_its_entry(applicant: Applicant) -> None:
    assert [applicant.ask(tls).status for tls in (TLS13, TLS12, TLS13)] == [202] * 3
    (entry,) = entries(applicant.est.home, applicant.device)
    assert (entry.state, entry.requester) == ("waiting", f"credential:{applicant.credential[0]}")


def test_s_r04_what_is_approved_is_issued_and_a_lost_answer_repeated(applicant: Applicant) -> None:
    assert applicant.ask().status == 202
    approve(applicant.est.home, applicant.device)
    first, again = applicant.ask(), applicant.ask()
    assert first.certificate.public_key() == applicant.key.public_key()
    assert first.body == again.body
    assert entries(applicant.est.home, applicant.device) == []


def test_s_r04_an_approval_counts_once(est: Est) -> None:
    """A secure element keeps its key: what it asks for after a revocation is the same request, and is asked anew."""
    applicant = Applicant(est, "element")
    applicant.credential = est.home.credential(applicant.device, label="element", uses=2)
    assert applicant.ask().status == 202
    approve(est.home, applicant.device)
    issued = applicant.ask().certificate
    with est.home.inventory() as inventory:
        inventory.revoke(issued.serial_number, "unspecified", "operator:test", today(), lambda _record: [])
    assert applicant.ask().status == 202
    approve(est.home, applicant.device)
    assert applicant.ask().certificate.serial_number != issued.serial_number


def test_s_r04_what_is_denied_is_a_403_with_the_operators_reason(applicant: Applicant) -> None:
    assert applicant.ask().status == 202
    deny(applicant.est.home, applicant.device, "not on the delivery note")
    for _ in range(2):
        answer = applicant.ask()
        assert answer.status == 403
        assert "not on the delivery note" in answer.text
    approve(applicant.est.home, applicant.device)
    assert applicant.ask().status == 200


def test_s_r04_the_queue_survives_a_restart(tmp_path: Path) -> None:
    home = home_with_approval(tmp_path / "home")
    with RunningServer(home) as first:
        applicant, other = Applicant(Est(first)), Applicant(Est(first))
        assert (applicant.ask().status, other.ask().status) == (202, 202)
    approve(home, applicant.device)
    with RunningServer(home) as second:
        applicant.est = other.est = Est(second)
        assert (applicant.ask().status, other.ask().status) == (200, 202)
        assert len(entries(home, other.device)) == 1


def test_s_r04_the_queue_survives_a_killed_server(tmp_path: Path) -> None:
    home = home_with_approval(tmp_path / "home")
    first = RunningServer(home)
    applicant = Applicant(Est(first))
    assert applicant.ask().status == 202
    first.process.kill()
    first._end()
    (entry,) = entries(home, applicant.device)
    with RunningServer(home) as second:
        applicant.est = Est(second)
        assert applicant.ask().status == 202
        assert entries(home, applicant.device) == [entry]
        approve(home, applicant.device)
        assert applicant.ask().status == 200


def test_s_r05_another_key_or_name_is_another_request(est: Est) -> None:
    applicant = Applicant(est)
    applicant.credential = est.home.credential("*", label="approved", uses=9)
    assert applicant.ask().status == 202
    approve(est.home, applicant.device)
    applicant.key, key = new_key(), applicant.key
    assert applicant.ask().status == 202
    assert [entry.state for entry in entries(est.home, applicant.device)] == ["approved", "waiting"]
    applicant.key = key
    assert applicant.ask().status == 200


def test_s_r06_another_identity_with_the_same_csr_gets_nothing(applicant: Applicant) -> None:
    """Not even with a credential that may name this device: it waits on its own, and the first one has the key."""
    est = applicant.est
    csr = request(applicant.key, applicant.device)
    assert est.post(csr, label="approved", credential=applicant.credential).status == 202
    approve(est.home, applicant.device)
    thief = est.home.credential("*", label="approved", uses=5)
    assert est.post(csr, label="approved", credential=thief).status == 202
    assert est.post(csr, label="approved", credential=thief).status == 202
    stranger = est.home.credential(fresh_id(), label="approved")
    assert est.post(csr, label="approved", credential=stranger).status == 403
    assert est.post(csr, label="approved").status == 401
    assert est.post(csr, label="approved", credential=applicant.credential).status == 200
    approve_waiting = [entry.id for entry in entries(est.home, applicant.device)]
    with office(est.home) as pending:
        pending.approve(approve_waiting, "operator:test", today(), WEEK)
    answer = est.post(csr, label="approved", credential=thief)
    assert answer.status == 403
    assert "make a new key" in answer.text


def test_a_renewal_waits_too_and_the_old_certificate_is_used_meanwhile(applicant: Applicant) -> None:
    est = applicant.est
    applicant.ask()
    approve(est.home, applicant.device)
    holder = Holder(applicant.key, applicant.ask().certificate, (est.home.issuing,))
    csr = request(new_key(), applicant.device)
    assert est.reenroll(csr, holder, label="approved").status == 202
    (entry,) = entries(est.home, applicant.device)
    assert entry.predecessor == holder.certificate.serial_number
    approve(est.home, applicant.device)
    assert est.reenroll(csr, holder, label="approved").status == 200


def test_a_one_time_credential_is_spent_by_what_it_queued(applicant: Applicant) -> None:
    assert applicant.ask().status == 202
    applicant.key = new_key()
    assert applicant.ask().status == 401
    assert len(entries(applicant.est.home, applicant.device)) == 1


def test_a_device_with_ever_new_keys_does_not_fill_the_queue(est: Est) -> None:
    applicant = Applicant(est)
    applicant.credential = est.home.credential("*", label="approved", uses=20)
    answers = []
    for _ in range(9):
        applicant.key = new_key()
        answers.append(applicant.ask())
    assert [answer.status for answer in answers] == [202] * 8 + [503]
    assert applicant.device in answers[-1].text
    assert int(answers[-1]["Retry-After"]) > 0


def test_no_answer_is_issued_twice_when_approval_and_repeats_race(est: Est) -> None:
    applicant = Applicant(est)
    assert applicant.ask().status == 202
    answers: list[Answer] = []
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            answers.append(applicant.ask())

    threads = [threading.Thread(target=poll) for _ in range(3)]
    for thread in threads:
        thread.start()
    for decide in itertools.islice(itertools.cycle([approve, deny]), 7):
        with contextlib.suppress(EstError):
            decide(est.home, applicant.device)
    deadline = time.monotonic() + 30
    while not any(answer.status == 200 for answer in answers) and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join(30)
    assert 200 in {answer.status for answer in answers} <= {200, 202, 403}
    assert len({answer.body for answer in answers if answer.status == 200}) == 1
    with est.home.inventory() as inventory:
        assert len(inventory.list_certificates(device=DeviceId(applicant.device))) == 1
        assert inventory.audit_verify().ok


def test_who_queued_and_who_decided_is_in_the_audit_and_an_operator_is_called(applicant: Applicant) -> None:
    home = applicant.est.home
    applicant.ask()
    applicant.ask()
    deny(home, applicant.device, "no")
    approve(home, applicant.device)
    applicant.ask()
    rows = [row for row in home.audit() if row["detail"].get("device") == applicant.device]
    who = f"credential:{applicant.credential[0]}"
    operator = "operator:test"
    wanted = [(who, "queue"), (operator, "deny"), (operator, "approve"), (who, "issue")]
    assert [(row["actor"], row["action"]) for row in rows] == wanted
    assert rows[1]["detail"]["reason"] == "no"
    with home.inventory() as inventory:
        told = [row.event for row in inventory.outbox.pending(1000) if row.event.subject == applicant.device]
    assert [event.type.split(".")[3] for event in told if event.topic.startswith("ca/")] == ["pending", "issued"]


def test_a_request_that_waits_is_no_refusal_in_the_wire_log(applicant: Applicant, server: RunningServer) -> None:
    applicant.ask()
    deadline = time.monotonic() + 20
    while not (lines := [line for line in server.stderr.splitlines() if applicant.device in line]):
        assert time.monotonic() < deadline  # what the server said is read beside this test
        time.sleep(0.05)
    assert "status=202 reason=awaiting-approval" in lines[-1]


def test_an_entry_and_its_credential_end_with_their_time(home: Home) -> None:
    """At another time of the same home, without waiting for it."""
    device = fresh_id("old")
    name, secret = home.credential(device, label="approved")
    asked = Request(
        Operation.SIMPLEENROLL,
        "approved",
        base64_lines(request(new_key(), device)),
        Peer("192.0.2.1"),
        BasicCredentials(name, secret.encode()),
    )
    begin = today()
    now = begin
    with home.inventory() as inventory, home.enrollment(lambda: now) as enrollment:
        for after in (timedelta(), 2 * DAY, 6 * DAY):
            now = begin + after
            with pytest.raises(AwaitingApproval):
                enrollment.enroll(asked)
        (entry,) = inventory.pending.page(now, device=device)
        inventory.pending.approve([entry.id], "operator:test", now, WEEK)
        now = begin + 12 * DAY
        assert enrollment.enroll(asked).device == device
        now = begin + 12 * DAY + timedelta(hours=23)
        assert enrollment.enroll(asked).repeated, "a lost answer, for as long as any"
        now = begin + 14 * DAY
        with pytest.raises(BadCredentials):
            enrollment.enroll(asked)


# --- the client -----------------------------------------------------------------------------------------------------


def test_c_w01_c_w03_the_client_comes_back_with_the_same_key_and_in_a_later_run(
    est: Est, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = fresh_id("cl")
    name, secret = est.home.credential(device, label="approved")
    (tmp_path / "pw").write_text(secret, "utf-8")
    where = ("--server", f"https://localhost:{est.server.port}", "--trust", str(est.home.path / "root.pem"))
    who = ("--label", "approved", "--user", name, "--password-file", str(tmp_path / "pw"))
    command = ("est", "enroll", *where, *who, "--subject", device, "--out", str(tmp_path / "d"), "--json")
    assert run(command) == 6
    assert "come back in 90 s" in capsys.readouterr().err
    assert run((*command, "--wait", "5")) == 6, "90 s are longer than it may wait"
    (entry,) = entries(est.home, device)
    approve(est.home, device)
    capsys.readouterr()
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["device_id"] == device
    with est.home.inventory() as inventory:
        (issued,) = inventory.list_certificates(device=DeviceId(device))
    assert issued.spki_sha256 == entry.spki_sha256


# --- both at once ---------------------------------------------------------------------------------------------------


def test_s_a01_either_will_do_where_nothing_is_said(est: Est) -> None:
    device = est.device()
    assert est.reenroll(request(new_key(), device.device), device).status == 200


def test_s_a02_a_certificate_alone_is_challenged(est: Est) -> None:
    device = est.device()
    answer = est.reenroll(request(new_key(), device.device), device, label="both")
    assert answer.status == 401


def test_s_a02_a_credential_alone_is_refused_in_words(est: Est) -> None:
    device = fresh_id()
    answer = est.post(request(new_key(), device), label="both", credential=est.home.credential(device, label="both"))
    assert answer.status == 403
    assert "certificate besides" in answer.text


def test_s_a02_both_are_taken_and_the_credential_is_spent(est: Est) -> None:
    device = est.device()
    credential = est.home.credential("*", label="both")
    csr = request(new_key(), device.device)
    first = est.reenroll(csr, device, label="both", credential=credential)
    assert first.status == 200, first.text
    assert est.reenroll(csr, device, label="both", credential=credential).body == first.body
    assert est.reenroll(request(new_key(), device.device), device, label="both", credential=credential).status == 401
    row = next(row for row in est.home.audit() if row["detail"].get("serial") == f"{first.certificate.serial_number:x}")
    assert row["actor"] == f"certificate:{device.device}+credential:{credential[0]}"


def test_s_a02_neither_gives_what_the_other_does_not(est: Est) -> None:
    device, other = est.device(), est.device()
    narrow = est.home.credential(other.device, label="both", uses=9)
    for holder, named in ((device, device), (device, other)):
        answer = est.reenroll(request(new_key(), named.device), holder, label="both", credential=narrow)
        assert answer.status == 403
        assert f"may not name the device {named.device}" in answer.text
    assert est.reenroll(request(new_key(), other.device), other, label="both", credential=narrow).status == 200
    assert est.reenroll(request(new_key(), other.device), other, label="both", credential=("x", "y")).status == 401
