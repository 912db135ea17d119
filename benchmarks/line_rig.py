"""What a line is measured with: a home, its server, a station, mosquitto, and one run of `devicesim line run`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rig import STATION, Home, Server, make_home, start_estline

from devicesim.line.settings import Settings, load_settings
from devicesim.line.states import FailureCode

BIN = Path(sys.executable).parent
OWED = FailureCode.MQTT.exit_code
"""All passed, announcements are owed: the broker is away."""


# --- one run of the line --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What one `devicesim line run` did, from outside.

    Attributes:
        passed: how many units it said PASS for.
        begun_seconds: from its start until it said how much there is to do.
        first_seconds: from its start to its first PASS; None without one.
        work_seconds: from the word that there is work to the last PASS.
        cpu_seconds: user and system time of the process, its start included.
        megabytes: its largest resident size.
    """

    passed: int
    begun_seconds: float
    first_seconds: float | None
    work_seconds: float
    cpu_seconds: float
    megabytes: float


def run_line(batch: Path, config: Path, slots: int, *, stop_after: int | None = None) -> Seen:
    """Run a batch, or until so many units have passed: SIGTERM then stops it between two steps."""
    command = [str(BIN / "devicesim"), "line", "run", str(batch), "--config", str(config), "--slots", str(slots)]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    begun, passes, said = 0.0, [], []
    for line in process.stderr:
        at = time.monotonic() - start
        if not begun and " units, " in line:
            begun = at
        elif line.rstrip().endswith(" PASS"):
            passes.append(at)
            if len(passes) == stop_after:
                process.send_signal(signal.SIGTERM)
        else:
            said.append(line)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    expected = {0, OWED} if stop_after is None else {128 + signal.SIGTERM}
    if process.returncode not in expected:
        raise SystemExit(f"error: the line ended with {process.returncode}: {''.join(said)[-2000:]}")
    first, last = (passes[0], passes[-1]) if passes else (None, begun)
    return Seen(len(passes), begun, first, last - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


# --- the site -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Site:
    """A home, its server, a station and the identity of its broker."""

    place: Path
    home: Home
    server: Server
    slots: int
    port: int

    @property
    def config(self) -> Path:
        """Return where the station's settings are."""
        return self.place / "line" / "line.toml"

    def settings(self) -> Settings:
        """Read them."""
        return load_settings(self.config)

    def init(self) -> None:
        """Give the broker its certificate, and make the station."""
        self._enrol_broker()
        trust = self.home.path / "root.pem"
        _command(
            "devicesim",
            *("line", "init", self.config.parent, "--site", "bench", "--station", STATION, "--label", "device"),
            *("--est", f"https://127.0.0.1:{self.server.port}", "--trust", trust),
            *("--cert", self.home.station_chain, "--key", self.home.station_key),
            *("--mqtt", f"mqtts://127.0.0.1:{self.port}"),
        )
        text = self.config.read_text()
        for old, new in (("birth = true", "birth = false"), ('drain = "20s"', 'drain = "1s"')):
            assert old in text
            text = text.replace(old, new)
        self.config.write_text(text)

    def _enrol_broker(self) -> None:
        options = ("--label", "server", "--name", "dns:localhost", "--name", "ip:127.0.0.1")
        made = _command("estserver", "credential", "add", "broker", *options, "--home", self.home.path, "--json")
        password = self.place / "broker.otp"
        password.touch(0o600)
        password.write_text(json.loads(made)["secret"])
        _command(
            "devicesim",
            *("est", "enroll", "--server", f"https://127.0.0.1:{self.server.port}", "--label", "server"),
            *("--trust", self.home.path / "root.pem", "--user", "broker", "--password-file", password),
            *("--subject", "broker", "--san", "dns:localhost", "--san", "ip:127.0.0.1", "--out", self.place / "broker"),
        )

    def batch(self, name: str, count: int) -> Path:
        """Write a batch."""
        directory = self.place / name
        directory.mkdir()
        rows = "".join(f"{name}-{n:06d},{name.upper()}{n:06d},sensor\n" for n in range(count))
        (directory / "units.csv").write_text("device_id,serial,model\n" + rows)
        (directory / "batch.toml").write_text(f'id = "{name}"\nquantity = {count}\n[product.sensor]\n')
        return directory / "batch.toml"

    @contextlib.contextmanager
    def broker(self) -> Iterator[Server]:
        """Run mosquitto as `devicesim broker run` sets it up."""
        files = self.place / "broker"
        command = [
            *(str(BIN / "devicesim"), "broker", "run", "--kind", "mosquitto", "--listen", f"127.0.0.1:{self.port}"),
            *("--cert", str(files / "cert.pem"), "--key", str(files / "key.pem")),
            *("--trust", str(self.home.path / "root.pem"), "--station", STATION),
        ]
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
            with Server("broker", self.port, process, said) as broker:
                assert process.stdout is not None
                if not process.stdout.readline().startswith("ready"):
                    raise SystemExit(f"error: the broker did not start: {broker.errors()}")
                yield broker


def _command(program: str, *arguments: str | Path) -> str:
    done = subprocess.run([str(BIN / program), *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {program} {arguments[0]} {arguments[1]}: {done.stderr}")
    return done.stdout


@contextlib.contextmanager
def set_up(place: Path, slots: int) -> Iterator[Site]:
    home = make_home(place)
    with start_estline(home, None) as server:
        site = Site(place, home, server, slots, free_port())
        site.init()
        yield site


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
