"""`devicesim broker` and `devicesim announce` as their users meet them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading

import pytest

from devicesim.mqtt.connection import BrokerUrl
from devicesim.mqtt.events import Event, sign_event
from devicesim.mqtt.session import announce_birth
from devicesim.mqtt.topics import EventType
from devicesim.trust import fingerprint
from tests.conftest import require_program
from tests.mqtt_pki import CLIENT, SERVER, Pki, real_now

pytestmark = pytest.mark.e2e
DEVICESIM = [sys.executable, "-c", "from devicesim.cli import main; main()"]


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"), real_now())


def devicesim(*arguments, stdin: bytes = b""):
    done = subprocess.run([*DEVICESIM, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def broker_arguments(pki: Pki, *, kind: str, listen: str = "127.0.0.1:0") -> list[str]:
    files = pki.issue("broker", SERVER).files
    return [
        *("broker", "run", "--kind", kind, "--listen", listen),
        *("--cert", str(files.certificate_path), "--key", str(files.key_path), "--trust", str(pki.trust_path)),
        *("--station", "s-07", "--announcer", "estserver", "--reader", "registry"),
    ]


def birth(pki: Pki, device, event_id="01J0000000000000000000000A") -> Event:
    return Event(
        id=event_id,
        source=f"/device/{device.name}",
        type=EventType.BIRTH.value,
        subject=device.name,
        time=real_now(),
        data={"device_id": device.name, "cert_sha256": fingerprint(device.certificate)},
    )


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
def test_run_a_broker_announce_and_tail(pki, kind):
    if kind == "mosquitto":
        require_program("mosquitto", "mosquitto")
    process = subprocess.Popen(
        [*DEVICESIM, *broker_arguments(pki, kind=kind)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    killer = threading.Timer(60, process.kill)
    killer.start()
    try:
        word, url, told = process.stdout.readline().decode().split()
        assert (word, told) == ("ready", kind)
        device, reader = pki.device("dev-1"), pki.issue("registry", CLIENT).files
        tail = subprocess.Popen(
            [
                *DEVICESIM,
                *("announce", "tail", "--broker", url, "--cert", str(reader.certificate_path)),
                *("--key", str(reader.key_path), "--trust", str(reader.trust_path)),
                *("--json", "--count", "1", "--timeout", "20"),
            ],
            stdout=subprocess.PIPE,
        )
        try:
            number = 0
            while tail.poll() is None and number < 100:  # until the tail has subscribed and heard one
                number += 1
                said = announce_birth(
                    device.files, BrokerUrl.parse(url), session=number, event=birth(pki, device, f"01J{number:023d}")
                )
                assert said.done, said.reason
            facts = json.loads(tail.communicate(timeout=20)[0].splitlines()[0])
        finally:
            tail.kill()
            tail.wait()
        assert facts["verdict"] == "ok"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, b"", b"")
    finally:
        killer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
def test_a_port_in_use_is_said_in_one_line(pki, kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = devicesim(*broker_arguments(pki, kind=kind, listen=listen))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: cannot listen on {listen}: Address already in use")
    assert err.count("\n") == 1


def test_what_a_broker_is_given_wrongly_is_said(pki, tmp_path):
    arguments = broker_arguments(pki, kind="embedded")
    for option, value, code, words in (
        ("--listen", "nowhere", 2, "HOST:PORT"),
        ("--cert", str(tmp_path / "missing.pem"), 3, "cannot read"),
        ("--station", "S 07", 2, "not an identifier"),
    ):
        wrong = list(arguments)
        wrong[wrong.index(option) + 1] = value
        got, _, err = devicesim(*wrong)
        assert (got, err.count("\n")) == (code, 1), err
        assert words in err


def test_verify_a_file_of_events(pki, tmp_path):
    device = pki.device("dev-1")
    good = sign_event(birth(pki, device), key=device.key, certificate=device.certificate)
    forged = good.replace(b'"subject":"dev-1"', b'"subject":"dev-2"')
    file = tmp_path / "events.jsonl"
    file.write_bytes(good + b"\n" + forged + b"\n")
    code, out, _ = devicesim("announce", "verify", file, "--trust", pki.trust_path)
    first, second = out.splitlines()
    assert code == 10
    assert first.startswith("ok ")
    assert "signed by dev-1" in first
    assert second.startswith("REFUSED ")
    code, out, _ = devicesim("announce", "verify", "-", "--trust", pki.trust_path, "--json", stdin=good)
    assert code == 0
    assert json.loads(out)["signer"] == "dev-1"
    pretty = json.dumps(json.loads(good), indent=2).encode()
    assert devicesim("announce", "verify", "-", "--trust", pki.trust_path, stdin=pretty)[0] == 0


@pytest.mark.parametrize(
    ("stdin", "code", "words"), [(b"", 3, "holds no event"), (b"junk", 10, ""), (b"\xff\n{}", 10, "")]
)
def test_verify_junk(pki, stdin, code, words):
    got, _, err = devicesim("announce", "verify", "-", "--trust", pki.trust_path, stdin=stdin)
    assert got == code
    assert words in err
    assert "Traceback" not in err


def test_tail_without_a_broker_is_said_in_one_line(pki):
    files = pki.issue("registry", CLIENT).files
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code, out, err = devicesim(
        *("announce", "tail", "--broker", f"mqtts://127.0.0.1:{port}", "--cert", files.certificate_path),
        *("--key", files.key_path, "--trust", files.trust_path),
    )
    assert (code, out) == (6, "")
    assert err.startswith("error: cannot reach the broker mqtts://127.0.0.1:")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [("broker", "run"), ("announce", "tail"), ("announce", "verify")])
def test_help_has_an_example(command):
    code, out, _ = devicesim(*command, "--help")
    assert code == 0
    assert "Example:" in out
