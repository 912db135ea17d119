"""Answers as bytes, and what an application may not say."""

from __future__ import annotations

import pytest

from estserver.serving.answer import Call, format_answer, format_refusal
from estserver.serving.errors import Refusal


def answer(status="200 OK", headers=(), body=b"", *, method="GET", http10=False, keep_alive=True):
    octets = format_answer(status, list(headers), body, method=method, http10=http10, keep_alive=keep_alive)
    head, _, rest = octets.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    return lines[0], dict(line.split(": ", 1) for line in lines[1:]), rest


def test_the_length_is_the_fronts_own():
    line, headers, body = answer(headers=[("content-length", "99"), ("X-y", "z")], body=b"abc")
    assert line == "HTTP/1.1 200 OK"
    assert (headers["Content-Length"], headers["X-y"], body) == ("3", "z", b"abc")
    assert "content-length" not in headers


@pytest.mark.parametrize("name", ["Connection", "Transfer-Encoding", "Keep-Alive", "Upgrade"])
def test_hop_by_hop_headers_of_the_application_are_dropped(name):
    assert name not in answer(headers=[(name, "x")])[1]


def test_head_says_the_length_the_body_would_have_had():
    assert answer(body=b"abc", method="HEAD")[1:] == (answer(body=b"abc")[1], b"")
    assert answer(headers=[("Content-Length", "7")], method="HEAD")[1]["Content-Length"] == "7"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_answers_have_no_body(status):
    _, headers, body = answer(status, body=b"ignored")
    assert "Content-Length" not in headers
    assert body == b""


def test_connection_is_said_only_where_it_is_not_the_rule():
    assert "Connection" not in answer()[1]
    assert answer(keep_alive=False)[1]["Connection"] == "close"
    assert answer(http10=True)[1]["Connection"] == "keep-alive"


def test_a_refusal_is_one_line_of_text():
    octets = format_refusal(Refusal(431, "request head too large"))
    assert octets.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert octets.endswith(b"Connection: close\r\n\r\nrequest head too large\n")


def test_the_answer_is_joined_and_the_iterable_closed():
    class Parts(list):
        closed = False

        def close(self):
            Parts.closed = True

    def app(environ, start_response):
        start_response("200 OK", [])(b"written ")
        return Parts([b"and ", b"given"])

    assert Call(app, {}).collect() == ("200 OK", [], b"written and given")
    assert Parts.closed


def test_an_error_may_replace_an_answer_not_yet_given():
    def app(environ, start_response):
        start_response("200 OK", [("A", "b")])
        start_response("500 Internal Server Error", [], (None, None, None))
        return [b"sorry"]

    assert Call(app, {}).collect() == ("500 Internal Server Error", [], b"sorry")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200", []),
        ("200 OK\r\nX: y", []),
        ("100 Continue", []),
        ("200 OK", [("A B", "c")]),
        ("200 OK", [("A", "b\r\nc: d")]),
        ("200 OK", [("A", "snow ☃")]),
    ],
)
def test_what_would_break_the_framing_is_the_applications_fault(status, headers):
    def app(environ, start_response):
        start_response(status, headers)
        return []

    with pytest.raises(ValueError, match=r"^not a (status line|header)") as raised:
        Call(app, {}).collect()
    assert "c: d" not in str(raised.value)


def test_start_response_is_called_once_and_at_all():
    def twice(environ, start_response):
        start_response("200 OK", [])
        start_response("200 OK", [])
        return []

    for app in (twice, lambda environ, start_response: []):
        with pytest.raises(RuntimeError):
            Call(app, {}).collect()
