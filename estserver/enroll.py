"""The use case: one enrolment, in the order it happens.

    parse → identity → channel binding → predecessor → policy → reserve → sign → record

Rules:
- This is the one path to a signature; re-enrolment is the same path with a predecessor.
- Nothing is signed before its serial is reserved, and nothing leaves before it is recorded.
- Every refusal leaves one audit row with all its reasons; a mere lack of credentials is a question, not a refusal.
- Every request is paid for where it is written down (`estserver.limits`); who cannot pay leaves a row a minute.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from estserver import asn1, binding, csr, events
from estserver.ca import SERIAL_BYTES, IssuingCa, serial_from
from estserver.errors import (
    BadCredentials,
    CapacityError,
    ConfigError,
    EstError,
    InternalError,
    KeyReused,
    Known,
    NotAuthenticated,
    NotAuthorized,
    RateLimited,
    UnknownLabel,
)
from estserver.identity import Authenticator
from estserver.inventory import Inventory
from estserver.limits import DEFAULT_LIMITS, Bucket, Limits, Throttle
from estserver.model import (
    BasicCredentials,
    CertificateRecord,
    Csr,
    Der,
    DeviceId,
    Event,
    Grant,
    Identity,
    IdentityKind,
    Issued,
    Operation,
    Peer,
    Refusal,
    Reservation,
)
from estserver.policy import Ask, Profile, csr_attributes, decide, device_of

_log = logging.getLogger(__name__)

CLOCK_RETRY = timedelta(minutes=1)
"""How soon a clock may have been set right."""


@dataclass(frozen=True, slots=True)
class Door:
    """What stands behind one label: which CA signs by which profile.

    Attributes:
        ca_name: topic level of the CA's events.
        binding_required: whether every CSR must carry the channel binding.
    """

    profile: Profile
    ca: IssuingCa
    ca_name: str
    binding_required: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One enrolment as it came off the wire; `body` is still base64."""

    operation: Operation
    label: str
    body: bytes
    peer: Peer
    credentials: BasicCredentials | None = None
    id: str = ""


class Enrollment:
    """Answers enrolments.

    Args:
        doors: by label; the empty label is the default one.
        site_names: names that no device gets, whoever vouches for it, such as the announcer's.
        limits, bounds: how often one may ask, and how much one request may name.
        clock, random: the instant it is, and as many random bytes as asked.
    """

    def __init__(
        self,
        doors: Mapping[str, Door],
        authenticator: Authenticator,
        inventory: Inventory,
        *,
        clock: Callable[[], datetime],
        random: Callable[[int], bytes],
        site_names: frozenset[str] = frozenset(),
        limits: Limits = DEFAULT_LIMITS,
        bounds: csr.Bounds = csr.DEFAULT_BOUNDS,
    ) -> None:
        self._doors = doors
        self._profiles = {door.profile.name: door.profile for door in doors.values()}
        self._authenticator = authenticator
        self._inventory = inventory
        self._clock = clock
        self._random = random
        self._site_names = site_names
        self._limits = limits
        self._bounds = bounds
        self._throttle = Throttle(inventory.refuse)

    def check_clock(self) -> None:
        """Refuse to work by a clock that is outside the life of a CA.

        Raises:
            ConfigError: with what the clock says and what it could say.
        """
        now = self._clock()
        for ca in {door.ca for door in self._doors.values()}:
            if not ca.not_before <= now <= ca.not_after:
                raise ConfigError(
                    f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, and {ca.name} is valid from "
                    f"{ca.not_before:%Y-%m-%d} to {ca.not_after:%Y-%m-%d}",
                    advice="set the clock; if it is right, this CA's time is over",
                )

    def ca_certificates(self, label: str) -> tuple[Der, ...]:
        """Return the hierarchy behind a label, for `/cacerts` (RFC 7030 §4.1.3).

        Raises:
            UnknownLabel: no such label.
        """
        return self._door(label).ca.hierarchy

    def csr_attributes(self, label: str) -> Der:
        """Return what a CSR for a label should look like, for `/csrattrs` (RFC 7030 §4.5.2).

        Raises:
            UnknownLabel: no such label.
        """
        door = self._door(label)
        return csr_attributes(door.profile, binding_required=door.binding_required)

    def enroll(self, request: Request, granted: Callable[[Grant], None] = lambda _grant: None) -> Issued:
        """Issue what is asked, or return what was issued for the same request before.

        Args:
            granted: told what was granted, before anything is issued.

        Raises:
            EstError: every refusal, already written down; `CapacityError` and `InternalError` when nothing was.
        """
        door = self._door(request.label)
        now = self._clock()
        asked: Csr | None = None
        identity: Identity | None = None
        self._throttle.settle(now)
        try:
            _require_plausible(now, door.ca)
            asked = csr.parse(asn1.decode_body(request.body), self._bounds)
            identity = self._identify(request, now)
            payment = self._limits.of_identity(identity, request.peer)
            self._throttle.check(payment, now)
            grant = self._decide(door, request, asked, identity, now)
            granted(grant)
            self._keep_names_apart(door.profile, grant.device)
            if grant.key_reuse and self._inventory.key_compromised(grant.device, asked.spki_sha256):
                raise KeyReused("this key was revoked as compromised", advice="make a new key on the device")
            slot = self._inventory.reserve(grant, serial_from(self._random(SERIAL_BYTES)), now, payment)
            return slot if isinstance(slot, Issued) else self._issue(door, slot)
        except (NotAuthenticated, InternalError):
            raise
        except RateLimited as error:
            self._note_often(request, error, now)
            raise
        except CapacityError as error:
            _log.warning("%s of label %r not served: %s", request.operation, request.label, error)
            raise
        except EstError as error:
            self._write_down(door, request, asked, identity, error, now)
            raise

    def _door(self, label: str) -> Door:
        door = self._doors.get(label)
        if door is None:
            raise UnknownLabel(f"there is no label {label!r} on this server")
        return door

    def _identify(self, request: Request, now: datetime) -> Identity:
        def before_guess() -> None:
            """Look first whether a wrong guess could be paid for: comparing it is what costs."""
            payment = self._limits.of_stranger(request.peer, request.credentials)
            self._throttle.check(payment, now)
            self._inventory.require(payment, now)

        return self._authenticator.identify(request.peer, request.credentials, request.label, now, before_guess)

    def _decide(self, door: Door, request: Request, asked: Csr, identity: Identity, now: datetime) -> Grant:
        device = device_of(door.profile, asked)
        bound = binding.check(asked, request.peer, identity, device, required=door.binding_required)
        previous = self._predecessor(door, request.operation, asked, identity, now)
        ask = Ask(
            operation=request.operation,
            label=request.label,
            identity=identity,
            csr=asked,
            previous=previous,
            binding=bound,
            now=now,
            issuer_not_after=door.ca.not_after,
            peer_address=request.peer.address,
            request_id=request.id,
        )
        return decide(door.profile, ask)

    def _keep_names_apart(self, profile: Profile, device: DeviceId) -> None:
        """Refuse a device the name of a part of the site, and the other way round: brokers go by the name alone."""
        if profile.holder == "device" and (device in self._site_names or self._inventory.station(device) is not None):
            raise NotAuthorized(f"the name {device} is kept for a part of the site", code="name-taken")
        held = self._inventory.profiles_of(device)
        other = [name for name in held if (known := self._profiles.get(name)) and known.holder != profile.holder]
        if other:
            raise NotAuthorized(f"the name {device} belongs to the profile {other[0]}", code="name-taken")

    def _predecessor(
        self, door: Door, operation: Operation, asked: Csr, identity: Identity, now: datetime
    ) -> CertificateRecord | None:
        """Find the certificate being renewed: the one shown, or another one of the same names (RFC 7030 §3.3.2)."""
        if operation is not Operation.SIMPLEREENROLL:
            return None
        shown = identity.certificate
        if shown is None:
            raise NotAuthorized(
                f"a {identity.kind} has no certificate of this CA to renew: use simpleenroll", code="nothing-to-renew"
            )
        device = device_of(door.profile, asked) or shown.device
        if identity.kind is IdentityKind.CERTIFICATE or device == shown.device:
            return shown
        found = self._inventory.current_by_names(asked.subject, asked.san, device)
        if found is not None and found.spki_sha256 == asked.spki_sha256 and found.predecessor is not None:
            found = self._inventory.by_serial(found.predecessor)  # a repeat: what it renewed, not what came of it
        if found is None or found.revoked_at is not None or not found.not_before <= now <= found.not_after:
            raise NotAuthorized(
                f"there is no valid certificate with these names to renew for {device}", code="nothing-to-renew"
            )
        return found

    def _issue(self, door: Door, reservation: Reservation) -> Issued:
        try:
            certificate = door.ca.issue(reservation)
        except Exception as error:
            _log.exception("signing failed")
            self._inventory.void(reservation, "signing failed", self._clock())
            if isinstance(error, InternalError):
                raise
            raise InternalError("the certificate could not be signed") from None
        told = events.issued(reservation, certificate, ca=door.ca_name, issuer=door.ca.name, random=self._random)
        return self._inventory.record(reservation, certificate, told, self._clock())

    def _write_down(
        self, door: Door, request: Request, asked: Csr | None, identity: Identity | None, error: EstError, now: datetime
    ) -> None:
        device = device_of(door.profile, asked) if asked is not None else None
        refusal = Refusal(
            code=error.code,
            reasons=error.reasons,
            operation=request.operation,
            label=request.label,
            requester=str(identity) if identity is not None else f"unrecognised:{_claimed(request)}",
            peer_address=request.peer.address,
            device=device,
            spki_sha256=asked.spki_sha256 if asked is not None else None,
            request_id=request.id,
        )
        error.known = Known(refusal.requester, refusal.device, refusal.spki_sha256)
        payment = self._payment(request, identity, error)
        try:
            self._throttle.check(payment, now)
            self._inventory.refuse(refusal, now, self._findings(door, asked, device, error, now), payment)
        except RateLimited as limited:
            self._note_often(request, limited, now)
            raise
        except CapacityError as problem:
            _log.error("%s; a refusal could not be written down: %r", problem, refusal)

    def _payment(self, request: Request, identity: Identity | None, error: EstError) -> tuple[Bucket, ...]:
        """Say who pays for a refusal."""
        if identity is not None:
            return self._limits.of_identity(identity, request.peer)
        guessed = request.credentials if isinstance(error, BadCredentials) else None
        return self._limits.of_stranger(request.peer, guessed)

    def _note_often(self, request: Request, error: RateLimited, now: datetime) -> None:
        refusal = Refusal(
            code=error.code,
            reasons=error.reasons,
            operation=request.operation,
            label=request.label,
            requester=error.owner,
            peer_address=request.peer.address,
            request_id=request.id,
        )
        error.known = Known(refusal.requester)
        self._throttle.note(error, refusal, now)

    def _findings(
        self, door: Door, asked: Csr | None, device: DeviceId | None, error: EstError, now: datetime
    ) -> list[Event]:
        if not isinstance(error, KeyReused) or asked is None or device is None:
            return []
        owner = self._inventory.key_device(asked.spki_sha256)
        if owner is None or owner == device:
            return []
        return [events.key_reused(device, owner, asked, now, ca=door.ca_name, random=self._random)]


def _claimed(request: Request) -> str:
    """Say who it was, for the audit, when it was not established who it is."""
    if request.credentials is not None:
        return request.credentials.name
    leaf = request.peer.certificate
    return "anonymous" if leaf is None else f"sha256-{hashlib.sha256(leaf).hexdigest()}"


def _require_plausible(now: datetime, ca: IssuingCa) -> None:
    """Do nothing by a clock that jumped to before this CA was made: every date would be wrong, and every check."""
    if now < ca.not_before:
        raise CapacityError(
            f"the clock of this server is wrong: it says {now:%Y-%m-%d %H:%M} UTC",
            code="clock-not-trustworthy",
            retry_after=CLOCK_RETRY,
        )
