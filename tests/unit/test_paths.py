"""Paths to an anchor: each reason why one is no good, at the last value that is and the first that is not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from estserver.identity import Anchor, AnchorSet, paths
from estserver.model import Der
from tests.csr_maker import new_key, usage
from tests.makers import CLIENT, SERVER, Maker

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
OLD = NOW - timedelta(days=3650)
ROOT = Maker("Root", not_before=OLD)


def der(certificate: x509.Certificate) -> Der:
    return Der(certificate.public_bytes(Encoding.DER))


def anchors(*makers: Maker, intermediates: Sequence[x509.Certificate] = ()) -> AnchorSet:
    return AnchorSet([Anchor(one.name, der(one.certificate)) for one in makers or (ROOT,)], map(der, intermediates))


def problems(maker: Maker = ROOT, now: datetime = NOW, **how: Any) -> tuple[str, ...]:
    holder = maker.idevid("1", **{"not_before": OLD, **how})
    path = anchors().path(der(holder.certificate), tuple(map(der, holder.chain)), now)
    assert path is not None
    assert (path.leaf, path.subject, path.anchor) == (holder.certificate, holder.certificate.subject, "Root")
    return path.problems


# --- time -----------------------------------------------------------------------------------------------------------


def test_a_certificate_is_in_time_from_its_first_second_to_its_last() -> None:
    life = {"not_before": NOW, "not_after": NOW + SECOND}
    assert problems(**life) == problems(now=NOW + SECOND, **life) == ()
    assert problems(now=NOW - SECOND, **life) == ("the certificate is not valid before 2027-03-01 12:00:00 UTC",)
    assert problems(now=NOW + 2 * SECOND, **life) == ("the certificate expired on 2027-03-01 12:00:01 UTC",)


def test_every_certificate_of_the_chain_is_held_to_the_time_the_anchor_included() -> None:
    root = Maker("Root", not_before=OLD, not_after=NOW - 3 * SECOND)
    below = Maker("Below", above=root, not_before=NOW + SECOND)
    holder = below.idevid("1", not_before=OLD, not_after=NOW - SECOND)
    path = anchors(root).path(der(holder.certificate), tuple(map(der, holder.chain)), NOW)
    assert path is not None
    assert path.problems == (
        "the certificate expired on 2027-03-01 11:59:59 UTC",
        "CA certificate 1 of the chain is not valid before 2027-03-01 12:00:01 UTC",
        "CA certificate 2 of the chain expired on 2027-03-01 11:59:57 UTC",
    )


# --- what a leaf may be used for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "reasons"),
    [
        ({}, ()),
        ({"purposes": [CLIENT]}, ()),
        ({"purposes": [SERVER, CLIENT]}, ()),
        ({"purposes": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, ()),
        ({"key_usage": usage("digital_signature")}, ()),
        ({"purposes": [SERVER]}, ("its extended key usage does not allow TLS client authentication",)),
        ({"key_usage": usage("key_encipherment")}, ("its key usage does not allow digital signatures",)),
        ({"ca": True}, ("a CA certificate is not a client",)),
    ],
)
def test_a_leaf_is_an_end_entity_that_may_sign_as_a_client(how: dict[str, Any], reasons: tuple[str, ...]) -> None:
    assert problems(**how) == reasons


def test_a_leaf_that_says_it_is_no_ca_is_none() -> None:
    path = anchors().path(der(issued(extensions=[x509.BasicConstraints(ca=False, path_length=None)])), (), NOW)
    assert path is not None
    assert path.problems == ()


# --- strength -------------------------------------------------------------------------------------------------------


def issued(
    by: Maker | None = None,
    *,
    signer: Any = None,
    key: Any = None,
    hash_: hashes.HashAlgorithm | None = None,
    extensions: Sequence[Any] = (),
    name: str = "leaf",
) -> x509.Certificate:
    """A certificate below `ROOT`, or below `by` whose key `signer` is."""
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, by.name if by is not None else "Root")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key((key or new_key()).public_key())
        .serial_number(5)
        .not_valid_before(OLD)
        .not_valid_after(NOW + timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    signer = signer or ROOT.key
    return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hash_ or hashes.SHA256())


CA = (x509.BasicConstraints(ca=True, path_length=None), usage("key_cert_sign"))


@pytest.mark.parametrize(
    ("how", "reasons"),
    [
        ({"hash_": hashes.SHA384()}, ()),
        ({"hash_": hashes.SHA224()}, ("a certificate of the chain is signed with SHA224",)),
        ({"key": rsa.generate_private_key(65537, 2048)}, ()),
        ({"key": rsa.generate_private_key(65537, 2047)}, ("a certificate of the chain has a key of 2047 bits",)),
        ({"key": ed25519.Ed25519PrivateKey.generate()}, ()),
    ],
)
def test_what_a_peer_sends_is_strong(how: dict[str, Any], reasons: tuple[str, ...]) -> None:
    path = anchors().path(der(issued(**how)), (), NOW)
    assert path is not None
    assert path.problems == reasons


def test_every_certificate_below_the_anchor_is_strong_and_the_anchor_is_as_it_is() -> None:
    weak, plain = rsa.generate_private_key(65537, 1024), ed25519.Ed25519PrivateKey.generate()
    middle = issued(key=weak, extensions=CA, name="middle")
    last = issued(Maker("middle"), signer=weak, key=plain, extensions=CA, name="last")
    leaf = issued(Maker("last"), signer=plain)
    reason = "a certificate of the chain has a key of 1024 bits"
    path = anchors().path(der(leaf), (der(last), der(middle)), NOW)
    assert path is not None
    assert path.problems == (reason,), "Ed25519 has no hash to judge"
    trusted = AnchorSet([Anchor("middle", der(middle))]).path(der(leaf), (der(last),), NOW)
    assert trusted is not None
    assert (trusted.anchor, trusted.problems) == ("middle", ()), "an operator's word counts"


# --- where it leads -------------------------------------------------------------------------------------------------


def chain_of(length: int) -> tuple[Der, tuple[Der, ...]]:
    maker = ROOT
    for number in range(length):
        maker = Maker(f"CA {number}", above=maker, not_before=OLD)
    holder = maker.idevid("1", not_before=OLD)
    return der(holder.certificate), tuple(map(der, holder.chain))


def test_so_many_certificates_are_read_beside_the_leaf_and_no_more() -> None:
    leaf, chain = chain_of(paths.INTERMEDIATES_MAX)
    assert len(chain) == 8
    assert anchors().path(leaf, chain, NOW) is not None
    assert anchors().path(leaf, chain[::-1], NOW) is not None, "in any order"
    assert anchors().path(leaf, (der(ROOT.certificate), *chain), NOW) is None, "the last one is not looked at"


def test_intermediates_help_and_are_trusted_for_nothing() -> None:
    below = Maker("Below", above=ROOT, not_before=OLD)
    holder = below.idevid("1", not_before=OLD)
    leaf = der(holder.certificate)
    assert anchors().path(leaf, (), NOW) is None
    found = anchors(intermediates=[below.certificate]).path(leaf, (), NOW)
    assert found is not None
    assert found.anchor == "Root"
    other = Maker("Other", not_before=OLD)
    assert anchors(other, intermediates=[below.certificate, ROOT.certificate]).path(leaf, (), NOW) is None


def test_the_anchor_that_is_reached_is_named() -> None:
    other = Maker("Other", not_before=OLD)
    both = anchors(ROOT, other)
    for maker in (ROOT, other):
        path = both.path(der(maker.idevid("1", not_before=OLD).certificate), (), NOW)
        assert path is not None
        assert path.anchor == maker.name


def test_extensions_that_nobody_knows_and_that_are_critical_end_a_path() -> None:
    assert anchors().path(der(ROOT.idevid("1", critical_unknown=True).certificate), (), NOW) is None


def test_a_chain_is_remembered_and_its_time_looked_at_anew() -> None:
    known, holder = anchors(), ROOT.idevid("1", not_before=OLD, not_after=NOW)
    results = [known.path(der(holder.certificate), (), now) for now in (NOW, NOW + SECOND, NOW)]
    assert [None if path is None else len(path.problems) for path in results] == [0, 1, 0]


def test_no_more_chains_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers choose what they send; what is kept of it is bounded."""
    monkeypatch.setattr(paths, "REMEMBERED_MAX", 2)
    known = anchors()
    for serial in ("1", "2", "3"):
        assert known.path(der(ROOT.idevid(serial, not_before=OLD).certificate), (), NOW) is not None
    assert known._chain.cache_info().currsize == 2


def test_the_key_of_a_certificate_is_digested_as_it_stands_in_it() -> None:
    key = new_key()
    first, again = (der(ROOT.idevid(serial, key=key).certificate) for serial in ("1", "2"))
    assert paths.key_of(first) == paths.key_of(again) != paths.key_of(der(ROOT.idevid("1").certificate))
    assert paths.key_of(Der(b"\x30\x00")) is None
    assert paths.extension(ROOT.certificate, x509.ExtendedKeyUsage) is None
    assert paths.extension(ROOT.certificate, x509.BasicConstraints) is not None


def test_an_anchor_need_not_be_self_signed() -> None:
    below = Maker("Below", above=ROOT, not_before=OLD)
    leaf = der(below.idevid("1", not_before=OLD).certificate)
    path = AnchorSet([Anchor("below", der(below.certificate))]).path(leaf, (), NOW)
    assert path is not None
    assert (path.anchor, path.problems) == ("below", ())


def test_curves_other_than_the_usual_are_a_matter_of_the_policy() -> None:
    path = anchors().path(der(issued(key=ec.generate_private_key(ec.SECP521R1()))), (), NOW)
    assert path is not None
    assert path.problems == ()
