"""A connection without TLS, for a proxy that ends it: what `connection` asks of OpenSSL, of the bare socket."""

from __future__ import annotations

import socket

from OpenSSL import SSL


class Plain:
    """Octets as they come and go; waits and ends are told in OpenSSL's words.

    Args:
        sock: one that does not block.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def set_accept_state(self) -> None:
        """Agree on nothing: there is no side to take."""

    def do_handshake(self) -> None:
        """Agree on nothing: there is no handshake."""

    def get_protocol_version_name(self) -> str:
        """Name no version of TLS."""
        return ""

    def recv(self, size: int) -> bytes:
        """Take up to so many octets.

        Raises:
            SSL.ZeroReturnError: the other end has said all it had to say.
            BlockingIOError: nothing there yet.
        """
        data = self._socket.recv(size)
        if not data:
            raise SSL.ZeroReturnError
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Give as many octets as are taken.

        Raises:
            SSL.WantWriteError: none are, yet.
        """
        try:
            return self._socket.send(data)
        except BlockingIOError:
            raise SSL.WantWriteError from None

    def shutdown(self) -> None:
        """Say no farewell: the end of the stream is one."""
