"""`estserver.toml`, a home, its keys, and the commands that show them: whole or not at all, every mistake at once."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from estserver.assembly import enrollment_of, inventory_of
from estserver.cli.config import config
from estserver.cli.init import init
from estserver.cli.policy import policy
from estserver.config import load_settings, parse_duration
from estserver.errors import ConfigError, NotFound
from estserver.home import Plan, found, host_name
from estserver.keys import KINDS, FileSigner, write_secret
from tests.csr_maker import base64_lines, known, new_key, request
from tests.est_server import Home, found_home

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return found_home(tmp_path_factory.mktemp("founded") / "home", now=NOW)


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Home:
    shutil.copytree(home.path, tmp_path / "home")
    return Home(tmp_path / "home", home.fingerprint)


def assembled(home: Home) -> None:
    settings = load_settings(home.path)
    with inventory_of(settings) as inventory:
        enrollment_of(settings, inventory, clock=lambda: NOW, random=os.urandom)


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "sections", "words"),
    [
        ("nonsense = 1\n", "", ["nonsense"]),
        ("", "[server.nonsense]\nx = 1\n", ["server.nonsense"]),
        ("", "[tls]\nprivate_key = 'x'\n[storage]\nurl = 3\n", ["tls.private_key", "storage.url"]),
        ("implicit_trust = 'perhaps'\nrealm = 'a\"b'\n", "", ["implicit_trust", "realm"]),
        ("", "[labels.'a/b']\nprofile = 'device'\nca = 'acme'\n", ["a/b"]),
        ("", "[labels.x]\nprofile = 'device'\nca = 'nobody'\n", ["nobody"]),
        ("", "[labels.x]\nprofile = 'device'\nca = 'acme'\nchannel_binding = 'off'\n", ["channel_binding"]),
    ],
)
def test_every_mistake_is_told_with_its_key(copy: Home, top: str, sections: str, words: list[str]) -> None:
    copy.configure(sections, top)
    with pytest.raises(ConfigError) as refused:
        load_settings(copy.path)
    text = "\n".join(refused.value.reasons)
    assert all(word in text for word in words), text
    assert all("estserver.toml" in reason for reason in refused.value.reasons)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[broken", b"", b"a = 1\n" * 100_000])
def test_what_is_no_configuration_is_one_error(copy: Home, content: bytes) -> None:
    (copy.path / "estserver.toml").write_bytes(content)
    with pytest.raises(ConfigError):
        load_settings(copy.path)


def test_a_home_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"estserver\.toml"):
        load_settings(tmp_path)


@pytest.mark.parametrize("listen", ["", "127.0.0.1:9464", "127.8.8.8:0", "[::1]:65535"])
def test_metrics_are_for_this_machine(copy: Home, listen: str) -> None:
    copy.configure(f"[metrics]\nlisten = '{listen}'\n")
    assert load_settings(copy.path).metrics.listen == listen


@pytest.mark.parametrize(
    "listen",
    [
        *("0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464", "[2001:db8::1]:9464", ":9464", "localhost:9464", "127.0.0.1"),
        *("127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x", "[::1:9464", "::1:9464", "[127.0.0.1]:9464", "127.1:9464"),
    ],
)
def test_metrics_are_for_nobody_else(copy: Home, listen: str) -> None:
    copy.configure(f"[metrics]\nlisten = '{listen}'\n")
    with pytest.raises(ConfigError, match=r"metrics\.listen: is not a loopback address"):
        load_settings(copy.path)


@given(st.integers(0, 9_999_999), st.sampled_from("smhd"))
def test_durations_have_a_unit(count: int, unit: str) -> None:
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert parse_duration(f"{count}{unit}") == timedelta(seconds=count * seconds)


@pytest.mark.parametrize("text", ["", "8", "h", "-1h", "1.5h", "1h30m", "1 h", "99999999d", 8, None, "1H", "٣d"])
def test_other_durations_are_none(text: object) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


# --- a home ---------------------------------------------------------------------------------------------------------


def test_a_home_has_what_it_promises_and_its_secrets_are_the_owners_alone(home: Home) -> None:
    names = {path.name for path in home.path.iterdir()}
    assert names >= {"estserver.toml", "root.pem", "issuing.pem", "tls.pem", "profiles", "private", "estserver.db"}
    private = home.path / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()} == {0o600}
    assert not [path for path in home.path.iterdir() if path.name.startswith(".init")]
    assembled(home)


def test_the_fingerprint_is_that_of_the_root(home: Home) -> None:
    assert home.fingerprint.replace(":", "").lower() == home.root.fingerprint(hashes.SHA256()).hex()


def test_the_tls_certificate_took_the_common_path(home: Home) -> None:
    certificate = x509.load_pem_x509_certificates((home.path / "tls.pem").read_bytes())[0]
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in san.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    with home.inventory() as inventory:
        record = inventory.by_serial(certificate.serial_number)  # type: ignore[arg-type]  # a Serial is an int
    assert record is not None
    assert record.requester == "operator:init"
    (row,) = home.audit()
    assert (row["action"], row["actor"]) == ("issue", "operator:init")


@pytest.mark.parametrize("there", ["root.pem", "private", "estserver.toml", "profiles", "estserver.db"])
def test_whatever_is_in_the_way_nothing_is_changed(tmp_path: Path, there: str) -> None:
    (tmp_path / there).symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="exists already"):
        found_home(tmp_path, now=NOW)
    assert sorted(tmp_path.iterdir()) == before


def test_the_root_key_goes_elsewhere_and_is_not_missed(tmp_path: Path) -> None:
    out, path = tmp_path / "usb", tmp_path / "home"
    plan = Plan(path, "Acme", ("localhost",), "P-256", root_key_out=out, idevid=True)
    made = Home(path, found(plan, now=NOW, random=os.urandom))
    assert sorted(file.name for file in out.iterdir()) == ["idevid-root.key", "root.key"]
    assert not (path / "private" / "root.key").exists()
    shutil.rmtree(out)
    assembled(made)
    out.mkdir()
    (out / "root.key").touch()
    with pytest.raises(ConfigError, match="exists already"):
        found(Plan(tmp_path / "again", "Acme", ("localhost",), "P-256", root_key_out=out), now=NOW, random=os.urandom)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "now", [datetime(2049, 12, 31, 23, 59, 50, tzinfo=UTC), NOW.replace(year=2127)], ids=["2049", "+100 years"]
)
def test_a_home_is_founded_at_any_time(tmp_path: Path, now: datetime) -> None:
    made = found_home(tmp_path / "home", now=now, idevid=True)
    assert made.root.not_valid_before_utc == now - timedelta(days=1)
    assembled(made)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_home_has_ca_keys_of_every_kind_and_they_may_be_encrypted(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "passphrase"
    secret.write_bytes(b"correct horse\n")
    plan = Plan(tmp_path / "home", "Acme", ("localhost",), kind, passphrase=b"correct horse", passphrase_file=secret)
    assert "correct horse" not in repr(plan)
    made = Home(tmp_path / "home", found(plan, now=NOW, random=os.urandom))
    pem = (made.path / "private" / "issuing.key").read_bytes()
    assert b"ENCRYPTED" in pem
    load_pem_private_key(pem, b"correct horse")
    assembled(made)
    secret.write_bytes(b"wrong")
    with pytest.raises(ConfigError, match="passphrase"):
        assembled(made)


@pytest.mark.parametrize("host", ["a_b", "a b", "-a", "a..b", "x" * 300, "", "a/b", "*.example", "a\n"])
def test_what_is_no_host_is_said(host: str) -> None:
    with pytest.raises(ConfigError, match="neither"):
        host_name(host)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "private/issuing.key").unlink(), "cannot be read"),
        (lambda path: (path / "private/issuing.key").chmod(0o640), "read by others"),
        (lambda path: (path / "private/issuing.key").write_text("x"), "no usable key"),
        (lambda path: shutil.copy(path / "private/tls.key", path / "private/issuing.key"), "does not belong"),
        (lambda path: shutil.copy(path / "tls.pem", path / "issuing.pem"), "does not belong"),
        (lambda path: (path / "root.pem").write_text(""), "no PEM certificate"),
        (lambda path: shutil.copy(path / "tls.pem", path / "root.pem"), "not issued by"),
        (lambda path: (path / "profiles/device.toml").unlink(), "profiles/device.toml is missing"),
        (lambda path: (path / "profiles/device.toml").write_text("x = 1"), "device.toml"),
        (lambda path: (path / "estserver.db").unlink(), "estserver.db"),
        (lambda path: (path / "private/credential.key").unlink(), "credential.key"),
    ],
)
def test_a_home_that_is_not_whole_is_a_config_error(copy: Home, damage: Callable[[Path], object], words: str) -> None:
    damage(copy.path)
    with pytest.raises(ConfigError, match=words):
        assembled(copy)


# --- keys -----------------------------------------------------------------------------------------------------------


def test_a_secret_is_never_written_over_or_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for stem in ("there", "link", "no/where"):
        with pytest.raises(ConfigError, match="cannot be written"):
            write_secret(tmp_path / stem, b"new")
    assert (tmp_path / "there").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()


def test_an_encrypted_key_wants_its_passphrase_and_a_plain_one_none(tmp_path: Path) -> None:
    FileSigner.generate("P-256", tmp_path / "a", b"secret")
    FileSigner.generate("P-256", tmp_path / "b")
    for path, passphrase in (("a", None), ("a", b"wrong"), ("b", b"secret")):
        with pytest.raises(ConfigError) as refused:
            FileSigner.load(tmp_path / path, passphrase)
        assert "secret" not in str(refused.value)
    assert FileSigner.load(tmp_path / "a", b"secret").spki


# --- the commands ---------------------------------------------------------------------------------------------------


def run(command: object, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)  # type: ignore[arg-type]  # click commands


def test_init_prints_the_fingerprint_and_refuses_the_second_time(tmp_path: Path) -> None:
    done = run(init, str(tmp_path / "home"), "--host", "est.example", "--json")
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) == {"home", "root", "root_sha256"}
    again = run(init, str(tmp_path / "home"))
    assert isinstance(again.exception, ConfigError)


def test_config_show_tells_what_is_set_and_what_is_default(home: Home) -> None:
    lines = run(config, "show", "--home", str(home.path)).stdout.splitlines()
    assert any(line.startswith("server.body_max_bytes") and line.endswith("65536  (default)") for line in lines)
    assert any(line.startswith("server.workers") and not line.endswith("(default)") for line in lines)
    values = json.loads(run(config, "show", "--home", str(home.path), "--json").stdout)
    assert values["default_label"]["profile"] == "device"


def test_policy_show_explains_every_profile(home: Home) -> None:
    text = run(policy, "show", "--home", str(home.path)).stdout
    assert all(f"{name}: " in text for name in ("device", "gateway", "server", "service", "station", "workload"))
    unknown = run(policy, "show", "nothing", "--home", str(home.path))
    assert isinstance(unknown.exception, NotFound)


@pytest.mark.parametrize("form", [lambda der: der, base64_lines, lambda der: base64_lines(der, 64)])
def test_policy_test_answers_yes_or_no_with_every_reason(home: Home, tmp_path: Path, form) -> None:
    file = tmp_path / "my.csr"
    file.write_bytes(form(request(new_key(), "sn-1", san=["dns:sn-1"])))
    assert run(policy, "test", str(file), "--home", str(home.path)).exit_code == 0
    wish = known(x509.BasicConstraints(ca=True, path_length=None))
    file.write_bytes(form(request(new_key(), [("2.5.4.3", "sn-1"), ("2.5.4.10", "x")], extensions=[wish])))
    done = run(policy, "test", str(file), "--home", str(home.path), "--json")
    assert done.exit_code == 14
    answer = json.loads(done.stdout)
    assert (answer["granted"], len(answer["reasons"])) == (False, 2)
    file.write_bytes(form(b"junk"))
    assert run(policy, "test", str(file), "--home", str(home.path)).exit_code == 14
