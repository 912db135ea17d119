"""What a proxy says in headers: facts or a refusal, whatever the octets; and who is believed at all."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from estserver.config import ProxySection
from estserver.errors import ConfigError, MalformedRequest, NotAuthorized
from estserver.model import ChannelBinding, Peer
from estserver.serving import TlsPeer
from estserver.web.peer import establish_peer, known_peer, peer_of
from estserver.web.proxy import proxy_of
from tests.est_server import Home, found_home
from tests.makers import Maker
from tests.plain_front import tls_peer

PROXY = proxy_of(ProxySection(addresses=("192.0.2.1", "2001:db8::1")))
NOBODY = proxy_of(ProxySection())
CERT, CHAIN, VERSION = "HTTP_X_SSL_CLIENT_CERT", "HTTP_X_SSL_CLIENT_CHAIN", "HTTP_X_SSL_PROTOCOL"
UNIQUE, ADDRESS = "HTTP_X_SSL_UNIQUE", "HTTP_X_SSL_CLIENT_ADDRESS"
CIPHER = "HTTP_X_SSL_CIPHER"
HEADERS = (CERT, CHAIN, VERSION, UNIQUE, ADDRESS, CIPHER)
MAKER = Maker("Maker")
SUB = Maker("Sub", above=MAKER)
LEAF = SUB.idevid("1").certificate
GOOD = {"REMOTE_ADDR": "192.0.2.1", VERSION: "TLSv1.2", ADDRESS: "203.0.113.9"}


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def haproxy(*certificates: x509.Certificate) -> str:
    return base64.b64encode(b"".join(map(der, certificates))).decode()


def nginx(*certificates: x509.Certificate) -> str:
    return quote(b"".join(c.public_bytes(Encoding.PEM) for c in certificates).decode(), safe="-")


@pytest.mark.parametrize("write", [haproxy, nginx])
def test_both_proxies_ways_to_write_certificates(write) -> None:
    peer = PROXY.peer({**GOOD, CERT: write(LEAF), CHAIN: write(SUB.certificate, MAKER.certificate)})
    assert peer == Peer(
        "203.0.113.9", "TLSv1.2", der(LEAF), (der(SUB.certificate), der(MAKER.certificate)), binding=None
    )


def test_nginx_ends_a_pem_with_or_without_a_newline() -> None:
    assert PROXY.peer({**GOOD, CERT: nginx(LEAF).removesuffix("%0A")}).certificate == der(LEAF)


def test_a_chain_that_repeats_the_leaf_is_a_chain_without_it() -> None:
    peer = PROXY.peer({**GOOD, CERT: haproxy(LEAF), CHAIN: haproxy(LEAF, SUB.certificate)})
    assert peer.intermediates == (der(SUB.certificate),)


@pytest.mark.parametrize("nothing", [{}, {CERT: "", CHAIN: "", UNIQUE: ""}])
def test_who_showed_no_certificate_has_none(nothing: dict[str, str]) -> None:
    assert PROXY.peer({**GOOD, **nothing}) == Peer("203.0.113.9", "TLSv1.2")


def test_the_cipher_suite_is_what_the_proxy_says_and_unknown_if_it_is_silent() -> None:
    assert PROXY.peer({**GOOD, CIPHER: "ECDHE-ECDSA-AES256-GCM-SHA384"}).cipher == "ECDHE-ECDSA-AES256-GCM-SHA384"
    assert PROXY.peer(GOOD).cipher == ""
    assert PROXY.peer(GOOD).first_bound is None


def test_tls_unique_on_tls_1_2_is_the_binding() -> None:
    peer = PROXY.peer({**GOOD, UNIQUE: base64.b64encode(b"u" * 12).decode()})
    assert peer.binding == ChannelBinding("tls-unique", b"u" * 12)


def test_on_tls_1_3_there_is_no_binding_and_none_may_be_claimed() -> None:
    assert PROXY.peer({**GOOD, VERSION: "TLSv1.3"}).binding is None
    with pytest.raises(MalformedRequest, match="means nothing"):
        PROXY.peer({**GOOD, VERSION: "TLSv1.3", UNIQUE: base64.b64encode(b"u" * 12).decode()})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({CERT: "no base64!"}, "neither base64 of DER nor URL-encoded PEM"),
        ({CERT: "gr\u00fcn"}, "neither base64"),
        ({CERT: haproxy(LEAF)[:-8]}, "holds no certificate"),
        ({CERT: base64.b64encode(b"junk").decode()}, "holds no certificate"),
        ({CERT: base64.b64encode(b"\x04\x01x").decode()}, "something else than a SEQUENCE"),
        ({CERT: base64.b64encode(der(LEAF) + b"\0").decode()}, "holds no certificate"),
        ({CERT: haproxy(LEAF, SUB.certificate)}, "more than one"),
        ({CERT: nginx(LEAF) + nginx(LEAF)}, "more than one"),
        ({CERT: nginx(LEAF)[:-20]}, "neither"),
        ({CERT: nginx(LEAF) + "x"}, "neither"),
        ({CERT: "-----BEGIN%FF"}, "neither"),
        ({CERT: "-----BEGIN%20CERTIFICATE-----%0A====%0A-----END%20CERTIFICATE-----"}, "neither"),
        ({CERT: "(null)"}, "neither"),
        ({CERT: f"{haproxy(LEAF)},{haproxy(LEAF)}"}, "came twice"),
        ({CERT: f",{haproxy(LEAF)}"}, "came twice"),
        ({CHAIN: haproxy(LEAF)}, "without the certificate"),
        ({CERT: haproxy(LEAF), CHAIN: "-"}, "neither"),
        ({VERSION: "TLSv1.2,TLSv1.2"}, "came twice"),
        ({VERSION: "tlsv1.2"}, "names no version"),
        ({VERSION: "https"}, "names no version"),
        ({UNIQUE: "x"}, "is not base64"),
        ({UNIQUE: "\u00fc"}, "is not base64"),
        ({UNIQUE: base64.b64encode(b"u" * 11).decode()}, "11 octets"),
        ({UNIQUE: base64.b64encode(b"u" * 48).decode()}, "48 octets"),
        ({ADDRESS: ""}, "is no IP address"),
        ({ADDRESS: "device.example"}, "is no IP address"),
        ({ADDRESS: "203.0.113.9:4711"}, "is no IP address"),
        ({ADDRESS: "fe80::1%eth0"}, "is no IP address"),
        ({ADDRESS: "203.0.113.9, 192.0.2.1"}, "came twice"),
    ],
)
def test_what_cannot_be_read_is_refused_and_never_ignored(change: dict[str, str], words: str) -> None:
    with pytest.raises(MalformedRequest, match=words) as refused:
        PROXY.peer({**GOOD, **change})
    assert refused.value.code == "malformed-proxy-header"


@pytest.mark.parametrize("version", [None, "", "SSLv3", "TLSv1", "TLSv1.1"])
def test_s_t02_a_proxy_that_says_nothing_of_tls_or_takes_old_ones_is_not_believed(version: str | None) -> None:
    environ = {**GOOD, VERSION: version} if version is not None else {k: v for k, v in GOOD.items() if k != VERSION}
    with pytest.raises(NotAuthorized) as refused:
        PROXY.peer(environ)
    assert refused.value.code == "no-tls"


@pytest.mark.parametrize("address", ["192.0.2.2", "127.0.0.1", "::1", "", "192.0.2.1 ", "192.0.2.01", "2001:db8::2"])
def test_s_a10_only_the_proxys_own_address_is_believed(address: str) -> None:
    with pytest.raises(NotAuthorized, match="over TLS only; headers of a proxy") as refused:
        PROXY.peer({**GOOD, "REMOTE_ADDR": address, CERT: haproxy(LEAF)})
    assert refused.value.code == "no-tls"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "192.0.2.1", ""])
def test_s_a10_nobody_is_believed_by_default_this_machine_included(address: str) -> None:
    with pytest.raises(NotAuthorized):
        NOBODY.peer({**GOOD, "REMOTE_ADDR": address})


@pytest.mark.parametrize("address", ["::ffff:192.0.2.1", "2001:db8:0::1"])
def test_an_address_counts_however_it_is_written(address: str) -> None:
    assert PROXY.peer({**GOOD, "REMOTE_ADDR": address}).address == "203.0.113.9"


def test_where_it_connects_from_is_the_sockets_word_and_no_headers() -> None:
    forged = {"HTTP_X_FORWARDED_FOR": "192.0.2.1", "HTTP_REMOTE_ADDR": "192.0.2.1", "HTTP_FORWARDED": "for=192.0.2.1"}
    with pytest.raises(NotAuthorized):
        PROXY.peer({**GOOD, **forged, "REMOTE_ADDR": "192.0.2.7"})


def test_b_07_beside_our_own_front_no_header_is_looked_at() -> None:
    facts: TlsPeer = tls_peer()
    environ = {**GOOD, CERT: haproxy(LEAF), UNIQUE: "junk", "tls.peer": facts}
    establish_peer(environ, PROXY)
    peer = peer_of(environ)
    assert (peer.address, peer.certificate, peer.tls_version) == ("192.0.2.1", None, "TLSv1.3")


def test_who_was_refused_is_known_by_address_alone() -> None:
    environ = {**GOOD, VERSION: "junk"}
    with pytest.raises(MalformedRequest):
        establish_peer(environ, PROXY)
    assert known_peer(environ) == Peer("192.0.2.1")


words = st.one_of(
    st.binary(max_size=60).map(lambda octets: octets.decode("latin-1")),
    st.binary(max_size=60).map(lambda octets: base64.b64encode(octets).decode()),
    st.binary(max_size=60).map(lambda octets: "-----BEGIN%20CERTIFICATE-----%0A" + quote(octets)),
    st.sampled_from(["", "TLSv1.2", "TLSv1.3", "203.0.113.9", haproxy(LEAF), nginx(LEAF), haproxy(SUB.certificate)]),
)


@given(st.dictionaries(st.sampled_from(HEADERS), words))
def test_any_octets_are_facts_or_an_error_of_ours(said: dict[str, str]) -> None:
    try:
        peer = PROXY.peer({**GOOD, **said})
    except (NotAuthorized, MalformedRequest):
        return
    assert peer.tls_version in {"TLSv1.2", "TLSv1.3"}
    assert peer.certificate is not None or not said.get(CERT)
    assert peer.binding is None or len(peer.binding.value) == 12


@pytest.fixture
def home(tmp_path) -> Home:
    return found_home(tmp_path / "home")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('addresses = ["10.0.0.0/8"]', "not an IP address"),
        ('addresses = ["proxy.example"]', "not an IP address"),
        ('addresses = "127.0.0.1"', "tuple"),
        ('certificate_header = "X SSL"', "pattern"),
        ('certificate_header = ""', "pattern"),
        ('certificate_header = "x-ssl-protocol"', "same name"),
        ("trust_loopback = true", "Extra inputs"),
    ],
)
def test_what_cannot_be_meant_is_told_at_start(home: Home, section: str, words: str) -> None:
    home.configure(f"[proxy]\n{section}\n")
    with pytest.raises(ConfigError, match=words):
        _ = home.settings
