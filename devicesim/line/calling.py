"""Calling somebody at the factory who is asked or told: over HTTP, or as a program; JSON goes out, words come back.

Rules:
- Nothing secret is in what is sent; a token is read from its file for each call and goes into its header alone.
- A call ends within its time-out, and what comes back is bounded and made printable.
- HTTP: 2xx is yes, 403 is no with its words; a 200 with JSON `{"allow": false, "reason": "..."}` is no as well.
- A program: 0 is yes, 1 is no with what it wrote. Anything else, and no answer, is `HookFailed`: neither yes nor no.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from threading import Timer
from urllib.parse import urlsplit

from devicesim.errors import DeviceSimError
from devicesim.line.settings import Hook
from devicesim.line.statements import HOOK, Seal
from devicesim.line.station import read_password
from devicesim.replies import printable
from devicesim.transport import Answer, ClientIdentity, Connection, Origin, TlsSettings
from devicesim.trust import TrustAnchors

ANSWER_MAX_BYTES = 1 << 16
NO = 403
PROGRAM_NO = 1


class HookFailed(DeviceSimError):
    """Whoever was called did not answer, or not so that it can be understood."""

    code = "hook-failed"
    exit_code = 6


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and the words of whoever gave it."""

    yes: bool
    words: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody to call.

    Attributes:
        name: `allow` or `done`, for the words of an error.
        trust: the anchors of an https URL, to which the station shows its own certificate.
        seal: signs what is sent, where the settings want that.
    """

    name: str
    hook: Hook
    identity: ClientIdentity = field(repr=False)
    trust: TrustAnchors
    seal: Seal = field(repr=False)
    clock: Callable[[], datetime]

    def call(self, body: str, key: str) -> Said:
        """Send JSON, under an idempotency key that is the same whenever the same thing is sent.

        Raises:
            HookFailed: neither yes nor no.
        """
        octets = body.encode()
        if self.hook.sign:
            octets = self.seal(HOOK, json.loads(body), self.clock())
        if isinstance(self.hook.call, str):
            return self._judge(self._post(self.hook.call, octets, key))
        return self._run(self.hook.call, octets)

    @property
    def _seconds(self) -> float:
        return self.hook.timeout.total_seconds()

    def _failed(self, what: str) -> HookFailed:
        return HookFailed(f"the {self.name} hook {what}")

    # --- over HTTP --------------------------------------------------------------------------------------------------

    def _post(self, url: str, octets: bytes, key: str) -> Answer:
        kind = "application/json"
        headers = {"User-Agent": "devicesim", "Content-Type": kind, "Accept": kind, "Idempotency-Key": f'"{key}"'}
        try:
            if self.hook.token_file is not None:
                headers["Authorization"] = f"Bearer {read_password(self.hook.token_file).decode('ascii')}"
            parts = urlsplit(url)
            path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
            if parts.scheme == "http":
                return self._post_here(parts.hostname or "", parts.port or 80, path, headers, octets)
            settings = TlsSettings(
                self.trust, self.identity, timeout_seconds=self._seconds, answer_max_bytes=ANSWER_MAX_BYTES
            )
            connection = Connection(Origin(parts.hostname or "", parts.port or 443), settings)
            try:
                return connection.exchange("POST", path, headers, octets)
            finally:
                connection.close()
        except UnicodeDecodeError as error:
            raise self._failed("has a token that is not ASCII") from error
        except DeviceSimError as error:
            raise self._failed(f"did not answer: {error.line}") from error

    def _post_here(self, host: str, port: int, path: str, headers: Mapping[str, str], octets: bytes) -> Answer:
        """Ask somebody on this machine, for whom there is no TLS."""
        connection = http.client.HTTPConnection(host, port, timeout=self._seconds)
        try:
            connection.connect()
            with _cut_after(connection.sock, self._seconds):
                connection.request("POST", path, body=octets, headers=dict(headers))
                response = connection.getresponse()
                content = response.read(ANSWER_MAX_BYTES)
                if response.length:
                    raise self._failed(f"did not answer: less than it promised, or more than {ANSWER_MAX_BYTES} bytes")
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(f"did not answer: {printable(str(error)) or type(error).__name__}") from error
        finally:
            connection.close()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)

    def _judge(self, answer: Answer) -> Said:
        words = printable(answer.body.decode("utf-8", "replace"))
        if answer.status == NO:
            return Said(yes=False, words=_reason(answer.body) or words)
        if not 200 <= answer.status < 300:
            raise self._failed(f"answered {answer.status}" + (f": {words}" if words else ""))
        try:
            told = json.loads(answer.body) if answer.body.strip() else {}
        except (ValueError, RecursionError):
            told = {}
        allow = told.get("allow", True) if isinstance(told, dict) else True
        if not isinstance(allow, bool):
            raise self._failed('answered with an "allow" that is neither true nor false')
        return Said(allow, _reason(answer.body))

    # --- as a program -----------------------------------------------------------------------------------------------

    def _run(self, program: tuple[str, ...], octets: bytes) -> Said:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written:
            given.write(octets)
            given.seek(0)
            try:
                process = subprocess.Popen(
                    program, stdin=given, stdout=written, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as error:
                raise self._failed(f"cannot be run: {program[0]}: {error.strerror}") from error
            try:
                code = process.wait(self._seconds)
            except subprocess.TimeoutExpired as error:
                raise self._failed(f"took longer than {self._seconds:g} s") from error
            finally:
                _end(process)
            written.seek(0)
            words = printable(written.read(ANSWER_MAX_BYTES).decode("utf-8", "replace"))
        if code in {0, PROGRAM_NO}:
            return Said(code == 0, words)
        raise self._failed(f"ended with {code}" + (f": {words}" if words else ""))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _cut_after(sock: socket.socket, seconds: float) -> Iterator[None]:
    """End a connection that answers by drops: the time-out of a socket is for each of them."""

    def cut() -> None:
        with suppress(OSError):  # it has ended
            sock.shutdown(socket.SHUT_RDWR)

    timer = Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _reason(body: bytes) -> str:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return printable(str(told["reason"])) if isinstance(told, dict) and told.get("reason") else ""
