"""Secrets for HTTP Basic: how they are made, what is kept of them, and how they are compared.

Rules:
- A generated secret has 128 bits, so a fast keyed hash is enough: HMAC-SHA256 under the server's own key.
- A secret that a human chose gets scrypt. The result of a success is remembered in this process, keyed by a hash that
  only this process can compute, so that the second request of a device does not pay for it again.
- Before scrypt is paid for, the caller may say that there were guesses enough.
- Every comparison takes constant time, and an unknown name costs what one with a generated secret does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable

from estserver.records import CredentialRecord

GENERATED_BYTES = 16
SALT_BYTES = 16
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "dklen": 32, "maxmem": 64 * 1024 * 1024}
_CACHE_MAX = 4096


def generate_secret(random_bytes: bytes) -> str:
    """Write 128 random bits as 26 characters that survive being read aloud (RFC 4648 base32, lower case)."""
    if len(random_bytes) != GENERATED_BYTES:
        raise ValueError("a generated secret has exactly 16 random bytes")
    return base64.b32encode(random_bytes).decode().rstrip("=").lower()


def verifier_for_generated(secret: bytes, pepper: bytes) -> bytes:
    """Return what is kept of a generated secret."""
    return hmac.digest(pepper, secret, "sha256")


def verifier_for_chosen(secret: bytes, salt: bytes) -> bytes:
    """Return what is kept of a secret that a human chose (RFC 7914)."""
    return hashlib.scrypt(secret, salt=salt, **_SCRYPT)


def _free() -> None:
    """Let every guess pass."""


class CredentialVerifier:
    """Compares offered secrets with what is kept of them; one per process.

    Args:
        pepper: the server's own key for generated secrets, at least 32 bytes.
    """

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self._cache_key = os.urandom(32)
        self._known_good: dict[bytes, None] = {}

    def kept_of(self, secret: bytes) -> bytes:
        """Return what is kept of a generated secret: what a credential without a name is found by."""
        return verifier_for_generated(secret, self._pepper)

    def matches(self, record: CredentialRecord | None, secret: bytes, before_guess: Callable[[], None] = _free) -> bool:
        """Return whether `secret` is the one behind `record`; False, after the same work, when there is none.

        Args:
            before_guess: called before a comparison that costs scrypt; what it raises stops that.
        """
        if record is None:
            hmac.compare_digest(verifier_for_generated(secret, self._pepper), bytes(32))
            return False
        if record.scheme == "hmac-sha256":
            return hmac.compare_digest(verifier_for_generated(secret, self._pepper), record.verifier)
        return self._matches_chosen(record, secret, before_guess)

    def _matches_chosen(self, record: CredentialRecord, secret: bytes, before_guess: Callable[[], None]) -> bool:
        digest = hmac.digest(self._cache_key, record.verifier + record.salt + secret, "sha256")
        if digest in self._known_good:
            return True
        before_guess()
        if not hmac.compare_digest(verifier_for_chosen(secret, record.salt), record.verifier):
            return False
        if len(self._known_good) >= _CACHE_MAX:
            self._known_good.clear()
        self._known_good[digest] = None
        return True
