"""The answer to an HTTP challenge, against the examples of RFC 7616 and RFC 7617 (est-conformance C-T11 to C-T13)."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicesim.challenge import Challenge, Credentials, authorization, challenges
from devicesim.errors import UsageProblem

# RFC 7616 §3.9.1: both challenges of the example, and the two answers printed there.
REALM, NONCE = "http-auth@example.org", "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
OPAQUE = "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
MUFASA = ("Mufasa", b"Circle of Life")
ANSWERS = {
    "SHA-256": "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
    "MD5": "8ca523f5e9506fed4657c9700eebdbec",
}


def example(algorithm: str) -> str:
    return f'Digest realm="{REALM}", qop="auth, auth-int", algorithm={algorithm}, nonce="{NONCE}", opaque="{OPAQUE}"'


def answered(header: str, user: tuple[str, bytes] = MUFASA) -> str | None:
    return authorization(header, Credentials(*user), "GET", "/dir/index.html", CNONCE)


def parameters(said: str | None) -> dict[str, str]:
    assert said is not None
    (one,) = challenges(said)
    return dict(one.parameters)


@pytest.mark.parametrize("algorithm", ANSWERS)
def test_c_t12_the_examples_of_rfc_7616_are_answered_as_printed(algorithm: str) -> None:
    said = parameters(answered(example(algorithm)))
    assert said == {
        "username": "Mufasa",
        "realm": REALM,
        "uri": "/dir/index.html",
        "algorithm": algorithm,
        "nonce": NONCE,
        "nc": "00000001",
        "cnonce": CNONCE,
        "qop": "auth",
        "response": ANSWERS[algorithm],
        "opaque": OPAQUE,
    }


def test_c_t12_basic_is_answered_as_rfc_7617_prints_it() -> None:
    said = answered('Basic realm="foo", charset="UTF-8"', ("test", "123£".encode()))
    assert said == "Basic dGVzdDoxMjPCow=="


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ((example("MD5"), example("SHA-256"), 'Basic realm="x"'), "SHA-256"),
        (('Basic realm="x"', example("SHA-256")), "SHA-256"),
        (('Basic realm="x"', example("MD5")), "Basic"),
        ((example("MD5"), "Negotiate"), "MD5"),
        ((f'Digest realm="x", qop="auth", nonce="{NONCE}"',), "MD5"),
        (("Negotiate abc==", "NTLM", example("SHA-256")), "SHA-256"),
        (("Basic",), "Basic"),
        ((example("SHA-512-256"), example("md5")), "md5"),
    ],
)
def test_c_t12_what_tells_least_is_answered(offered: tuple[str, ...], taken: str) -> None:
    said = answered(", ".join(offered)) or ""
    assert said.startswith("Basic ") if taken == "Basic" else parameters(said)["algorithm"] == taken


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Negotiate",
        'Digest realm="a, basic one", nonce="x"',  # no qop: RFC 2069
        'Digest realm="x", nonce="x", qop="auth-int"',
        'Digest realm="x", qop="auth"',
        'Digest nonce="x", qop="auth"',
        example("SHA-512-256"),
        example("SHA-1"),
        'realm="x"',
        'Bearer realm="Basic"',
        "=",
        '"Basic"',
    ],
)
def test_c_t12_what_cannot_be_answered_is_not(header: str) -> None:
    assert answered(header) is None


def test_c_t12_a_session_digest_hashes_the_nonces_into_the_secret() -> None:
    said = parameters(answered(example("SHA-256-sess")))

    def hashed(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    secret = hashed(f"{hashed(f'Mufasa:{REALM}:Circle of Life')}:{NONCE}:{CNONCE}")
    assert said["response"] == hashed(f"{secret}:{NONCE}:00000001:{CNONCE}:auth:{hashed('GET:/dir/index.html')}")


def test_c_t12_names_are_quoted_or_extended() -> None:
    assert parameters(answered(example("MD5"), ('a"b\\c', b"x")))["username"] == 'a"b\\c'
    said = parameters(answered(example("MD5"), ("Jäsøn Doe", b"x")))
    assert said["username*"] == "UTF-8''J%C3%A4s%C3%B8n%20Doe"  # RFC 7616 §3.9.2
    assert "username" not in said


def test_c_t12_a_realm_is_hashed_as_it_came() -> None:
    wire = "Wärme".encode().decode("latin-1")  # a server's UTF-8, as http.client reads it
    said = parameters(answered(f'Digest realm="{wire}", qop="auth", algorithm=SHA-256, nonce="x"'))
    secret = hashlib.sha256("Mufasa:Wärme:Circle of Life".encode()).hexdigest()
    asked = hashlib.sha256(b"GET:/dir/index.html").hexdigest()
    expected = hashlib.sha256(f"{secret}:x:00000001:{CNONCE}:auth:{asked}".encode()).hexdigest()
    assert (said["realm"], said["response"]) == (wire, expected)


@pytest.mark.parametrize("name", ["a:b", "a\r\nX-Header: b", "a\x00"])
def test_a_name_that_would_be_read_as_something_else_is_refused(name: str) -> None:
    with pytest.raises(UsageProblem):
        Credentials(name, b"x")


def test_challenges_are_read_as_a_list() -> None:
    header = 'Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple"'  # RFC 9110 §11.6.1
    assert challenges(header) == (
        Challenge("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}),
        Challenge("basic", {"realm": "simple"}),
    )


@given(st.text())
def test_whatever_is_offered_no_other_error_leaves(header: str) -> None:
    answered(header)
    answered(f"Digest {header}")


def test_c_t13_a_password_is_wiped_in_place() -> None:
    mine = bytearray(b"secret")
    credentials = Credentials("line-1", mine)
    held = memoryview(credentials.password)
    assert bytes(held) == b"secret"
    credentials.wipe()
    assert (credentials.wiped, bytes(held), bytes(mine)) == (True, bytes(6), b"secret")
    assert "secret" not in repr(Credentials("line-1", mine))
