"""/serverkeygen: whether a key is made, what of the request counts, the answer in clear, and what stays of it (S-K)."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from devicesim import Credentials, CsrDraft, EstClient, OwnCertificate, SharedKey, TrustAnchors
from devicesim.cli import run
from devicesim.errors import EstRefused
from estserver.keys import DEVICE_KINDS
from tests.csr_maker import base64_lines, new_key, oid, request, sequence, spki, tlv
from tests.est_server import (
    EST,
    TLS12,
    TLS13,
    Est,
    Holder,
    basic,
    fresh_id,
)
from tests.protocol.serverkeygen_support import (
    KEK,
    KEK_ID,
    VECTORS,
    WRAP256,
    agreeing,
    ask,
    capabilities,
    in_clear,
    opened,
    openssl,
    shared,
)


@pytest.fixture
def est(keygen: Est) -> Est:
    return keygen


# --- whether at all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["", "device", "gateway", "agreement"])
def test_s_k01_it_is_off_until_a_label_switches_it_on(est: Est, label: str) -> None:
    answer = ask(est, request(new_key(), fresh_id()), label=label)
    assert answer.status == 501
    assert "simpleenroll" in answer.text


def test_s_k02_nobody_gets_a_key_without_being_known_and_allowed(est: Est) -> None:
    device = fresh_id()
    assert ask(est, request(new_key(), device), credential=None).status == 401
    assert ask(est, request(new_key(), device), credential=est.home.credential("other", label="made")).status == 403
    other = est.device(label="device")
    assert ask(est, request(new_key(), device), client=other).status == 403


def test_s_k02_a_device_asks_with_the_certificate_it_has(est: Est) -> None:
    device = est.device(label="made")
    _, certificate = in_clear(ask(est, request(new_key(), device.device), client=device))
    assert certificate.subject == device.certificate.subject


@pytest.mark.parametrize(
    ("tls", "suites", "kind", "status"),
    [
        (TLS13, "TLS_AES_128_GCM_SHA256", "P-256", 200),
        (TLS13, "TLS_AES_128_GCM_SHA256", "RSA-3072", 200),
        (TLS13, "TLS_AES_128_GCM_SHA256", "P-384", 400),
        (TLS13, "TLS_AES_128_GCM_SHA256", "ML-DSA-65", 400),
        (TLS13, "TLS_CHACHA20_POLY1305_SHA256", "P-384", 200),
        (TLS13, "", "P-384", 200),
        (TLS12, "ECDHE+AES128", "P-256", 200),
        (TLS12, "ECDHE+AES128", "P-384", 400),
        (TLS12, "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305", "P-384", 200),
        (TLS12, "", "P-384", 200),
    ],
)
def test_s_k02_no_key_leaves_through_a_cipher_suite_that_is_weaker(
    est: Est, tls: int, suites: str, kind: str, status: int
) -> None:
    """RFC 7030 §4.4; the server chooses the strongest that both have, so that only who has none is refused."""
    device = fresh_id()
    credential = est.home.credential(device, label="made")
    body = base64.b64encode(request(DEVICE_KINDS[kind](), device))
    headers = {"Content-Type": "application/pkcs10", **basic(credential)}
    with est.wire(tls=tls, suites=suites) as wire:
        answer = wire.request("POST", f"{EST}/made/serverkeygen", body, headers)
    assert answer.status == status, answer.text
    if status == 200:
        in_clear(answer)
        return
    assert answer.text.startswith(f"a {kind} key (192 bits of security) is not sent through ")
    assert len(answer.text.splitlines()) == 1
    assert est.home.audit()[-1]["outcome"] == "weak-cipher-suite"
    with est.wire(tls=tls) as wire:
        answer = wire.request("POST", f"{EST}/made/serverkeygen", body, headers)
    assert answer.status == 200, "no use was spent"


# --- what the request is worth ---------------------------------------------------------------------------------------


def test_s_k03_key_and_signature_of_the_request_are_ignored(est: Est) -> None:
    asking = new_key()
    csr = request(asking, fresh_id())
    key, _ = in_clear(ask(est, csr[:-8] + bytes(8)))
    assert spki(key) != spki(asking)
    weak = spki(rsa.generate_private_key(65537, 1024))
    for public in (weak, sequence(sequence(oid("2.999.1")), tlv(0x03, b"\0nonsense"))):
        in_clear(ask(est, request(asking, fresh_id(), public=public, hash_name="SHA1")))


def test_s_k03_everything_else_of_the_request_is_judged(est: Est) -> None:
    for san, words in ((("email:a@b.example",), "email"), (("dns:x.example",), "may not have the name")):
        answer = ask(est, request(new_key(), fresh_id(), san=san))
        assert answer.status in (400, 403)
        assert words in answer.text
    assert ask(est, b"", body=base64_lines(b"\x30\x00")).status == 400


@pytest.mark.parametrize("kind", [ec.SECP256R1(), ec.SECP384R1(), 2048, 3072])
def test_the_key_is_of_the_kind_of_the_one_in_the_request(est: Est, kind: Any) -> None:
    asking = rsa.generate_private_key(65537, kind) if isinstance(kind, int) else ec.generate_private_key(kind)
    key, _ = in_clear(ask(est, request(asking, fresh_id())))
    assert (type(key), key.key_size) == (type(asking), asking.key_size)


def test_the_key_is_of_a_kind_that_the_profile_takes(est: Est) -> None:
    key, _ = in_clear(ask(est, request(new_key(), fresh_id()), label="p384"))
    assert key.curve.name == "secp384r1"


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_k04_a_channel_binding_is_verified(est: Est, tls: int) -> None:
    device = fresh_id()
    in_clear(ask(est, lambda binding: request(new_key(), device, binding=binding), tls=tls))
    assert ask(est, request(new_key(), device, binding=b"another!conn"), tls=tls).status == 403
    assert ask(est, request(new_key(), device), label="bound").status == 403
    rfc = (VECTORS / "rfc7030-A.4-serverkeygen-request.p10.b64").read_bytes()
    answer = ask(est, b"", body=rfc)
    assert answer.status == 403
    assert "challengePassword" in answer.text


# --- the answer ------------------------------------------------------------------------------------------------------


def test_s_k05_s_k06_s_k07_s_k17_two_parts_in_clear(est: Est) -> None:
    device = fresh_id()
    answer = ask(est, request(new_key(), device))
    key, certificate = in_clear(answer)
    assert certificate.subject.rfc4514_string() == f"CN={device}"
    assert answer["Content-Type"].startswith("multipart/mixed; boundary=")
    assert answer["Cache-Control"] == "no-store"
    assert b"\r\nContent-Type: application/pkcs7-mime; smime-type=certs-only\r\n" in answer.body
    assert answer.body.count(b"\r\nContent-Transfer-Encoding: base64\r\n") == 2
    assert b"\n" not in answer.body.replace(b"\r\n", b"")
    assert answer.body.endswith(b"--\r\n")
    certificate.verify_directly_issued_by(est.home.issuing)
    assert isinstance(key, ec.EllipticCurvePrivateKey)


def test_every_request_is_a_new_key_and_costs_a_use(est: Est) -> None:
    """A lost answer loses the key: the repeat is a new enrolment that supersedes the one before."""
    device = fresh_id()
    csr = request(new_key(), device)
    credential = est.home.credential("*", label="made", uses=2)
    (first, one), (second, two) = (in_clear(ask(est, csr, credential=credential)) for _ in range(2))
    assert spki(first) != spki(second)
    assert ask(est, csr, credential=credential).status == 401
    with est.home.inventory() as inventory:
        found = inventory.list_certificates(device=device)
    assert [(one.serial_number, "superseded"), (two.serial_number, "valid")] == [(r.serial, r.status) for r in found]


# --- what stays ------------------------------------------------------------------------------------------------------


def test_s_k15_s_k16_no_key_is_logged_or_stored(est: Est) -> None:
    """Every delivered key is looked for, in every form it could have, in all that the server has written."""
    made = [in_clear(ask(est, request(new_key(), fresh_id())))[0] for _ in range(3)]
    answer = ask(est, request(new_key(), fresh_id(), shared(), capabilities(WRAP256)))
    made.append(opened(est, answer, "-secretkey", KEK.hex(), "-secretkeyid", KEK_ID.hex())[0])
    written = [file.read_bytes() for file in est.home.path.rglob("*") if file.is_file()]
    written += [est.server.stderr.encode(), repr(est.home.audit()).encode()]
    assert any(b"serverkeygen" in text for text in written)
    for key in made:
        secret = key.private_numbers().private_value.to_bytes(32)
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        forms = [secret, secret.hex().encode(), base64.b64encode(secret)[:-3], base64.b64encode(der)[8:-8]]
        assert not [form for form, text in itertools.product(forms, written) if form in text]


def test_s_k15_a_refusal_is_one_audit_row(est: Est) -> None:
    device = fresh_id()
    assert ask(est, request(new_key(), device, shared(b"?"), capabilities(WRAP256))).status == 403
    row = next(row for row in reversed(est.home.audit()) if device in repr(row))
    assert "unknown-decryption-key" in repr(row)


# --- this client and this server -------------------------------------------------------------------------------------


def client_of(est: Est, label: str = "made") -> EstClient:
    name, secret = est.home.credential("*", label=label)
    url = f"https://127.0.0.1:{est.server.port}"
    who = Credentials(name, secret.encode())
    return EstClient(url, trust=TrustAnchors((est.home.root,)), label=label, credentials=who)


@pytest.mark.parametrize("kind", ["clear", "shared", "RSA", "P-256", "P-384", "P-521", "X25519"])
def test_c_k04_this_client_opens_what_this_server_seals(est: Est, kind: str) -> None:
    makers: dict[str, Callable[[], Holder]] = {
        "RSA": lambda: est.device(key=rsa.generate_private_key(65537, 2048), label="agreement"),
        "X25519": lambda: agreeing(est, x25519.X25519PrivateKey.generate()),
        **{
            name: lambda curve=curve: est.device(key=ec.generate_private_key(curve), label="agreement")
            for name, curve in (("P-256", ec.SECP256R1()), ("P-384", ec.SECP384R1()), ("P-521", ec.SECP521R1()))
        },
    }
    device, decryptor = fresh_id(), SharedKey(KEK_ID, KEK) if kind == "shared" else None
    if kind in makers:
        holder = makers[kind]()
        device, decryptor = holder.device, OwnCertificate(holder.certificate, holder.key)
    asking = new_key()
    with client_of(est) as client:
        made = client.serverkeygen(CsrDraft.of(asking, device), decryptor)
    assert spki(made.key) == spki(made.certificate.public_key()) != spki(asking)


def test_c_k01_a_server_that_makes_no_keys_says_so(est: Est) -> None:
    with client_of(est, "device") as client, pytest.raises(EstRefused) as error:
        client.serverkeygen(CsrDraft.of(new_key(), fresh_id()))
    assert error.value.status == 501


def test_the_command_installs_a_key_made_by_the_server(
    est: Est, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = fresh_id()
    root, password, kek = tmp_path / "root.pem", tmp_path / "pw", tmp_path / "kek"
    root.write_bytes(est.home.root.public_bytes(Encoding.PEM))
    name, secret = est.home.credential("*", label="made", uses=3)
    password.write_text(secret)
    kek.write_text(KEK.hex())
    url = f"https://127.0.0.1:{est.server.port}"
    command = ["est", "serverkeygen", "--server", url, "--trust", str(root), "--label", "made", "--user", name]
    command += ["--password-file", str(password), "--subject", device, "--out", str(tmp_path / "d"), "--json"]
    sealed = ["--decrypt-key-id", KEK_ID.hex(), "--decrypt-key", str(kek)]
    for more in ([], ["--key-type", "RSA-2048"], sealed):
        assert run([*command, *more]) == 0, capsys.readouterr().err
        assert f'"device_id": "{device}"' in capsys.readouterr().out
        key, certificate = (tmp_path / "d" / "key.pem"), (tmp_path / "d" / "cert.pem")
        assert key.stat().st_mode & 0o077 == 0
        public = openssl("x509", "-in", certificate, "-noout", "-pubkey")
        assert openssl("pkey", "-in", key, "-pubout") == public
    holder = est.device(key=rsa.generate_private_key(65537, 2048), label="made")
    certificate, key = holder.write(tmp_path, "own")
    own = ["--subject", holder.device, "--out", str(tmp_path / "e"), "--cert", str(certificate), "--key", str(key)]
    assert run([*command, *own, "--decrypt-cert", str(certificate), "--decrypt-key", str(key)]) == 0
    for wrong in (["--decrypt-key", str(kek)], ["--decrypt-key-id", "xyz", "--decrypt-key", str(kek)], sealed[:2]):
        assert run([*command, *wrong]) in (2, 3)
