"""The command `devicesim`, its offline part: one line for a mistake, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

import devicesim
from devicesim.cli import run
from devicesim.csr import KEY_TYPES

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
PROFILE = ROOT / "estserver" / "policy" / "profiles" / "device.toml"


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(capsys):
    def call(*arguments) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_what_the_package_offers_is_listed_sorted_and_there():
    assert devicesim.__all__ == sorted(devicesim.__all__)
    assert all(hasattr(devicesim, name) for name in devicesim.__all__)


def test_a_device_maker_needs_nothing_of_the_server_or_the_line():
    blocked = ["flask", "gunicorn", "sqlalchemy", "alembic", "pydantic", "rich", "paho", "amqtt", "estserver"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import devicesim.client, devicesim.cli.est"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_new_request_and_its_key(inside, command):
    code, out, err = command("csr", "new", "--key", "k.pem", "--subject", "sn-1", "--san", "dns:sn-1", "--out", "r.csr")
    assert (code, err) == (0, "")
    assert "EC-P256" in out
    assert stat.S_IMODE((inside / "k.pem").stat().st_mode) == 0o600
    request = x509.load_pem_x509_csr((inside / "r.csr").read_bytes())
    assert request.is_signature_valid
    again, _, _ = command("csr", "new", "--key", "k.pem", "--subject", "sn-1", "--out", "r2.csr")
    assert again == 0
    assert x509.load_pem_x509_csr((inside / "r2.csr").read_bytes()).public_key() == request.public_key()


def test_the_request_goes_to_standard_output_alone(inside, command):
    code, out, err = command("csr", "new", "--key", "k.pem", "--subject", "sn-1")
    assert (code, err) == (0, "")
    assert x509.load_pem_x509_csr(out.encode()).is_signature_valid


@pytest.mark.parametrize("kind", [name for name in KEY_TYPES if not name.startswith("RSA")])
def test_every_kind_of_key(inside, command, kind):
    code, out, _ = command("csr", "new", "--key", "k", "--subject", "sn-1", "--key-type", kind.lower(), "--json")
    assert code == 0
    assert json.loads(out)["key"] == kind


def test_a_passphrase_from_a_file_protects_the_key(inside, command):
    (inside / "pass").write_text("secret\n")
    assert command("csr", "new", "--key", "k", "--subject", "a", "--passphrase-file", "pass")[0] == 0
    assert "ENCRYPTED" in (inside / "k").read_text()
    code, _, err = command("csr", "new", "--key", "k", "--subject", "a")
    assert code == 8
    assert "passphrase" in err


def test_wishes_of_a_server_are_met(inside, command):
    file = VECTORS / "derived-rfc9908-3.4-csrattrs.b64"
    options = ("--key", "k", "--subject", "www", "--san", "ip:10.0.0.1", "--from-csrattrs", file)
    code, _, err = command("csr", "new", *options)
    assert code == 7
    assert "dns:www.myserver.com" in err
    assert not (inside / "k").exists()
    code, out, _ = command("csr", "new", *options, "--allow-name", "dns:www.*", "--json")
    assert code == 0
    assert json.loads(out)["names"] == ["dns:www.myserver.com", "ip:10.0.0.1"]


def test_a_profile_says_yes_and_no(inside, command):
    assert command("csr", "new", "--key", "k", "--subject", "sn-1", "--out", "r", "--profile", PROFILE)[0] == 0
    code, out, _ = command("csr", "show", "r", "--profile", PROFILE, "--json")
    assert code == 0
    assert json.loads(out)["allowed"] is True
    assert command("csr", "new", "--key", "k", "--subject", "CN=a,O=Acme", "--out", "r", "--profile", PROFILE)[0] == 14
    code, out, _ = command("csr", "show", "r", "--profile", PROFILE)
    assert code == 14
    assert "organization=Acme: refused" in out


def test_a_request_of_rfc_7030_is_explained(command):
    code, out, _ = command("csr", "show", VECTORS / "rfc7030-A.3-simpleenroll-request.p10.b64")
    assert code == 0
    for words in ("RSA-2048", "bound to one TLS connection", "SHA-1"):
        assert words in out


MISTAKES = [
    (("csr", "show", "nothing-there"), 3, "cannot read"),
    (("csr", "show", PROFILE), 3, "not a certificate request"),
    (("csr", "new", "--key", "k", "--subject", "a", "--profile", VECTORS / "README.md"), 3, "not a profile"),
    (("csr", "new", "--key", "k", "--subject", "a", "--san", "nonsense"), 2, "dns:NAME"),
    (("csr", "new", "--key", "k", "--subject", "CN="), 2, "not a subject"),
    (("csr", "new", "--key", "k", "--subject", "O=Acme"), 2, "names no device"),
    (("csr", "new", "--key", "k", "--subject", "a", "--from-csrattrs", PROFILE), 10, "not base64"),
    (("csr", "new", "--key", "no/such/dir/k", "--subject", "a"), 3, "cannot write"),
    (("csr", "new", "--key", PROFILE, "--subject", "a"), 8, "cannot be read"),
    (("csr", "new", "--subject", "a"), 2, "--key"),
    (("csr", "new", "--key", "k", "--subject", "a", "--key-type", "DSA"), 2, "EC-P256"),
    (("nonsense",), 2, "nonsense"),
    (("est", "enroll", "--server", "https://127.0.0.1:1", "--subject", "a", "--out", "d"), 2, "trust anchor"),
    (("est", "cacerts", "--server", "http://127.0.0.1:1", "--fingerprint", "a" * 64), 2, "https://"),
    (("est", "cacerts", "--server", "https://127.0.0.1:1"), 2, "--fingerprint"),
    (("est", "cacerts", "--server", "https://127.0.0.1:1", "--fingerprint", "a" * 64), 6, "cannot be reached"),
    (("est", "csrattrs", "--server", "https://u:p@h/", "--trust", PROFILE), 3, "no readable certificate"),
]


@pytest.mark.parametrize(("arguments", "expected", "said"), MISTAKES)
def test_a_mistake_is_one_line_and_an_exit_code(inside, command, arguments, expected, said):
    code, out, err = command(*arguments)
    assert code == expected
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(inside.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("csr",), ("csr", "new"), ("csr", "show"), ("est",), ("est", "enroll")])
def test_help_is_given_with_an_example(command, arguments):
    code, out, _ = command(*arguments, "--help")
    assert code == 0
    assert "Usage: devicesim" in out
    is_a_group = arguments in {("csr",), ("est",)}
    assert is_a_group or out.count(" ".join(["devicesim", *arguments])) >= 2


def test_the_module_is_the_command():
    found = subprocess.run([sys.executable, "-m", "devicesim", "nonsense"], capture_output=True, cwd=ROOT, check=False)
    assert found.returncode == 2
    assert b"Traceback" not in found.stderr
