"""A CRL of a million entries, and OCSP answers against a bare answer of the same program.

The list is built as the server builds it: rows of the inventory → number → signed file → parts in the inventory → the
row that publishes it; then another library, and openssl, read it. The answers are asked over plain HTTP on one
connection that is kept, from `estserver responder` with one worker; CPU is the scheduler's account of that worker.
"""

from __future__ import annotations

import argparse
import http.client
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver.assembly import hierarchy_of, inventory_of, load_ca
from estserver.config import Settings, load_settings
from estserver.home import Plan, found
from estserver.status import Publisher
from estserver.status_assembly import keepers_of

BATCH = 50_000
ROUNDS = 5
WEEK = timedelta(days=7)


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def make_home(directory: Path) -> Settings:
    found(Plan(directory, "Acme", ("localhost",), "P-256"), now=now(), random=os.urandom)
    file, key = directory / "estserver.toml", 'key = "private/issuing.key"\n'
    text = file.read_text("utf-8")
    assert key in text
    file.write_text(text.replace(key, f'{key}status_url = "http://status.acme.example"\n'), "utf-8")
    return load_settings(directory)


def rows(issuer: str, count: int, at: datetime) -> Iterator[tuple[str, str, int, str, int]]:
    """As many revocations as asked, five in a second, all of them still in time."""
    begin, end = int(at.timestamp()) - count // 5, int((at + 90 * timedelta(days=1)).timestamp())
    for number in range(count):
        serial = int.from_bytes(os.urandom(20)) >> 1 | 1 << 158
        yield issuer, f"{serial:040x}", begin + number // 5, "keyCompromise", end


def fill(settings: Settings, issuer: str, count: int) -> None:
    database = sqlite3.connect(settings.path(Path(settings.storage.url)))
    insert = "INSERT INTO revocation (issuer, serial, at, reason, not_after) VALUES (?, ?, ?, ?, ?)"
    with database:
        database.executemany(insert, rows(issuer, count, now()))
    database.close()


def measure_list(settings: Settings, count: int) -> None:
    name = settings.default_label.ca
    ca = load_ca(settings, name, hierarchy_of(settings, name, ()))
    fill(settings, ca.key_id, count)
    with inventory_of(settings) as inventory:
        publisher = Publisher([ca], inventory.crls, lifetime=WEEK)
        before, cpu, wall = _peak_mb(), time.process_time(), time.perf_counter()
        record = publisher.publish(ca, now())
        cpu, wall, after = time.process_time() - cpu, time.perf_counter() - wall, _peak_mb()
        assert record is not None
        octets = b"".join(inventory.crls.parts(record))
    list_of = x509.load_der_x509_crl(octets)
    issuing = x509.load_der_x509_certificate(ca.certificate)
    assert record.entries == len(list_of) == count
    assert list_of.is_signature_valid(issuing.public_key())  # type: ignore[arg-type]  # a CA's key
    with tempfile.NamedTemporaryFile(suffix=".crl") as file:
        file.write(octets)
        file.flush()
        command = ["openssl", "crl", "-inform", "DER", "-in", file.name, "-noout", "-CAfile"]
        done = subprocess.run(
            [*command, str(settings.home / "issuing.pem")], capture_output=True, text=True, check=True
        )
    assert "verify OK" in done.stderr
    print(f"list of {count} entries, {len(octets) / 1e6:.1f} MB: {wall:.1f} s, {cpu:.1f} s of CPU; read and verified")
    print(f"  peak memory {before:.0f} MB before, {after:.0f} MB after, {len(octets) / 1e6:.0f} of them mapped")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- OCSP -----------------------------------------------------------------------------------------------------------


def requests_of(settings: Settings) -> Callable[[bytes | None], bytes]:
    """Make what writes a request for the server's own certificate."""
    certificates = [
        x509.load_pem_x509_certificates((settings.home / name).read_bytes())[0] for name in ("tls.pem", "issuing.pem")
    ]

    def write(nonce: bytes | None) -> bytes:
        builder = ocsp.OCSPRequestBuilder().add_certificate(*certificates, hashes.SHA256())
        if nonce is not None:
            builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
        return builder.build().public_bytes(Encoding.DER)

    return write


def cpu_seconds(pid: int) -> float:
    """CPU of a process and of those it started."""
    total = 0.0
    for path in (pid, *_children(pid)):
        fields = Path(f"/proc/{path}/stat").read_text("utf-8").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]


def measure_answers(settings: Settings, count: int) -> None:
    with inventory_of(settings) as inventory:
        for keeper in keepers_of(settings, inventory, clock=now, random=os.urandom):
            assert keeper.step()
    write = requests_of(settings)
    command = [sys.executable, "-m", "estserver", "responder", "--home", str(settings.home)]
    server = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
        kinds: dict[str, Callable[[], tuple[str, str, bytes | None]]] = {
            "bare answer: the CA's certificate": lambda: ("GET", "/ca/acme.cer", None),
            "OCSP, signed before": lambda: ("POST", "/ocsp", write(None)),
            "OCSP, signed anew (nonce)": lambda: ("POST", "/ocsp", write(os.urandom(32))),
        }
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, make in kinds.items():
                asked = [make() for _ in range(count)]
                before = cpu_seconds(server.pid)
                _ask(port, asked)
                found[kind].append((cpu_seconds(server.pid) - before) / count * 1e6)
        bare = sorted(found["bare answer: the CA's certificate"])[ROUNDS // 2]
        for kind, values in found.items():
            middle = sorted(values)[ROUNDS // 2]
            print(
                f"{kind}: {middle:.0f} us of CPU ({min(values):.0f} to {max(values):.0f}), {middle / bare:.2f} x bare"
            )
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _ask(port: int, asked: list[tuple[str, str, bytes | None]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for method, path, body in asked:
        headers = {} if body is None else {"Content-Type": "application/ocsp-request"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        octets = answer.read()
        assert answer.status == 200, answer.status
        if body is not None:
            assert ocsp.load_der_ocsp_response(octets).certificate_status is ocsp.OCSPCertStatus.GOOD
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--answers", type=int, default=2_000, help="of each kind, in each of five rounds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        settings = make_home(Path(directory) / "home")
        measure_answers(settings, arguments.answers)
        measure_list(settings, arguments.entries)


if __name__ == "__main__":
    main()
