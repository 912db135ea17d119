"""What is measured and with what: a home with a station, Estline's server, nginx, and the meters of a process tree."""

from __future__ import annotations

import base64
import contextlib
import getpass
import grp
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from estserver.assembly import PEPPER, enrollment_of, inventory_of
from estserver.config import load_settings
from estserver.enroll import Request
from estserver.home import Plan, found
from estserver.identity.credentials import verifier_for_generated
from estserver.inventory import Inventory
from estserver.model import BasicCredentials, Operation, Peer
from estserver.records import CredentialRecord, StationRecord

STATION = "line-1"
START_SECONDS = 20
STOP_SECONDS = 30


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


# --- the home -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Home:
    """A PKI home, and the certificate and key of a station that may enrol every device."""

    path: Path
    station_chain: Path
    station_key: Path

    def inventory(self) -> Inventory:
        """Open the inventory."""
        return inventory_of(load_settings(self.path))


def make_home(directory: Path) -> Home:
    """Found a home of P-256 keys and enrol its station."""
    path = directory / "home"
    found(Plan(path, "Bench", ("localhost", "127.0.0.1"), "P-256"), now=now(), random=os.urandom)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, STATION)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    leaf = _enrol_station(path, request.public_bytes(Encoding.DER))
    home = Home(path, directory / "station.pem", directory / "station.key")
    home.station_chain.write_bytes(leaf.public_bytes(Encoding.PEM) + (path / "issuing.pem").read_bytes())
    home.station_key.touch(0o600)
    home.station_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return home


def _enrol_station(path: Path, request: bytes) -> x509.Certificate:
    secret = base64.b64encode(os.urandom(15))
    verifier = verifier_for_generated(secret, (path / PEPPER).read_bytes())
    credential = CredentialRecord(
        "bench", "hmac-sha256", verifier, b"", "station", (STATION,), (), 1, 0, now(), None
    )  # fmt: skip
    settings = load_settings(path)
    with inventory_of(settings) as inventory:
        inventory.credential_add(credential, "operator:bench")
        inventory.station_add(StationRecord(STATION, ("*",), now()), "operator:bench")
        enrollment = enrollment_of(settings, inventory, clock=now, random=os.urandom)
        peer = Peer("127.0.0.1", "TLSv1.3", None, (), None)
        asked = Request(
            Operation.SIMPLEENROLL, "station", base64.b64encode(request), peer, BasicCredentials("bench", secret)
        )
        return x509.load_der_x509_certificate(enrollment.enroll(asked).certificate)


def one_time_passwords(home: Home, devices: Iterable[str]) -> dict[str, str]:
    """Make a credential of one use for each device, called `for-DEVICE`; return the passwords by device."""
    pepper = (home.path / PEPPER).read_bytes()
    passwords = {device: base64.b64encode(os.urandom(15)).decode() for device in devices}
    with home.inventory() as inventory:
        for device, password in passwords.items():
            verifier = verifier_for_generated(password.encode(), pepper)
            record = CredentialRecord(
                f"for-{device}", "hmac-sha256", verifier, b"", "", (device,), (), 1, 0, now(), None
            )  # fmt: skip
            inventory.credential_add(record, "operator:bench")
    return passwords


# --- processes ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Start processes on one core; None for wherever there is room."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Server:
    """One server under test: where it listens and the process that its others descend from."""

    name: str
    port: int
    process: subprocess.Popen[str]
    said: IO[str]

    def cpu_seconds(self) -> float:
        """Return the CPU time of the whole tree so far, by the scheduler's own account."""
        tasks = (task for pid in self.tree() for task in Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def tree(self) -> list[int]:
        """Return the process and all that descend from it."""
        found = [self.process.pid]
        for pid in found:
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def worker_megabytes(self) -> float:
        """Return the resident memory of the largest process below the first."""
        return max(resident_megabytes(pid) for pid in self.tree()[1:])

    def stop(self) -> None:
        """End it gracefully; what it said on stderr matters only when it fails."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(STOP_SECONDS):
            raise SystemExit(f"error: {self.name} ended with status {self.process.returncode}: {self.errors()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, whatever happened."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(STOP_SECONDS)

    def errors(self) -> str:
        """Return what it said on stderr."""
        self.said.seek(0)
        return self.said.read().strip()


def resident_megabytes(pid: int) -> float:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def start_estline(
    home: Home, core: int | None, *, workers: int = 1, program: Sequence[str] = ("-m", "estserver")
) -> Server:
    """Start `estserver serve`; another `program` takes the same arguments."""
    arguments = ("serve", "--home", str(home.path), "--listen", "127.0.0.1:0", "--workers", str(workers))
    server = _start("estserver", 0, [sys.executable, *program, *arguments], core)
    assert server.process.stdout is not None
    ready = server.process.stdout.readline()
    if not ready.startswith("ready https://"):
        raise SystemExit(f"error: the server did not start: {server.errors()}")
    return replace(server, port=int(ready.split(":")[2].split("/")[0]))


def _start(name: str, port: int, command: Sequence[str], core: int | None) -> Server:
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it lives as long as the process)
    with on_core(core):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
    return Server(name, port, process, said)


# --- nginx ----------------------------------------------------------------------------------------------------------

NGINX_CONF = """\
daemon off;
user {user} {group};
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;
  uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
  default_type application/pkcs7-mime;
  keepalive_requests 1000000;
  server {{
    listen 127.0.0.1:{port} ssl backlog=1024;
    root {directory}/pages;
    ssl_certificate {home}/tls.pem;
    ssl_certificate_key {home}/private/tls.key;
    ssl_client_certificate {directory}/anchors.pem;
    ssl_verify_client optional;
    ssl_verify_depth 3;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_ecdh_curve X25519:prime256v1;
    ssl_session_cache off;
    ssl_session_tickets off;
  }}
}}
"""


def start_nginx(home: Home, directory: Path, core: int, page: bytes) -> Server | None:
    """Start nginx with the certificate, anchors and TLS settings of the home and one static page; None without it."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        return None
    (directory / "pages").mkdir(parents=True)
    (directory / "pages" / "page").write_bytes(page)
    anchors = (home.path / "root.pem").read_bytes() + (home.path / "issuing.pem").read_bytes()
    (directory / "anchors.pem").write_bytes(anchors)
    port = _free_port()
    group = grp.getgrgid(os.getgid()).gr_name
    conf = NGINX_CONF.format(directory=directory, home=home.path, port=port, user=getpass.getuser(), group=group)
    (directory / "nginx.conf").write_text(conf)
    command = [program, "-c", str(directory / "nginx.conf"), "-p", str(directory), "-e", str(directory / "error.log")]
    server = _start("nginx", port, command, core)
    _await_listener(server)
    return server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_listener(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"error: {server.name} did not start: {server.errors()}")
