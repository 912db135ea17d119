"""Settings → what tells the status of certificates; beside `assembly`, for a server that does nothing else.

Rules:
- To tell, no CA's key is opened; to keep up to date what is told, every CA's is.
- OCSP is answered for the CAs whose certificates say so (`status_url`); for the others nobody makes a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from estserver.assembly import hierarchy_of, load_publishers
from estserver.ca import IssuingCa
from estserver.config import Settings
from estserver.inventory import Inventory
from estserver.key_ids import subject_key_id
from estserver.records import RolloverRecord
from estserver.status import Directory, Keeper, Publisher, Responder
from estserver.status.delegate import DelegateFile, delegate_path, renew_due
from estserver.status.foreign import refresh_due

LOCK, FETCH_LOCK = Path("status.lock"), Path("fetch.lock")
LOOK_AGAIN = timedelta(hours=1)


def directory_of(
    settings: Settings, inventory: Inventory, rollovers: Sequence[RolloverRecord] | None = None
) -> Directory:
    """Make what tells of every CA of a home.

    Args:
        rollovers: what became of the CAs, where it was read before; by default it is read.

    Raises:
        ConfigError: a certificate is missing or wrong.
    """
    known = inventory.rollovers.all() if rollovers is None else rollovers
    return Directory({name: hierarchy_of(settings, name, known).ever for name in settings.cas}, inventory.crls)


def responder_of(
    settings: Settings, inventory: Inventory, rollovers: Sequence[RolloverRecord] | None = None
) -> Responder:
    """Make what answers OCSP requests about the certificates that say so; `rollovers` as for `directory_of`.

    Raises:
        ConfigError: a certificate is missing or wrong.
    """
    known = inventory.rollovers.all() if rollovers is None else rollovers
    asked = [name for name, section in settings.cas.items() if section.status_url]
    keys = [one.certificate for name in asked for one in hierarchy_of(settings, name, known).keys]
    files = {der: DelegateFile(delegate_path(settings.home, subject_key_id(der))) for der in keys}
    return Responder(files, inventory.takeback, lifetime=settings.status.ocsp_lifetime)


def keepers_of(
    settings: Settings, inventory: Inventory, *, clock: Callable[[], datetime], random: Callable[[int], bytes]
) -> tuple[Keeper, Keeper]:
    """Make what keeps lists and responders up to date, and what waits for manufacturers' servers."""
    keys = _Keys(settings, inventory, random)
    every = settings.status.trust_crl_refresh
    fetch = partial(refresh_due, inventory.foreign, inventory.anchors, every=every)
    return (
        Keeper([keys.publish_lists, keys.renew_responders], lock=settings.path(LOCK), clock=clock),
        Keeper([fetch], lock=settings.path(FETCH_LOCK), clock=clock),
    )


class _Keys:
    """The keys that have something to publish: found when there is something to do, and again each hour.

    Not at once: a worker that takes the place of another serves, whatever the state of the inventory.
    """

    def __init__(self, settings: Settings, inventory: Inventory, random: Callable[[int], bytes]) -> None:
        self._settings = settings
        self._inventory = inventory
        self._renew = partial(renew_due, inventory=inventory, server_id=settings.storage.server_id, random=random)
        self._good_until: datetime | None = None
        self._publisher = Publisher([], inventory.crls, lifetime=settings.status.crl_lifetime)
        self._asked: list[tuple[DelegateFile, IssuingCa]] = []

    def publish_lists(self, now: datetime) -> Iterator[str]:
        """Publish the lists that are due; tell which."""
        self._find(now)
        return self._publisher.publish_due(now)

    def renew_responders(self, now: datetime) -> Iterator[str]:
        """Give those who sign OCSP answers a new key when it is time; tell whom."""
        self._find(now)
        for file, ca in self._asked:
            if self._renew(ca, file, now=now):
                yield f"the OCSP responder of {ca.name} has a new key"

    def _find(self, now: datetime) -> None:
        if self._good_until is not None and now < self._good_until:
            return
        settings = self._settings
        found = load_publishers(settings, self._inventory, now)
        cas = [ca for several in found.values() for ca in several]
        self._publisher = Publisher(cas, self._inventory.crls, lifetime=settings.status.crl_lifetime)
        asked = {ca.key_id: ca for name, several in found.items() if settings.cas[name].status_url for ca in several}
        self._asked = [(DelegateFile(delegate_path(settings.home, key_id)), ca) for key_id, ca in asked.items()]
        self._good_until = now + LOOK_AGAIN
