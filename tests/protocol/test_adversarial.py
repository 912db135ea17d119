"""What a hostile client tries: names that are not its own, requests made to be expensive, reuse of what was spent."""

from __future__ import annotations

import base64
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from estserver.assembly import enrollment_of
from estserver.enroll import Request
from estserver.errors import BadCredentials, NotAuthorized
from estserver.identity.credentials import verifier_for_chosen
from estserver.inventory import Inventory
from estserver.model import BasicCredentials, Operation, Peer
from estserver.records import CredentialRecord
from tests.csr_maker import (
    CN,
    ORGANIZATION,
    attribute,
    base64_lines,
    bits,
    extension,
    new_key,
    oid,
    request,
    sequence,
    signature,
    text,
    tlv,
)
from tests.est_server import DAY, Est, Holder, Home, RunningServer, found_home, fresh_id, today

pytestmark = pytest.mark.e2e
DNS, URI, EMAIL = 0x82, 0x86, 0x81
COUNTRY, LOCALITY = "2.5.4.6", "2.5.4.7"
MICROSOFT_EXTENSION_REQUEST = "1.3.6.1.4.1.311.2.1.14"
KELVIN_SIGN = "\u212a"  # its lower case is an ASCII k
RSA_WITH = {"MD5": "1.2.840.113549.1.1.4", "SHA1": "1.2.840.113549.1.1.5", "SHA256": "1.2.840.113549.1.1.11"}

RICH = """
[labels.rich]
profile = "rich"
ca = "acme"

[labels.named-station]
profile = "named-station"
ca = "acme"

[labels.bound-station]
profile = "station"
ca = "acme"
channel_binding = "required"
"""


@pytest.fixture(scope="module")
def rich_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a profile that lets more names through than the usual ones."""
    home = found_home(tmp_path_factory.mktemp("adversarial") / "home")
    profiles = home.path / "profiles"
    device = (profiles / "device.toml").read_text("utf-8")
    subject = 'organization = { values = ["Acme*"] }\nlocality = { values = ["*"] }\ncountry = { values = ["*"] }\n'
    rich = device.replace("[allowed.san]", f"{subject}\n[allowed.san]\nemail = {{ identity = true }}")
    (profiles / "rich.toml").write_text(rich, "utf-8")
    station = (profiles / "station.toml").read_text("utf-8")
    named = station.replace("[constraints]", "[allowed.san]\ndns = { identity = true }\n\n[constraints]")
    (profiles / "named-station.toml").write_text(named, "utf-8")
    home.configure(RICH)
    return home


@pytest.fixture(scope="module")
def rich(rich_home: Home) -> Iterator[Est]:
    with RunningServer(rich_home) as server:
        yield Est(server)


def san(*names: tuple[int, bytes]) -> bytes:
    """A subjectAltName of any octets."""
    return extension("2.5.29.17", sequence(*(tlv(tag, octets) for tag, octets in names)))


# --- names that are not what they look like -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "octets"),
    [
        (DNS, b"pump.plant.example."),
        (DNS, b".plant.example"),
        (DNS, b"a..plant.example"),
        (DNS, b"a b.plant.example"),
        (DNS, b"user@host.plant.example"),
        (DNS, b"-a.plant.example"),
        (DNS, b"a" * 64 + b".plant.example"),
        (DNS, b"a*.plant.example"),
        (DNS, b"192.0.2.1"),
        (DNS, b""),
        (DNS, "pümp.plant.example".encode()),
        (DNS, f"{KELVIN_SIGN}.plant.example".encode()),
        (URI, b"urn:x: a"),
        (URI, b"no-scheme"),
        (URI, "urn:x:ü".encode()),
        (URI, b"https://evil.example\\.plant.example/x"),
        (EMAIL, b"Root <root@plant.example>"),
        (EMAIL, b"a@evil.example,b@plant.example"),
        (EMAIL, "ü@plant.example".encode()),
    ],
)
def test_a_san_that_is_not_well_formed_is_refused_before_any_pattern_sees_it(
    rich: Est, tag: int, octets: bytes
) -> None:
    names = ["dns:*.plant.example", "dns:*.*.*.*", "dns:*", "uri:*:*", "uri:https://*/x", "email:*"]
    csr = request(new_key(), fresh_id(), extensions=[san((tag, octets))])
    answer = rich.enroll(csr, label="rich", names=names)
    assert answer.status == 400
    assert "subject alternative name" in answer.text


@pytest.mark.parametrize("middle", ["evil.example?", "evil.example#", "evil@", "evil.example/"])
def test_a_star_in_a_uri_pattern_does_not_reach_past_the_host(rich: Est, middle: str) -> None:
    csr = request(new_key(), fresh_id(), san=[f"uri:https://{middle}.plant.example/x"])
    assert rich.enroll(csr, names=["uri:https://*.plant.example/x"]).status == 403


def test_a_pattern_for_hosts_does_not_give_a_wildcard_certificate(est: Est) -> None:
    csr = request(new_key(), fresh_id(), san=["dns:*.plant.example"])
    assert est.enroll(csr, names=["dns:*.plant.example"]).status == 403


def test_a_certificate_with_a_star_in_a_name_is_no_pattern_for_further_names(est: Est) -> None:
    device = est.device(san=["uri:urn:x:*"])
    other = request(new_key(), device.device, san=["uri:urn:x:other"])
    assert est.post(other, client=device).status == 403
    same = request(new_key(), device.device, san=["uri:urn:x:*"])
    assert est.post(same, client=device).status == 200


def test_a_device_id_is_ascii_before_case_is_set_aside(est: Est) -> None:
    answer = est.enroll(request(new_key(), f"{KELVIN_SIGN}iln-1"))
    assert answer.status == 400
    assert "device id" in answer.text


@pytest.mark.parametrize("pair", [(LOCALITY, ""), (COUNTRY, "DEU"), (COUNTRY, "")])
def test_an_attribute_that_no_certificate_can_hold_is_refused_in_words(rich: Est, pair: tuple[str, str]) -> None:
    """Once an internal error, after the credential had been charged."""
    answer = rich.enroll(request(new_key(), [(CN, fresh_id()), pair]), label="rich")
    assert answer.status == 400
    assert "characters" in answer.text


def test_patterns_of_text_do_not_care_for_case(rich: Est) -> None:
    csr = request(new_key(), [(CN, fresh_id()), (ORGANIZATION, "ACME Ltd")])
    assert rich.enroll(csr, label="rich").status == 200


# --- one request, read by two readers -------------------------------------------------------------------------------


def test_names_in_microsofts_extension_request_are_names_too(est: Est) -> None:
    asked = attribute(MICROSOFT_EXTENSION_REQUEST, sequence(san((DNS, b"other"))))
    answer = est.enroll(request(new_key(), fresh_id(), asked))
    assert answer.status == 403
    assert "dns:other" in answer.text


def test_two_extension_requests_of_different_kinds_are_refused(est: Est) -> None:
    device = fresh_id()
    asked = attribute(MICROSOFT_EXTENSION_REQUEST, sequence(san((DNS, b"other"))))
    answer = est.enroll(request(new_key(), device, asked, san=[f"dns:{device}"]))
    assert answer.status == 400
    assert "more than one extensionRequest" in answer.text


def test_an_extension_that_the_library_stumbles_over_is_a_400(est: Est) -> None:
    unknown_feature = extension("1.3.6.1.5.5.7.1.24", sequence(tlv(0x02, b"\x63")))
    answer = est.enroll(request(new_key(), fresh_id(), extensions=[unknown_feature]))
    assert answer.status == 400
    assert "cannot be read" in answer.text


# --- requests made to be expensive ----------------------------------------------------------------------------------


def test_many_stars_in_a_name_do_not_hold_the_server(est: Est) -> None:
    """Backtracking over five stars takes minutes; the client of these tests gives up after 20 s."""
    stars = "uri:urn:x:" + "*a" * 12 + "b"
    device = est.device(san=[stars])
    asked = request(new_key(), device.device, san=["uri:urn:x:" + "a" * 1500])
    assert est.post(asked, client=device).status == 403
    assert est.enroll(request(new_key(), fresh_id(), san=["uri:urn:x:" + "a" * 1500]), names=[stars]).status == 403


def test_an_object_identifier_has_an_end(est: Est) -> None:
    endless = sequence(tlv(0x06, b"\x2a" + b"\xff" * 30_000 + b"\x7f"), tlv(0x31, text("x")))
    answer = est.post(request(new_key(), fresh_id(), endless))
    assert answer.status == 400
    assert "object identifier is too long" in answer.text


# --- what was spent, revoked or superseded --------------------------------------------------------------------------


def test_a_spent_password_pays_once_even_where_the_key_may_stay(est: Est) -> None:
    """Once it was good for a day of new certificates, as soon as the first one had been superseded."""
    key, device = new_key(), fresh_id()
    credential = est.home.credential(device, label="element")
    asked = request(key, device)
    first = est.post(asked, label="element", credential=credential)
    assert est.post(asked, label="element", credential=credential).certificate == first.certificate
    holder = Holder(key, first.certificate, (est.home.issuing,))
    assert est.reenroll(asked, holder, label="element").status == 200
    assert est.post(asked, label="element", credential=credential).status == 401


@pytest.mark.parametrize("uses", [1, None])
def test_a_compromised_key_is_never_certified_again(est: Est, uses: int | None) -> None:
    key, device = new_key(), fresh_id()
    credential = est.home.credential(device, label="element", uses=uses)
    asked = request(key, device)
    est.home.revoke(est.post(asked, label="element", credential=credential).certificate)
    answer = est.post(asked, label="element", credential=credential)
    assert answer.status == 403
    assert "compromised" in answer.text


# --- who acts for whom ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("binding", "asked"), [(b"of another connection", "sign the CSR"), (None, "is required")])
def test_a_station_asks_for_itself_like_anybody_else(rich: Est, binding: bytes | None, asked: str) -> None:
    station = rich.station("unit-*")
    label = "station" if binding else "bound-station"
    answer = rich.reenroll(request(new_key(), station.device, binding=binding), station, label=label)
    assert answer.status == 403
    assert asked in answer.text
    assert (
        rich.reenroll(lambda value: request(new_key(), station.device, binding=value), station, label=label).status
        == 200
    )


def test_a_station_gives_its_own_names_to_nobody(rich: Est) -> None:
    name, key, own = fresh_id("line"), new_key(), ["dns:line.plant.example"]
    first = rich.enroll(request(key, name, san=own), label="named-station", names=own)
    station = Holder(key, first.certificate, (rich.home.issuing,))
    rich.home.station(name, "unit-*")
    assert rich.post(request(new_key(), fresh_id("unit"), san=own), client=station).status == 403


def test_a_device_never_gets_a_name_that_the_site_will_use(est: Est) -> None:
    """Neither the announcer's nor that of a station without its certificate: brokers go by the name alone."""
    waiting = fresh_id("line")
    est.home.station(waiting, "unit-*")
    for name in ("estserver", waiting):
        answer = est.enroll(request(new_key(), name))
        assert answer.status == 403
        assert "kept for a part of the site" in answer.text
    assert est.enroll(request(new_key(), waiting), label="station").status == 200


def test_an_issuing_ca_that_has_expired_says_so(est: Est) -> None:
    end = est.home.issuing.not_valid_after_utc
    clock = today()
    device = fresh_id()
    name, secret = est.home.credential(device)
    body = base64_lines(request(new_key(), device))
    with est.home.enrollment(lambda: clock) as enrollment:
        clock = end + timedelta(minutes=1)
        asked = Request(Operation.SIMPLEENROLL, "", body, Peer("127.0.0.1"), BasicCredentials(name, secret.encode()))
        with pytest.raises(NotAuthorized, match="issuing CA expired"):
            enrollment.enroll(asked)
    with est.home.inventory() as inventory:
        record = inventory.credential(name)
    assert record is not None
    assert record.spent == 0


def old_fashioned(maker: rsa.RSAPrivateKey, issuer: x509.Certificate, serial: str, hash_name: str) -> Holder:
    """A factory certificate signed with a hash that the library no longer signs with."""
    key = new_key()
    builder = x509.CertificateBuilder(
        issuer_name=issuer.subject,
        subject_name=x509.Name([x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, serial)]),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=today() - DAY,
        not_valid_after=today() + DAY,
    )
    good, bad = (oid(RSA_WITH[name]) for name in ("SHA256", hash_name))
    signed = builder.sign(maker, hashes.SHA256()).tbs_certificate_bytes.replace(good, bad)
    algorithm, value = signature(maker, signed, hash_name)
    return Holder(key, x509.load_der_x509_certificate(sequence(signed, algorithm, bits(value))))


@pytest.mark.parametrize(("hash_name", "status"), [("MD5", 403), ("SHA1", 403), ("SHA256", 200)])
def test_a_factory_certificate_with_a_broken_hash_proves_nothing(est: Est, hash_name: str, status: int) -> None:
    key, device = rsa.generate_private_key(65537, 2048), fresh_id("old")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)])
    builder = x509.CertificateBuilder(
        issuer_name=subject,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=today() - DAY,
        not_valid_after=today() + DAY,
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    anchor = builder.sign(key, hashes.SHA256())
    est.home.anchor(device, anchor, devices=device)
    answer = est.post(request(new_key(), device), client=old_fashioned(key, anchor, device, hash_name))
    assert answer.status == status
    assert status == 200 or f"signed with {hash_name}" in answer.text


# --- what is written down -------------------------------------------------------------------------------------------


def test_a_secret_is_octets_and_need_not_be_utf_8(est: Est) -> None:
    name, secret, salt = fresh_id("human"), "pässwörd-of-old".encode("latin-1"), b"0123456789abcdef"
    verifier = verifier_for_chosen(secret, salt)
    record = CredentialRecord(name, "scrypt", verifier, salt, "", (name,), (), 1, 0, today(), today() + DAY)
    with est.home.inventory() as inventory:
        inventory.credential_add(record, "operator:test")
    offered = base64.b64encode(name.encode() + b":" + secret).decode()
    answer = est.post(request(new_key(), name), headers={"Authorization": f"Basic {offered}"})
    assert answer.status == 200


@pytest.mark.parametrize("token", ["!!!", "", "YQ", base64.b64encode(b"\xff\xfe:x").decode(), "é"])
def test_basic_that_cannot_be_read_is_refused_and_written_down(est: Est, token: str) -> None:
    """Even beside a good certificate: a credential, once offered, decides alone."""
    device = est.device()
    before = len(est.home.audit())
    answer = est.post(request(new_key(), device.device), client=device, headers={"Authorization": f"Basic {token}"})
    assert answer.status == 401
    (row,) = est.home.audit()[before:]
    assert (row["action"], row["outcome"]) == ("refuse", "bad-credentials")


def test_the_audit_says_which_certificate_was_refused(est: Est) -> None:
    device = est.device()
    est.home.revoke(device.certificate)
    assert est.reenroll(request(new_key(), device.device), device).status == 403
    row = est.home.audit()[-1]
    assert row["actor"] == f"unrecognised:sha256-{device.certificate.fingerprint(hashes.SHA256()).hex()}"


def test_a_refusal_that_cannot_be_written_down_is_one_line_of_the_log(
    est: Est, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a traceback for each, and nothing of who was refused what."""
    settings, body = est.home.settings, base64_lines(request(new_key(), fresh_id()))
    asked = Request(Operation.SIMPLEENROLL, "", body, Peer("127.0.0.1"), BasicCredentials("two\nlines", b"x"))
    file = est.home.path / "estserver.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other, Inventory.open(file, busy_seconds=0.1) as ours:
        enrollment = enrollment_of(settings, ours, clock=today, random=os.urandom)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BadCredentials):
            enrollment.enroll(asked)
    (record,) = [one for one in caplog.records if one.name == "estserver.refusals"]
    assert record.exc_info is None
    assert "locked" in record.getMessage()
    assert r"unrecognised:two\nlines" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_an_announcer_that_cannot_begin_tries_again(tmp_path: Path) -> None:
    """Its thread once ended with a traceback, and nothing was ever announced."""
    home = found_home(tmp_path / "home")
    settings = (home.path / "estserver.toml").read_text("utf-8")
    (home.path / "estserver.toml").write_text(
        settings.replace('broker = ""', 'broker = "mqtts://127.0.0.1:1"'), "utf-8"
    )
    (home.path / "announce.lock").mkdir()
    with RunningServer(home) as server:
        _until(lambda: "announce.lock" in server.stderr)
        (home.path / "announce.lock").rmdir()
        _until(lambda: "mqtt/cert.pem cannot be used yet" in server.stderr)
        assert Est(server).device()


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
