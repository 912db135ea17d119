"""The only path validation of the server (RFC 5280 §6), by OpenSSL's X509StoreContext.

Rules:
- An anchor is trusted because an operator put it there, self-signed or not; nothing a peer sends becomes one.
- Signatures, names, basicConstraints, path length and critical extensions are OpenSSL's to check; time is checked here,
  on every certificate of the path and in both directions, so that each reason gets words of its own.
- What a peer sends is signed with SHA-256 or better and, if RSA, with 2048 bits or more: OpenSSL alone would take MD5.
- Whether certificates form a chain does not depend on when that is asked, so it is remembered for the last few who
  came; whether they are in time is looked at anew each time, and revocation is the inventory's to know.
- A leaf must be an end entity that may sign a TLS handshake as a client: keyUsage and extendedKeyUsage are honoured
  where they are present and never demanded, since an IDevID has good reason to carry neither (IEEE 802.1AR).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from estserver.model import Der, SpkiHash

E = TypeVar("E", bound=x509.ExtensionType)
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which pyOpenSSL does not name
INTERMEDIATES_MAX = 8
SIGNATURE_HASH_MIN_BYTES = 32
RSA_MIN_BITS = 2048
REMEMBERED_MAX = 256
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)


@dataclass(frozen=True, slots=True)
class Anchor:
    """One trust anchor and the name it is known under."""

    name: str
    certificate: Der


@dataclass(frozen=True, slots=True)
class Path:
    """A leaf that chains to an anchor; `problems` says, in words, why it is no good all the same.

    Attributes:
        leaf: the parsed leaf.
        subject: its subject, which cannot be read of every certificate that can be parsed.
        anchor: name of the anchor reached.
        below_anchor: serials of what leads there, the leaf's first: the last one is the anchor's to revoke.
    """

    leaf: x509.Certificate
    subject: x509.Name
    anchor: str
    problems: tuple[str, ...] = ()
    below_anchor: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Chain:
    """A leaf and what leads from it to an anchor; `problems` are those that time does not change."""

    certificates: tuple[x509.Certificate, ...]
    subject: x509.Name
    anchor: str
    problems: tuple[str, ...]
    below_anchor: tuple[int, ...]


class AnchorSet:
    """One database of trust anchors: the explicit one or the implicit one (RFC 7030 §3.3.2).

    Args:
        anchors: what is trusted.
        intermediates: certificates that help to reach an anchor; trusted for nothing by themselves.
    """

    def __init__(self, anchors: Sequence[Anchor], intermediates: Iterable[Der] = ()) -> None:
        self._store = crypto.X509Store()
        self._store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN | _NO_CHECK_TIME)
        self._names: dict[bytes, str] = {}
        for anchor in anchors:
            parsed = x509.load_der_x509_certificate(anchor.certificate)
            self._store.add_cert(crypto.X509.from_cryptography(parsed))
            self._names[bytes(anchor.certificate)] = anchor.name
        self._intermediates = [x509.load_der_x509_certificate(der) for der in intermediates]
        self._chain = lru_cache(REMEMBERED_MAX)(self._remember)

    def path(self, leaf: Der, presented: Sequence[Der], now: datetime) -> Path | None:
        """Build and check the path of a client certificate.

        Args:
            presented: what the peer sent beside its leaf, in any order.
            now: the instant at which it must be valid.

        Returns:
            None when no anchor is reached or the certificate cannot be read.
        """
        chain = self._chain(leaf, tuple(presented[:INTERMEDIATES_MAX]))
        if chain is None:
            return None
        problems = (*chain.problems, *_time_problems(chain.certificates, now))
        return Path(chain.certificates[0], chain.subject, chain.anchor, problems, chain.below_anchor)

    def _remember(self, leaf: Der, presented: tuple[Der, ...]) -> _Chain | None:
        with warnings.catch_warnings():  # what a stranger sends is no news about our libraries
            warnings.simplefilter("ignore")
            return self._build(leaf, presented)

    def _build(self, leaf: Der, presented: tuple[Der, ...]) -> _Chain | None:
        try:
            certificate = x509.load_der_x509_certificate(leaf)
            others = [x509.load_der_x509_certificate(der) for der in presented]
            chain = self._verified([certificate, *others, *self._intermediates])
            anchor = None if chain is None else self._names.get(chain[-1].public_bytes(Encoding.DER))
            if chain is None or anchor is None:
                return None
            problems = (*_usage_problems(certificate), *_strength_problems(chain[:-1]))
            below = tuple(one.serial_number for one in chain[:-1])
            return _Chain(tuple(chain), certificate.subject, anchor, problems, below)
        except _UNREADABLE:
            return None

    def _verified(self, certificates: Sequence[x509.Certificate]) -> list[x509.Certificate] | None:
        leaf, *others = map(crypto.X509.from_cryptography, certificates)
        try:
            chain = crypto.X509StoreContext(self._store, leaf, others).get_verified_chain()
        except crypto.X509StoreContextError:
            return None
        return [link.to_cryptography() for link in chain]


def _time_problems(chain: Iterable[x509.Certificate], now: datetime) -> Iterable[str]:
    for depth, certificate in enumerate(chain):
        what = "the certificate" if depth == 0 else f"CA certificate {depth} of the chain"
        if now < certificate.not_valid_before_utc:
            yield f"{what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
        if now > certificate.not_valid_after_utc:
            yield f"{what} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"


def _strength_problems(below_anchor: Iterable[x509.Certificate]) -> Iterable[str]:
    for certificate in below_anchor:
        key, algorithm = certificate.public_key(), certificate.signature_hash_algorithm
        if algorithm is not None and algorithm.digest_size < SIGNATURE_HASH_MIN_BYTES:
            yield f"a certificate of the chain is signed with {algorithm.name.upper()}"
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_MIN_BITS:
            yield f"a certificate of the chain has a key of {key.key_size} bits"


def _usage_problems(leaf: x509.Certificate) -> Iterable[str]:
    constraints = extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        yield "a CA certificate is not a client"
    usage = extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        yield "its key usage does not allow digital signatures"
    purposes = extension(leaf, x509.ExtendedKeyUsage)
    allowed = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if purposes is not None and not any(oid in purposes for oid in allowed):
        yield "its extended key usage does not allow TLS client authentication"


def key_of(leaf: Der) -> SpkiHash | None:
    """Digest the SubjectPublicKeyInfo of a certificate; None when it cannot be read, and so makes nobody an IDevID."""
    form = PublicFormat.SubjectPublicKeyInfo
    try:
        with warnings.catch_warnings():  # what a stranger sends is no news about our libraries
            warnings.simplefilter("ignore")
            spki = x509.load_der_x509_certificate(leaf).public_key().public_bytes(Encoding.DER, form)
    except _UNREADABLE:
        return None
    return SpkiHash(hashlib.sha256(spki).hexdigest())


def extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    """Return one extension of a certificate, or None."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
