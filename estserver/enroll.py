"""The use case: one enrolment, in the order it happens.

    parse → identity → channel binding → predecessor → policy → reserve (or queue, for an operator) → sign → record

Rules:
- This is the one path to a signature; re-enrolment is the same path with a predecessor.
- Nothing is signed before its serial is reserved, and nothing leaves before it is recorded.
- A request is admitted by itself. What is admitted is reserved, signed and recorded in groups, however many there are:
  those that arrive together wait for one synced commit together, and one that is refused takes none along.
- Where the server makes the key, it takes the place of the request's before policy and reservation.
- Every refusal leaves one audit row with all its reasons; a mere lack of credentials is a question, not a refusal.
- Every request is paid for where it is written down (`estserver.limits`); who cannot pay leaves a row a minute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from estserver import asn1, binding, csr, events, keygen
from estserver.attempt import Admission, Attempt, Door, Request
from estserver.ca import SERIAL_BYTES, IssuingCa, serial_from
from estserver.errors import (
    BadCredentials,
    CapacityError,
    ConfigError,
    EstError,
    InternalError,
    NotAuthorized,
    NotOffered,
    RateLimited,
    UnknownLabel,
)
from estserver.fetches import Fetches
from estserver.identity import Authenticator
from estserver.inventory import Claim, Inventory, Signed
from estserver.limits import DEFAULT_LIMITS, Limits, Throttle
from estserver.model import (
    CertificateRecord,
    Csr,
    Der,
    Identity,
    IdentityKind,
    Issued,
    Operation,
    Peer,
    Reservation,
)
from estserver.policy import Ask, csr_attributes, decide, device_of
from estserver.refusals import Refusals

_log = logging.getLogger(__name__)

CLOCK_RETRY = timedelta(minutes=1)
"""How soon a clock may have been set right."""


class Enrollment:
    """Answers enrolments.

    Args:
        doors: by label; the empty label is the default one.
        site_names: names that no device gets, whoever vouches for it, such as the announcer's.
        limits, bounds: how often one may ask, how much may wait, and how much one request may name.
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
        self._apart_from = {
            holder: frozenset(door.profile.name for door in doors.values() if door.profile.holder != holder)
            for holder in ("device", "site")
        }
        self._authenticator = authenticator
        self._inventory = inventory
        self._clock = clock
        self._random = random
        self._site_names = site_names
        self._limits = limits
        self._bounds = bounds
        self._throttle = Throttle(inventory.refuse)
        self._refusals = Refusals(inventory, limits, self._throttle, random)
        self._fetches = Fetches(authenticator, inventory)

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

    def check_offered(self, operation: Operation, label: str) -> None:
        """Refuse what is not behind a label.

        Raises:
            UnknownLabel, NotOffered: no such label, or not this operation behind it.
        """
        if self._door(label).keygen is None and operation is Operation.SERVERKEYGEN:
            raise NotOffered("this server makes no keys for devices here: make one, and use simpleenroll")

    def ca_certificates(self, label: str) -> tuple[Der, ...]:
        """Return the hierarchy behind a label, for `/cacerts` (RFC 7030 §4.1.3).

        Raises:
            UnknownLabel: no such label.
        """
        return self._door(label).ca.hierarchy

    def note_fetch(self, label: str, peer: Peer) -> None:
        """Note who was given a CA's certificates, as far as that is certain; a rollover waits for it."""
        door = self._door(label)
        self._fetches.note(peer, door.ca_name, door.ca.hierarchy_sha256, self._clock())

    def csr_attributes(self, request: Request) -> Der:
        """Return what a CSR for a label should look like, for `/csrattrs` (RFC 7030 §4.5.2).

        Anybody is answered; who is recognised is told what is known of it. A wrong secret is refused and paid for.

        Raises:
            UnknownLabel: no such label.
            BadCredentials, RateLimited: the credential is not good, or was tried too often.
        """
        door, label = self._door(request.label), request.label
        identity = self._recognise(request, door)
        return csr_attributes(door.profile, binding_required=door.binding_required, label=label, identity=identity)

    def enroll(self, request: Request) -> Issued:
        """Issue what is asked, or return what was issued for the same request before.

        Raises:
            EstError: every refusal, already written down; `CapacityError` and `InternalError` when nothing was.
        """
        (result,) = self.issue([self.admit(request)])
        if isinstance(result, EstError):
            raise result
        return result

    def admit(self, request: Request) -> Admission:
        """Establish who asks for what, and decide that they may have it; nothing is reserved yet.

        Raises:
            EstError: as `enroll` does.
        """
        self.check_offered(request.operation, request.label)
        attempt = Attempt(request, self._door(request.label))
        now = self._clock()
        self._throttle.settle(now)
        try:
            _require_plausible(now, attempt.door.ca)
            vouched = partial(csr.parse, vouch=partial(self._authenticator.vouch, now=now))
            parse = csr.parse_without_key if request.operation is Operation.SERVERKEYGEN else vouched
            attempt = replace(attempt, csr=parse(asn1.decode_body(request.body), self._bounds))
            attempt = replace(attempt, identity=self._identify(request, attempt.door, now))
            return self._admit(attempt, now)
        except EstError as error:
            raise self._refusals.tell(attempt, error, now) from error.__cause__

    def issue(self, admissions: Sequence[Admission]) -> list[Issued | EstError]:
        """Reserve, sign and record what was admitted: two transactions, however many there are.

        Returns:
            for each admission what may be sent, or why not; when the inventory fails, the same error for all of them.
        """
        now = self._clock()
        try:
            results = self._issue(admissions, now)
        except EstError as error:
            results = [error] * len(admissions)
        return [
            self._refusals.tell(admission.attempt, result, now) if isinstance(result, EstError) else result
            for admission, result in zip(admissions, results, strict=True)
        ]

    def _door(self, label: str) -> Door:
        door = self._doors.get(label)
        if door is None:
            raise UnknownLabel(f"there is no label {label!r} on this server")
        return door

    def _identify(self, request: Request, door: Door, now: datetime) -> Identity:
        def before_guess() -> None:
            """Look first whether a wrong guess could be paid for: comparing it is what costs."""
            payment = self._limits.of_stranger(request.peer, request.credentials)
            self._throttle.check(payment, now)
            self._inventory.require(payment, now)

        return self._authenticator.identify(
            request.peer, request.credentials, request.label, now, before_guess, both=door.both_required
        )

    def _recognise(self, request: Request, door: Door) -> Identity | None:
        """Establish who asks, where that may be left open (RFC 7030 §4.5)."""
        if request.peer.certificate is None and request.credentials is None:
            return None
        now = self._clock()
        self._throttle.settle(now)
        try:
            return self._identify(request, door, now)
        except (BadCredentials, RateLimited) as error:
            raise self._refusals.tell(Attempt(request, door), error, now) from error.__cause__
        except EstError:
            return None

    def _admit(self, attempt: Attempt, now: datetime) -> Admission:
        request, door, identity = attempt.request, attempt.door, attempt.identity
        assert attempt.csr is not None
        assert identity is not None
        payment = self._limits.of_identity(identity, request.peer)
        self._throttle.check(payment, now)
        bound = binding.check(
            attempt.csr,
            request.peer,
            identity,
            attempt.device,
            required=door.binding_required,
            many_keys=door.many_keys_bound,
        )
        asked, key = attempt.csr, None
        if request.operation is Operation.SERVERKEYGEN:
            self._inventory.require(payment, now)  # who could not pay for a certificate has no key made
            asked, key = self._make_key(attempt, identity)
            attempt = replace(attempt, csr=asked)
        ask = Ask(
            operation=request.operation,
            label=request.label,
            identity=identity,
            csr=asked,
            previous=self._predecessor(door, request.operation, asked, identity, now),
            binding=bound,
            now=now,
            issuer_not_after=door.ca.not_after,
            peer_address=request.peer.address,
            apart_from=self._apart_from[door.profile.holder],
            request_id=request.id,
        )
        grant = decide(door.profile, ask)
        if grant.holder == "device" and grant.device in self._site_names:
            raise NotAuthorized(f"the name {grant.device} is kept for a part of the site", code="name-taken")
        if grant.tolerated:
            _log.warning("%s renews at par, request %s: %s", grant.device, request.id, "; ".join(grant.tolerated))
        return Admission(attempt, grant, payment, key)

    def _make_key(self, attempt: Attempt, identity: Identity) -> tuple[Csr, keygen.DeliveredKey]:
        """Make a key, and put it into the place of the one in the request (RFC 7030 §4.4)."""
        assert attempt.csr is not None
        assert attempt.door.keygen is not None  # check_offered has let no other label through
        known = self._certificates(attempt, identity)
        suite = attempt.request.peer.cipher
        return keygen.make(attempt.door.keygen, attempt.door.profile, attempt.csr, known, self._random, suite=suite)

    def _certificates(self, attempt: Attempt, identity: Identity) -> list[Der]:
        """Return the certificates that are a device's own: to their keys a new one may be encrypted."""
        device, shown = attempt.device, attempt.request.peer.certificate
        found = [] if device is None else self._inventory.list_certificates(device=device, status="valid")
        now = self._clock()
        own = [record.certificate for record in found if record.not_before <= now <= record.not_after]
        return [*own, *([shown] if identity.kind is IdentityKind.IDEVID and shown is not None else [])]

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
        if found is None and asked.change is not None:  # its own repeat finds the names changed
            found = self._inventory.current_by_names(asked.change.subject, asked.change.san, device)
        if found is not None and found.spki_sha256 == asked.spki_sha256 and found.predecessor is not None:
            found = self._inventory.by_serial(found.predecessor)  # a repeat: what it renewed, not what came of it
        if found is None or found.revoked_at is not None or not found.not_before <= now <= found.not_after:
            raise NotAuthorized(
                f"there is no valid certificate with these names to renew for {device}", code="nothing-to-renew"
            )
        return found

    def _issue(self, admissions: Sequence[Admission], now: datetime) -> list[Issued | EstError]:
        slots = self._inventory.reserve_all([self._claim(one, now) for one in admissions], now)
        signed = [
            self._sign(admission.attempt.door, slot) if isinstance(slot, Reservation) else slot
            for admission, slot in zip(admissions, slots, strict=True)
        ]
        to_record = [one for one in signed if isinstance(one, Signed)]
        recorded = iter(self._inventory.record_all(to_record, self._clock()) if to_record else ())
        return [next(recorded) if isinstance(one, Signed) else one for one in signed]

    def _claim(self, admission: Admission, now: datetime) -> Claim:
        grant, ca = admission.grant, admission.attempt.door.ca_name
        told = (events.pending(grant, now, ca=ca, random=self._random),) if grant.approval else ()
        return Claim(grant, serial_from(self._random(SERIAL_BYTES)), admission.payment, self._limits.queue, told)

    def _sign(self, door: Door, reservation: Reservation) -> Signed | InternalError:
        try:
            certificate = door.ca.issue(reservation)
        except Exception as error:  # noqa: BLE001 - a signer fails in ways of its own
            _log.exception("signing failed")
            self._inventory.void(reservation, "signing failed", self._clock())
            return error if isinstance(error, InternalError) else InternalError("the certificate could not be signed")
        told = events.issued(reservation, certificate, ca=door.ca_name, issuer=door.ca.name, random=self._random)
        return Signed(reservation, certificate, tuple(told), door.ca.key_id)


def _require_plausible(now: datetime, ca: IssuingCa) -> None:
    """Do nothing by a clock that jumped to before this CA was made: every date would be wrong, and every check."""
    if now < ca.not_before:
        raise CapacityError(
            f"the clock of this server is wrong: it says {now:%Y-%m-%d %H:%M} UTC",
            code="clock-not-trustworthy",
            retry_after=CLOCK_RETRY,
        )
