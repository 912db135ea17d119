"""Which root a bag of CA certificates makes a device believe, as tables of bags (est-conformance R-03, R-08, C-C)."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from devicesim import TrustAnchors
from devicesim.cacerts import refresh_due, succeed
from devicesim.check import chains
from tests.protocol.client_stub import Authority, name
from tests.root_family import DAY, Family, stranger, tampered

START = datetime(2027, 1, 1, tzinfo=UTC)
NOW = START + 60 * DAY
FAMILY = Family.founded(START)
SAME_NAME = Family.founded(START, new="Plant Root")
OLD, NEW = FAMILY.old.certificate, FAMILY.new.certificate
LINK, BACK = FAMILY.new_with_old(), FAMILY.old_with_new()
STRANGER = stranger(START)
# A sub-CA below the old root that signs a root for its own name and key: it would outlive who made it.
_sub = Authority.root("Issuing CA", start=START, days=3000)
CLIMBER = _sub.certificate


def climbing(**kwargs) -> x509.Certificate:
    return FAMILY.old.issue(CLIMBER.subject, CLIMBER.public_key(), ca=True, start=START, days=380, **kwargs)


def after(bag, *anchors: x509.Certificate, now: datetime = NOW):
    return succeed(TrustAnchors(anchors or (OLD,)), bag, now)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_r_03_the_new_root_is_adopted_whatever_the_order_of_the_bag(order) -> None:
    found = after([(OLD, NEW, LINK, BACK)[place] for place in order])
    assert (found.adopted, found.root, found.before, found.note) == (True, NEW, (OLD,), "")
    assert found.trust.explicit == (NEW, OLD)
    assert found.settled().explicit == (NEW,)


def test_r_03_a_root_keeps_its_name_or_changes_it() -> None:
    found = after(SAME_NAME.bag(), SAME_NAME.old.certificate)
    assert found.trust.explicit == (SAME_NAME.new.certificate, SAME_NAME.old.certificate)


BAGS = {
    "no link": (OLD, NEW, BACK),
    "the link alone tampered with": (OLD, NEW, tampered(LINK), BACK),
    "a link signed by a stranger": (OLD, NEW, FAMILY.new_with_old(by=STRANGER), BACK),
    "a link signed by the new key itself": (OLD, NEW, FAMILY.new_with_old(by=FAMILY.new)),
    "a link that names the old root and is signed by a stranger": (
        OLD,
        NEW,
        FAMILY.new_with_old(by=Authority(OLD, STRANGER.key)),
    ),
    "a link for another key": (
        OLD,
        NEW,
        FAMILY.old.issue(NEW.subject, STRANGER.key.public_key(), ca=True, start=START),
    ),
    "a link for another name": (OLD, NEW, FAMILY.old.issue(name("Plant"), NEW.public_key(), ca=True, start=START)),
    "a link that is no CA": (OLD, NEW, FAMILY.old.issue(NEW.subject, NEW.public_key(), start=START)),
    "a link that has ended": (OLD, NEW, FAMILY.new_with_old(days=20)),
    "a link that has not begun": (OLD, NEW, FAMILY.new_with_old(start=NOW + DAY)),
    "a stranger": (OLD, STRANGER.certificate),
    "a stranger that vouches for itself": (OLD, STRANGER.certificate, STRANGER.issue(OLD.subject, OLD.public_key())),
    "a sub-CA that climbs": (OLD, CLIMBER, climbing(path_length=0)),
    "the new root tampered with": (OLD, tampered(NEW), LINK, BACK),
}


@pytest.mark.parametrize("case", BAGS)
def test_r_03_r_08_what_no_trusted_key_vouches_for_is_not_adopted(case: str) -> None:
    found = after(BAGS[case])
    assert (found.adopted, found.trust.explicit, found.before) == (False, (OLD,), ())
    assert found.settled().explicit == (OLD,)


@pytest.mark.parametrize("case", sorted(BAGS.keys() - {"the new root tampered with"}))
def test_r_08_a_newer_root_that_was_refused_is_told_in_one_line(case: str) -> None:
    note = after(BAGS[case]).note
    assert "vouches for" in note
    assert note.isprintable()


def test_r_08_a_stranger_beside_the_new_root_is_told_of_and_does_not_keep_it_out() -> None:
    found = after((*FAMILY.bag(), STRANGER.certificate))
    assert found.trust.explicit == (NEW, OLD)
    assert "Stranger" in found.note


def test_c_c03_only_an_unlimited_certificate_vouches_for_another_name() -> None:
    """A sub-CA with a limit, of path length or of names, is one and stays one."""
    limits = x509.NameConstraints(permitted_subtrees=[x509.DNSName("plant.example")], excluded_subtrees=None)
    builder = x509.CertificateBuilder(OLD.subject, CLIMBER.subject, CLIMBER.public_key(), 7, START, START + 380 * DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    constrained = builder.add_extension(limits, critical=True).sign(FAMILY.old.key, hashes.SHA256())
    assert not after((OLD, CLIMBER, constrained)).adopted
    assert not after((OLD, CLIMBER, climbing(path_length=0))).adopted
    assert after((OLD, CLIMBER, climbing())).adopted


def test_c_c03_an_older_root_never_comes_back() -> None:
    for bag in ((OLD, BACK), (OLD, NEW, BACK, LINK), (OLD,)):
        found = after(bag, NEW)
        assert (found.adopted, found.trust.explicit, found.note) == (False, (NEW,), "")


def test_c_c03_a_root_made_anew_with_its_own_key_follows_itself() -> None:
    longer = Authority(FAMILY.old.issue(OLD.subject, OLD.public_key(), ca=True, start=START, days=4000), FAMILY.old.key)
    found = after((OLD, longer.certificate))
    assert found.trust.explicit == (longer.certificate, OLD)


def test_c_c03_what_was_before_is_known_again_on_every_look() -> None:
    found = after(FAMILY.bag(), NEW, OLD)
    assert (found.adopted, found.root, found.before) == (False, NEW, (OLD,))
    assert found.settled().explicit == (NEW,)


def test_c_c03_an_anchor_that_has_nothing_to_do_with_it_stays() -> None:
    other = Authority.root("Other", start=START, days=5000).certificate
    found = after(FAMILY.bag(), OLD, other)
    assert found.trust.explicit == (NEW, OLD, other)
    assert found.settled().explicit == (NEW, other)


def test_c_c03_after_the_old_root_has_ended_nothing_it_signed_vouches() -> None:
    found = after(FAMILY.bag(), now=START + 500 * DAY)
    assert (found.adopted, found.trust.explicit) == (False, (OLD,))
    assert "fingerprint" in found.note


def test_c_c03_leaves_of_both_roots_verify_for_who_trusts_either() -> None:
    """What the links are for: nobody has to change on the same day (RFC 9810 §4.4.2)."""
    leaves = [
        one.issue(name("leaf"), STRANGER.key.public_key(), start=START, days=300) for one in (FAMILY.old, FAMILY.new)
    ]
    for anchor in (OLD, NEW):
        assert all(chains(leaf, FAMILY.bag(), TrustAnchors((anchor,)), NOW) for leaf in leaves)


@pytest.mark.parametrize(
    ("lasts", "due_after"),
    [
        (timedelta(days=3650), timedelta(days=30)),
        (timedelta(days=20), timedelta(days=10)),
        (timedelta(days=60), timedelta(days=30)),
    ],
)
def test_c_c02_ca_certificates_are_due_after_a_month_or_half_of_what_is_left(lasts, due_after) -> None:
    end = OLD.not_valid_after_utc
    trust, fetched = TrustAnchors((NEW, OLD)), end - lasts
    if lasts > timedelta(days=400):
        trust, fetched = TrustAnchors((NEW,)), NEW.not_valid_after_utc - lasts
    assert refresh_due(trust, fetched, fetched + due_after)
    assert not refresh_due(trust, fetched, fetched + due_after - timedelta(seconds=1))


def test_c_c02_a_clock_that_was_wrong_does_not_put_it_off_for_years() -> None:
    trust = TrustAnchors((NEW,))
    assert refresh_due(trust, NOW + timedelta(days=3000), NOW)
