"""What the operator gets to read when certificate, key or address cannot be used."""

from __future__ import annotations

import resource
import socket

import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa
from OpenSSL import SSL

from estserver.serving import CannotServe, ServeOptions
from estserver.serving.context import build_context
from estserver.serving.descriptors import raise_descriptor_limit
from estserver.serving.master import listen
from tests.e2e.serving_support import certify

PASSPHRASE = b"open sesame"


def options(directory, **changes) -> ServeOptions:
    given = {
        "host": "127.0.0.1",
        "port": 0,
        "certificate_path": directory / "a.pem",
        "private_key": directory / "a.key",
    }
    return ServeOptions(**given | changes)


def test_a_context_that_never_resumes(tmp_path):
    certify("a").write(tmp_path, "a")
    context = build_context(options(tmp_path))
    assert context.get_session_cache_mode() == SSL.SESS_CACHE_OFF
    assert context.get_verify_mode() == SSL.VERIFY_PEER


def test_keys_of_every_kind(tmp_path):
    certify("a", key=mldsa.MLDSA87PrivateKey.generate()).write(tmp_path, "a", PASSPHRASE)
    assert build_context(options(tmp_path, passphrase=lambda: PASSPHRASE))


def test_the_passphrase_is_not_asked_for_when_there_is_nothing_to_open(tmp_path):
    certify("a").write(tmp_path, "a")
    build_context(options(tmp_path, passphrase=lambda: pytest.fail("asked")))


def _without_certificate(directory):
    (directory / "a.pem").unlink()


def _without_key(directory):
    (directory / "a.key").unlink()


def _with_another_key(directory):
    certify("b").write(directory, "b")
    (directory / "b.key").rename(directory / "a.key")


def _with_a_key_for_certificate(directory):
    (directory / "a.pem").write_bytes((directory / "a.key").read_bytes())


def _with_a_certificate_for_key(directory):
    (directory / "a.key").write_bytes((directory / "a.pem").read_bytes())


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_without_certificate, r"cannot read the certificate .*a\.pem: No such file or directory — check the path"),
        (_without_key, r"cannot read the private key .*a\.key: No such file or directory — check the path"),
        (_with_another_key, r"a\.key is not the key of the certificate in .*a\.pem — give the two that fit"),
        (_with_a_key_for_certificate, r"a\.pem holds no certificate in PEM form"),
        (_with_a_certificate_for_key, r"cannot load the key in .*a\.key: it holds no private key in PEM form"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, damage, text):
    certify("a").write(tmp_path, "a")
    damage(tmp_path)
    with pytest.raises(CannotServe, match=text) as raised:
        build_context(options(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_wrong_or_missing_passphrase_is_said_and_never_shown(tmp_path):
    certify("a").write(tmp_path, "a", PASSPHRASE)
    with pytest.raises(CannotServe, match=r"a\.key is encrypted — give its passphrase"):
        build_context(options(tmp_path))
    wrong = options(tmp_path, passphrase=lambda: b"closed sesame")
    with pytest.raises(CannotServe, match=r"the passphrase is wrong or the file is damaged") as raised:
        build_context(wrong)
    assert "sesame" not in str(raised.value)
    assert "sesame" not in repr(wrong)


def test_an_address_that_is_not_ours():
    with pytest.raises(CannotServe, match=r"^cannot listen on 192\.0\.2\.1:0: Cannot assign requested address — "):
        listen("192.0.2.1", 0)


def test_a_port_in_use_and_a_free_one():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        with pytest.raises(CannotServe, match=rf"^cannot listen on 127\.0\.0\.1:{port}: Address already in use — "):
            listen("127.0.0.1", port)


def test_connections_fit_the_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert raise_descriptor_limit(10) == 10
        assert 1 <= raise_descriptor_limit(1 << 40) < 1 << 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
