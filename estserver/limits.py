"""How often one may ask: buckets that refill evenly, each kept as the one time at which it is full again (GCRA).

Rules:
- Whoever was recognised pays for every request, from the bucket of its identity. Whoever was not pays for every
  refusal, from the bucket of its address, and for a wrong secret from the bucket of the name it offered as well.
- Nobody pays for others: strangers cost the recognised nothing, even behind the same address.
- It is paid in the transaction that writes the request down, so that all workers of a server share the buckets.
- A secret that takes scrypt to compare is not compared for one who could not pay for its being wrong.
- Who cannot pay is told when to come back, and writes nothing but an audit row per bucket and minute, with a count.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from estserver.errors import CapacityError, RateLimited
from estserver.model import BasicCredentials, Event, Identity, IdentityKind, Peer, Refusal

_log = logging.getLogger(__name__)

PERIOD_MIN = timedelta(seconds=10)
"""The server's clock has whole seconds, and a request may be a second older than the one that paid before it: in a
bucket that fills within a second it would find nothing."""
PERIOD_MAX = timedelta(hours=1)
"""No bucket takes longer to fill, so that none has to be kept for longer."""
COUNT_MAX = 100_000
_IPV6_SITE_BITS = 64
"""One customer of an IPv6 provider has all addresses of such a network."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and as many again, evenly, in every period."""

    count: int
    period: timedelta

    def __str__(self) -> str:
        """Write it as the configuration does: `600/60s`."""
        return f"{self.count}/{self.period.total_seconds():g}s"

    @property
    def interval(self) -> timedelta:
        """How long one takes to come back."""
        return self.period // self.count

    @property
    def depth(self) -> timedelta:
        """How long an empty bucket takes to be full."""
        return self.interval * self.count

    @property
    def horizon(self) -> timedelta:
        """What is full only after this was emptied by another clock: this one was set back, and starts anew."""
        return 2 * self.period

    def wait(self, full_at: datetime | None, now: datetime) -> timedelta:
        """Say how long it takes until one can be had; zero when it can."""
        if full_at is None or not now < full_at <= now + self.horizon:
            return timedelta()
        return max(timedelta(), full_at + self.interval - now - self.depth)


@dataclass(frozen=True, slots=True)
class Bucket:
    """What somebody has left of a limit.

    Attributes:
        limit: which one, as `[limits]` calls it.
        owner: whose, as `kind:name`.
    """

    limit: str
    owner: str
    rate: Rate

    @property
    def key(self) -> str:
        """A name of one length for whatever a stranger may call itself; nothing it offered is kept."""
        return hashlib.sha256(f"{self.limit}\0{self.owner}".encode("utf-8", "surrogatepass")).hexdigest()

    def refusal(self, wait: timedelta) -> RateLimited:
        """Make the error for an empty bucket; whole seconds, rounded up, so that who waits them out is served."""
        seconds = max(1, math.ceil(wait.total_seconds()))
        return RateLimited(
            f"too many {_WORDS[self.limit]}: {self.rate.count} in {self.rate.period.total_seconds():g} s are taken",
            advice=f"come back in {seconds} s",
            retry_after=timedelta(seconds=seconds),
            limit=self.limit,
            owner=self.owner,
        )


_WORDS = {
    "station_rate": "requests from this station",
    "credential_rate": "requests with this credential",
    "device_rate": "requests from this device",
    "address_rate": "enrolments from this address",
    "stranger_rate": "requests from this address that were refused unrecognised",
    "guess_rate": "wrong secrets for this name",
    "told": "audit rows about one limit",
}
_MINUTE = timedelta(minutes=1)
_TELLING = Rate(1, _MINUTE)
_LIMIT_OF = {
    IdentityKind.STATION: "station_rate",
    IdentityKind.CREDENTIAL: "credential_rate",
    IdentityKind.CERTIFICATE: "device_rate",
    IdentityKind.IDEVID: "device_rate",
}


@dataclass(frozen=True, slots=True)
class Queue:
    """How many requests may wait for an operator, and for how long.

    Attributes:
        lifetime: of a request nobody decides on, and of a decision nobody comes for.
        size_max, device_max: of all requests, and of those that name one device.
        retry_after: how soon the requester is told to ask again.
    """

    lifetime: timedelta = timedelta(days=7)
    size_max: int = 10_000
    device_max: int = 8
    retry_after: timedelta = timedelta(minutes=1)


DEFAULT_QUEUE = Queue()


@dataclass(frozen=True, slots=True)
class Limits:
    """What everybody may ask for, and out of which bucket each request is paid.

    Attributes:
        station_rate, credential_rate, device_rate: of one identity that was recognised.
        address_rate: of one address, whoever is behind it; None for no such limit.
        stranger_rate: refusals of whoever was not recognised, of one address.
        guess_rate: wrong secrets for one name, whether or not there is such a credential.
        queue: what may wait for an operator.
    """

    station_rate: Rate = Rate(60_000, _MINUTE)
    credential_rate: Rate = Rate(1200, _MINUTE)
    device_rate: Rate = Rate(120, _MINUTE)
    address_rate: Rate | None = None
    stranger_rate: Rate = Rate(600, _MINUTE)
    guess_rate: Rate = Rate(20, _MINUTE)
    queue: Queue = DEFAULT_QUEUE

    def of_identity(self, identity: Identity, peer: Peer) -> tuple[Bucket, ...]:
        """Return what somebody recognised pays from."""
        limit = _LIMIT_OF[identity.kind]
        return Bucket(limit, str(identity), getattr(self, limit)), *self._of_address(peer)

    def of_stranger(self, peer: Peer, guessed: BasicCredentials | None) -> tuple[Bucket, ...]:
        """Return what somebody unrecognised pays from; `guessed` is a credential that is, or may be, not good."""
        found = [Bucket("stranger_rate", f"address:{_site(peer.address)}", self.stranger_rate)]
        if guessed is not None:
            found.append(Bucket("guess_rate", f"unrecognised:{guessed.name}", self.guess_rate))
        return *found, *self._of_address(peer)

    def _of_address(self, peer: Peer) -> tuple[Bucket, ...]:
        if self.address_rate is None:
            return ()
        return (Bucket("address_rate", f"address:{_site(peer.address)}", self.address_rate),)


DEFAULT_LIMITS = Limits()


def _site(address: str) -> str:
    """Return the address, or its network where one client has many."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((int(parsed), _IPV6_SITE_BITS), strict=False))


# --- what a process remembers ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Empty:
    """A bucket that was empty: until when it stays so, and how often it was asked in vain since that was last told.

    Attributes:
        telling: the bucket that all workers pay the audit row from.
        refusal: the last one, to tell all of them by.
    """

    telling: Bucket
    until: datetime
    tell_at: datetime
    refusal: Refusal
    untold: int = 0


WriteDown = Callable[[Refusal, datetime, Sequence[Event], Sequence[Bucket]], None]


class Throttle:
    """What one process remembers of empty buckets, so that a flood costs neither a transaction nor a row each time.

    Args:
        write_down: writes a refusal down and pays for it; `Inventory.refuse`.
    """

    REMEMBERED_MAX = 4096

    def __init__(self, write_down: WriteDown) -> None:
        self._write_down = write_down
        self._empty: dict[tuple[str, str], _Empty] = {}
        self._settle_at: datetime | None = None

    def check(self, buckets: Sequence[Bucket], now: datetime) -> None:
        """Refuse what is known to be in vain.

        Raises:
            RateLimited: one of the buckets was empty a moment ago and still is.
        """
        for bucket in buckets:
            known = self._empty.get((bucket.limit, bucket.owner))
            if known is not None and now < known.until <= now + bucket.rate.horizon:
                raise bucket.refusal(known.until - now)

    def note(self, error: RateLimited, refusal: Refusal, now: datetime) -> None:
        """Remember that a bucket is empty, and tell it: now, or once a minute with what came after."""
        name = (error.limit, error.owner)
        known = self._empty.get(name)
        if known is None:
            if len(self._empty) >= self.REMEMBERED_MAX:
                del self._empty[next(iter(self._empty))]
            telling = Bucket("told", f"{error.limit}:{error.owner}", _TELLING)
            known = self._empty[name] = _Empty(telling, now, now, refusal)
        known.until, known.refusal = now + (error.retry_after or timedelta()), refusal
        known.untold += 1
        self._tell(known, now)

    def settle(self, now: datetime) -> None:
        """Once a minute, tell what came after the last row, and forget what is full again."""
        if self._settle_at is not None and now < self._settle_at <= now + _MINUTE:
            return
        self._settle_at = now + _MINUTE
        for name, known in list(self._empty.items()):
            if known.untold:
                self._tell(known, now)
            elif known.until <= now:
                del self._empty[name]

    def _tell(self, known: _Empty, now: datetime) -> None:
        if now < known.tell_at <= now + _MINUTE:
            return
        known.tell_at = now + _MINUTE
        try:
            self._write_down(replace(known.refusal, count=known.untold), now, (), (known.telling,))
        except RateLimited:
            return  # another worker has told it within this minute
        except CapacityError as error:
            _log.error("refusals could not be written down: %s", error)
        else:
            known.untold = 0
