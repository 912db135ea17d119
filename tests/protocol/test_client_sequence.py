"""The client and the device against an EST server that does what it should."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from devicesim import Device, DeviceState, EstClient, FileKeyStore, TrustAnchors
from devicesim.csr import CsrDraft, key_type, spki
from devicesim.errors import VerificationFailed
from tests.protocol.client_stub import Authority, EstStub, StubServer


def clock():
    return datetime.now(UTC)


@pytest.fixture
def stub():
    root = Authority.root()
    return EstStub(root, root.intermediate())


@pytest.fixture
def server(stub):
    server = StubServer(stub.root.server(), stub)
    yield server
    server.close()


@pytest.fixture
def trust(stub):
    return TrustAnchors((stub.root.certificate,))


@pytest.fixture
def client(server, trust):
    with EstClient(server.url, trust=trust, timeout_seconds=5) as client:
        yield client


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_a_draft_carries_the_binding_of_its_own_connection(server, trust, tls):
    with EstClient(server.url, trust=trust, tls=tls, timeout_seconds=5) as client:
        client.simpleenroll(CsrDraft.of(key_type("EC-P256").generate(), "sn-1"))
    (seen,) = server.seen
    assert seen.challenge == seen.binding
    assert len(seen.binding) == {"1.2": 12, "1.3": 32}[tls]
    assert seen.headers["content-type"] == "application/pkcs10"
    assert seen.headers["content-transfer-encoding"] == "base64"


def test_two_drafts_never_share_a_connection(server, client):
    for number in range(2):
        client.simpleenroll(CsrDraft.of(key_type("EC-P256").generate(), f"sn-{number}"))
    assert [seen.connection for seen in server.seen] == [1, 2]
    assert all(seen.challenge == seen.binding for seen in server.seen)


def test_requests_made_elsewhere_share_one_connection_and_are_sent_as_they_are(server, client):
    for number in range(3):
        der = CsrDraft.of(key_type("EC-P256").generate(), f"sn-{number}").sign()
        client.simpleenroll(der)
        assert server.seen[-1].challenge is None
    assert server.connections == 1


def test_a_device_enrols_then_renews_with_a_new_key(server, client, tmp_path):
    device = Device("sn-00042", store=FileKeyStore(tmp_path / "d"), clock=clock)
    assert device.state is DeviceState.FACTORY
    first = device.enroll(client, san=["dns:sn-00042.plant.example"])
    assert device.state is DeviceState.ENROLLED
    assert server.paths() == ["cacerts", "csrattrs", "simpleenroll"]
    second = device.renew(client)
    assert server.seen[-1].peer == first.certificate
    assert spki(second.certificate) != spki(first.certificate)
    assert second.certificate.subject == first.certificate.subject
    assert second.certificate_path == first.certificate_path
    assert device.enroll(client).certificate == second.certificate
    assert device.fall_back().certificate == first.certificate


def test_a_device_whose_certificate_expired_can_enrol_again_even_in_the_middle_of_a_renewal(client, tmp_path):
    store = FileKeyStore(tmp_path / "d")
    first = Device("sn-1", store=store, clock=clock).enroll(client)
    later = Device("sn-1", store=store, clock=lambda: first.certificate.not_valid_after_utc + timedelta(days=1))
    later.draft_renewal()
    with pytest.raises(VerificationFailed, match="expired"):
        later.enroll(client)  # this server's certificates are of today; that it was asked is what counts
    assert later.identity.certificate == first.certificate
