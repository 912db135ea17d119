"""Requests made to do harm: each gets a clean 4xx with its reason, or its connection ends; others notice nothing."""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estserver.web import create_app
from tests.csr_maker import (
    CN,
    EXTENSION_REQUEST,
    attribute,
    extension,
    new_key,
    oid,
    request,
    sequence,
    set_of,
    text,
    tlv,
    values,
)
from tests.est_server import EST, Est, Holder, RunningServer, basic, found_home, fresh_id
from tests.hostile_requests import Attempts, populate
from tests.http_mutations import chunked
from tests.makers import Maker
from tests.plain_front import PlainFront, tls_peer

OTHER, EMAIL, DNS, DIRECTORY, URI, IP, RID = 0xA0, 0x81, 0x82, 0xA4, 0x86, 0x87, 0x88
CONTROLS = ["\0", "\r\n", "\n", "\x1b[2J", "\x7f", "\x85", "\u2028", "\ufeff"]


def san(*names: bytes) -> bytes:
    return extension("2.5.29.17", sequence(*names))


def deep(levels: int, tag: int = 0x30, inside: bytes = b"") -> bytes:
    for _ in range(levels):
        inside = tlv(tag, inside)
    return inside


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
@pytest.mark.parametrize("tag", [DNS, URI, EMAIL], ids=["dns", "uri", "email"])
def test_control_characters_in_alternative_names_are_refused_and_not_repeated(est: Est, tag: int, control: str) -> None:
    """Globalsign certifies NUL and CRLF; a reader of the answer, or of a log, must not meet them either."""
    sound = {DNS: "a.plant.example", URI: "urn:x:a", EMAIL: "a@plant.example"}[tag]
    csr = request(new_key(), fresh_id(), extensions=[san(tlv(tag, (sound + control + "b").encode()))])
    answer = est.enroll(csr, names=["dns:*", "uri:*", "email:*"])
    assert answer.status == 400
    assert not set(answer.text.rstrip("\n")) & set(control)


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
@pytest.mark.parametrize("tag", [OTHER, DIRECTORY], ids=["otherName", "directoryName"])
def test_control_characters_in_names_that_no_profile_gives_are_refused(est: Est, tag: int, control: str) -> None:
    string = tlv(0x0C, f"a{control}b".encode())
    inside = {
        OTHER: oid("1.3.6.1.4.1.311.20.2.3") + tlv(0xA0, string),
        DIRECTORY: sequence(set_of(sequence(oid(CN), string))),
    }[tag]
    answer = est.enroll(request(new_key(), fresh_id(), extensions=[san(tlv(tag, inside))]))
    assert answer.status in (400, 403)
    assert not set(answer.text.rstrip("\n")) & set(control)


@pytest.mark.parametrize("name", ["a\0b", "a\r\nX: y", "\x1b[2J", "\u2028", "a" * 5000])
def test_control_characters_in_the_name_of_a_credential_are_a_plain_401(est: Est, name: str) -> None:
    answer = est.post(request(new_key(), fresh_id()), credential=(name, "secret"))
    assert answer.status == 401
    assert est.home.audit()[-1]["outcome"] == "bad-credentials"


def test_a_thousand_alternative_names_are_refused(est: Est) -> None:
    names = [f"dns:a{number}.plant.example" for number in range(1000)]
    answer = est.enroll(request(new_key(), fresh_id(), san=names), names=["dns:*.plant.example"])
    assert answer.status == 400
    assert "1000 subject alternative names; at most 100" in answer.text


def test_a_thousand_times_the_same_name_is_a_thousand_names(est: Est) -> None:
    answer = est.enroll(request(new_key(), fresh_id(), san=["dns:a.plant.example"] * 1000), names=["dns:*"])
    assert answer.status == 400
    assert "at most 100" in answer.text


@pytest.mark.parametrize("count", [33, 1000])
def test_a_subject_of_many_attributes_is_refused(est: Est, count: int) -> None:
    pairs = [(CN, fresh_id()), *(("2.5.4.11", f"unit {number}") for number in range(count))]
    answer = est.enroll(request(new_key(), pairs))
    assert answer.status == 400
    assert "more than 32 values" in answer.text


# --- bombs ----------------------------------------------------------------------------------------------------------

DEEP_PLACES: dict[str, Callable[[], bytes]] = {
    "the subject": lambda: request(new_key(), sequence(set_of(sequence(oid(CN), deep(5000))))),
    "a subject made of sets": lambda: request(new_key(), deep(5000, 0x31)),
    "an attribute": lambda: request(new_key(), fresh_id(), attribute("1.3.6.1.4.1.55555.1", deep(5000))),
    "the extension request": lambda: request(new_key(), fresh_id(), attribute(EXTENSION_REQUEST, deep(5000))),
    "an extension": lambda: request(new_key(), fresh_id(), extensions=[extension("2.5.29.32", deep(5000))]),
    "a directory name": lambda: request(new_key(), fresh_id(), extensions=[san(tlv(DIRECTORY, deep(5000)))]),
    "an other name": lambda: request(
        new_key(), fresh_id(), extensions=[san(tlv(OTHER, oid("1.2.3.4"), tlv(0xA0, deep(5000))))]
    ),
    "name constraints": lambda: request(
        new_key(), fresh_id(), extensions=[extension("2.5.29.30", sequence(tlv(0xA0, deep(5000))))]
    ),
    "the key's parameters": lambda: request(
        new_key(), fresh_id(), public=sequence(sequence(oid("1.2.840.10045.2.1"), deep(5000)), tlv(0x03, b"\0"))
    ),
}


@pytest.mark.parametrize("place", DEEP_PLACES)
def test_depth_in_a_well_signed_request_is_refused(est: Est, place: str) -> None:
    """Five thousand levels, where the outer ones are sound and the signature verifies; two may be carried unread."""
    answer = est.enroll(DEEP_PLACES[place]())
    assert answer.status in ((200, 400, 403) if place in ("an attribute", "an extension") else (400, 403))
    assert est.get("cacerts").status == 200


@pytest.mark.parametrize(
    "body",
    [
        b" " * 65_536,
        b"A" * 65_536,
        b"\n".join([b"MIIB"] * 10_000),
        b"=" * 65_536,
        b"-----BEGIN CERTIFICATE REQUEST-----\n" * 1800,
        b"-----BEGIN " + b"A" * 65_000,
        b"-----BEGIN A-----\n" + b"M" * 60_000 + b"-----END ",
        base64.b64encode(base64.b64encode(base64.b64encode(bytes(20_000)))),
        base64.b64encode(b"\x30\x84\x7f\xff\xff\xff" + bytes(40_000)),
        base64.b64encode(b"\x30\x82\xbf\xfc" + b"\x02\x01\x00" * 16_380),
    ],
    ids=["spaces", "zeros", "lines", "padding", "armour", "an endless label", "no end", "thrice", "2 GB said", "many"],
)
def test_base64_that_swells_is_refused(est: Est, body: bytes) -> None:
    answer = est.enroll(b"", body=body)
    assert answer.status == 400
    assert answer.text.count("\n") <= 2


@pytest.mark.parametrize("attributes", [65, 2000])
def test_many_attributes_are_refused(est: Est, attributes: int) -> None:
    answer = est.enroll(
        request(new_key(), fresh_id(), *(attribute(f"1.3.6.1.4.1.55555.{n}", text("x")) for n in range(attributes)))
    )
    assert answer.status == 400
    assert "more than 64 values" in answer.text


# --- what the client shows in TLS -----------------------------------------------------------------------------------


def test_an_idevid_with_an_empty_rdn_is_a_stranger_over_the_wire_too(est: Est) -> None:
    """Once an internal error: the library reads the certificate, and its subject not."""
    maker = Maker("Odd Works")
    est.home.anchor("odd", maker.certificate)
    sound = maker.idevid(fresh_id())
    version, serial, algorithm, issuer, validity, subject, *rest = values(values(_der(sound))[0])
    odd = sequence(version, serial, algorithm, issuer, validity, sequence(*values(subject), set_of()), *rest)
    holder = Holder(sound.key, x509.load_der_x509_certificate(maker.sign(odd)))
    answer = est.post(request(new_key(), fresh_id()), client=holder)
    assert answer.status == 403
    assert "trust anchor" in answer.text


def _der(holder: Holder) -> bytes:
    return holder.certificate.public_bytes(Encoding.DER)


# --- HTTP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        *("application/pkcs10x", "application/pkcs-10", "application/x-pkcs10", "application/pkcs1", "pkcs10"),
        *("application /pkcs10", "application/ pkcs10", "application/pkcs10, text/plain", "application/pkcs10/x"),
        *(
            "text/pkcs10",
            "application/pkcs10+xml",
            '"application/pkcs10"',
            "application/csrattrs",
            "multipart/form-data",
        ),
        *("application/pkcs7-mime; smime-type=CMC-request", "multipart/form-data; boundary=x", "a" * 4000),
    ],
)
def test_a_near_miss_of_the_media_type_is_415(est: Est, sent: str) -> None:
    answer = est.enroll(request(new_key(), fresh_id()), headers={"Content-Type": sent})
    assert answer.status == 415
    assert "application/pkcs10 is wanted" in answer.text


INSIDE = b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n"
SMUGGLED = {
    "a length and chunks": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n" + INSIDE),
    "chunks and a length": (b"Transfer-Encoding: chunked\r\nContent-Length: 65\r\n\r\n", b"0\r\n\r\n" + INSIDE),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: 60\r\n\r\n", INSIDE),
    "the same length twice": (b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n", INSIDE),
    "a length over two lines": (b"Content-Length:\r\n 0\r\n\r\n", INSIDE),
    "chunks over two lines": (b"Transfer-Encoding:\r\n chunked\r\n\r\n", b"0\r\n\r\n" + INSIDE),
    "chunks before a vertical tab": (b"Transfer-Encoding: chunked\x0b\r\n\r\n", b"0\r\n\r\n" + INSIDE),
    "chunks under a name with a space": (b"Transfer-Encoding : chunked\r\n\r\n", b"0\r\n\r\n" + INSIDE),
    "chunks beside identity": (b"Transfer-Encoding: identity, chunked\r\n\r\n", b"0\r\n\r\n" + INSIDE),
    "a chunk size that wraps": (b"Transfer-Encoding: chunked\r\n\r\n", b"100000000\r\n" + INSIDE),
    "a chunk that ends too late": (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nab\r\n0\r\n\r\n" + INSIDE),
    "a chunk line that ends with LF": (b"Transfer-Encoding: chunked\r\n\r\n", b"0\n\r\n" + INSIDE),
    "a request in an extension": (b"Transfer-Encoding: chunked\r\n\r\n", b"0;\n" + INSIDE),
    "a request in a trailer": (b"Transfer-Encoding: chunked\r\n\r\n", b"0\r\n" + INSIDE),
}


@pytest.mark.parametrize("shape", SMUGGLED)
def test_a_request_hidden_in_another_is_never_answered(est: Est, shape: str) -> None:
    """One refusal, and the end: no reader in front of this one could have been made to see another second request."""
    framing, body = SMUGGLED[shape]
    with est.wire() as wire:
        head = f"POST {EST}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
        wire.send(head.encode() + framing + body)
        answer = wire.answer("POST")
        assert answer.status == 400
        assert answer.get("Connection") == "close"
        assert wire.at_end()


@pytest.mark.parametrize(
    "fields",
    [
        b"".join(b"X-%d: y\r\n" % number for number in range(101)),
        b"X: y\r\n" * 4000,
        b"X: " + b"y" * 20_000 + b"\r\n",
        b"X" * 9000 + b": y\r\n",
        b"Cookie: " + b"a=b; " * 4000 + b"\r\n",
    ],
    ids=["one more than a hundred", "four thousand", "one long", "a long name", "cookies"],
)
def test_a_flood_of_headers_is_431(est: Est, fields: bytes) -> None:
    with est.wire() as wire:
        with contextlib.suppress(OSError):
            wire.send(f"GET {EST}/cacerts HTTP/1.1\r\nHost: localhost\r\n".encode() + fields + b"\r\n")
        answer = wire.answer()
        assert answer.status == 431
        assert wire.at_end()


def test_a_body_in_chunks_of_one_octet_is_a_body(est: Est) -> None:
    """Tedious, and sound."""
    device = fresh_id()
    fields = {"Content-Type": "application/pkcs10", **basic(est.home.credential(device))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with est.wire() as wire:
        start = f"POST {EST}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n{head}\r\n"
        wire.send(start.encode() + chunked(base64.b64encode(request(new_key(), device)), 1))
        assert wire.answer("POST").status == 200


# --- many -----------------------------------------------------------------------------------------------------------

OPENED = 10_000
AT_ONCE = 200
GROWTH_MAX_KILOBYTES = 16 * 1024  # the heap settles some MB higher; one connection kept is 20 kB and more
GARBAGE = (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"\x00" * 100)


def test_ten_thousand_connections_opened_and_dropped_leave_nothing_behind(tmp_path: Path) -> None:
    """Silent, cut off in the hello, plain HTTP, noise; dropped with or without a reset. The server is as before."""
    with RunningServer(found_home(tmp_path / "home"), "--workers", "1") as server:
        est, worker = Est(server), _worker(server)
        assert est.enroll(request(new_key(), fresh_id())).status == 200
        before = _open_files(worker)
        _open_and_drop(server.port, AT_ONCE * 5)
        _until(lambda: _open_files(worker) <= before)
        kilobytes = _resident_kilobytes(worker)
        _open_and_drop(server.port, OPENED)
        assert est.enroll(request(new_key(), fresh_id())).status == 200
        _until(lambda: _open_files(worker) <= before)
        assert _resident_kilobytes(worker) - kilobytes < GROWTH_MAX_KILOBYTES
        assert _worker(server) == worker


def _open_and_drop(port: int, count: int) -> None:
    linger_none = b"\x01\0\0\0\0\0\0\0"
    for first in range(0, count, AT_ONCE):
        held = []
        for number in range(first, first + AT_ONCE):
            sock = socket.create_connection(("127.0.0.1", port), timeout=20)
            held.append(sock)
            sock.sendall(GARBAGE[number % len(GARBAGE)])
            if number % 3 == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
        for sock in held:
            sock.close()


def _worker(server: RunningServer) -> int:
    pid = server.process.pid
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(worker)


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _resident_kilobytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- anything -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    return Attempts(populate(found_home(tmp_path_factory.mktemp("hostile") / "home")), seed=0)


@pytest.fixture(scope="module")
def front(attempts: Attempts) -> Iterator[PlainFront]:
    front = PlainFront(create_app(attempts.world.home.settings))
    yield front
    front.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9))
def test_a_spoiled_request_is_answered_cleanly_or_not_at_all(
    attempts: Attempts, front: PlainFront, number: int
) -> None:
    """`benchmarks/fuzz.py` does the same a million times."""
    attempt = attempts.attempt(number)
    assert front.exchange(attempt.pieces, attempt.peer).faults == []


def test_an_error_that_is_none_of_ours_is_seen() -> None:
    """The glass through which the test above looks is clear."""
    app = Flask(__name__)

    @app.get("/")
    def broken() -> str:
        return str(1 // 0)

    front = PlainFront(app)
    outcome = front.exchange([b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"], tls_peer())
    front.close()
    assert [answer.status for answer in outcome.answers] == [500]
    assert any("ZeroDivisionError" in fault for fault in outcome.faults)
    assert any("status 500" in fault for fault in outcome.faults)
