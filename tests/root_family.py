"""Two generations of one root and the certificates that lead from each to the other (RFC 9810 §4.4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.protocol.client_stub import Authority

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Family:
    """The old root, the new one, and the four certificates a bag holds after the root's key was changed."""

    old: Authority
    new: Authority

    @classmethod
    def founded(cls, start: datetime | None = None, *, old: str = "Plant Root", new: str = "Plant Root G2") -> Family:
        start = start or datetime.now(UTC) - 30 * DAY
        return cls(Authority.root(old, start=start, days=400), Authority.root(new, start=start + 10 * DAY, days=4000))

    def new_with_old(self, by: Authority | None = None, **kwargs) -> x509.Certificate:
        new = self.new.certificate
        kwargs.setdefault("days", 380)
        kwargs.setdefault("start", new.not_valid_before_utc)
        return (by or self.old).issue(new.subject, new.public_key(), ca=True, **kwargs)

    def old_with_new(self) -> x509.Certificate:
        old = self.old.certificate
        days = (old.not_valid_after_utc - old.not_valid_before_utc).days
        return self.new.issue(old.subject, old.public_key(), ca=True, start=old.not_valid_before_utc, days=days)

    def bag(self) -> tuple[x509.Certificate, ...]:
        """OldWithOld, NewWithNew, NewWithOld, OldWithNew (RFC 7030 §4.1.3)."""
        return (self.old.certificate, self.new.certificate, self.new_with_old(), self.old_with_new())


def tampered(certificate: x509.Certificate) -> x509.Certificate:
    """The same certificate with one bit of its signature turned."""
    der = bytearray(certificate.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_certificate(bytes(der))


def stranger(start: datetime | None = None) -> Authority:
    """A root that ends later than any other and has nothing to do with them."""
    return Authority.root("Stranger Root", start=start, days=9000)
