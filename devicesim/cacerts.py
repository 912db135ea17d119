"""What `/cacerts` returned, and what of it may be believed (RFC 7030 §4.1.3).

Rules:
- Nothing is trusted for being there. A CA certificate is used for a path when it chains to an anchor.
- A new root (NewWithNew) is adopted when a trusted key vouches for it: the bag holds NewWithOld, a CA certificate for
  the same name and key, signed with the key of an anchor, and both are valid now (RFC 9810 §4.4). A root without that
  is left where it is and spoken of in one line; an older root never comes back.
- NewWithOld looks like any CA below the old root. So that none makes itself a root, it must bear the old root's name or
  be without limit: no path length, no name constraints.
- The anchor that vouched stays beside the new one until the new one has proven itself (`Succession.settled`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from devicesim.csr import spki
from devicesim.errors import VerificationFailed
from devicesim.trust import TrustAnchors, build_path, fingerprint, is_ca, is_self_signed, is_signed_by

_REFRESH_AFTER = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Succession:
    """Whom to trust after a look at a bag of CA certificates.

    Attributes:
        trust: the anchors; one that was adopted stands first.
        root: the newest root among them that the bag shows, if any.
        adopted: that root was not trusted before.
        before: the anchors it takes the place of, trusted still.
        note: one line on a newer root that was not adopted; empty when there was none.
    """

    trust: TrustAnchors
    root: x509.Certificate | None = None
    adopted: bool = False
    before: tuple[x509.Certificate, ...] = ()
    note: str = ""

    def settled(self) -> TrustAnchors:
        """Return the anchors without those that the new root takes the place of."""
        return TrustAnchors(tuple(anchor for anchor in self.trust.explicit if anchor not in self.before))


@dataclass(frozen=True, slots=True)
class CaCerts:
    """A bag of CA certificates.

    Attributes:
        certificates: all of it, in no meaningful order.
        trust: the anchors under which it was fetched.
    """

    certificates: tuple[x509.Certificate, ...]
    trust: TrustAnchors

    def intermediates(self, now: datetime) -> tuple[x509.Certificate, ...]:
        """Return the CA certificates that chain to the anchors: those a path may be built with."""
        return tuple(found for found in self.certificates if self._is_intermediate(found, now))

    def succession(self, now: datetime) -> Succession:
        """Return whom to trust from now on."""
        return succeed(self.trust, self.certificates, now)

    def _is_intermediate(self, certificate: x509.Certificate, now: datetime) -> bool:
        if not is_ca(certificate) or is_self_signed(certificate):
            return False
        try:
            build_path(certificate, self.certificates, self.trust, now)
        except VerificationFailed:
            return False
        return True


def succeed(trust: TrustAnchors, bag: Iterable[x509.Certificate], now: datetime) -> Succession:
    """Find the self-signed root with the latest end that a trusted key vouches for, and trust it too."""
    found = tuple(bag)
    roots = [one for one in found if is_ca(one) and _valid(one, now) and is_self_signed(one)]
    note = ""
    for root in sorted(roots, key=lambda one: one.not_valid_after_utc, reverse=True):
        before = tuple(anchor for anchor in trust.explicit if anchor != root and _vouches(anchor, root, found, now))
        if root in trust.explicit:
            return Succession(trust, root, before=before, note=note)
        if before:
            return Succession(TrustAnchors((root, *trust.explicit)), root, adopted=True, before=before, note=note)
        if all(root.not_valid_after_utc > anchor.not_valid_after_utc for anchor in trust.explicit):
            note = note or _unproven(root)
    return Succession(trust, note=note)


def refresh_due(trust: TrustAnchors, fetched_at: datetime, now: datetime) -> bool:
    """Tell whether CA certificates should be fetched again: after half the time the anchors have, or a month.

    A time still to come was written by a clock that was wrong, and counts for nothing.
    """
    end = min(anchor.not_valid_after_utc for anchor in trust.explicit)
    return now < fetched_at or now >= fetched_at + min(_REFRESH_AFTER, (end - fetched_at) / 2)


def without_keys_of(bag: Iterable[x509.Certificate], others: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """Return what of a bag is not for a key of these others: what is left when their keys are no longer believed."""
    gone = {spki(other) for other in others}
    return [found for found in bag if spki(found) not in gone]


def _vouches(old: x509.Certificate, new: x509.Certificate, bag: Iterable[x509.Certificate], now: datetime) -> bool:
    """Tell whether the key of `old` signed a certificate for the name and the key of `new`, which ends later."""
    if new.not_valid_after_utc <= old.not_valid_after_utc or not _valid(old, now):
        return False
    return any(_links(link, old, new) and _valid(link, now) for link in bag)


def _links(link: x509.Certificate, old: x509.Certificate, new: x509.Certificate) -> bool:
    """Tell whether a certificate is NewWithOld for these two (RFC 9810 §4.4.1)."""
    same = link.subject.public_bytes() == new.subject.public_bytes() and spki(link) == spki(new)
    return same and is_ca(link) and (link.subject == old.subject or _unlimited(link)) and is_signed_by(link, old)


def _unlimited(certificate: x509.Certificate) -> bool:
    extensions = certificate.extensions
    constrained = any(isinstance(one.value, x509.NameConstraints) for one in extensions)
    return not constrained and extensions.get_extension_for_class(x509.BasicConstraints).value.path_length is None


def _valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _unproven(root: x509.Certificate) -> str:
    return (
        f"the server shows a newer root, {root.subject.rfc4514_string()!r} ({fingerprint(root)[:16]}…), that no trusted"
        " key vouches for; it is not trusted — if it is right, compare its fingerprint and start from that"
    )
