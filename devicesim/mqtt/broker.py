"""Brokers, set up so that a certificate's name decides everything: mosquitto, or the embedded one.

Both ask for a client certificate of one CA, take the CN for user name and client id at once (so that nobody takes over
another's connection), and follow the one table of `access`. Both run as a process of their own on the given address.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, Self

from devicesim.errors import ConfigInvalid, StorageError, Unreachable, UsageProblem
from devicesim.mqtt.access import Access
from devicesim.mqtt.connection import BrokerUrl

BrokerKind = Literal["auto", "mosquitto", "embedded"]
START_SECONDS = 20.0
STOP_SECONDS = 10.0
PACKET_MAX_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where a broker listens, who it is, whom it trusts, and who may do what there.

    Attributes:
        port: 0 is any free one.
        crl_path: the revocation list of the CA that issues to its clients, PEM; it is read when the broker starts, and
            when it has ended nobody is let in. None: nobody counts as revoked.
    """

    directory: Path
    certificate_path: Path
    key_path: Path
    trust_path: Path
    access: Access = field(default_factory=Access)
    host: str = "127.0.0.1"
    port: int = 0
    crl_path: Path | None = None


class Broker(Protocol):
    """A broker of ours that can be started and stopped; a context manager."""

    @property
    def kind(self) -> str:
        """What it is: `mosquitto` or `embedded`."""

    @property
    def url(self) -> BrokerUrl:
        """Where it listens, once started."""

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The running process."""

    def start(self) -> None:
        """Return when it accepts connections; what it retains is kept between a stop and a start, if it can."""

    def stop(self) -> None:
        """End it, and wait until it has ended."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class MosquittoBroker:
    """Mosquitto, with a configuration of ours in `directory`."""

    kind = "mosquitto"

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = _with_port(settings)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> BrokerUrl:
        """Where it listens."""
        return BrokerUrl(self._settings.host, self._settings.port)

    def start(self) -> None:
        """Write the configuration and start; return when it accepts connections."""
        program = find_mosquitto()
        if program is None:
            raise UsageProblem(
                "mosquitto is not installed", advice="apt-get install mosquitto, or use the embedded one"
            )
        configuration = write_mosquitto_configuration(self._settings)
        self.process = _start([program, "-c", str(configuration)], self._settings, configuration.with_suffix(".log"))

    def stop(self) -> None:
        """End it; what it retains is saved in its directory."""
        _stop(self.process)
        self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class EmbeddedBroker:
    """The broker that comes with the package (MQTT 3.1.1, memory only), in a process of its own."""

    kind = "embedded"

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = _with_port(settings)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> BrokerUrl:
        """Where it listens."""
        return BrokerUrl(self._settings.host, self._settings.port)

    def start(self) -> None:
        """Start `devicesim broker run --kind embedded`; return when it accepts connections."""
        command = [sys.executable, "-c", "from devicesim.cli import main; main()", *_run_arguments(self._settings)]
        self.process = _start(command, self._settings, self._settings.directory / "embedded.log")

    def stop(self) -> None:
        """End it; what it retained is forgotten."""
        _stop(self.process)
        self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def pick_broker(settings: BrokerSettings, kind: BrokerKind = "auto") -> Broker:
    """Return a broker, not yet started: mosquitto when it is installed, else the embedded one."""
    if kind == "auto":
        kind = "mosquitto" if find_mosquitto() else "embedded"
    return MosquittoBroker(settings) if kind == "mosquitto" else EmbeddedBroker(settings)


def find_mosquitto() -> str | None:
    """Find the program; Debian keeps it in a directory that is not on every user's path."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def write_mosquitto_configuration(settings: BrokerSettings) -> Path:
    """Write `mosquitto.conf` and its ACL into the directory, and return the path of the first."""
    folder = settings.directory.resolve()
    _make_folder(folder)
    files = [path.resolve() for path in _files(settings)]
    if not all(str(path).isprintable() for path in (folder, *files)):
        raise UsageProblem("a path with line breaks or control characters cannot stand in mosquitto's configuration")
    (folder / "mosquitto.acl").write_text(settings.access.mosquitto_acl())
    path = folder / "mosquitto.conf"
    path.write_text(
        f"""per_listener_settings false
{"user root" if os.geteuid() == 0 else "# as the user who starts it"}
allow_anonymous false
acl_file {folder}/mosquitto.acl
persistence true
persistence_location {folder}/
max_inflight_messages 64
max_queued_messages 10000
max_packet_size {PACKET_MAX_BYTES}
set_tcp_nodelay true
log_dest file {folder}/mosquitto.log
log_type error
log_type warning
log_type notice
listener {settings.port} {settings.host}
cafile {files[0]}
certfile {files[1]}
keyfile {files[2]}
{f"crlfile {files[3]}" if settings.crl_path else "# without a revocation list"}
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
"""
    )
    return path


def free_port(host: str) -> int:
    """Return a port nobody listens on at the moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_settings(settings: BrokerSettings) -> None:
    """Refuse a file that cannot be read or an address that is taken before anything is started."""
    for path in _files(settings):
        try:
            path.open("rb").close()
        except OSError as fault:
            raise ConfigInvalid(f"cannot read {path}: {fault.strerror}") from fault
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as fault:
            raise UsageProblem(
                f"cannot listen on {settings.host}:{settings.port}: {fault.strerror}",
                advice="choose another port, or end what uses it",
            ) from fault


def _files(settings: BrokerSettings) -> tuple[Path, ...]:
    """Return what a broker reads: whom it trusts, its certificate and key, and who was revoked, if it is to know."""
    always = settings.trust_path, settings.certificate_path, settings.key_path
    return always if settings.crl_path is None else (*always, settings.crl_path)


def _with_port(settings: BrokerSettings) -> BrokerSettings:
    return settings if settings.port else replace(settings, port=free_port(settings.host))


def _run_arguments(settings: BrokerSettings) -> list[str]:
    named = {
        "--station": settings.access.stations,
        "--announcer": settings.access.announcers,
        "--reader": settings.access.readers,
    }
    return [
        *("broker", "run", "--kind", "embedded", "--listen", f"{settings.host}:{settings.port}"),
        *("--cert", str(settings.certificate_path), "--key", str(settings.key_path)),
        *("--trust", str(settings.trust_path), "--domain", settings.access.domain),
        *(("--crl", str(settings.crl_path)) if settings.crl_path else ()),
        *(part for option, names in named.items() for name in names for part in (option, name)),
    ]


def _start(command: Sequence[str], settings: BrokerSettings, log: Path) -> subprocess.Popen[bytes]:
    _make_folder(settings.directory)
    check_settings(settings)
    with (settings.directory / "broker.out").open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((settings.host, settings.port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return process
    _stop(process)
    raise Unreachable(f"the broker did not start: {_last_line(log) or _last_line(settings.directory / 'broker.out')}")


def _stop(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as fault:
        raise StorageError(f"cannot make the directory {folder}: {fault.strerror}") from fault


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
