"""A CA moves beside a running server: devices enrolled before, during and after it, and no request lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.assembly import hierarchy_of
from estserver.key_ids import issuer_key_id, subject_key_id
from estserver.model import Der
from tests.conftest import require_program
from tests.csr_maker import new_key, request
from tests.e2e.test_serve import wait_until, worker_pids
from tests.est_server import TLS12, TLS13, Est, Holder, Home, RunningServer, found_home, fresh_id
from tests.status_support import eventually

pytestmark = pytest.mark.e2e


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home")


def rollover(home: Home, *arguments: str, status: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "estserver", "rollover", *arguments, "--home", str(home.path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if status == 0 else {"stderr": done.stderr}


def reload(running: RunningServer) -> None:
    """Have every worker replaced, and the last of the old ones gone."""
    before = set(worker_pids(running).split())
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & set(worker_pids(running).split()), 40)


def renewed(est: Est, device: Holder) -> Holder:
    key = new_key()
    answer = est.reenroll(request(key, device.device), device)
    return Holder(key, answer.certificate, device.chain)


def signer_of(holder: Holder) -> str:
    return issuer_key_id(Der(holder.certificate.public_bytes(Encoding.DER)))


def is_root(certificate: x509.Certificate) -> bool:
    der = Der(certificate.public_bytes(Encoding.DER))
    return subject_key_id(der) == issuer_key_id(der)


def openssl_says(
    directory: Path, leaf: x509.Certificate, anchor: x509.Certificate, others: Sequence[x509.Certificate]
) -> str:
    for name, certificates in (("leaf", [leaf]), ("anchor", [anchor]), ("others", others)):
        (directory / f"{name}.pem").write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
    command = [require_program("openssl", "openssl"), "verify", "-x509_strict", "-no-CApath", "-no-CAstore"]
    command += ["-purpose", "sslclient", "-CAfile", "anchor.pem", "-untrusted", "others.pem", "leaf.pem"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


class Traffic:
    """A device that renews without a pause, as long as this lasts; every answer is kept."""

    def __init__(self, est: Est, device: Holder) -> None:
        self.statuses: list[int] = []
        self._est, self._device, self._over = est, device, threading.Event()
        self._thread = threading.Thread(target=self._renew)

    def _renew(self) -> None:
        while not self._over.is_set():
            key = new_key()
            answer = self._est.reenroll(request(key, self._device.device), self._device)
            self.statuses.append(answer.status)
            self._device = Holder(key, answer.certificate, self._device.chain)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def goes_on(self) -> None:
        """Wait until another request was answered."""
        already = len(self.statuses)
        wait_until(lambda: len(self.statuses) > already or not self._thread.is_alive())


def test_r_06_the_old_key_goes_on_publishing_beside_the_new(home: Home) -> None:
    with RunningServer(home) as running:
        est = Est(running, trust=home.root)
        old = est.device("sn-old")
        rollover(home, "start", "issuing")
        rollover(home, "switch", "--override", "--reason", "a test")
        reload(running)
        new = est.device("sn-new")
        rollover(home, "retire", "--override", "--reason", "a test")
        reload(running)
        lists = {}
        for holder in (old, new):
            home.revoke(holder.certificate)
            key = signer_of(holder)
            lists[key] = eventually(lambda key=key: _entries(est, key))
            issuer = next(c for c in _cas_ever(home) if subject_key_id(c) == key)
            assert lists[key].is_signature_valid(x509.load_der_x509_certificate(issuer).public_key())
            assert [entry.serial_number for entry in lists[key]] == [holder.certificate.serial_number]
        assert len(lists) == 2


def _entries(est: Est, key_id: str) -> x509.CertificateRevocationList | None:
    """The newest list of a key, once something is on it."""
    answer = est.get(f"/crl/{key_id}.crl")
    found = x509.load_der_x509_crl(answer.body) if answer.status == 200 else None
    return found if found is not None and len(found) else None


def _cas_ever(home: Home) -> tuple[Der, ...]:
    with home.inventory() as inventory:
        return hierarchy_of(home.settings, "acme", inventory.rollovers.all()).ever


def test_an_issuing_ca_moves_to_another_algorithm_without_losing_a_device_or_a_request(
    home: Home, tmp_path: Path
) -> None:
    home.configure('[limits]\ndevice_rate = "60000/1m"\n')
    with RunningServer(home, "--workers", "2") as running:
        est = Est(running, trust=home.root)
        before, silent = est.device("sn-before"), est.device("sn-silent")
        busy = est.device("sn-busy")
        with Traffic(est, busy) as traffic:
            assert rollover(home, "start", "issuing", "--key-type", "P-384")["stage"] == "cross"
            (home.path / "private" / "root.key").rename(tmp_path / "root.key")  # the rest goes without it
            during = est.device("sn-during")
            refused = rollover(home, "switch", status=14)
            assert "0 of 4 live devices (0.0%) were given what /cacerts holds now" in refused["stderr"]
            reload(running)
            traffic.goes_on()
            bag = est.get("cacerts").certificates
            assert len(bag) == 3
            for device in (before, silent, during):
                assert est.get("cacerts", client=device).certificates == bag
            assert rollover(home, "switch", status=14)["stderr"].startswith("error: 3 of 4 live devices (75.0%)")
            rollover(home, "switch", "--override", "--reason", "the busy one renews, and asks for nothing else")
            assert signer_of(est.device()) == signer_of(before), "until it is reloaded the old key signs"
            reload(running)
            traffic.goes_on()
        assert set(traffic.statuses) == {200}
        after = est.device("sn-after")
        new = renewed(est, before)
        assert signer_of(after) == signer_of(new) != signer_of(before)
        assert {c.public_bytes(Encoding.DER) for c in est.get("cacerts").certificates} == {
            c.public_bytes(Encoding.DER) for c in bag
        }
        for holder in (before, silent, during, new, after):
            others = [c for c in bag if not is_root(c)]
            assert openssl_says(tmp_path, holder.certificate, home.root, others) == "leaf.pem: OK\n"
        assert "have a certificate signed by the new key" in rollover(home, "retire", status=14)["stderr"]
        rollover(home, "retire", "--override", "--reason", "a test")
        reload(running)
        assert len(est.get("cacerts").certificates) == 2
        assert signer_of(renewed(est, silent)) == signer_of(new), "who slept through all of it still comes back"
        assert signer_of(renewed(est, during)) == signer_of(new)


def test_r_01_s_c05_a_root_moves_and_both_kinds_of_client_follow(home: Home, tmp_path: Path) -> None:
    old = home.root
    with RunningServer(home) as running:
        est = Est(running, trust=old)
        before = est.device("sn-before")
        rollover(home, "start", "root", "--key-type", "P-384")
        reload(running)
        bag = est.get("cacerts", client=before).certificates
        roots = [c for c in bag if c.subject == c.issuer]
        assert len(roots) == 4, "OldWithOld, OldWithNew, NewWithOld, NewWithNew (RFC 7030 §4.1.3)"
        assert len({signed(c) for c in roots}) == 4
        (new,) = [c for c in roots if is_root(c) and c != old]
        assert new.not_valid_after_utc == max(c.not_valid_after_utc for c in roots)
        verified_by(running, before, [old, new], bag, tmp_path)
        during = est.device("sn-during")
        assert est.get("cacerts", client=during).status == 200
        rollover(home, "switch")
        reload(running)
        after = est.device("sn-after")
        for holder in (before, during, after, renewed(est, before)):
            verified_by(running, holder, [old, new], bag, tmp_path)
        assert x509.load_pem_x509_certificates((home.path / "root.pem").read_bytes()) == [new, old]
        for holder in (before, during, after):
            assert est.get("cacerts", client=holder).status == 200
        rollover(home, "retire")
        reload(running)
        est = Est(running, trust=new)
        left = est.get("cacerts").certificates
        assert [c for c in left if c.subject == c.issuer] == [new]
        assert openssl_says(tmp_path, renewed(est, during).certificate, new, left) == "leaf.pem: OK\n"
        assert home.root == new


def signed(certificate: x509.Certificate) -> tuple[str, str]:
    """Whose key by whose."""
    der = Der(certificate.public_bytes(Encoding.DER))
    return subject_key_id(der), issuer_key_id(der)


def verified_by(
    running: RunningServer,
    holder: Holder,
    anchors: Sequence[x509.Certificate],
    bag: Sequence[x509.Certificate],
    directory: Path,
) -> None:
    """R-04: with either anchor alone the server is verified, and the device with what `/cacerts` holds."""
    others = [c for c in bag if not is_root(c)]
    for anchor in anchors:
        for tls in (TLS12, TLS13):
            assert Est(running, tls, trust=anchor).get("cacerts").status == 200
        assert openssl_says(directory, holder.certificate, anchor, others) == "leaf.pem: OK\n"


def test_an_offline_root_is_announced_first_and_crossed_when_its_key_is_there(home: Home, tmp_path: Path) -> None:
    away = tmp_path / "usb"
    away.mkdir()
    (home.path / "private" / "root.key").rename(away / "root.key")
    told = rollover(home, "start", "root", status=3)["stderr"]
    assert "announced; to go on it takes the root's key" in told
    assert "--root-key FILE" in told
    with RunningServer(home) as running:
        assert len(Est(running).get("cacerts").certificates) == 2
        row = rollover(home, "start", "root", "--root-key", str(away / "root.key"))
        assert (row["stage"], row["key"]) == ("cross", "root-2.key")
        assert {path.name for path in away.iterdir()} == {"root.key", "root-2.key"}
        assert oct((away / "root-2.key").stat().st_mode & 0o777) == "0o600"
        assert len(Est(running).get("cacerts").certificates) == 2, "what is served changes when it is reloaded"
        reload(running)
        assert len(Est(running).get("cacerts").certificates) == 6


def test_a_worker_that_is_replaced_before_the_reload_agrees_with_the_others(home: Home) -> None:
    with RunningServer(home, "--workers", "2") as running:
        est = Est(running)
        rollover(home, "start", "issuing")
        before = worker_pids(running).split()
        os.kill(int(before[0]), signal.SIGKILL)
        wait_until(lambda: len(set(worker_pids(running).split()) - set(before)) == 1)
        assert {len(est.get("cacerts").certificates) for _ in range(20)} == {2}


def test_a_reload_without_the_new_key_leaves_the_server_as_it_was(home: Home) -> None:
    """As on the second of two servers that share an inventory, where the key was not put yet."""
    with RunningServer(home) as running:
        est = Est(running)
        rollover(home, "start", "issuing")
        rollover(home, "switch", "--override", "--reason", "a test")
        key = home.path / "private" / "issuing-2.key"
        key.rename(key.with_suffix(".away"))
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded: the key" in running.stderr)
        assert "issuing-2.key cannot be read" in running.stderr
        assert len(est.get("cacerts").certificates) == 2
        assert est.enroll(request(new_key(), fresh_id())).status == 200
        key.with_suffix(".away").rename(key)
        reload(running)
        assert len(est.get("cacerts").certificates) == 3
