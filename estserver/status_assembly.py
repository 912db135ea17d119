"""Settings → what tells the status of certificates; beside `assembly`, for a server that does nothing else.

Rules:
- To tell, no CA's key is opened; to keep up to date what is told, every CA's is.
- OCSP is answered for the CAs whose certificates say so (`status_url`); for the others nobody makes a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

from estserver.assembly import hierarchy_of, load_publishers
from estserver.config import Settings
from estserver.inventory import Inventory
from estserver.key_ids import subject_key_id
from estserver.status import Directory, Keeper, Publisher, Responder
from estserver.status.delegate import DelegateFile, delegate_path, renew_due
from estserver.status.foreign import refresh_due

LOCK, FETCH_LOCK = Path("status.lock"), Path("fetch.lock")


def directory_of(settings: Settings, inventory: Inventory) -> Directory:
    """Make what tells of every CA of a home.

    Raises:
        ConfigError: a certificate is missing or wrong.
    """
    rollovers = inventory.rollovers.all()
    chains = {name: hierarchy_of(settings, name, rollovers).ever for name in settings.cas}
    return Directory(chains, inventory.crls)


def responder_of(settings: Settings, inventory: Inventory) -> Responder:
    """Make what answers OCSP requests about the certificates that say so.

    Raises:
        ConfigError: a certificate is missing or wrong.
    """
    rollovers = inventory.rollovers.all()
    asked = [name for name, section in settings.cas.items() if section.status_url]
    keys = [one.certificate for name in asked for one in hierarchy_of(settings, name, rollovers).keys]
    files = {der: DelegateFile(delegate_path(settings.home, subject_key_id(der))) for der in keys}
    return Responder(files, inventory.takeback, lifetime=settings.status.ocsp_lifetime)


def keepers_of(
    settings: Settings, inventory: Inventory, *, clock: Callable[[], datetime], random: Callable[[int], bytes]
) -> tuple[Keeper, Keeper]:
    """Make what keeps lists and responders up to date, and what waits for manufacturers' servers.

    Raises:
        ConfigError: a key or certificate is missing or wrong.
    """
    publishers = load_publishers(settings, inventory, clock())
    cas = [(ca, settings.cas[name].status_url) for name, several in publishers.items() for ca in several]
    asked = {ca.key_id: ca for ca, url in cas if url}
    files = {key_id: DelegateFile(delegate_path(settings.home, key_id)) for key_id in asked}
    renew = partial(renew_due, inventory=inventory, server_id=settings.storage.server_id, random=random)

    def renew_responders(now: datetime) -> Iterator[str]:
        for key_id, ca in asked.items():
            if renew(ca, files[key_id], now=now):
                yield f"the OCSP responder of {ca.name} has a new key"

    publisher = Publisher([ca for ca, _ in cas], inventory.crls, lifetime=settings.status.crl_lifetime)
    every = settings.status.trust_crl_refresh
    fetch = partial(refresh_due, inventory.foreign, inventory.anchors, every=every)
    return (
        Keeper([publisher.publish_due, renew_responders], lock=settings.path(LOCK), clock=clock),
        Keeper([fetch], lock=settings.path(FETCH_LOCK), clock=clock),
    )
