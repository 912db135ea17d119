"""The one seam to the network: HTTP/1.1 over one TLS connection.

Rules:
- A connection is never re-opened behind the caller's back: what is bound to it would be stale (RFC 7030 §3.5).
- Every exchange has one deadline, and one cap on the bytes of its answer, head and body together.
- Whatever goes wrong, only our own errors leave.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass

from devicesim.errors import DeviceSimError
from devicesim.tls import ClientIdentity, Origin, TlsChoice, TlsSettings, TlsSocket, channel_binding, network_errors

__all__ = ["Answer", "ClientIdentity", "Connection", "Origin", "TlsChoice", "TlsSettings"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One TLS connection to one server; closed for good when it closes."""

    def __init__(self, origin: Origin, settings: TlsSettings) -> None:
        self.origin = origin
        self._socket = TlsSocket.connect(origin, settings)
        self._timeout_seconds = settings.timeout_seconds
        self._answer_max_bytes = settings.answer_max_bytes
        self._http = http.client.HTTPConnection(origin.host, origin.port)
        self._http.auto_open = 0  # never re-open silently
        self._http.sock = self._socket  # it has the three methods http.client calls

    @property
    def tls_version(self) -> str:
        """As OpenSSL prints it, `TLSv1.2` or `TLSv1.3`."""
        return self._socket.tls.get_protocol_version_name()

    @property
    def binding(self) -> bytes | None:
        """The channel binding of this connection, or None when it has none that is safe (RFC 7030 §3.5)."""
        return channel_binding(self._socket.tls)

    def alive(self) -> bool:
        """Tell whether the next request can be sent: not closed here, and nothing waiting to be read but silence."""
        return self._http.sock is not None and self._socket.quiet()

    def exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
        """Send one request and read its answer to the end."""
        self._socket.begin(self._timeout_seconds, self._answer_max_bytes)
        try:
            with network_errors(self.origin):
                self._http.request(method, path, body=body, headers={"Host": self.origin.authority, **headers})
                response = self._http.getresponse()
                content = response.read(self._answer_max_bytes)
                if response.length:
                    raise http.client.IncompleteRead(content, response.length)
        except DeviceSimError:
            self.close()
            raise
        return Answer(response.status, _headers(response), content)

    def close(self) -> None:
        """Close it; harmless when it is closed."""
        self._http.close()
        self._socket.close()


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    """Return the headers by lower-case name; repeated ones are one list (RFC 9110 §5.1, §5.2)."""
    headers: dict[str, str] = {}
    for name, value in response.getheaders():
        known = headers.get(name.lower())
        headers[name.lower()] = value if known is None else f"{known}, {value}"
    return headers
