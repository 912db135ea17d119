"""What can go wrong on the device's side of the wire.

    DeviceSimError
    ├── UsageProblem            an argument of the caller's is wrong
    ├── ConfigInvalid           a file the caller wrote is wrong
    ├── Conflict                it would make a duplicate of something that must be unique
    ├── Unreachable             nobody answered, or with "not now": try again, nothing is lost
    │   └── Pending                 the request is accepted and waits for approval (202)
    ├── EstRefused              the EST server said no, for good
    ├── Denied                  somebody at the factory said no
    ├── CannotComply            the server asks for what this device cannot or must not do
    ├── KeyStoreError           the key store cannot be read or does not hold what it should
    ├── VerificationFailed      what was received is not what it must be
    │   ├── ServerNotTrusted        the server did not prove to be the one we were told to trust
    │   └── BadAnswer               the bytes of an answer are at fault
    ├── Locked                  another process is working on it
    ├── StorageError            it could not be written durably
    ├── ClockUntrustworthy      the clock cannot be right
    └── Backlog                 too much is owed to others to make more of it

Each has a stable `code` for programs, an `exit_code` for the command line and `advice` for the human.
"""

from __future__ import annotations

from typing import ClassVar


class DeviceSimError(Exception):
    """Root of everything this package raises on purpose.

    Attributes:
        code: stable reason code, lower-case words joined by hyphens; part of the interface.
        exit_code: what a command ends with because of it.
        advice: what the reader can do about it; may be empty.
        retry_after_seconds: how long to wait before the same thing can succeed, or None.
    """

    code: ClassVar[str] = "unexpected"
    exit_code: ClassVar[int] = 1
    advice: str = ""

    def __init__(self, message: str, *, advice: str | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.advice = type(self).advice if advice is None else advice
        self.retry_after_seconds = retry_after_seconds

    @property
    def line(self) -> str:
        """What happened and what to do, in one line."""
        return f"{self} — {self.advice}" if self.advice else str(self)


class UsageProblem(DeviceSimError):
    """An argument is missing, malformed or contradicts another."""

    code = "usage"
    exit_code = 2


class ConfigInvalid(DeviceSimError):
    """A file given as input is not what it should be; nothing was done."""

    code = "config-invalid"
    exit_code = 3


class Conflict(DeviceSimError):
    """It would give one device two identities, or two devices one."""

    code = "conflict"
    exit_code = 5


class Unreachable(DeviceSimError):
    """No answer, a broken one, or a plain "not now" (429, 5xx). What was prepared is kept for the next attempt."""

    code = "unreachable"
    exit_code = 6
    advice = "check the address and the network, then run it again: nothing is lost"


class Pending(Unreachable):
    """The request was accepted and is not decided yet (202, RFC 7030 §4.2.3)."""

    code = "pending"
    advice = "repeat the request after that time, with the same key"

    def __init__(self, retry_after_seconds: float, *, message: str | None = None, advice: str | None = None) -> None:
        text = message or f"the request waits for approval; the server asks to come back in {retry_after_seconds:.0f} s"
        super().__init__(text, advice=advice, retry_after_seconds=retry_after_seconds)


class EstRefused(DeviceSimError):
    """The EST server refused (4xx, a TLS alert, a redirect not to be followed); the same request will not succeed.

    Attributes:
        status: the HTTP status, or None when the refusal came from the TLS layer.
        body_text: what the server wrote about it: one line, printable, shortened.
    """

    code = "refused"
    exit_code = 7
    advice = "change the request or what the server allows; repeating it will not help"

    def __init__(
        self, message: str, *, status: int | None = None, body_text: str = "", advice: str | None = None
    ) -> None:
        super().__init__(message, advice=advice)
        self.status = status
        self.body_text = body_text


class Denied(DeviceSimError):
    """Whoever must allow it did not, or could not be asked where that means no."""

    code = "denied"
    exit_code = 7


class CannotComply(DeviceSimError):
    """The server's CSR attributes ask for what this device cannot do or its local policy forbids (RFC 9908 §3)."""

    code = "cannot-comply"
    exit_code = 7


class KeyStoreError(DeviceSimError):
    """The key store cannot be read, or a key in it does not fit its certificate."""

    code = "keystore"
    exit_code = 8


class VerificationFailed(DeviceSimError):
    """A certificate, chain, signature or answer did not pass its check; nothing of it was used."""

    code = "verification-failed"
    exit_code = 10


class ServerNotTrusted(VerificationFailed):
    """The server was not authorised (RFC 7030 §3.6); it was told nothing but that."""

    code = "server-not-trusted"
    advice = "check the address, and that the trust anchor is the one of this server's CA"


class BadAnswer(VerificationFailed):
    """The answer is not what the operation returns: content type, base64, CMS, CsrAttrs, size."""

    code = "bad-answer"
    advice = "is this an EST server, and the right path or label on it?"


class Locked(DeviceSimError):
    """Another process holds the store."""

    code = "locked"
    exit_code = 11
    advice = "wait for the other process to end"


class StorageError(DeviceSimError):
    """The disk did not take it, or not durably; what was there before is still there."""

    code = "storage"
    exit_code = 12
    advice = "free some space or mend the disk, then run it again"


class ClockUntrustworthy(DeviceSimError):
    """The time is outside of what any certificate here can be valid at."""

    code = "clock"
    exit_code = 13
    advice = "set the clock"


class Backlog(DeviceSimError):
    """What is owed to others has come to its limit; what there is stays owed."""

    code = "backlog"
    exit_code = 9
