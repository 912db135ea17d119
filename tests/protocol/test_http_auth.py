"""RFC 7030 §3.2.3: HTTP Basic (S-A rows) and what a credential may and may not do."""

from __future__ import annotations

import base64

import pytest

from tests.csr_maker import new_key, request
from tests.est_server import EST, Est, basic, fresh_id, today

pytestmark = pytest.mark.e2e
PKCS10 = {"Content-Type": "application/pkcs10"}


def test_s_a01_a_challenge_then_the_credential_on_the_same_connection(est: Est) -> None:
    device = fresh_id()
    body = base64.b64encode(request(new_key(), device))
    with est.wire() as wire:
        first = wire.request("POST", f"{EST}/simpleenroll", body, PKCS10)
        assert (first.status, first.body) == (401, b"")
        assert first["WWW-Authenticate"] == 'Basic realm="Estline", charset="UTF-8"'
        headers = {**PKCS10, **basic(est.home.credential(device))}
        assert wire.request("POST", f"{EST}/simpleenroll", body, headers).status == 200


def test_a_mere_challenge_is_no_refusal_in_the_audit(est: Est) -> None:
    before = len(est.home.audit())
    assert est.post(request(new_key(), fresh_id())).status == 401
    assert len(est.home.audit()) == before


def test_s_a03_a_certificate_needs_no_password_and_nobody_needs_cookies(est: Est) -> None:
    device = est.device()
    assert est.reenroll(request(new_key(), device.device), device).status == 200


def test_s_a07_a_one_time_password_pays_once(est: Est) -> None:
    device = fresh_id()
    credential = est.home.credential("*")
    assert est.enroll(request(new_key(), device), credential=credential).status == 200
    assert est.enroll(request(new_key(), device), credential=credential).status == 401
    assert est.enroll(request(new_key(), fresh_id()), credential=credential).status == 401


def test_s_a07_a_repeat_of_the_request_that_spent_it_is_answered_again(est: Est) -> None:
    """Lesson 15: the answer that never arrived can be had again, byte for byte, by a newly signed CSR too."""
    device, key = fresh_id(), new_key()
    credential = est.home.credential(device)
    first = est.enroll(request(key, device), credential=credential)
    again = est.enroll(lambda binding: request(key, device, binding=binding), credential=credential)
    assert (first.status, again.status) == (200, 200)
    assert first.body == again.body


def test_s_a09_whatever_is_wrong_with_a_credential_it_is_the_same_401(est: Est) -> None:
    device = fresh_id()
    name, secret = est.home.credential(device)
    removed = est.home.credential(device)
    with est.home.inventory() as inventory:
        inventory.credential_remove(removed[0], "operator:test", today())
    answers = [
        est.enroll(request(new_key(), device), credential=offered)
        for offered in [(name, "wrong"), (name, ""), ("", secret), ("nobody", secret), (name.upper(), secret), removed]
    ]
    answers.append(est.enroll(request(new_key(), device), credential=(name, secret), label="gateway"))
    assert {answer.status for answer in answers} == {401}
    assert len({tuple(h for h in answer.headers if h[0] != "Date") for answer in answers}) == 1
    assert est.enroll(request(new_key(), device), credential=(name, secret)).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"nocolon").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic " + base64.b64encode(b"a:" + b"x" * 5000).decode(),
        "Bearer abc",
        "Digest username=x",
        "Negotiate AAAA",
        ",,,",
        "basic  ",
        'Digest username="x", realm="Estline", nonce="", uri="/", response=""',
    ],
)
def test_s_a09_an_authorization_that_cannot_be_read_is_challenged(est: Est, header: str) -> None:
    answer = est.post(request(new_key(), fresh_id()), headers={"Authorization": header})
    assert answer.status == 401


@pytest.mark.parametrize("scheme", ["basic", "BASIC", "Basic "])
def test_the_scheme_has_no_case(est: Est, scheme: str) -> None:
    device = fresh_id()
    encoded = basic(est.home.credential(device))["Authorization"].removeprefix("Basic ")
    assert est.post(request(new_key(), device), headers={"Authorization": f"{scheme} {encoded}"}).status == 200


def test_a_wrong_password_is_written_down_without_the_password(est: Est) -> None:
    """Lesson 9."""
    name, secret = est.home.credential("*")
    assert est.enroll(request(new_key(), fresh_id()), credential=(name, secret + "x")).status == 401
    row = est.home.audit()[-1]
    assert (row["action"], row["outcome"]) == ("refuse", "bad-credentials")
    assert name in row["actor"]
    assert secret not in str(row)


def test_peers_the_password_of_one_device_does_not_name_another(est: Est) -> None:
    """Both Python peers certify device B with the password of device A."""
    own, other = fresh_id(), fresh_id()
    credential = est.home.credential(own)
    answer = est.enroll(request(new_key(), other), credential=credential)
    assert answer.status == 403
    assert f"may not name the device {other}" in answer.text
    assert est.enroll(request(new_key(), own), credential=credential).status == 200


def test_peers_one_password_does_not_open_every_door(est: Est) -> None:
    """UCM has one password for the whole server."""
    credential = est.home.credential("*", label="server", uses=9)
    for label in ("", "device", "station", "service"):
        assert est.enroll(request(new_key(), fresh_id()), label=label, credential=credential).status == 401


def test_a_bad_credential_is_not_made_good_by_a_good_certificate(est: Est) -> None:
    device = est.device()
    csr = request(new_key(), device.device)
    assert est.reenroll(csr, device, credential=("nobody", "nothing")).status == 401


def test_a_password_does_not_renew(est: Est) -> None:
    device = est.device()
    credential = est.home.credential(device.device)
    answer = est.post(request(new_key(), device.device), operation="simplereenroll", credential=credential)
    assert answer.status == 403
    assert "use simpleenroll" in answer.text
