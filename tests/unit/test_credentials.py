"""Secrets for HTTP Basic: what is kept, what is compared, and what is paid for."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import pytest

from estserver.errors import RateLimited
from estserver.identity import CredentialVerifier, credentials
from estserver.identity.credentials import generate_secret, verifier_for_chosen, verifier_for_generated
from tests.unit.test_identity import PEPPER, record


def test_a_generated_secret_is_its_128_bits_in_small_letters_and_digits() -> None:
    assert generate_secret(bytes(16)) == "a" * 26
    assert generate_secret(b"\xff" * 16) == "7" * 25 + "4"
    assert generate_secret(bytes(range(16))) != generate_secret(bytes(range(1, 17)))
    for length in (0, 15, 17):
        with pytest.raises(ValueError, match="exactly 16 random bytes"):
            generate_secret(bytes(length))


def test_what_is_kept_is_the_digest_that_the_module_names() -> None:
    assert verifier_for_generated(b"secret", b"pepper") == hmac.new(b"pepper", b"secret", hashlib.sha256).digest()
    assert CredentialVerifier(b"pepper").kept_of(b"secret") == verifier_for_generated(b"secret", b"pepper")
    scrypt = hashlib.scrypt(b"secret", salt=b"salt", n=2**14, r=8, p=1, dklen=32, maxmem=2**26)
    assert verifier_for_chosen(b"secret", b"salt") == scrypt


def test_a_secret_is_compared_with_what_its_own_scheme_keeps() -> None:
    verifier = CredentialVerifier(PEPPER)
    assert verifier.matches(record("line", b"good"), b"good") is True
    assert verifier.matches(record("line", b"good"), b"bad") is False
    assert verifier.matches(record("line", b"good", chosen=True), b"good") is True
    assert verifier.matches(record("line", b"good", chosen=True), b"bad") is False
    assert CredentialVerifier(b"other" * 8).matches(record("line", b"good"), b"good") is False
    swapped = replace(record("line", b"good"), scheme="scrypt")
    assert verifier.matches(swapped, b"good") is False


def test_nobody_has_the_secret_of_a_credential_that_is_not_there() -> None:
    verifier = CredentialVerifier(PEPPER)
    assert verifier.matches(None, b"") is False
    assert verifier.matches(None, bytes(32)) is False


def test_a_guess_is_asked_for_before_scrypt_is_paid_for_and_only_then() -> None:
    verifier, asked = CredentialVerifier(PEPPER), list[str]()

    def before_guess() -> None:
        asked.append("guess")

    def stop() -> None:
        raise RateLimited("guesses enough")

    chosen = record("line", b"good", chosen=True)
    for known, secret, guesses in [
        (None, b"good", 0),
        (record("line", b"good"), b"bad", 0),
        (chosen, b"bad", 1),
        (chosen, b"bad", 2),
        (chosen, b"good", 3),
        (chosen, b"good", 3),
        (chosen, b"bad", 4),
    ]:
        verifier.matches(known, secret, before_guess)
        assert len(asked) == guesses
    assert verifier.matches(chosen, b"good", stop), "what is known to be good is no guess"
    with pytest.raises(RateLimited):
        verifier.matches(chosen, b"bad", stop)


def test_so_many_good_secrets_are_remembered_and_then_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[bytes]()

    def counted(secret: bytes, salt: bytes) -> bytes:
        calls.append(secret)
        return hashlib.sha256(secret + salt).digest()

    monkeypatch.setattr(credentials, "verifier_for_chosen", counted)
    monkeypatch.setattr(credentials, "_CACHE_MAX", 2)
    verifier = CredentialVerifier(PEPPER)

    def paid(name: bytes) -> int:
        calls.clear()
        kept = replace(record("line", b"x"), scheme="scrypt", salt=b"s", verifier=hashlib.sha256(name + b"s").digest())
        assert verifier.matches(kept, name)
        return len(calls)

    assert [paid(name) for name in (b"a", b"b", b"a", b"b")] == [1, 1, 0, 0]
    assert [paid(name) for name in (b"c", b"c", b"a")] == [1, 0, 1], "the third makes room"


def test_what_is_remembered_is_bound_to_salt_and_verifier() -> None:
    verifier, chosen = CredentialVerifier(PEPPER), record("line", b"good", chosen=True)
    assert verifier.matches(chosen, b"good")
    assert not verifier.matches(replace(chosen, salt=b"t" * 16), b"good")
    assert not verifier.matches(replace(chosen, verifier=bytes(32)), b"good")
