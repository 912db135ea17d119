"""A CA moves to a new key without losing a device: `announce → cross → switch → retire`.

| stage | `/cacerts` | who signs |
|---|---|---|
| announce | as before: it is decided, and a key is to be made | the old key |
| cross | the new certificates besides the old ones, and what ties them together | the old key |
| switch | the same certificates | the new key |
| retire | the new certificates alone | the new key |

Rules:
- One rollover of a CA at a time, of its root or of its issuing CA; each stage leads to the next and to no other.
- A new root keeps the name of the old and is tied to it both ways (OldWithOld, OldWithNew, NewWithOld, NewWithNew; RFC
  4210 §4.4.1, RFC 7030 §4.1.3); it certifies the key of the issuing CA again. A new issuing CA has a name of its own.
- A stage is left when the fleet has followed: `problems` says what is missing.
- Nothing signed by a CA of the past is forgotten: its certificates authenticate for as long as they are in time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from estserver.ca import BACKDATE, ISSUING_LIFETIME, ROOT_LIFETIME, make_ca_certificate, spki_of
from estserver.errors import ConfigError
from estserver.key_ids import subject_key_id
from estserver.keys import Signer
from estserver.model import Der, Serial
from estserver.records import Reach, RolloverCertificates, RolloverRecord, Stage, Tier

NEXT = {Stage.ANNOUNCE: Stage.CROSS, Stage.CROSS: Stage.SWITCH, Stage.SWITCH: Stage.RETIRE}
"""The only way through."""

REQUIRED_SHARE = 0.99
"""Of the live devices, how many must have followed before a stage is left."""

ENDLESS_YEAR = 9999
COMMON_NAME_MAX_CHARS = 64


@dataclass(frozen=True, slots=True)
class IssuingKey:
    """A key that has signed leaves: its newest certificate, and where it is; None for the one that is configured."""

    certificate: Der
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """What a CA is at one moment.

    Attributes:
        issuing: certificate of the issuing CA that signs.
        middle: CAs between it and the root, where there are any.
        root: the self-signed certificate at the top.
        key: where the key that signs is; None for the one that is configured.
        besides: what `/cacerts` holds as well.
        anchors, helpers: every root there was, and every CA below one: what may authenticate here.
        keys: every issuing key there was, oldest first.
    """

    issuing: Der
    middle: tuple[Der, ...]
    root: Der
    key: str | None = None
    besides: tuple[Der, ...] = ()
    anchors: tuple[Der, ...] = ()
    helpers: tuple[Der, ...] = ()
    keys: tuple[IssuingKey, ...] = ()

    @classmethod
    def founded(cls, issuing: Der, middle: tuple[Der, ...], root: Der) -> Hierarchy:
        """Return what `estserver init`, or whoever made the files of a home, began with."""
        return cls(issuing, middle, root, anchors=(root,), helpers=(issuing, *middle), keys=(IssuingKey(issuing),))

    @property
    def published(self) -> tuple[Der, ...]:
        """What `/cacerts` holds."""
        return (self.issuing, *self.chain, *self.besides)

    @property
    def ever(self) -> tuple[Der, ...]:
        """Every CA certificate of it there was, the one that signs first."""
        return tuple(dict.fromkeys((self.issuing, *self.chain, *self.helpers, *self.anchors)))

    @property
    def chain(self) -> tuple[Der, ...]:
        """From the issuing CA's issuer to the root."""
        return (*self.middle, self.root)

    def after(self, rollovers: Iterable[RolloverRecord]) -> Hierarchy:
        """Return what became of it in its rollovers, oldest first."""
        found = self
        for record in rollovers:
            if record.stage is not Stage.ANNOUNCE and record.made is not None:
                move = _root_moved if record.tier is Tier.ROOT else _issuing_moved
                found = move(found, record, record.made)
        return found


def _issuing_moved(old: Hierarchy, record: RolloverRecord, made: RolloverCertificates) -> Hierarchy:
    known = replace(
        old, helpers=(*old.helpers, made.new), keys=(*old.keys, IssuingKey(made.new, record.key)), besides=()
    )
    if record.stage is Stage.CROSS:
        return replace(known, besides=(made.new,))
    besides = (old.issuing,) if record.stage is Stage.SWITCH else ()
    return replace(known, issuing=made.new, key=record.key, besides=besides)


def _root_moved(old: Hierarchy, record: RolloverRecord, made: RolloverCertificates) -> Hierarchy:
    assert made.issuing is not None
    links = tuple(der for der in (made.new_with_old, made.old_with_new) if der is not None)
    known = replace(old, anchors=(*old.anchors, made.new), helpers=(*old.helpers, made.issuing), besides=())
    if record.stage is Stage.CROSS:
        return replace(known, besides=(made.issuing, made.new, *links))
    besides = (old.issuing, old.root, *links) if record.stage is Stage.SWITCH else ()
    again = replace(old.keys[-1], certificate=made.issuing)
    return replace(known, issuing=made.issuing, root=made.new, besides=besides, keys=(*old.keys[:-1], again))


# --- when a stage may be left ---------------------------------------------------------------------------------------


def problems(record: RolloverRecord, reach: Reach) -> list[str]:
    """Say what speaks against leaving the stage that a rollover is at; nothing, when the fleet has followed."""
    found = []
    if record.stage in (Stage.CROSS, Stage.SWITCH):
        found += _missing("were given what /cacerts holds now", reach.fetched, reach.live)
    if record.stage is Stage.SWITCH and record.tier is Tier.ISSUING:
        found += _missing("have a certificate signed by the new key", reach.renewed, reach.live)
    return found


def _missing(what: str, some: int, live: int) -> list[str]:
    if some >= live * REQUIRED_SHARE:
        return []
    return [f"{some} of {live} live devices ({some / live:.1%}) {what}; {REQUIRED_SHARE:.0%} are wanted"]


# --- what is made at `cross` ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What signing a new CA's certificates takes: the root's key, a source of serials, and the time."""

    root: Der
    root_signer: Signer
    serial: Callable[[], Serial]
    now: datetime

    def __post_init__(self) -> None:
        """Refuse a key that is not the root's."""
        require_movable(self.root, self.now)
        if self.root_signer.spki != spki_of(x509.load_der_x509_certificate(self.root)):
            raise ConfigError("this is not the key of the root", advice="name the root's key with --root-key FILE")


def require_movable(root: Der, now: datetime) -> None:
    """Refuse to tie a new key to a root that nobody verifies anything with.

    Raises:
        ConfigError: it has expired, or never does.
    """
    certificate = x509.load_der_x509_certificate(root)
    if certificate.not_valid_after_utc.year == ENDLESS_YEAR:
        raise ConfigError("a CA without end is not rolled over: what it signs may never be renewed")
    if now > certificate.not_valid_after_utc:
        raise ConfigError(
            f"the root expired on {certificate.not_valid_after_utc:%Y-%m-%d}: no link from it can be verified any more",
            advice="make a new home with estserver init, and give its root.pem to every device by hand (bootstrap)",
        )


def issuing_certificates(ceremony: Ceremony, old: Der, new: Signer, generation: int) -> RolloverCertificates:
    """Certify a new issuing CA below the same root."""
    root = x509.load_der_x509_certificate(ceremony.root)
    made = make_ca_certificate(
        subject=_next_name(x509.load_der_x509_certificate(old).subject, generation),
        spki=new.spki,
        serial=ceremony.serial(),
        not_before=max(ceremony.now - BACKDATE, root.not_valid_before_utc),
        not_after=min(ceremony.now + ISSUING_LIFETIME, root.not_valid_after_utc),
        issuer=(root, ceremony.root_signer),
    )
    return RolloverCertificates(made)


def root_certificates(ceremony: Ceremony, issuing: Der, new: Signer) -> RolloverCertificates:
    """Make a new root of the same name, the links both ways, and certify the issuing CA's key again.

    Their validity is that of RFC 4210 §4.4.1: NewWithOld begins with the new root and ends with the old one, OldWithNew
    is as long as the old root.
    """
    old = x509.load_der_x509_certificate(ceremony.root)
    below = x509.load_der_x509_certificate(issuing)
    not_before = max(ceremony.now - BACKDATE, old.not_valid_before_utc)
    # clients take the self-signed certificate that ends last (RFC 7030 §4.1.3)
    not_after = max(ceremony.now + ROOT_LIFETIME, old.not_valid_after_utc + timedelta(days=1))
    new_der = make_ca_certificate(
        subject=old.subject,
        spki=new.spki,
        serial=ceremony.serial(),
        not_before=not_before,
        not_after=not_after,
        issuer=new,
    )
    root = x509.load_der_x509_certificate(new_der)
    new_with_old = make_ca_certificate(
        subject=old.subject,
        spki=new.spki,
        serial=ceremony.serial(),
        not_before=not_before,
        not_after=old.not_valid_after_utc,
        issuer=(old, ceremony.root_signer),
        path_length=None,
    )
    old_with_new = make_ca_certificate(
        subject=old.subject,
        spki=spki_of(old),
        serial=ceremony.serial(),
        not_before=old.not_valid_before_utc,
        not_after=old.not_valid_after_utc,
        issuer=(root, new),
        path_length=None,
    )
    issuing_again = make_ca_certificate(
        subject=below.subject,
        spki=spki_of(below),
        serial=ceremony.serial(),
        not_before=not_before,
        not_after=below.not_valid_after_utc,
        issuer=(root, new),
    )
    return RolloverCertificates(new_der, new_with_old, old_with_new, issuing_again)


def _next_name(name: x509.Name, generation: int) -> x509.Name:
    """Count the common name on: two keys of one name differ in a key identifier that not everybody reads."""
    (attribute,) = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    suffix = f" {generation}"
    stem = re.sub(r" [0-9]+\Z", "", str(attribute.value))[: COMMON_NAME_MAX_CHARS - len(suffix)]
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, stem + suffix)])


def keys_to_publish(hierarchy: Hierarchy, in_use: Iterable[str]) -> list[IssuingKey]:
    """Return the issuing keys that must go on publishing CRLs: the one that signs, and those whose leaves are in time.

    Args:
        in_use: `inventory.rollovers.issuers_in_use`.
    """
    wanted = {*in_use, subject_key_id(hierarchy.issuing)}
    return [one for one in hierarchy.keys if subject_key_id(one.certificate) in wanted]
