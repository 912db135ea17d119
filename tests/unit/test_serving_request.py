"""Requests as bytes: bodies cut anywhere, heads made of anything."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estserver.serving.errors import Refusal
from estserver.serving.request import ChunkedReader, LengthReader, Request, parser_config

CONFIG = parser_config(16384)
ADDRESS = ("192.0.2.1", 4711)
LIMIT = 1000


def request(head: bytes) -> Request:
    return Request(head, ADDRESS, CONFIG, LIMIT)


def feed(reader, octets: bytes, cuts) -> tuple[bool, bytearray]:
    """Give the reader the octets in pieces; tell whether it is done, and what it left."""
    buffer, done, last = bytearray(), False, 0
    for cut in [*sorted(cuts), len(octets)]:
        buffer += octets[last:cut]
        last = cut
        done = reader.read(buffer)
        if done:
            return True, buffer + octets[last:]
    return done, buffer


CHUNKED = b'3\r\nabc\r\n00A;x="y"\r\n0123456789\r\n0\r\nT: u\r\n\r\n'


@given(st.sets(st.integers(0, len(CHUNKED))), st.binary(max_size=20))
def test_a_chunked_body_is_the_same_however_it_is_cut_and_takes_nothing_behind_it(cuts, behind):
    reader = ChunkedReader(LIMIT)
    assert feed(reader, CHUNKED + behind, cuts) == (True, behind)
    assert reader.body == b"abc0123456789"


@given(st.binary(max_size=LIMIT), st.integers(1, 50), st.binary(max_size=5))
def test_any_body_survives_any_chunking(body, size, behind):
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[i : i + size]), body[i : i + size]) for i in range(0, len(body), size)
    )
    reader = ChunkedReader(LIMIT)
    assert feed(reader, chunks + b"0\r\n\r\n" + behind, ()) == (True, behind)
    assert reader.body == body


@given(st.binary(max_size=200), st.sets(st.integers(0, 200)))
def test_chunks_made_of_anything_are_a_body_or_a_refusal_and_cutting_them_does_not_matter(octets, cuts):
    def outcome(pieces):
        reader = ChunkedReader(LIMIT)
        try:
            done, rest = feed(reader, octets, pieces)
        except Refusal as refusal:
            return refusal.status
        return done, done and bytes(rest), bytes(reader.body)

    assert outcome(cut for cut in cuts if cut <= len(octets)) == outcome(())


@given(st.binary(max_size=50), st.integers(0, 50))
def test_a_body_of_known_length_takes_just_that(octets, length):
    reader = LengthReader(length)
    done, rest = feed(reader, octets, ())
    assert done == (len(octets) >= length)
    assert reader.body == octets[:length]
    assert rest == octets[length:]


def test_what_is_kept_is_bounded_before_it_is_read():
    with pytest.raises(Refusal) as refused:
        feed(ChunkedReader(LIMIT), b"%x\r\n" % (LIMIT + 1), ())
    assert refused.value.status == 413
    with pytest.raises(Refusal) as refused:
        request(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1))
    assert refused.value.status == 413


TOKENS = [
    b"GET",
    b"POST",
    b" ",
    b"/",
    b"/a?b",
    b"HTTP/1.1",
    b"\r\n",
    b"\n",
    b"Host: h",
    b"Content-Length: 3",
    b":",
    b"\t",
]
TOKENS += [b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: close", b"\x00", b"\xff", b"%00", b"*"]


@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(TOKENS), max_size=30).map(b"".join)))
def test_a_head_made_of_anything_is_a_request_or_a_refusal(octets):
    made = None
    with contextlib.suppress(Refusal):
        made = request(octets + b"\r\n\r\n")
    if made:
        environ = made.environ()
        assert environ["PATH_INFO"].startswith("/")
        assert not any(ord(c) in {0, 10, 13} for name, v in environ.items() if name.startswith("HTTP_") for c in v)


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: keep-alive, CLOSE\r\n", False),
        (b"1.1", b"Connection: keep-alive\r\nConnection: close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
    ],
)
def test_who_keeps_the_connection(version, connection, keeps):
    assert request(b"GET / HTTP/%b\r\nHost: h\r\n%b\r\n" % (version, connection)).keep_alive is keeps


def test_framing_headers_do_not_reach_the_application():
    made = request(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
    assert made.wants_continue
    made.reader.read(bytearray(b"2\r\nok\r\n0\r\n\r\n"))
    environ = made.environ()
    assert environ["CONTENT_LENGTH"] == "2"
    assert environ["wsgi.input"].read() == b"ok"
    assert not {"HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_CONTENT_LENGTH"} & set(environ)
