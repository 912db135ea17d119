"""Who asks too often, over real TLS and with two workers: told when to come back, and nobody else notices."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devicesim.challenge import Credentials
from devicesim.client import EstClient
from devicesim.errors import Unreachable
from devicesim.trust import TrustAnchors
from estserver.identity.credentials import verifier_for_chosen
from estserver.records import CredentialRecord
from tests.csr_maker import new_key, request
from tests.est_server import Answer, Est, RunningServer, found_home, fresh_id, today

pytestmark = pytest.mark.e2e
LIMITS = """
[limits]
credential_rate = "6/1h"
device_rate = "5/10s"
stranger_rate = "1000/1m"
guess_rate = "5/1h"
"""
SALT = b"s" * 16


@pytest.fixture(scope="module")
def est(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Est]:
    home = found_home(tmp_path_factory.mktemp("limits") / "home")
    home.configure(LIMITS)
    with RunningServer(home, "--workers", "2") as server:
        yield Est(server)


def ask(est: Est, credential: tuple[str, str]) -> Answer:
    return est.post(request(new_key(), fresh_id()), credential=credential)


def test_all_workers_count_together(est: Est) -> None:
    """Twenty connections at once, shared by two workers, get six certificates, and not six of each."""
    busy, calm = est.home.credential("*", uses=None), est.home.credential("*", uses=None)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(est, busy), range(20)))
    assert Counter(answer.status for answer in answers) == {200: 6, 429: 14}
    for answer in answers:
        if answer.status == 429:
            assert 1 <= int(answer["Retry-After"]) <= 600
            assert answer.text.startswith("too many requests with this credential: 6 in 3600 s are taken\n")
    assert ask(est, calm).status == 200
    rows = [row for row in est.home.audit() if row["actor"] == f"credential:{busy[0]}"]
    assert Counter(row["outcome"] for row in rows) == {"ok": 6, "rate-limited": 1}


def test_a_device_that_waits_as_long_as_told_is_served(est: Est) -> None:
    holder = est.device()
    body = request(holder.key, holder.device, san=("dns:not.yours.example",))
    statuses = [est.reenroll(body, holder).status for _ in range(5)]
    assert statuses == [403] * 5
    deadline = time.monotonic() + 30
    answer = est.reenroll(body, holder)
    while answer.status != 429 and time.monotonic() < deadline:
        answer = est.reenroll(body, holder)
    time.sleep(int(answer["Retry-After"]))
    assert est.reenroll(request(new_key(), holder.device), holder).status == 200


def test_the_devices_client_knows_when_to_come_back(est: Est, tmp_path: Path) -> None:
    name, secret = est.home.credential("*", uses=None)
    for _ in range(6):
        assert ask(est, (name, secret)).status == 200
    trust = TrustAnchors((est.home.root,))
    with (
        EstClient(est.server.url, trust=trust, credentials=Credentials(name, secret.encode())) as client,
        pytest.raises(Unreachable, match="too many requests") as caught,
    ):
        client.simpleenroll(request(new_key(), fresh_id()))
    assert caught.value.retry_after_seconds is not None
    assert 1 <= caught.value.retry_after_seconds <= 600


def test_a_flood_of_wrong_passwords_is_turned_away_while_a_good_device_enrols(est: Est) -> None:
    name = fresh_id("human")
    record = CredentialRecord(
        name, "scrypt", verifier_for_chosen(b"right", SALT), SALT, "", ("*",), (), None, 0, today(), None
    )
    with est.home.inventory() as inventory:
        inventory.credential_add(record, "operator:test")
    before = len(est.home.audit())
    body, seen, stop = request(new_key(), fresh_id()), Counter[int](), threading.Event()

    def flood() -> None:
        while not stop.is_set():
            seen[est.post(body, credential=(name, "wrong")).status] += 1

    attackers = [threading.Thread(target=flood) for _ in range(3)]
    for attacker in attackers:
        attacker.start()
    try:
        deadline = time.monotonic() + 30
        while seen[429] < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        good = [est.enroll(request(new_key(), fresh_id())).status for _ in range(10)]
    finally:
        stop.set()
        for attacker in attackers:
            attacker.join()
    assert good == [200] * 10
    assert seen[429] >= 20
    assert 5 <= seen[401] <= 5 + 1  # each of two workers may look before the other has paid
    assert set(seen) == {401, 429}
    # ten certificates with their credentials, what was refused, and a row a minute
    assert len(est.home.audit()) - before <= 2 * 10 + 6 + 3
