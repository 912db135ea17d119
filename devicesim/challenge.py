"""The answer to an HTTP challenge: Digest (RFC 7616) or Basic (RFC 7617), whichever of what is offered tells least.

Rules:
- Digest with SHA-256 comes before Basic, Basic before Digest with MD5: that one only where nothing else is offered, as
  servers of RFC 7030's own time do (RFC 7616 §3.4 keeps it for them). Everything travels inside TLS.
- Only `qop=auth`: without it a digest has no nonce of ours in it (RFC 7616 §3.4).
- A challenge that cannot be read is none that was made; what stands in quotes is never taken for a scheme.
"""

from __future__ import annotations

import base64
import hashlib
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from devicesim.errors import UsageProblem

_HEADER_MAX = 4096
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # a token of RFC 9110 §5.6.2
_PART = re.compile(
    rf"""[\s,]*(?:
      (?P<name>{_WORD})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>{_WORD}))(?=[\s,]|$)
      |(?P<scheme>{_WORD})(?:\s+(?P<token68>[A-Za-z0-9._~+/-]+=*)(?=\s*(?:,|$)))?(?=[\s,]|$))""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Name and password for HTTP authentication; the name may be empty (RFC 7030 §3.2.3).

    The password is copied into memory of its own, which `wipe` overwrites. What Python's codecs and its HTTP made of it
    on the way are further copies, which it frees and does not overwrite.
    """

    name: str
    password: bytes | bytearray = field(repr=False)

    def __post_init__(self) -> None:
        if not self.name.isprintable() or ":" in self.name:
            raise UsageProblem("not a name for HTTP authentication", advice="printable characters, and no colon")
        object.__setattr__(self, "password", bytearray(self.password))

    def wipe(self) -> None:
        """Overwrite the password; what is answered from now on is answered without one (RFC 7030 §6)."""
        password = self.password
        assert isinstance(password, bytearray)
        password[:] = bytes(len(password))  # of the same length, so in place

    @property
    def wiped(self) -> bool:
        """Tell whether there is no password any more."""
        return not any(self.password)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header; scheme and names of parameters in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def challenges(header: str) -> tuple[Challenge, ...]:
    """Read WWW-Authenticate, several headers being one list (RFC 9110 §11.6.1); what is no challenge ends it."""
    found: list[tuple[str, dict[str, str]]] = []
    text, at = header[:_HEADER_MAX], 0
    while (part := _PART.match(text, at)) is not None:
        at = part.end()
        if part["scheme"]:
            found.append((part["scheme"].lower(), {}))
        elif found:
            quoted = part["quoted"]
            value = part["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1][1].setdefault(part["name"].lower(), value)
    return tuple(Challenge(scheme, parameters) for scheme, parameters in found)


def authorization(header: str, credentials: Credentials, method: str, target: str, cnonce: str) -> str | None:
    """Return the Authorization header that answers, or None when nothing on offer can be answered.

    Args:
        header: what came as WWW-Authenticate.
        target: the request target, path and query.
        cnonce: fresh randomness of ours.
    """
    offered = challenges(header)
    digests = [one for one in offered if one.scheme == "digest" and _answerable(one)]
    for wanted in ("SHA-256", "basic", "MD5"):
        if wanted == "basic" and any(one.scheme == "basic" for one in offered):
            return _basic(credentials)
        for one in digests:
            if _algorithm(one).removesuffix("-SESS") == wanted:
                return _digest(one.parameters, credentials, method, target, cnonce)
    return None


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(credentials.name.encode() + b":" + credentials.password).decode("ascii")


# --- Digest ---------------------------------------------------------------------------------------------------------

_HASHES: dict[str, Callable[[bytes], str]] = {
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
}


def _algorithm(challenge: Challenge) -> str:
    return challenge.parameters.get("algorithm", "MD5").upper()


def _answerable(challenge: Challenge) -> bool:
    offered = {word.strip().lower() for word in challenge.parameters.get("qop", "").split(",")}
    known = _algorithm(challenge).removesuffix("-SESS") in _HASHES
    return known and "auth" in offered and {"realm", "nonce"} <= challenge.parameters.keys()


def _digest(given: Mapping[str, str], credentials: Credentials, method: str, target: str, cnonce: str) -> str:
    """Answer one challenge, once: its nonce is never used again, so the count is 1 (RFC 7616 §3.4)."""
    algorithm = given.get("algorithm", "MD5")
    hashed = _HASHES[algorithm.upper().removesuffix("-SESS")]
    realm, nonce, count = given["realm"], given["nonce"], "00000001"
    secret = hashed(b"%s:%s:%s" % (credentials.name.encode(), _octets(realm), credentials.password))
    if algorithm.upper().endswith("-SESS"):
        secret = hashed(_octets(f"{secret}:{nonce}:{cnonce}"))
    asked = hashed(_octets(f"{method}:{target}"))
    response = hashed(_octets(f"{secret}:{nonce}:{count}:{cnonce}:auth:{asked}"))
    said = [_user(credentials.name), f"realm={_quoted(realm)}", f"nonce={_quoted(nonce)}", f"uri={_quoted(target)}"]
    said += [f"algorithm={algorithm}", "qop=auth", f"nc={count}", f"cnonce={_quoted(cnonce)}"]
    said.append(f'response="{response}"')
    if "opaque" in given:
        said.append(f"opaque={_quoted(given['opaque'])}")
    return "Digest " + ", ".join(said)


def _octets(text: str) -> bytes:
    """Return what stood in a header, as it came: http.client reads and writes headers as ISO 8859-1."""
    return text.encode("latin-1", "replace")


def _user(name: str) -> str:
    """Write the name; one beyond ASCII in the extended notation (RFC 7616 §3.4.4, RFC 8187)."""
    return f"username={_quoted(name)}" if name.isascii() else f"username*=UTF-8''{urllib.parse.quote(name, safe='')}"


def _quoted(text: str) -> str:
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return f'"{escaped}"'
