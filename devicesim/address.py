"""Where an EST server is: URLs, labels, redirects (RFC 7030 §3.2.1, §3.2.2)."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass

from devicesim.errors import EstRefused, UsageProblem
from devicesim.transport import Answer, Origin

_WELL_KNOWN = "/.well-known/est"
_OPERATIONS = frozenset(
    {"cacerts", "csrattrs", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "crls", "pal", "renewal-info"}
)
_LABEL = re.compile(r"[A-Za-z0-9._~-]+")
_PRINTABLE = re.compile(r"[!-~]+")
_REDIRECTS = frozenset({301, 302, 307, 308})


@dataclass(frozen=True, slots=True)
class EstAddress:
    """One EST server, or one label of it."""

    origin: Origin
    label: str = ""

    @classmethod
    def parse(cls, url: str, label: str = "") -> EstAddress:
        """Read `https://host[:port][/.well-known/est[/label]]`."""
        advice = "write it as https://HOST:PORT/.well-known/est"
        parts = _split(url)
        path = parts.path.rstrip("/")
        if parts.scheme != "https" or parts.query or parts.fragment:
            raise UsageProblem(f"not the address of an EST server: {url!r}", advice=advice)
        if path and path != _WELL_KNOWN and not path.startswith(_WELL_KNOWN + "/"):
            raise UsageProblem(f"not an EST path: {path!r}", advice=advice)
        in_url = path.removeprefix(_WELL_KNOWN).strip("/")
        if label and in_url and label != in_url:
            raise UsageProblem(f"two labels: {in_url!r} in the address and {label!r}", advice="give one of them")
        return cls(_origin(parts, url), _checked_label(label or in_url))

    def path(self, operation: str) -> str:
        """Return the path of an operation."""
        return "/".join(part for part in (_WELL_KNOWN, self.label, operation) if part)

    def __str__(self) -> str:
        """Return the URL."""
        return f"{self.origin}{_WELL_KNOWN}" + (f"/{self.label}" if self.label else "")


def redirect_target(answer: Answer, origin: Origin, path: str) -> tuple[Origin, str] | None:
    """Return where an answer sends the request, or None when it is no redirect; never to anything but https."""
    location = answer.headers.get("location", "").strip()
    if answer.status not in _REDIRECTS or not location:
        return None
    try:
        parts = _split(urllib.parse.urljoin(f"{origin}{path}", location))
        target = _origin(parts, location)
    except (UsageProblem, ValueError) as error:
        raise _bad_redirect(answer.status) from error
    if parts.scheme != "https" or not _PRINTABLE.fullmatch(parts.path + parts.query):
        raise _bad_redirect(answer.status)
    return target, parts.path + (f"?{parts.query}" if parts.query else "")


def _bad_redirect(status: int) -> EstRefused:
    return EstRefused(
        "the server redirects to an address that is none for EST",
        status=status,
        advice="only https is followed; report it to whoever runs the server",
    )


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageProblem(f"not an address: {url!r} ({error})") from error
    return parts


def _origin(parts: urllib.parse.SplitResult, url: str) -> Origin:
    if not parts.hostname or not _PRINTABLE.fullmatch(parts.netloc):
        raise UsageProblem(f"no host in the address {url!r}")
    if parts.username is not None or parts.password is not None:
        raise UsageProblem("a password does not belong into an address", advice="give it in a file")
    return Origin(parts.hostname, parts.port or 443)


def _checked_label(label: str) -> str:
    if label and (not _LABEL.fullmatch(label) or label in _OPERATIONS or label in {".", ".."}):
        raise UsageProblem(f"not a label: {label!r}", advice="one path segment that is not the name of an operation")
    return label
