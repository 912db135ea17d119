"""RFC 7030 §3.5 and RFC 9266: linking identity and proof of possession (S-P and B rows)."""

from __future__ import annotations

import base64
import os

import pytest
from OpenSSL import SSL

from tests.csr_maker import BMP, CHALLENGE_PASSWORD, IA5, PRINTABLE, T61, UTF8, attribute, challenge, new_key, request
from tests.csr_maker import text as asn1_text
from tests.est_server import EST, TLS12, TLS13, Answer, Est, Holder, Wire, basic, fresh_id

pytestmark = pytest.mark.e2e
NO_EXTENDED_MASTER_SECRET = 1  # SSL_OP_NO_EXTENDED_MASTER_SECRET
PKCS10 = {"Content-Type": "application/pkcs10"}
both = pytest.mark.parametrize("tls", [TLS12, TLS13], ids=["1.2", "1.3"])


@both
@pytest.mark.parametrize("label", ["", "bound"])
def test_s_p01_s_p02_s_p09_b_01_b_02_the_binding_of_this_connection_is_taken(est: Est, tls: int, label: str) -> None:
    lengths = []

    def draft(binding: bytes) -> bytes:
        lengths.append(len(base64.b64encode(binding)))
        return request(new_key(), device, binding=binding)

    device = fresh_id()
    assert est.enroll(draft, label=label, tls=tls).status == 200
    assert lengths == [16 if tls == TLS12 else 44]


@both
def test_s_p12_what_the_check_found_is_in_the_audit(est: Est, tls: int) -> None:
    device = fresh_id()
    est.enroll(lambda binding: request(new_key(), device, binding=binding), tls=tls)
    assert _issued(est, device)["binding"] == "verified"
    device = fresh_id()
    est.enroll(request(new_key(), device), tls=tls)
    assert _issued(est, device)["binding"] == "absent"


def _issued(est: Est, device: str) -> dict:
    return next(r["detail"] for r in est.home.audit() if r["action"] == "issue" and r["detail"]["device"] == device)


@both
def test_b_05_one_connection_vouches_for_one_key(est: Est, tls: int) -> None:
    """RFC 9266 §4.1. A repeat of the same key is no second authentication; what is not bound claims nothing."""
    device, key = fresh_id(), new_key()
    headers = {**PKCS10, **basic(est.home.credential("*", uses=None))}

    def post(wire: Wire, csr: bytes) -> Answer:
        return wire.request("POST", f"{EST}/simpleenroll", base64.b64encode(csr), headers)

    with est.wire(tls=tls) as wire:
        assert post(wire, request(key, device, binding=wire.binding)).status == 200
        assert post(wire, request(key, device, binding=wire.binding)).status == 200, "a repeat"
        refused = post(wire, request(new_key(), fresh_id(), binding=wire.binding))
        assert (refused.status, "has vouched for another key" in refused.text) == (403, True), refused.text
        assert est.home.audit()[-1]["outcome"] == "channel-binding-failed"
        assert post(wire, request(new_key(), fresh_id())).status == 200, "unbound, where that is enough"
    with est.wire(tls=tls) as wire:
        assert post(wire, request(new_key(), fresh_id(), binding=wire.binding)).status == 200, "another connection"


@both
def test_b_05_a_label_can_let_one_connection_vouch_for_more(est: Est, tls: int) -> None:
    headers = {**PKCS10, **basic(est.home.credential("*", label="many", uses=None))}
    with est.wire(tls=tls) as wire:
        for _ in range(2):
            csr = request(new_key(), fresh_id(), binding=wire.binding)
            assert wire.request("POST", f"{EST}/many/simpleenroll", base64.b64encode(csr), headers).status == 200


@both
def test_s_p03_a_request_bound_to_another_connection_is_refused(est: Est, tls: int) -> None:
    """Globalsign, UCM and Trustpoint never look."""
    device = fresh_id()
    with est.wire(tls=tls) as first:
        csr = request(new_key(), device, binding=first.binding)
    answer = est.enroll(csr, tls=tls)
    assert answer.status == 403
    assert "of this connection" in answer.text
    assert est.home.audit()[-1]["outcome"] == "channel-binding-failed"


def test_s_p03_it_does_not_pass_from_one_tls_version_to_the_other(est: Est) -> None:
    with est.wire(tls=TLS12) as old:
        csr = request(new_key(), fresh_id(), binding=old.binding)
        assert est.enroll(csr, tls=TLS13).status == 403


@both
def test_s_p04_s_r09_where_it_is_required_its_absence_is_refused_in_words(est: Est, tls: int) -> None:
    answer = est.enroll(request(new_key(), fresh_id()), label="bound", tls=tls)
    assert answer.status == 403
    assert "linking of identity and proof of possession is required" in answer.text


@both
@pytest.mark.parametrize("tag", [PRINTABLE, UTF8, T61, IA5, BMP], ids=["Printable", "UTF8", "T61", "IA5", "BMP"])
def test_s_p06_every_string_type_is_compared_by_its_text(est: Est, tls: int, tag: int) -> None:
    device = fresh_id()
    answer = est.enroll(lambda binding: request(new_key(), device, challenge(binding, tag)), tls=tls)
    assert answer.status == 200, answer.text


@both
@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[:-1],
        lambda value: value[:8],
        lambda value: value + b"\0",
        lambda value: bytes([value[0] ^ 1]) + value[1:],
        lambda value: value[:-1] + bytes([value[-1] ^ 1]),
        lambda value: b"\0" * len(value),
        lambda value: value.hex(),
        lambda value: base64.b64encode(value).decode() + " ",
        lambda value: base64.b64encode(value).decode().rstrip("=") + "A",
        lambda value: base64.b64encode(value).decode() * 2,
        lambda value: "\n" + base64.b64encode(value).decode(),
    ],
)
def test_s_p07_b_06_the_whole_value_counts(est: Est, tls: int, change) -> None:
    device = fresh_id()
    answer = est.enroll(lambda binding: request(new_key(), device, binding=change(binding)), tls=tls)
    assert answer.status == 403


@pytest.mark.parametrize(
    "attributes",
    [
        [challenge("x" * 256)],
        [challenge("")],
        [challenge("x"), challenge("x")],
        [attribute(CHALLENGE_PASSWORD)],
        [attribute(CHALLENGE_PASSWORD, asn1_text("x"), asn1_text("y"))],
        [attribute(CHALLENGE_PASSWORD, b"\x02\x01\x05")],
        [attribute(CHALLENGE_PASSWORD, b"\x0c\x02\xff\xfe")],
    ],
    ids=["256 characters", "empty", "two attributes", "no value", "two values", "INTEGER", "not UTF-8"],
)
def test_s_p07_what_cannot_be_one_binding_is_400(est: Est, attributes: list[bytes]) -> None:
    assert est.enroll(request(new_key(), fresh_id(), *attributes)).status == 400


def test_s_p08_a_password_in_its_place_is_a_failed_binding(est: Est) -> None:
    answer = est.enroll(request(new_key(), fresh_id(), binding="SCEP-secret"))
    assert answer.status == 403
    assert "SCEP-secret" not in answer.text


def test_s_p10_tls_1_2_without_extended_master_secret_is_not_bound_to(est: Est) -> None:
    def post(label: str, *, bind: bool) -> int:
        device = fresh_id()
        with est.wire(tls=TLS12, options=NO_EXTENDED_MASTER_SECRET) as wire:
            csr = request(new_key(), device, binding=wire.binding if bind else None)
            headers = {**PKCS10, **basic(est.home.credential(device, label=label))}
            path = f"{EST}/{label}/simpleenroll" if label else f"{EST}/simpleenroll"
            return wire.request("POST", path, base64.b64encode(csr), headers).status

    assert post("", bind=True) == 403
    assert post("bound", bind=True) == 403
    assert post("bound", bind=False) == 403
    assert post("", bind=False) == 200


@both
@pytest.mark.parametrize("label", ["", "bound"])
def test_s_p11_a_station_posts_what_others_signed_and_nobody_else_does(est: Est, tls: int, label: str) -> None:
    station, device = est.station("unit-*"), fresh_id("unit")
    csr = request(new_key(), device, binding=os.urandom(12))
    assert est.post(csr, client=station, label=label, tls=tls).status == 200
    assert _issued(est, device)["binding"] == "asserted"
    assert est.enroll(request(new_key(), fresh_id(), binding=os.urandom(12)), label=label, tls=tls).status == 403


def test_b_03_the_finished_message_is_no_binding_on_tls_1_3(est: Est) -> None:
    device = fresh_id()
    with est.wire(tls=TLS13) as wire:
        finished = wire.tls.get_finished()
        assert finished is not None
        csr = request(new_key(), device, binding=finished)
        headers = {**PKCS10, **basic(est.home.credential(device))}
        answer = wire.request("POST", f"{EST}/simpleenroll", base64.b64encode(csr), headers)
    assert answer.status == 403
    assert "tls-exporter" in answer.text


def test_b_01_the_exporter_is_no_binding_on_tls_1_2(est: Est) -> None:
    device = fresh_id()
    with est.wire(tls=TLS12) as wire:
        value = wire.tls.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        csr = request(new_key(), device, binding=value)
        headers = {**PKCS10, **basic(est.home.credential(device))}
        answer = wire.request("POST", f"{EST}/simpleenroll", base64.b64encode(csr), headers)
    assert answer.status == 403
    assert "tls-unique" in answer.text


def test_b_02_another_exporter_label_is_no_binding(est: Est) -> None:
    device = fresh_id()
    with est.wire(tls=TLS13) as wire:
        value = wire.tls.export_keying_material(b"EXPORTER-Something-Else", 32, b"")
        csr = request(new_key(), device, binding=value)
        headers = {**PKCS10, **basic(est.home.credential(device))}
        assert wire.request("POST", f"{EST}/simpleenroll", base64.b64encode(csr), headers).status == 403


@both
def test_b_04_a_renewal_is_bound_too(est: Est, tls: int) -> None:
    device = _bound_device(est, tls)
    csr = request(new_key(), device.device)
    assert est.reenroll(csr, device, label="bound", tls=tls).status == 403
    name, key = device.device, new_key()
    assert est.reenroll(lambda b: request(key, name, binding=b), device, label="bound", tls=tls).status == 200


def _bound_device(est: Est, tls: int) -> Holder:
    device, key = fresh_id(), new_key()
    answer = est.enroll(lambda binding: request(key, device, binding=binding), label="bound", tls=tls)
    return Holder(key, answer.certificate, (est.home.issuing,))


def test_b_07_no_header_carries_a_binding(est: Est) -> None:
    device, value = fresh_id(), os.urandom(12)
    headers = {"tls.peer": "x", "X-Tls-Unique": base64.b64encode(value).decode(), "Tls-Exporter": value.hex()}
    assert est.enroll(request(new_key(), device, binding=value), headers=headers).status == 403


def test_the_binding_is_checked_before_the_names_are_looked_at(est: Est) -> None:
    """A thief of a CSR learns nothing about what its owner may have."""
    answer = est.post(request(new_key(), "somebody-else", binding="x"), credential=est.home.credential("nobody-here"))
    assert (answer.status, "may not name" in answer.text) == (403, False)


def test_a_handshake_that_fails_leaves_the_server_serving(est: Est) -> None:
    with pytest.raises(SSL.Error):
        est.wire(tls=TLS12, options=SSL.OP_NO_TLSv1_2)
    assert est.get("cacerts").status == 200
