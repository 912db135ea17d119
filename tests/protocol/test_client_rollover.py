"""A device whose CA changes its root, over real TLS (est-conformance section 7, C-C02, C-C03).

The server starts under the old root; a test changes what `/cacerts` shows, who signs, and the TLS certificate.
"""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from devicesim import Device, EstClient, FileKeyStore, TrustAnchors
from devicesim.cli import run
from devicesim.errors import StorageError, Unreachable, VerificationFailed
from tests.protocol.client_stub import EstStub, Seen, StubServer, answer, cms, write_pem
from tests.root_family import DAY, Family, stranger, tampered


class RollingStub(EstStub):
    """An EST server whose bag is whatever the test put in it."""

    def __init__(self, family: Family) -> None:
        super().__init__(family.old, family.old.intermediate())
        self.bag: tuple[x509.Certificate, ...] = (family.old.certificate, self.issuing.certificate)

    def normally(self, seen: Seen) -> bytes:
        return cms(*self.bag) if seen.path.endswith("/cacerts") else super().normally(seen)

    def announce(self, family: Family) -> None:
        """Show the new root beside the old one; the old CA goes on signing."""
        self.bag = (*family.bag(), self.issuing.certificate)

    def switch(self, family: Family) -> None:
        """Sign with a CA below the new root."""
        self.issuing = family.new.intermediate("Test Issuing CA 2")
        self.announce(family)


@pytest.fixture
def family():
    return Family.founded()


@pytest.fixture
def stub(family):
    return RollingStub(family)


@pytest.fixture
def server(family, stub):
    server = StubServer(family.old.server(), stub)
    yield server
    server.close()


@pytest.fixture
def told():
    return []


@pytest.fixture
def store(tmp_path):
    return FileKeyStore(tmp_path / "d")


@pytest.fixture
def device(store, told):
    return Device("sn-1", store=store, clock=lambda: datetime.now(UTC), tell=told.append)


@pytest.fixture
def client(server, family):
    with EstClient(server.url, trust=TrustAnchors((family.old.certificate,)), timeout_seconds=5) as client:
        yield client


@pytest.fixture
def learnt(server, device):
    """Open a client that trusts what the device has learnt until then."""
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(EstClient(server.url, trust=device.identity.trust, timeout_seconds=5))


def test_r_03_the_new_root_is_learnt_over_a_channel_the_old_one_verified(device, client, stub, family, told, store):
    first = device.enroll(client)
    second = device.renew(client)
    stub.announce(family)
    found = device.refresh(client, always=True)
    assert found.trust.explicit == (family.new.certificate, family.old.certificate)
    assert x509.load_pem_x509_certificates(found.trust_path.read_bytes()) == list(found.trust.explicit)
    assert found.certificate == second.certificate
    assert store.previous().certificate == first.certificate  # the last known good one is still the one before
    assert [line for line in told if "vouches for its successor" in line]


@pytest.mark.parametrize("missing", ["missing", "tampered", "unrelated"])
def test_r_03_r_08_a_root_nobody_vouches_for_is_told_of_and_not_trusted(device, client, stub, family, told, missing):
    device.enroll(client)
    old, new, link, back = family.bag()
    bags = {"missing": (old, new, back), "tampered": (old, new, tampered(link), back)}
    stub.bag = (*bags.get(missing, (old, stranger().certificate)), stub.issuing.certificate)
    found = device.refresh(client, always=True)
    assert found.trust.explicit == (old,)
    (line,) = told
    assert "not trusted" in line
    assert device.renew(client).trust.explicit == (old,)


def test_r_03_a_new_device_learns_both_roots_at_once(device, client, stub, family):
    stub.announce(family)
    assert device.enroll(client).trust.explicit == (family.new.certificate, family.old.certificate)


def test_r_07_a_certificate_of_a_new_ca_brings_its_chain(device, client, stub, server, family, told, learnt):
    first = device.enroll(client)
    stub.switch(family)
    server.seen.clear()
    found = device.renew(client)
    assert server.paths()[:3] == ["cacerts", "simplereenroll", "cacerts"]
    assert found.chain == (stub.issuing.certificate,)
    assert found.trust.explicit == (family.new.certificate, family.old.certificate)  # the server is still under the old
    assert [line for line in told if "stays trusted" in line]
    server.identity = family.new.server()
    settled = device.refresh(learnt(), always=True)
    assert settled.trust.explicit == (family.new.certificate,)
    assert settled.certificate == found.certificate != first.certificate
    assert device.renew(learnt()).trust.explicit == (family.new.certificate,)


def test_r_07_the_old_root_stays_until_a_certificate_was_verified_under_the_new(
    device, client, stub, server, family, learnt
):
    device.enroll(client)
    stub.announce(family)
    device.refresh(client, always=True)
    server.identity = family.new.server()
    both = device.refresh(learnt(), always=True)  # the server is proven, the device is not
    assert both.trust.explicit == (family.new.certificate, family.old.certificate)
    stub.switch(family)
    assert device.renew(learnt()).trust.explicit == (family.new.certificate,)


def test_r_07_the_chain_may_be_shown_only_after_the_certificate(device, client, stub, family):
    device.enroll(client)
    before = stub.bag
    stub.switch(family)
    stub.put(cms(*before), operation="cacerts")
    assert device.renew(client).chain == (stub.issuing.certificate,)


@pytest.mark.parametrize("bag", ["no link", "no chain", "stranger"])
def test_r_07_a_certificate_that_leads_nowhere_changes_nothing(device, client, stub, family, bag, store):
    first = device.enroll(client)
    stub.switch(family)
    old, new, _link, back = family.bag()
    if bag == "stranger":
        stub.issuing = stranger().intermediate()
    shown = {"no link": (old, new, back, stub.issuing.certificate), "no chain": (*family.bag(),)}
    stub.bag = shown.get(bag, (*family.bag(), stub.issuing.certificate))
    kept = {path: path.read_bytes() for path in sorted(first.directory.glob("*.pem")) if path.name != "pending.pem"}
    with pytest.raises(VerificationFailed, match="does not chain"):
        device.renew(client)
    assert {path: path.read_bytes() for path in kept} == kept
    assert store.current().certificate == first.certificate


def test_r_07_when_the_second_look_fails_nothing_is_lost(device, client, stub, server, family):
    first = device.enroll(client)
    stub.switch(family)
    stub.put(cms(*stub.bag), answer(503), operation="cacerts")
    with pytest.raises(Unreachable):
        device.renew(client)
    assert device.identity.certificate == first.certificate
    again = device.renew(client)
    asked = [seen.csr.public_key() for seen in server.seen if seen.path.endswith("simplereenroll")]
    assert again.certificate.public_key() == asked[0] == asked[1]


def test_c_c02_ca_certificates_are_fetched_again_when_they_are_due(store, client, server):
    now = datetime.now(UTC)
    device = Device("sn-1", store=store, clock=lambda: now)
    device.enroll(client)
    asked = len(server.seen)
    for days, requests in ((0, 0), (29, 0), (31, 1), (32, 1), (62, 2)):
        later = Device("sn-1", store=store, clock=lambda days=days: now + timedelta(days=days))
        later.refresh(client)
        assert len(server.seen) == asked + requests
    assert server.paths()[-1] == "cacerts"


def test_c_c02_without_a_note_of_when_they_were_fetched_they_are_due(device, client, server, store):
    device.enroll(client)
    for wrong in ("", "yesterday", "2027-01-01"):
        (store.directory / "current" / "fetched").write_text(wrong)
        asked = len(server.seen)
        device.refresh(client)
        assert len(server.seen) == asked + 1
    device.refresh(client)
    assert len(server.seen) == asked + 1


def test_c_c02_a_bag_the_certificate_in_use_does_not_chain_by_keeps_the_chain_there_is(device, client, stub, family):
    first = device.enroll(client)
    stub.bag = (family.old.certificate,)
    assert device.refresh(client, always=True).chain == first.chain


def test_c_c02_a_device_whose_certificate_has_ended_still_learns_the_new_root(store, client, stub, family):
    stub.put(lambda seen: cms(stub.issuing.from_csr(seen.csr, days=100)), operation="simpleenroll")
    first = Device("sn-1", store=store, clock=lambda: datetime.now(UTC)).enroll(client)
    stub.announce(family)
    ended = first.certificate.not_valid_after_utc + timedelta(seconds=1)
    found = Device("sn-1", store=store, clock=lambda: ended).refresh(client)
    assert found.trust.explicit == (family.new.certificate, family.old.certificate)


def test_c_c02_a_full_disk_keeps_what_there_was(device, client, stub, family, monkeypatch):
    first = device.enroll(client)
    stub.announce(family)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("devicesim.durable.write_new", full)
    with pytest.raises(StorageError):
        device.refresh(client, always=True)
    assert device.identity.trust == first.trust


def test_c_c03_the_command_line_follows_the_root_by_itself(server, stub, family, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pem(tmp_path / "root.pem", family.old.certificate)

    def est(operation: str, *words: str) -> tuple[int, str, str]:
        code = run(["est", operation, "--server", server.url, "--timeout", "5", *words])
        return (code, *capsys.readouterr())

    assert est("enroll", "--trust", "root.pem", "--subject", "sn-1", "--out", "d")[0] == 0
    code, out, _ = est("refresh", "--out", "d")
    assert (code, "trusts what it trusted" in out) == (0, True)
    stub.switch(family)
    code, out, err = est("refresh", "--out", "d", "--always", "--json")
    assert (code, json.loads(out)["result"]) == (0, "trusts other CA certificates now")
    assert "vouches for its successor" in err
    assert est("reenroll", "--out", "d")[0] == 0
    server.identity = family.new.server()
    assert est("reenroll", "--out", "d")[0] == 0
    assert x509.load_pem_x509_certificates((tmp_path / "d" / "trust.pem").read_bytes()) == [family.new.certificate]
    code, out, _ = est("cacerts", "--trust", "d/trust.pem", "--json")
    assert [one["subject"] for one in json.loads(out)["anchors"]] == ["CN=Plant Root G2"]


def test_c_c03_the_ca_certificates_printed_follow_the_link_and_no_stranger(server, stub, family, tmp_path, capsys):
    root = write_pem(tmp_path / "root.pem", family.old.certificate)
    stub.bag = (*family.bag(), stranger().certificate, stub.issuing.certificate)
    assert run(["est", "cacerts", "--server", server.url, "--trust", str(root)]) == 0
    out, err = capsys.readouterr()
    anchors = x509.load_pem_x509_certificates(out.encode())
    assert anchors == [family.new.certificate, family.old.certificate]
    assert ("Stranger" in err, err.count("\n")) == (True, 1)


def test_c_c03_a_device_whose_root_has_ended_is_told_to_begin_anew(server, family, tmp_path, capsys):
    ended = Family.founded(datetime.now(UTC) - 500 * DAY)
    server.identity = ended.old.server()
    root = write_pem(tmp_path / "root.pem", ended.old.certificate)
    assert run(["est", "cacerts", "--server", server.url, "--trust", str(root)]) == 10
    err = capsys.readouterr().err
    assert ("a CA certificate above it has expired" in err, "by its fingerprint" in err) == (True, True)
