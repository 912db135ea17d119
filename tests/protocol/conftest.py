"""One home and one server for every protocol test; each test takes a device of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.est_server import Est, Home, RunningServer, found_home
from tests.protocol.serverkeygen_support import keygen_home

EXTRA = """
[labels.bound]
profile = "device"
ca = "acme"
channel_binding = "required"

[labels.many]
profile = "device"
ca = "acme"
channel_binding = "required"
keys_per_binding = "any"

[labels.element]
profile = "element"
ca = "acme"

[labels.p384]
profile = "p384"
ca = "acme"

[labels.renaming]
profile = "renaming"
ca = "acme"

[labels.nameless]
profile = "nameless"
ca = "acme"

[labels.sealing]
profile = "sealing"
ca = "acme"
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = found_home(tmp_path_factory.mktemp("est") / "home", idevid=True)
    profiles = home.path / "profiles"
    device = (profiles / "device.toml").read_text("utf-8")
    (profiles / "element.toml").write_text(device.replace('"never"', '"same-device"'), "utf-8")
    keys = device[device.index("key_types") : device.index("rsa_bits")]
    (profiles / "p384.toml").write_text(device.replace(keys, 'key_types = ["P-384"]\n'), "utf-8")
    original = device
    device = device.replace("[allowed.san]\ndns = { values = [", '[allowed.san]\ndns = { values = ["*.example.com", ')
    device += 'change_names = "same-device"\n'
    (profiles / "renaming.toml").write_text(device, "utf-8")
    (profiles / "nameless.toml").write_text(f"{device}empty_subject = true\n", "utf-8")
    sealing = original.replace(keys, 'key_types = ["X25519", "ML-KEM-768", "ML-KEM-1024"]\n')
    sealing = sealing.replace('extended_key_usage = ["client_auth"]\n', "")
    (profiles / "sealing.toml").write_text(sealing, "utf-8")
    home.configure(EXTRA)
    return home


@pytest.fixture(scope="session")
def server(home: Home) -> Iterator[RunningServer]:
    with RunningServer(home) as running:
        yield running


@pytest.fixture(scope="session")
def est(server: RunningServer) -> Est:
    return Est(server)


@pytest.fixture(scope="session")
def keygen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Est]:
    """A server of its own, whose labels make keys."""
    with RunningServer(keygen_home(tmp_path_factory.mktemp("keygen") / "home")) as running:
        yield Est(running)
