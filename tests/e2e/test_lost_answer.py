"""An answer that never arrives costs nothing: over real TLS, the retry gets the very certificate that was lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from devicesim import ClientIdentity, Device, EstClient, FileKeyStore, TrustAnchors, Unreachable
from tests.est_server import Est, Home, RunningServer, found_home

pytestmark = pytest.mark.e2e


class LosingProxy:
    """Passes bytes on until the client has sent its request, and nothing more of the server's after that."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.holding = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(("127.0.0.1", self._to)) as server:
            back = threading.Thread(target=self._back, args=(server, client))
            back.start()
            flights = 0
            try:
                while data := client.recv(65536):
                    flights += 1
                    if flights > 1:  # TLS 1.3: the second flight brings certificate, Finished and the request
                        self.holding.set()
                    server.sendall(data)
            except OSError:
                pass
            server.shutdown(socket.SHUT_WR)
            back.join()

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        while data := server.recv(65536):
            if not self.holding.is_set():
                client.sendall(data)

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home")


@pytest.fixture
def server(home: Home) -> Iterator[RunningServer]:
    with RunningServer(home) as running:
        yield running


def test_a_station_that_lost_the_answer_gets_the_same_certificate(home: Home, server: RunningServer) -> None:
    station = Est(server).station("sn-*")
    identity = ClientIdentity((station.certificate, *station.chain), station.key)
    trust = TrustAnchors((home.root,))
    device = Device("sn-1", store=FileKeyStore(home.path.parent / "sn-1"), clock=lambda: datetime.now(UTC))
    request = device.draft().sign()

    proxy = LosingProxy(server.port)
    with (
        EstClient(f"https://127.0.0.1:{proxy.port}", trust=trust, identity=identity, timeout_seconds=3) as client,
        pytest.raises(Unreachable),
    ):
        client.simpleenroll(request)
    proxy.close()
    deadline = time.monotonic() + 10
    with home.inventory() as inventory:
        while not (lost := inventory.list_certificates(device="sn-1")):
            assert time.monotonic() < deadline

    with EstClient(f"https://127.0.0.1:{server.port}", trust=trust, identity=identity) as client:
        certificate = client.simpleenroll(device.draft().sign())  # signed anew: not the octets that were sent before
        installed = device.install(certificate, chain=client.cacerts().certificates, trust=trust)
    assert installed.certificate.serial_number == lost[0].serial
    with home.inventory() as inventory:
        assert len(inventory.list_certificates(device="sn-1")) == 1
