"""This client renews and rekeys against this server (est-conformance C-E07)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from devicesim import Credentials, Device, EstClient, FileKeyStore, TrustAnchors
from devicesim.cli import run
from devicesim.csr import spki
from devicesim.errors import EstRefused
from tests.est_server import Home, RunningServer, fresh_id

pytestmark = pytest.mark.e2e


@pytest.fixture
def enrolled(home: Home, server: RunningServer, tmp_path):
    """Return what enrols a device under a label: the device and the client that asks for it."""
    opened = []

    def enrol(label: str) -> tuple[Device, EstClient]:
        device_id = fresh_id()
        name, secret = home.credential(device_id, label=label)
        url = f"https://127.0.0.1:{server.port}"
        trust = TrustAnchors((home.root,))
        client = EstClient(url, trust=trust, label=label, credentials=Credentials(name, secret.encode()))
        opened.append(client)
        device = Device(device_id, store=FileKeyStore(tmp_path / "d"), clock=lambda: datetime.now(UTC))
        device.enroll(client)
        return device, client

    yield enrol
    for client in opened:
        client.close()


def test_c_e07_a_secure_element_renews_with_its_key_and_a_device_with_a_new_one(enrolled) -> None:
    device, client = enrolled("element")
    first = device.identity
    renewed = device.renew(client, new_key=False)
    assert spki(renewed.certificate) == spki(first.certificate)
    assert renewed.certificate.serial_number != first.certificate.serial_number
    assert renewed.certificate.subject == first.certificate.subject
    rekeyed = device.renew(client)
    assert spki(rekeyed.certificate) != spki(first.certificate)
    assert rekeyed.certificate.subject == first.certificate.subject


def test_c_e07_where_a_new_key_is_wanted_the_same_key_is_refused_in_words_and_the_old_certificate_kept(
    enrolled, server, capsys
) -> None:
    device, client = enrolled("")
    first = device.identity
    with pytest.raises(EstRefused, match="key"):
        device.renew(client, new_key=False)
    assert device.identity.certificate == first.certificate
    words = ["est", "reenroll", "--server", f"https://127.0.0.1:{server.port}", "--out", str(first.directory)]
    assert run([*words, "--same-key"]) == 7
    assert "key" in capsys.readouterr().err
    assert run(words) == 0
    assert spki(device.identity.certificate) != spki(first.certificate)
