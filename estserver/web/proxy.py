"""What a proxy says of the TLS connection that it ended (docs/proxy.md) → `Peer`.

Rules:
- Believed is whoever connects from an address of `[proxy] addresses`: the other end of this very TCP connection, which
  no header can change. Nobody is by default, and this machine no more than others.
- A header that cannot be read, or that came twice, is refused, never ignored.
- The TLS version and the client's address are said with every request: a proxy that is silent is not set up for this.
- The binding is tls-unique on TLS 1.2 alone. On TLS 1.3 it is undefined (RFC 9266 §1), and no proxy gives tls-exporter:
  there is none then, and `binding` refuses a CSR that carries one.
- Clients come mixed: what was asked before on the same connection is not known (RFC 9266 §4.1 is not enforced).
- Who a certificate stands for is decided in `identity`, as without a proxy.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeAlias
from urllib.parse import unquote

from estserver.asn1 import read_tlv
from estserver.config import ProxySection
from estserver.errors import MalformedRequest, NotAuthorized
from estserver.model import ChannelBinding, Der, Peer

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

TAKEN = frozenset({"TLSv1.2", "TLSv1.3"})
TOO_OLD = frozenset({"SSLv2", "SSLv3", "TLSv1", "TLSv1.0", "TLSv1.1"})
TLS_UNIQUE_BYTES = 12
SUITE_MAX_CHARS = 64
_SEQUENCE = 0x30
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n((?:[A-Za-z0-9+/=]{1,76}\n)+)-----END CERTIFICATE-----\n?")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Whom to believe, and which headers carry what.

    Attributes:
        addresses: empty when there is no proxy.
        certificate, chain, tls_version, tls_unique, cipher, address: header names; empty for what the proxy does not
            give.
    """

    addresses: frozenset[Address]
    certificate: str
    chain: str
    tls_version: str
    tls_unique: str
    cipher: str
    address: str

    def peer(self, environ: Mapping[str, object]) -> Peer:
        """Return who is at the other end of the connection that the proxy ended.

        Raises:
            NotAuthorized: nobody who is believed says that the client came over TLS 1.2 or later.
            MalformedRequest: what the proxy says cannot be read, or does not agree with itself.
        """
        self._require_believed(environ)
        version = self._version(environ)
        leaf = self._certificates(environ, self.certificate)
        chain = self._certificates(environ, self.chain)
        if len(leaf) > 1:
            _malformed(self.certificate, "holds more than one certificate")
        if chain and not leaf:
            _malformed(self.chain, "came without the certificate that it belongs to")
        return Peer(
            address=self._address(environ),
            tls_version=version,
            certificate=leaf[0] if leaf else None,
            intermediates=tuple(link for link in chain if link not in leaf),
            binding=self._binding(environ, version),
            cipher=_value(environ, self.cipher)[:SUITE_MAX_CHARS],
        )

    def _require_believed(self, environ: Mapping[str, object]) -> None:
        sender = str(environ.get("REMOTE_ADDR", ""))
        if _plain_address(sender) in self.addresses:
            return
        reasons = ["this server answers over TLS only"]
        names = (self.certificate, self.chain, self.tls_version, self.tls_unique, self.cipher, self.address)
        if any(_key(name) in environ for name in names if name):
            reasons.append("headers of a proxy were sent from an address that is not the proxy's")
        raise NotAuthorized(*reasons, code="no-tls")

    def _version(self, environ: Mapping[str, object]) -> str:
        version = _value(environ, self.tls_version)
        if version in TAKEN:
            return version
        if not version:
            raise NotAuthorized("the proxy does not say which version of TLS the client speaks", code="no-tls")
        if version in TOO_OLD:
            raise NotAuthorized(f"the client speaks {version}, and TLS 1.2 is the least (RFC 8996)", code="no-tls")
        return _malformed(self.tls_version, "names no version of TLS")

    def _address(self, environ: Mapping[str, object]) -> str:
        text = _value(environ, self.address)
        address = None if "%" in text else _plain_address(text)
        return _malformed(self.address, "is no IP address") if address is None else str(address)

    def _certificates(self, environ: Mapping[str, object], name: str) -> tuple[Der, ...]:
        try:
            return _values_in(_octets(_value(environ, name)))
        except ValueError:
            return _malformed(name, "is neither base64 of DER nor URL-encoded PEM")
        except MalformedRequest as error:
            return _malformed(name, f"holds no certificate: {error}")

    def _binding(self, environ: Mapping[str, object], version: str) -> ChannelBinding | None:
        text = _value(environ, self.tls_unique)
        if not text:
            return None
        if version != "TLSv1.2":
            return _malformed(self.tls_unique, f"came with {version}, where tls-unique means nothing (RFC 9266 §1)")
        try:
            value = base64.b64decode(text, validate=True)
        except ValueError:
            return _malformed(self.tls_unique, "is not base64")
        if len(value) != TLS_UNIQUE_BYTES:  # RFC 5246 §7.4.9
            return _malformed(self.tls_unique, f"is of {len(value)} octets; a Finished of TLS 1.2 has 12")
        return ChannelBinding("tls-unique", value)


def proxy_of(section: ProxySection) -> Proxy:
    """Make what the configuration says ready for use."""
    return Proxy(
        addresses=frozenset(filter(None, map(_plain_address, section.addresses))),
        certificate=section.certificate_header,
        chain=section.chain_header,
        tls_version=section.tls_version_header,
        tls_unique=section.tls_unique_header,
        cipher=section.cipher_header,
        address=section.address_header,
    )


def _plain_address(text: str) -> Address | None:
    """Read an address; one of IPv4 on a socket of IPv6 is that of IPv4 (RFC 4291 §2.5.5.2)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _key(name: str) -> str:
    return "HTTP_" + name.upper().replace("-", "_")


def _value(environ: Mapping[str, object], name: str) -> str:
    """Return what a header says; empty when it is absent, empty or not configured."""
    value = str(environ.get(_key(name), "")) if name else ""
    if "," in value:  # how a server joins a header that came twice (RFC 3875 §4.1.18); none of ours holds one
        _malformed(name, "came twice")
    return value


def _octets(text: str) -> bytes:
    """Undo base64, or PEM with URL escapes as nginx writes it.

    Raises:
        ValueError: it is neither.
    """
    if not text.startswith("-----BEGIN"):
        return base64.b64decode(text, validate=True)
    pem = unquote(text, errors="strict")
    bodies = _PEM.findall(pem)
    if not bodies or _PEM.sub("", pem):
        raise ValueError("not PEM")
    return b"".join(base64.b64decode(body.replace("\n", ""), validate=True) for body in bodies)


def _values_in(octets: bytes) -> tuple[Der, ...]:
    """Part certificates that stand one after another; whether they make sense is for `identity` to see.

    Raises:
        MalformedRequest: they are no complete DER SEQUENCEs.
    """
    found, start = list[Der](), 0
    while start < len(octets):
        tlv, end = read_tlv(octets, start)
        if tlv.tag != _SEQUENCE:
            raise MalformedRequest("something else than a SEQUENCE (RFC 5280 §4.1)")
        found.append(Der(octets[start:end]))
        start = end
    return tuple(found)


def _malformed(name: str, what: str) -> NoReturn:
    raise MalformedRequest(f"the proxy's header {name} {what}", code="malformed-proxy-header")
