"""Whom the client believes, and what it says before it does (est-conformance C-T, C-B, C-P)."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from devicesim import ClientIdentity, Credentials, EstClient, TrustAnchors, bootstrap
from devicesim.csr import KEY_TYPES, CsrDraft
from devicesim.errors import (
    CannotComply,
    ConfigInvalid,
    EstRefused,
    KeyStoreError,
    Unreachable,
    UsageProblem,
    VerificationFailed,
)
from devicesim.transport import Connection, Origin, TlsSettings
from devicesim.trust import names_host
from tests.protocol.client_stub import CMC_RA, Authority, EstStub, StubServer, answer, cms, name, write_pem

LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
ELSEWHERE = x509.DNSName("elsewhere.example")
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.fixture(scope="module")
def root():
    return Authority.root()


@pytest.fixture(scope="module")
def issuing(root):
    return root.intermediate()


@pytest.fixture
def stub(root, issuing):
    return EstStub(root, issuing)


@pytest.fixture
def serve(stub):
    servers = []

    def start(identity, handler=stub, **kwargs):
        servers.append(StubServer(identity, handler, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def connect(server, *anchors, host="127.0.0.1", **kwargs):
    trust = TrustAnchors(tuple(authority.certificate for authority in anchors))
    return EstClient(f"https://{host}:{server.port}", trust=trust, timeout_seconds=5, **kwargs)


def draft() -> CsrDraft:
    return CsrDraft.of(KEY_TYPES["EC-P256"].generate(), "sn-1")


# --- the server is authorised first ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("san", "eku", "believed"),
    [
        ((LOOPBACK,), (SERVER,), True),
        ((ELSEWHERE,), (SERVER, CMC_RA), True),
        ((LOOPBACK,), (SERVER, CMC_RA), True),
        ((ELSEWHERE,), (SERVER,), False),
        ((x509.DNSName("127.0.0.1"),), (SERVER,), False),
        ((LOOPBACK,), (CLIENT,), False),
        ((), (SERVER,), False),
    ],
)
def test_a_server_is_believed_for_its_name_or_as_a_registration_authority(serve, root, san, eku, believed):
    identity = root.server(*san, eku=eku) if san else _without_names(root)
    server = serve(identity)
    with connect(server, root) as client:
        if believed:
            assert client.cacerts().certificates
        else:
            with pytest.raises(VerificationFailed):
                client.cacerts()
            assert server.seen == []


def _without_names(root):
    """A server whose name is only in its common name."""
    key = ec.generate_private_key(ec.SECP256R1())
    return root.issue(name("127.0.0.1"), key.public_key(), eku=(SERVER,)), key


@pytest.mark.parametrize(("start_days", "days", "said"), [(-10, 5, "it has expired"), (2, 5, "it is not valid yet")])
def test_a_server_is_not_believed_outside_of_its_dates(serve, root, start_days, days, said):
    start = datetime.now(UTC) + timedelta(days=start_days)
    server = serve(root.server(start=start, days=days))
    with connect(server, root) as client, pytest.raises(VerificationFailed, match=said):
        client.cacerts()


def test_the_clock_of_the_device_decides_about_dates_when_it_has_one(serve, root):
    server = serve(root.server())
    late = connect(server, root, clock=lambda: datetime.now(UTC) + timedelta(days=4000))
    with late, pytest.raises(VerificationFailed, match="expired"):
        late.cacerts()
    with connect(server, root, clock=lambda: datetime.now(UTC)) as client:
        assert client.cacerts().certificates


def test_only_the_anchors_given_count(serve, root):
    stranger = Authority.root("Stranger")
    server = serve(stranger.server())
    with connect(server, root) as client, pytest.raises(VerificationFailed, match="trust anchor"):
        client.cacerts()
    with connect(server, root, stranger) as client:
        assert client.cacerts().certificates
    with pytest.raises(ConfigInvalid):
        TrustAnchors(())


def test_an_anchor_need_not_be_self_signed(serve, issuing):
    with connect(serve(issuing.server()), issuing) as client:
        assert client.cacerts().certificates


def test_a_man_in_the_middle_gets_neither_the_password_nor_the_certificate(serve, root):
    stranger = Authority.root(root.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
    key = KEY_TYPES["EC-P256"].generate()
    own = ClientIdentity((root.issue(name("sn-1"), key.public_key()),), key)
    server = serve(stranger.server(), lambda _: answer(401, WWW_Authenticate='Basic realm="est"'))
    client = connect(server, root, credentials=Credentials("u", b"secret"), identity=own)
    with client, pytest.raises(VerificationFailed):
        client.simpleenroll(draft())
    assert server.connections == 1
    assert server.seen == []


@pytest.mark.parametrize(
    ("pattern", "host", "fits"),
    [
        ("est.example", "EST.example", True),
        ("*.example.com", "est.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("e*.example.com", "est.example.com", False),
        ("est.*.com", "est.example.com", False),
        ("*.com", "example.com", False),
        ("*", "localhost", False),
    ],
)
def test_dns_names_match_as_rfc_9525_says(root, pattern, host, fits):
    certificate, _ = root.server(x509.DNSName(pattern))
    assert names_host(certificate, host) is fits


def test_a_host_name_is_matched_and_sent(serve, root):
    with connect(serve(root.server(x509.DNSName("localhost"))), root, host="localhost") as client:
        assert client.cacerts().certificates


# --- the client's own certificate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["EC-P256", "RSA-2048", "Ed25519", "ML-DSA-65"])
def test_every_kind_of_key_authenticates_in_the_handshake(serve, root, issuing, kind):
    key = KEY_TYPES[kind].generate()
    leaf = issuing.issue(name("sn-1"), key.public_key(), eku=(CLIENT,))
    server = serve(root.server(), client_trust=root.certificate)
    with connect(server, root, identity=ClientIdentity((leaf, issuing.certificate), key)) as client:
        client.cacerts()
    assert server.seen[0].peer == leaf


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_a_client_certificate_the_server_does_not_trust_is_a_refusal_not_a_network_problem(serve, root, tls):
    stranger = Authority.root("Stranger")
    key = KEY_TYPES["EC-P256"].generate()
    leaf = stranger.issue(name("sn-1"), key.public_key(), eku=(CLIENT,))
    server = serve(root.server(), client_trust=root.certificate)
    client = connect(server, root, identity=ClientIdentity((leaf,), key), tls=tls)
    with client, pytest.raises(EstRefused, match="client certificate") as caught:
        client.cacerts()
    assert caught.value.status is None


def test_a_certificate_and_a_key_that_do_not_belong_together_are_refused(root):
    leaf = root.issue(name("sn-1"), KEY_TYPES["EC-P256"].generate().public_key())
    with pytest.raises(KeyStoreError, match="does not belong"):
        ClientIdentity((leaf,), KEY_TYPES["EC-P256"].generate())


# --- bootstrap ------------------------------------------------------------------------------------------------------


def fingerprint(authority, algorithm=hashes.SHA256) -> str:
    return authority.certificate.fingerprint(algorithm()).hex()


@pytest.mark.parametrize("form", [str, str.upper, lambda text: ":".join(text[i : i + 2] for i in range(0, 64, 2))])
def test_the_anchor_is_learnt_by_its_fingerprint_over_two_connections(serve, root, issuing, form):
    server = serve(root.server())
    found = bootstrap(server.url, form(fingerprint(root)))
    assert found.trust.explicit == (root.certificate,)
    assert found.intermediates(datetime.now(UTC)) == (issuing.certificate,)
    assert [seen.connection for seen in server.seen] == [1, 2]
    assert server.paths() == ["cacerts", "cacerts"]
    assert not any("authorization" in seen.headers for seen in server.seen)


def test_a_sha_512_fingerprint_is_one_too(serve, root):
    assert bootstrap(serve(root.server()).url, fingerprint(root, hashes.SHA512)).trust.explicit == (root.certificate,)


def test_a_wrong_fingerprint_ends_it_after_one_connection(serve, root):
    server = serve(root.server())
    with pytest.raises(VerificationFailed, match="nothing was kept"):
        bootstrap(server.url, fingerprint(Authority.root("Other")))
    assert server.connections == 1


def test_the_fingerprint_of_what_is_not_self_signed_makes_no_anchor(serve, root, issuing):
    with pytest.raises(VerificationFailed, match="nothing was kept"):
        bootstrap(serve(root.server()).url, fingerprint(issuing))


def test_the_right_bag_from_the_wrong_server_is_not_believed(serve, root):
    server = serve(Authority.root("Man in the middle").server())
    with pytest.raises(VerificationFailed, match="trust anchor"):
        bootstrap(server.url, fingerprint(root))
    assert server.paths() == ["cacerts"]


def test_a_challenge_during_bootstrap_is_not_answered(serve, root):
    server = serve(root.server(), lambda _: answer(401, WWW_Authenticate='Basic realm="est"'))
    with pytest.raises(EstRefused):
        bootstrap(server.url, fingerprint(root))
    assert server.connections == 1


@pytest.mark.parametrize("text", ["", "ab", "g" * 64, "a" * 63])
def test_what_is_no_fingerprint_is_said_before_anything_is_sent(text):
    with pytest.raises(UsageProblem, match="fingerprint"):
        bootstrap("https://127.0.0.1:1", text)


# --- what is in the bag ---------------------------------------------------------------------------------------------


def test_certificates_in_the_bag_are_used_only_when_they_chain_to_the_anchor(serve, root, issuing):
    stranger = Authority.root("Stranger")
    bag = cms(stranger.certificate, stranger.intermediate("X").certificate, issuing.certificate, root.certificate)
    server = serve(root.server(), lambda _: bag)
    with connect(server, root) as client:
        found = client.cacerts()
    assert len(found.certificates) == 4
    assert found.intermediates(datetime.now(UTC)) == (issuing.certificate,)


# --- channel binding ------------------------------------------------------------------------------------------------


def test_a_connection_without_a_safe_binding_is_not_used_when_the_server_wants_one(serve, root, monkeypatch):
    monkeypatch.setattr(Connection, "binding", property(lambda _: None))
    server = serve(root.server())
    made = draft()
    with connect(server, root) as client:
        client.simpleenroll(made)
        assert server.seen[-1].challenge is None
        wanted = CsrDraft(made.key, made.subject, digest=made.digest, binding_required=True)
        with pytest.raises(CannotComply, match="bound to its connection"):
            client.simpleenroll(wanted)
    assert len(server.seen) == 1


def test_tls_1_2_without_the_extended_master_secret_has_no_binding(serve, root, monkeypatch):
    monkeypatch.setattr(SSL._lib, "SSL_get_extms_support", lambda _: 0, raising=False)
    server = serve(root.server())
    settings = TlsSettings(TrustAnchors((root.certificate,)), versions="1.2", timeout_seconds=5)
    connection = Connection(Origin("127.0.0.1", server.port), settings)
    assert connection.tls_version == "TLSv1.2"
    assert connection.binding is None
    connection.close()


def test_a_connection_that_was_closed_in_between_is_replaced_and_the_request_made_anew(serve, root, stub):
    server = serve(root.server())
    stub.put(answer(200, b"", Connection="close", Content_Type="application/csrattrs"), operation="csrattrs")
    made = draft()
    with connect(server, root) as client:
        client.csrattrs()
        client.simpleenroll(made)
        client.simpleenroll(made)
    first, second = server.seen[1:]
    assert first.connection == 2
    assert first.body == second.body
    assert first.challenge == first.binding


def test_a_lost_answer_is_never_repeated_behind_the_callers_back(serve, root, stub):
    server = serve(root.server())
    stub.put(None, operation="simpleenroll")
    made = draft()
    with connect(server, root) as client:
        with pytest.raises(Unreachable, match="the connection"):
            client.simpleenroll(made)
        assert server.paths() == ["simpleenroll"]
        certificate = client.simpleenroll(made)
    assert certificate.subject == made.subject
    lost, repeated = server.seen
    assert lost.challenge != repeated.challenge
    assert repeated.challenge == repeated.binding
    assert lost.csr.public_key() == repeated.csr.public_key()


def test_trust_is_read_from_pem_and_der(root, issuing, tmp_path):
    both = write_pem(tmp_path / "both.pem", root.certificate, issuing.certificate)
    assert TrustAnchors.from_file(both).explicit == (root.certificate, issuing.certificate)
    for wrong, said in ((tmp_path / "none", "cannot read"), (__file__, "no readable certificate")):
        with pytest.raises(ConfigInvalid, match=said):
            TrustAnchors.from_file(wrong)


# --- after a redirect -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_c_r03_after_a_redirect_the_request_is_made_anew_for_its_new_connection(serve, stub, root, tls):
    second = serve(root.server())
    first = serve(root.server(), lambda _: answer(307, Location=f"{second.url}/.well-known/est/simpleenroll"))
    with connect(first, root, tls=tls, redirect_origins=[second.url]) as client:
        client.simpleenroll(draft())
    (sent,), (repeated,) = first.seen, second.seen
    assert sent.challenge == sent.binding != repeated.binding == repeated.challenge
    assert sent.csr.public_key() == repeated.csr.public_key()


def test_c_r03_within_the_origin_a_redirect_leads_over_a_new_connection_too(serve, stub, root):
    stub.put(answer(308, Location="/.well-known/est/there/simpleenroll"))
    server = serve(root.server())
    with connect(server, root) as client:
        client.simpleenroll(draft())
    assert [seen.connection for seen in server.seen] == [1, 2]
    assert all(seen.challenge == seen.binding for seen in server.seen)
    assert server.seen[0].binding != server.seen[1].binding


@pytest.mark.parametrize("operation", ["cacerts", "simpleenroll"])
def test_c_r03_where_a_redirect_leads_the_server_is_authorised_again(serve, root, issuing, operation):
    stranger = serve(Authority.root("Stranger").server())
    named_otherwise = serve(root.server(ELSEWHERE))
    for target in (stranger, named_otherwise):
        location = f"{target.url}/.well-known/est/{operation}"
        server = serve(root.server(), lambda _, where=location: answer(307, Location=where))
        with (
            connect(server, root, redirect_origins=[target.url], credentials=Credentials("a", b"secret")) as client,
            pytest.raises(VerificationFailed),
        ):
            client.cacerts() if operation == "cacerts" else client.simpleenroll(draft())
        assert target.seen == []


def test_c_r03_to_http_nothing_is_sent(serve, root):
    listener = socket.create_server(("127.0.0.1", 0))
    location = f"http://127.0.0.1:{listener.getsockname()[1]}/.well-known/est/simpleenroll"
    server = serve(root.server(), lambda _: answer(307, Location=location))
    with contextlib.closing(listener), connect(server, root) as client:
        with pytest.raises(EstRefused, match="none for EST"):
            client.simpleenroll(draft())
        assert select.select([listener], [], [], 0)[0] == []


# --- the binding, asked for or switched off -------------------------------------------------------------------------


def test_the_binding_can_be_switched_off_but_not_against_the_servers_wish(serve, root, stub):
    server = serve(root.server())
    with connect(server, root, pop="off") as client:
        client.simpleenroll(draft())
        assert server.seen[-1].challenge is None
        with pytest.raises(CannotComply, match="switched off"):
            client.simpleenroll(replace(draft(), binding_required=True))
    assert len(server.seen) == 1


def test_a_binding_that_is_required_is_there_or_nothing_is_sent(serve, root, monkeypatch):
    server = serve(root.server())
    with connect(server, root, pop="required") as client:
        client.simpleenroll(draft())
        assert server.seen[-1].challenge == server.seen[-1].binding
        with pytest.raises(CannotComply, match="signed elsewhere"):
            client.simpleenroll(draft().sign())
    monkeypatch.setattr(Connection, "binding", None)
    with connect(server, root, pop="required") as client, pytest.raises(CannotComply, match="has no binding"):
        client.simpleenroll(draft())
    assert len(server.seen) == 1
