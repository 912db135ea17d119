"""The operator's commands, as programs: what they print, what they leave behind, how they end."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estserver.cli import main
from estserver.cli.revoke import revoke
from estserver.config import load_settings
from estserver.errors import AwaitingApproval, NotAuthorized
from estserver.identity.credentials import CredentialVerifier
from estserver.inventory import REASONS, Inventory
from estserver.model import Der, DeviceId, Serial
from tests.inventory_support import csr_for, grant_for
from tests.makers import Maker

pytestmark = pytest.mark.e2e

TODAY = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Operator:
    """Somebody at a terminal, with a home of their own."""

    home: Path

    def __call__(self, *arguments: str, stdin: str = "") -> Done:
        """Run the program's own `main` in here: twenty interpreters less to start."""
        out, err = io.TextIOWrapper(io.BytesIO(), write_through=True), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["estserver", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setenv("ESTLINE_HOME", str(self.home))
            try:
                main()
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
        return Done(code, out.buffer.getvalue().decode(), err.getvalue())  # type: ignore[attr-defined]  # a BytesIO

    def program(self, *arguments: str) -> Done:
        """Run the program as a user does."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "estserver", *arguments],
            env={**os.environ, "ESTLINE_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def inventory(self) -> Inventory:
        return Inventory.open(self.home / "estserver.db")


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("founded") / "home"
    done = Operator(home)("init", str(home))
    assert done.code == 0, done.err
    return home


@pytest.fixture
def operator(founded: Path, tmp_path: Path) -> Operator:
    home = tmp_path / "home"
    shutil.copytree(founded, home)
    return Operator(home)


def ca_certificate(
    name: str, *, ca: bool = True, until: datetime = TODAY + DAY, usage: Callable[..., x509.KeyUsage] | None = None
) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(until - 365 * DAY)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def issue(inventory: Inventory, device: str, serial: int, **changes: Any) -> x509.Certificate:
    """Put a certificate into the inventory, as an enrolment would have."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    certificate = ca_certificate(device, ca=False)
    csr = replace(csr_for(device, str(serial)), der=Der(request.public_bytes(Encoding.DER)))
    life = {"not_before": TODAY, "not_after": TODAY + 90 * DAY, "renew_after": TODAY + 60 * DAY}
    reservation = inventory.reserve(grant_for(device, csr=csr, **{**life, **changes}), Serial(serial), TODAY)
    inventory.record(reservation, Der(certificate.public_bytes(Encoding.DER)), [], TODAY)  # type: ignore[arg-type]  # new
    return certificate


# --- credential -----------------------------------------------------------------------------------------------------


def test_a_generated_secret_is_shown_once_and_is_the_one_that_authenticates(operator: Operator) -> None:
    made = operator("credential", "add", "sn-0001", "--json")
    assert made.code == 0, made.err
    secret = made.json["secret"]
    assert len(secret) == 26
    assert (made.json["devices"], made.json["uses"], made.json["state"]) == (["sn-0001"], 1, "good")
    with operator.inventory() as inventory:
        record = inventory.authenticable("sn-0001", TODAY)
    pepper = (operator.home / "private" / "credential.key").read_bytes()
    assert CredentialVerifier(pepper).matches(record, secret.encode())
    assert not CredentialVerifier(pepper).matches(record, b"wrong")
    listed = operator("credential", "list", "--json")
    assert secret not in listed.out
    assert secret.encode() not in (operator.home / "estserver.db").read_bytes()


def test_a_chosen_secret_comes_from_a_file_or_standard_input(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("correct horse battery\n")
    assert operator("credential", "add", "sn-1", "--password-file", str(file)).code == 0
    piped = operator("credential", "add", "sn-2", "--password-file", "-", stdin="correct horse battery\n")
    assert piped.code == 0
    assert "correct horse" not in piped.out + piped.err
    with operator.inventory() as inventory:
        for name in ("sn-1", "sn-2"):
            record = inventory.credential(name)
            assert record is not None
            assert record.scheme == "scrypt"
            assert CredentialVerifier(bytes(32)).matches(record, b"correct horse battery")
    short = operator("credential", "add", "sn-3", "--password-file", "-", stdin="short\n")
    assert (short.code, short.out) == (3, "")


def test_credentials_have_limits_and_are_listed_and_removed(operator: Operator) -> None:
    added = operator(
        *("credential", "add", "line-1", "--devices", "sn-*", "--devices", "gw-0?", "--name", "dns:*.plant.example"),
        *("--uses", "500", "--expires", "8h", "--json"),
    )
    assert added.code == 0, added.err
    (row,) = operator("credential", "list", "--json").json
    assert row["devices"] == ["sn-*", "gw-0?"]
    assert row["names"] == ["dns:*.plant.example"]
    assert (row["uses"], row["spent"]) == (500, 0)
    assert row["expires_at"] > TODAY.isoformat()
    table = operator("credential", "list")
    assert "sn-* gw-0?" in table.out
    again = operator("credential", "add", "line-1", "--devices", "sn-*")
    assert (again.code, again.err.count("\n")) == (5, 2)
    assert operator("credential", "remove", "line-1").code == 0
    assert operator("credential", "remove", "line-1").code == 5
    assert operator("credential", "list", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("credential", "add", "a:b"), 2),
        (("credential", "add", "Line@1"), 2),
        (("credential", "add", "x", "--devices", "SN 1"), 2),
        (("credential", "add", "x", "--devices", "a/b"), 2),
        (("credential", "add", "x", "--name", "nonsense"), 2),
        (("credential", "add", "x", "--uses", "0"), 2),
        (("credential", "add", "x", "--uses", "any"), 2),
        (("credential", "add", "x", "--expires", "soon"), 2),
        (("credential", "add", "x", "--label", "nowhere"), 3),
        (("credential", "add", "x", "--password-file", "/nonexistent"), 3),
        (("station", "add", "s"), 2),
        (("station", "add", "s", "--devices", "/nonexistent"), 3),
        (("trust", "add", "a", "/nonexistent"), 3),
        (("revoke",), 2),
        (("revoke", "xyz"), 2),
        (("revoke", "12", "--device", "d"), 2),
        (("revoke", "12", "--reason", "because"), 2),
        (("revoke", "12"), 5),
        (("revoke", "--device", "sn-1"), 5),
        (("inventory", "show", "12"), 5),
        (("inventory", "list", "--after", "12"), 5),
        (("inventory", "list", "--home", "/nonexistent"), 3),
    ],
)
def test_a_mistake_changes_nothing_and_ends_with_its_code(founded: Path, arguments: tuple[str, ...], code: int) -> None:
    operator = Operator(founded)
    done = operator(*arguments)
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err
    with operator.inventory() as inventory:
        assert [row.action for row in inventory.audit_rows()] == ["issue"]  # the server's own, by `init`


# --- trust and station ----------------------------------------------------------------------------------------------


def test_a_manufacturer_is_trusted_listed_and_forgotten(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "acme.pem"
    file.write_bytes(pem(ca_certificate("Acme Root")))
    assert operator("trust", "add", "acme", str(file), "--device-id", "acme-{serial}").code == 0
    (row,) = operator("trust", "list", "--json").json
    assert (row["name"], row["subject"], row["devices"]) == ("acme", "CN=Acme Root", ["acme-*"])
    twice = operator("trust", "add", "acme-2", str(file))
    assert twice.code == 3
    assert "acme" in twice.err
    assert operator("trust", "remove", "acme").code == 0
    assert operator("trust", "list", "--json").json == []


def test_only_one_fit_ca_certificate_becomes_an_anchor(operator: Operator, tmp_path: Path) -> None:
    fit = pem(ca_certificate("fit"))
    unfit = {
        "not a CA": pem(ca_certificate("leaf", ca=False)),
        "expired": pem(ca_certificate("old", until=TODAY - DAY)),
        "two": fit + fit,
        "empty": b"",
        "binary": os.urandom(200),
    }
    for name, content in unfit.items():
        file = tmp_path / "anchor.pem"
        file.write_bytes(content)
        done = operator("trust", "add", "acme", str(file))
        assert (done.code, done.out) == (3, ""), name
    file.write_bytes(fit)
    assert operator("trust", "add", "acme", str(file), "--device-id", "fixed").code == 2
    assert operator("trust", "list", "--json").json == []


def test_a_station_has_its_devices_from_patterns_and_files(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "units.txt"
    file.write_text("# batch 7\nsn-1\nsn-2  # reworked\n\nsn-1\n")
    assert operator("station", "add", "line-1", "--devices", str(file), "--devices", "gw-*").code == 0
    (row,) = operator("station", "list", "--json").json
    assert (row["devices"], row["total"]) == (["sn-1", "sn-2", "gw-*"], 3)
    file.write_text("sn-1\nSN 2\nsn/3\n")
    wrong = operator("station", "add", "line-2", "--devices", str(file))
    assert wrong.code == 3
    assert "units.txt:2" in wrong.err
    assert "units.txt:3" in wrong.err
    assert operator("station", "remove", "line-1").code == 0
    assert operator("station", "list", "--json").json == []


# --- inventory, revoke, audit ---------------------------------------------------------------------------------------


def test_certificates_are_listed_page_by_page_shown_and_exported(operator: Operator) -> None:
    with operator.inventory() as inventory:
        certificates = [issue(inventory, f"sn-{number}", 0xAB00 + number) for number in range(1, 4)]
        issue(inventory, "sn-4", 0xAB04, requester="=cmd()", not_after=TODAY + 5 * DAY)
    own = operator("inventory", "list", "--limit", "1", "--json").json[0]["serial"]
    page = operator("inventory", "list", "--after", own, "--limit", "2", "--json")
    assert [row["serial"] for row in page.json] == ["ab01", "ab02"]
    assert "--after ab02" in page.err
    rest = operator("inventory", "list", "--after", "AB:02", "--json")
    assert [row["serial"] for row in rest.json] == ["ab03", "ab04"]
    soon = operator("inventory", "list", "--expiring", "30d", "--json")
    assert [row["device"] for row in soon.json] == ["sn-4"]
    shown = operator("inventory", "show", "0xAB01", "--json").json
    assert (shown["device"], shown["subject"], shown["san"]) == ("sn-1", "common_name=sn-1", ["dns:sn-1.example"])
    assert operator("inventory", "show", "ab01", "--pem").out.encode() == pem(certificates[0])
    assert x509.load_pem_x509_csr(operator("inventory", "show", "ab01", "--csr").out.encode()).is_signature_valid
    rows = list(csv.DictReader(io.StringIO(operator("inventory", "export").out)))
    assert [row["serial"] for row in rows[1:]] == ["ab01", "ab02", "ab03", "ab04"]
    assert rows[4]["requester"] == "'=cmd()"
    exported = operator("inventory", "export", "--format", "json").json
    assert [row["device"] for row in exported[1:]] == ["sn-1", "sn-2", "sn-3", "sn-4"]


def test_what_waits_is_listed_shown_and_decided_on(operator: Operator) -> None:
    with operator.inventory() as inventory:
        for number in range(1, 4):
            grant = grant_for(f"sn-{number}", approval=True, requester="station:line-1")
            real = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
            der = Der(real.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER))
            with pytest.raises(AwaitingApproval):
                inventory.reserve(replace(grant, csr=replace(grant.csr, der=der)), Serial(number), TODAY)
    first = operator("pending", "list", "--limit", "1", "--json")
    assert [row["device"] for row in first.json] == ["sn-1"]
    assert "--after 1" in first.err
    rest = operator("pending", "list", "--after", "1", "--state", "waiting", "--json").json
    assert [(row["id"], row["state"]) for row in rest] == [(2, "waiting"), (3, "waiting")]
    shown = operator("pending", "show", "2", "--json").json
    assert (shown["subject"], shown["san"]) == ("common_name=sn-2", ["dns:sn-2.example"])
    assert x509.load_pem_x509_csr(operator("pending", "show", "2", "--csr").out.encode()).is_signature_valid
    approved = operator("pending", "approve", "1", "2", "--json").json
    assert [(row["state"], row["decided_by"].split(":")[0]) for row in approved] == [("approved", "operator")] * 2
    (denied,) = operator("pending", "deny", "3", "--reason", "not ours", "--json").json
    assert (denied["state"], denied["reason"]) == ("denied", "not ours")
    assert operator("pending", "list", "--device", "sn-3").out.splitlines()[1].split()[1] == "denied"
    again = operator("pending", "approve", "1")
    assert (again.code, again.out) == (5, "")
    assert "approved already" in again.err
    assert operator("pending", "approve", "9").code == operator("pending", "show", "9").code == 5
    for wrong in (("approve",), ("deny", "3", "--reason", "two\nlines"), ("show", "x"), ("deny", "0")):
        assert operator("pending", *wrong).code == 2
    lines = operator("audit", "export").out.splitlines()
    assert [json.loads(line)["action"] for line in lines[-3:]] == ["approve", "approve", "deny"]


def test_a_revocation_is_final_told_and_audited(operator: Operator) -> None:
    with operator.inventory() as inventory:
        issue(inventory, "sn-1", 0xAB01)
        issue(inventory, "sn-2", 0xAB02)
        issue(inventory, "sn-2", 0xAB03, profile="server")
    one = operator("revoke", "ab01", "--reason", "keyCompromise", "--json")
    assert one.code == 0, one.err
    assert [(row["serial"], row["status"]) for row in one.json] == [("ab01", "revoked")]
    again = operator("revoke", "ab01", "--json")
    assert again.json == one.json
    both = operator("revoke", "--device", "sn-2", "--reason", "cessationOfOperation", "--json")
    assert [row["serial"] for row in both.json] == ["ab02", "ab03"]
    with operator.inventory() as inventory:
        told = {row.event.type for row in inventory.outbox.pending(10)}
        revoked = [row for row in inventory.audit_rows() if row.action == "revoke"]
    assert "org.estline.certificate.revoked.v1" in told
    assert len(revoked) == 3
    assert all(row.actor.startswith("operator:") for row in revoked)


def test_the_command_offers_every_reason_the_inventory_takes() -> None:
    (option,) = (parameter for parameter in revoke.params if parameter.name == "reason")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == REASONS


def test_a_batch_is_revoked_from_its_file_and_stays_away(operator: Operator, tmp_path: Path) -> None:
    with operator.inventory() as inventory:
        for number, device in enumerate(("sn-1", "sn-2", "sn-3"), 0xAB01):
            issue(inventory, device, number)
    batch = tmp_path / "batch.txt"
    batch.write_text("sn-1\nsn-2  # and one that never came\nsn-9\n")
    done = operator("revoke", "--devices", str(batch), "--reason", "keyCompromise", "--json")
    assert done.code == 0, done.err
    assert [row["device"] for row in done.json] == ["sn-1", "sn-2"]
    assert "sn-9; it is blocked" in done.err
    listed = operator("block", "list", "--json").json
    assert [(row["device"], row["reason"]) for row in listed] == [(f"sn-{n}", "keyCompromise") for n in (1, 2, 9)]
    assert "--after sn-1" in operator("block", "list", "--limit", "1").err
    assert operator("block", "remove", "sn-9").code == 0
    assert operator("block", "remove", "sn-9").code == 5
    assert operator("block", "add", "sn-8").code == 0
    assert [row["device"] for row in operator("block", "list", "--after", "sn-1", "--json").json] == ["sn-2", "sn-8"]
    with operator.inventory() as inventory, pytest.raises(NotAuthorized):
        issue(inventory, "sn-8", 0xAB08)
    batch.write_text("sn-*\n")
    assert operator("revoke", "--devices", str(batch)).code == 3


def test_certificates_are_revoked_by_key_by_station_and_by_ca(operator: Operator) -> None:
    with operator.inventory() as inventory:
        issue(inventory, "sn-1", 0xAB01)
        issue(inventory, "sn-2", 0xAB02, requester="station:s-07")
        issue(inventory, "sn-3", 0xAB03)
        (one,) = inventory.list_certificates(device=DeviceId("sn-1"))
    for arguments, serials in (
        (("--station", "s-07"), ["ab02"]),
        (("--key", one.spki_sha256.upper()), ["ab01"]),
        (("--key", "0" * 64), []),
    ):
        done = operator("revoke", *arguments, "--json")
        assert (done.code, [row["serial"] for row in done.json]) == (0, serials), done.err
    (name,) = load_settings(operator.home).cas
    done = operator("revoke", "--ca", name, "--json")
    assert [row["device"] for row in done.json] == ["est-server"]  # all that this CA itself signed in this test
    assert "no certificate in force" in operator("revoke", "--ca", name).err
    assert operator("block", "list").out == ""


def test_lists_are_published_and_shown(operator: Operator, tmp_path: Path) -> None:
    out, root_key = tmp_path / "issuing.crl", operator.home / "private" / "root.key"
    nothing = operator("crl", "show")
    assert (nothing.code, "estserver crl publish" in nothing.err) == (5, True)
    first = operator("crl", "publish", "--json").json
    operator("revoke", "--device", "est-server")
    second = operator("crl", "publish", "--json").json
    assert second["number"] > first["number"]
    shown = operator("crl", "show", "--out", str(out), "--json")
    assert shown.json == second
    issuing = x509.load_pem_x509_certificate((operator.home / "issuing.pem").read_bytes())
    read = x509.load_der_x509_crl(out.read_bytes())
    assert read.is_signature_valid(issuing.public_key())  # type: ignore[arg-type]  # a CA's key
    assert len(read) == second["entries"] == 1
    root = operator("crl", "publish", "--root-key", str(root_key), "--lifetime", "90d", "--json")
    assert root.code == 0, root.err
    assert operator("crl", "show", "--root", "--pem", "--out", str(out), "--json").json == root.json
    read = x509.load_pem_x509_crl(out.read_bytes())
    assert read.next_update_utc is not None
    assert read.next_update_utc - read.last_update_utc == 90 * DAY


def test_mistakes_with_lists_are_told(operator: Operator, tmp_path: Path) -> None:
    issuing_key = str(operator.home / "private" / "issuing.key")
    for arguments, code, text in (
        (("crl", "publish", "--ca", "nobody"), 3, "no CA 'nobody'"),
        (("crl", "publish", "--root-key", issuing_key), 3, "not the key of this CA's root"),
        (("crl", "publish", "--root-key", str(tmp_path / "nothing")), 3, "cannot be read"),
        (("crl", "publish", "--lifetime", "90d"), 2, "go with --root-key"),
        (("revoke", "--ca", "nobody"), 3, "no CA 'nobody'"),
        (("revoke", "--key", "ab"), 2, "is not the SHA-256"),
        (("revoke", "ab01", "--station", "s-07"), 2, "name one"),
        (("trust", "crl", "set", "nobody", "x.crl", "--missing", "refuse"), 5, "no anchor nobody"),
        (("trust", "crl", "set", "nobody", "ftp://x/y", "--missing", "refuse"), 2, "neither a file nor"),
        (("trust", "crl", "refresh", "nobody"), 5, "no list is wanted"),
        (("trust", "crl", "remove", "nobody"), 5, "no list is wanted"),
    ):
        done = operator(*arguments)
        assert (done.code, text in done.err) == (code, True), (arguments, done)
    served = operator.program("responder", "--listen", "nowhere")
    assert (served.code, "is not HOST:PORT" in served.err) == (3, True)
    operator("crl", "publish")
    assert operator("crl", "show", "--out", str(tmp_path / "no" / "where")).code == 3


def test_a_manufacturers_list_is_wanted_refreshed_and_not_wanted(operator: Operator, tmp_path: Path) -> None:
    maker, file = Maker("Acme Factory"), tmp_path / "acme.crl"
    (tmp_path / "acme.pem").write_bytes(pem(maker.certificate))
    assert operator("trust", "add", "acme", str(tmp_path / "acme.pem")).code == 0
    want = ("trust", "crl", "set", "acme", str(file), "--missing", "refuse", "--json")
    done = operator(*want)
    assert (done.code, "cannot be read" in done.err) == (3, True)
    (row,) = operator("trust", "crl", "list", "--json").json
    assert (row["anchor"], row["missing"], row["entries"], row["source"]) == ("acme", "refuse", None, str(file))
    assert "cannot be read" in row["problem"]
    builder = x509.CertificateRevocationListBuilder().issuer_name(maker.subject)
    builder = builder.last_update(TODAY - DAY).next_update(TODAY + DAY)
    file.write_bytes(builder.sign(maker.key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (row,) = operator("trust", "crl", "refresh", "--json").json
    assert (row["entries"], row["problem"]) == (0, None)
    (row,) = operator(*want).json
    assert row["entries"] == 0
    assert operator("trust", "crl", "remove", "acme").code == 0
    assert operator("trust", "crl", "list", "--json").json == []


def test_a_broken_audit_chain_ends_with_its_own_code(operator: Operator) -> None:
    operator("credential", "add", "sn-1")
    operator("credential", "remove", "sn-1")
    whole = operator("audit", "verify", "--json")
    assert (whole.code, whole.json["ok"], whole.json["rows"]) == (0, True, 3)
    lines = operator("audit", "export").out.splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["issue", "credential-add", "credential-remove"]
    connection = sqlite3.connect(operator.home / "estserver.db")
    with connection:
        connection.execute("UPDATE audit SET actor = 'operator:nobody' WHERE seq = 1")
    connection.close()
    broken = operator("audit", "verify", "--json")
    assert (broken.code, broken.json["ok"], broken.json["first_bad"]) == (10, False, 1)
    assert "row 1" in broken.err


def test_the_program_prints_data_on_stdout_and_everything_else_on_stderr(operator: Operator) -> None:
    made = operator.program("credential", "add", "sn-1", "--json")
    assert (made.code, made.json["name"]) == (0, "sn-1"), made.err
    assert made.err.count("\n") == 1
    taken = operator.program("credential", "add", "sn-1")
    assert (taken.code, taken.out) == (5, "")
    assert taken.err.startswith("error: the credential sn-1 exists already")
    assert "Traceback" not in taken.err


@pytest.mark.parametrize(
    "command",
    ["credential", "trust", "station", "revoke", "inventory", "pending", "audit", "block", "crl", "responder"],
)
def test_every_command_explains_itself_with_an_example(founded: Path, command: str) -> None:
    helped = Operator(founded)(command, "--help")
    assert helped.code == 0
    subcommands = {
        "revoke": [()],
        "responder": [()],
        "crl": [("publish",), ("show",)],
        "trust": [("crl", one) for one in ("set", "refresh", "list", "remove")],
        "audit": [("verify",), ("export",)],
        "inventory": [("list",), ("show",), ("export",)],
        "pending": [("list",), ("show",), ("approve",), ("deny",)],
    }
    for sub in subcommands.get(command, [("add",), ("list",), ("remove",)])[:1]:
        assert f"estserver {command}" in Operator(founded)(command, *sub, "--help").out
