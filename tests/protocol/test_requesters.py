"""Credentials without a name (S-A06) and IDevIDs that are blocked (D-06), made by the operator's own commands."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.csr import spki_hash
from tests.csr_maker import new_key, request, spki
from tests.est_server import Est, Holder, fresh_id
from tests.makers import Maker

pytestmark = pytest.mark.e2e


def operator(est: Est, *arguments: str) -> str:
    """Run a command of the operator's while the server serves."""
    done = subprocess.run(
        [sys.executable, "-m", "estserver", *arguments],
        env={**os.environ, "ESTLINE_HOME": str(est.home.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- a password without a name --------------------------------------------------------------------------------------


def test_s_a06_a_password_without_a_name_is_one_that_was_made_so(est: Est) -> None:
    """RFC 7617 lets the user-id be empty, and RFC 7030 §3.2.3 has use for it: `:password` in base64."""
    name, devices = fresh_id("shift"), [f"n-{number}" for number in range(3)]
    made = json.loads(
        operator(est, "credential", "add", name, "--devices", "n-*", "--uses", "2", "--nameless", "--json")
    )
    header = "Basic " + base64.b64encode(b":" + made["secret"].encode()).decode()
    answers = [est.post(request(new_key(), device), headers={"Authorization": header}) for device in devices]
    assert [answer.status for answer in answers] == [200, 200, 401], "two uses were made"
    (row,) = [row for row in est.home.audit() if row["action"] == "issue" and row["detail"]["device"] == "n-0"]
    assert row["actor"] == f"credential:{name}"
    assert est.enroll(request(new_key(), "n-3"), credential=(name, made["secret"])).status == 401, "it has no name"


def test_s_a06_what_was_made_with_a_name_is_not_had_without(est: Est) -> None:
    device = fresh_id()
    name, secret = est.home.credential(device)
    assert est.enroll(request(new_key(), device), credential=("", secret)).status == 401
    assert est.enroll(request(new_key(), device), credential=("", "")).status == 401
    assert est.enroll(request(new_key(), device), credential=(name, secret)).status == 200


def test_s_a06_it_opens_its_label_only_and_goes_when_it_is_removed(est: Est) -> None:
    device, name = fresh_id(), fresh_id("shift")
    credential = est.home.credential(device, name=name, nameless=True)
    assert est.enroll(request(new_key(), device), credential=credential, label="gateway").status == 401
    operator(est, "credential", "remove", name)
    assert est.enroll(request(new_key(), device), credential=credential).status == 401


def test_s_a06_a_guess_is_paid_for_like_every_other(est: Est) -> None:
    device = fresh_id()
    answers = [est.enroll(request(new_key(), device), credential=("", f"guess-{n}")).status for n in range(25)]
    assert set(answers) == {401, 429}, "the bucket of wrong secrets for one name holds for the empty one"
    good = est.home.credential(device, nameless=True)
    assert est.enroll(request(new_key(), device), credential=good).status == 200, "nobody is locked out by guesses"


# --- IDevIDs that are blocked ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maker(est: Est) -> Maker:
    maker = Maker("Valve Works")
    est.home.anchor("valves", maker.certificate, "vw-{serial}", "vw-*")
    return maker


def write_pem(holder: Holder, path: Path) -> str:
    path.write_bytes(holder.certificate.public_bytes(Encoding.PEM))
    return str(path)


def test_d_06_a_blocked_idevid_is_refused_on_every_path_at_once(est: Est, maker: Maker, tmp_path: Path) -> None:
    stolen, other = maker.idevid("1"), maker.idevid("2")
    file = write_pem(stolen, tmp_path / "stolen.pem")
    operator(est, "trust", "block", file, "--reason", "stolen in transit")
    credential = est.home.credential("*")
    for how in ({"operation": "simpleenroll"}, {"operation": "simplereenroll"}, {"credential": credential}):
        answer = est.post(request(new_key(), "vw-1"), client=stolen, **how)
        assert (answer.status, "stolen in transit" in answer.text) == (403, True), answer.text
    row = est.home.audit()[-1]
    assert (row["action"], row["outcome"]) == ("refuse", "blocked-idevid")
    assert est.post(request(new_key(), "vw-2"), client=other).status == 200, "the others of the manufacturer are free"
    operator(est, "trust", "unblock", file)
    assert est.post(request(new_key(), "vw-1"), client=stolen).status == 200


def test_d_06_it_can_be_named_by_the_hash_of_its_key(est: Est, maker: Maker) -> None:
    lost = maker.idevid("3")
    digest = spki_hash(spki(lost.key))
    operator(est, "trust", "block", digest.upper(), "--reason", "on the list of the manufacturer")
    assert est.post(request(new_key(), "vw-3"), client=lost).status == 403
    assert digest in [row["spki_sha256"] for row in json.loads(operator(est, "trust", "blocked", "--json"))]
    told = [row for row in est.home.audit() if row["action"] == "trust-block"]
    assert told[-1]["detail"]["spki_sha256"] == digest
