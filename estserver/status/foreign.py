"""Manufacturers' revocation lists: fetched beside the requests, checked, and put where requests look serials up.

Rules:
- A list counts only with the signature of the anchor it is about, complete (no delta, no part of its certificates) and
  not older than the one there is: whoever is between the manufacturer and this server can withhold a list, not forge
  one (RFC 5280 §6.3.3).
- What cannot be fetched leaves the list before in force until its nextUpdate, and is tried again soon.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.client import HTTPException
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from estserver.errors import ConfigError, EstError
from estserver.inventory.foreign import ForeignLists
from estserver.model import Der
from estserver.records import AnchorCrlRecord, AnchorRecord

LIST_MAX_BYTES = 32 << 20
FETCH_SECONDS = 30.0
RETRY = timedelta(minutes=5)
_PEM = b"-----BEGIN"
_UNDERSTOOD = (x509.CRLNumber, x509.AuthorityKeyIdentifier)


@dataclass(frozen=True, slots=True)
class ForeignList:
    """A list that was checked."""

    serials: frozenset[int]
    this_update: datetime
    next_update: datetime


def refresh(record: AnchorCrlRecord, anchor: Der, lists: ForeignLists, now: datetime) -> None:
    """Fetch a list and put it in the place of the one before.

    Raises:
        EstError: it cannot be fetched or does not count; that was noted.
    """
    try:
        found = read_list(fetch(record.source), anchor, now)
        lists.replace(record.anchor, set(found.serials), found.this_update, found.next_update, now)
    except EstError as error:
        lists.failed(record.anchor, str(error), now)
        raise


def refresh_due(
    lists: ForeignLists, anchors: Callable[[], list[AnchorRecord]], now: datetime, *, every: timedelta
) -> Iterator[str]:
    """Fetch what was not fetched for so long; tell what went right again.

    Raises:
        ConfigError: with what went wrong and had not before.
    """
    due = [record for record in lists.all() if _is_due(record, now, every)]
    known: Mapping[str, Der] = {one.name: one.certificate for one in anchors()} if due else {}
    problems = []
    for record in due:
        try:
            refresh(record, known[record.anchor], lists, now)
        except EstError as error:
            if str(error) != record.problem:
                problems.append(f"the revocation list of {record.anchor} could not be renewed: {error}")
        else:
            if record.problem is not None:
                yield f"the revocation list of {record.anchor} is renewed again"
    if problems:
        raise ConfigError("; ".join(problems))


def _is_due(record: AnchorCrlRecord, now: datetime, every: timedelta) -> bool:
    if record.tried_at is None:
        return True
    return now >= record.tried_at + (every if record.problem is None else min(every, RETRY))


def fetch(source: str) -> bytes:
    """Read a file, or get a URL.

    Raises:
        ConfigError: it cannot be read, or is too large.
    """
    try:
        if source.startswith(("http://", "https://")):
            with _opener().open(source, timeout=FETCH_SECONDS) as answer:
                octets: bytes = answer.read(LIST_MAX_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                octets = file.read(LIST_MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise ConfigError(f"{source} answers {error.code}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
        raise ConfigError(f"{source} cannot be read: {reason}") from None
    if len(octets) > LIST_MAX_BYTES:
        raise ConfigError(f"{source} is larger than {LIST_MAX_BYTES} bytes")
    return octets


def _opener() -> urllib.request.OpenerDirector:
    """Make what speaks HTTP and HTTPS, and nothing else a redirection may name."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def read_list(octets: bytes, anchor: Der, now: datetime) -> ForeignList:
    """Read a list in DER or PEM, and check that it counts.

    Raises:
        ConfigError: why it does not.
    """
    certificate = x509.load_der_x509_certificate(anchor)
    try:
        load = x509.load_pem_x509_crl if octets.lstrip().startswith(_PEM) else x509.load_der_x509_crl
        crl = load(octets)
        unknown = [one for one in crl.extensions if one.critical and not isinstance(one.value, _UNDERSTOOD)]
        serials = frozenset(entry.serial_number for entry in crl)
        signed = crl.is_signature_valid(certificate.public_key())  # type: ignore[arg-type]  # of whatever kind it is
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise ConfigError("it is no revocation list that can be read") from None
    if not signed or crl.issuer != certificate.subject:
        raise ConfigError("it is not signed by the manufacturer's CA that is trusted")
    if unknown:
        raise ConfigError("it is a list of a part only, or a delta: a complete one is needed")
    if crl.next_update_utc is None or now > crl.next_update_utc:
        raise ConfigError("it has ended" if crl.next_update_utc else "it does not say when it ends")
    return ForeignList(serials, crl.last_update_utc, crl.next_update_utc)
