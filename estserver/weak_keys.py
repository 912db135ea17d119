"""Public keys that nobody should have, whoever asks: each check is one sentence about the key.

Rules:
- RSA: 2048 to 8192 bits, an odd exponent from 65537 on, no small factor, no two factors close to each other, and not of
  the structure of CVE-2017-15361 (ROCA), whose factors can be found.
- EC points off their curve and the point at infinity are refused where the key is read; points of small order of the
  Edwards curves here: with them as a key everybody can sign (RFC 8032 §5.1, §5.2; RFC 7748 §6).
- A key on the block list is refused by its hash: a published key may be as strong as any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed448, ed25519, rsa

from estserver.errors import ConfigError, WeakKey
from estserver.model import SpkiHash

BLOCKED_MAX = 250_000
BLOCKED_MAX_BYTES = 100 * BLOCKED_MAX
WRONG_LINES_SHOWN = 20
RSA_BITS = (2048, 8192)

_SMALL_PRIMES = tuple(p for p in range(3, 752) if all(p % q for q in range(2, math.isqrt(p) + 1)))
_SMALL_PRIMES_PRODUCT = math.prod(_SMALL_PRIMES)
_FERMAT_ROUNDS = 110  # finds factors closer than any sound generator makes them


def screen(key: object, spki_sha256: SpkiHash, blocked: frozenset[str] = frozenset()) -> None:
    """Refuse a key that should not exist.

    Args:
        blocked: SHA-256 of SubjectPublicKeyInfos that are refused whatever they are (`parse_block_list`).

    Raises:
        WeakKey: with what is wrong with it.
    """
    if spki_sha256 in blocked:
        raise WeakKey("this key is on the block list of this server: make a new one")
    for kind, check in _CHECKS:
        if isinstance(key, kind):
            check(key)


# --- RSA ------------------------------------------------------------------------------------------------------------


def _rsa(key: rsa.RSAPublicKey) -> None:
    numbers = key.public_numbers()
    low, high = RSA_BITS
    if not low <= key.key_size <= high:
        raise WeakKey(f"RSA-{key.key_size} offered; {low} to {high} bits are taken")
    if numbers.e < 65537 or numbers.e % 2 == 0 or numbers.e.bit_length() > 64:
        raise WeakKey(f"RSA exponent {str(numbers.e)[:24]} offered; odd exponents from 65537 on are taken")
    if numbers.n % 2 == 0 or math.gcd(numbers.n, _SMALL_PRIMES_PRODUCT) != 1:
        raise WeakKey("the RSA modulus has a small factor")
    if _close_factors(numbers.n):
        raise WeakKey("the two factors of the RSA modulus are too close to each other")
    if roca(numbers.n):
        raise WeakKey("the RSA modulus has the structure of CVE-2017-15361 (ROCA): its factors can be found")


def _close_factors(n: int) -> bool:
    """Find two factors near the square root, by Fermat's method."""
    a = math.isqrt(n - 1) + 1
    for _ in range(_FERMAT_ROUNDS):
        b_squared = a * a - n
        if math.isqrt(b_squared) ** 2 == b_squared:
            return True
        a += 1
    return False


def _powers(prime: int) -> dict[int, int]:
    """Map every power of 65537 modulo a prime to its exponent."""
    powers, value = dict[int, int](), 1
    while value not in powers:
        powers[value] = len(powers)
        value = value * 65537 % prime
    return powers


_ROCA_POWERS = tuple((prime, _powers(prime)) for prime in _SMALL_PRIMES if prime <= 167)
_ROCA_PRODUCT = math.prod(prime for prime, _ in _ROCA_POWERS)
"""The primes 3 to 167: every length of key that the faulty generator made has at least these in its product M."""


def roca(n: int) -> bool:
    """Return whether n is a power of 65537 modulo M, as every product of two primes k·M + 65537^a mod M is.

    M is a product of small primes, so the discrete logarithm is looked up prime by prime, and the exponents that are
    found must be those of one number (Nemec et al., The Return of Coppersmith's Attack, CCS 2017, section 2.3). Of
    sound moduli one in 2^154 passes.
    """
    rest = n % _ROCA_PRODUCT
    exponent, modulus = 0, 1
    for prime, powers in _ROCA_POWERS:
        found = powers.get(rest % prime)
        common = math.gcd(modulus, len(powers))
        if found is None or (found - exponent) % common:
            return False
        step = len(powers) // common
        turns = (found - exponent) // common * pow(modulus // common, -1, step) % step if step > 1 else 0
        exponent, modulus = exponent + modulus * turns, modulus * step
    return True


# --- Edwards curves -------------------------------------------------------------------------------------------------

_P25519, _P448 = 2**255 - 19, 2**448 - 2**224 - 1
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_25519 = frozenset({0, 1, _P25519 - 1, _ORDER_8, _P25519 - _ORDER_8})
_SMALL_ORDER_448 = frozenset({0, 1, _P448 - 1})
"""The y of the points of small order, which no x changes: 8 points on edwards25519, 4 on edwards448."""


def _ed25519(key: ed25519.Ed25519PublicKey) -> None:
    y = int.from_bytes(key.public_bytes_raw(), "little") & (1 << 255) - 1
    _refuse_small_order(y % _P25519 in _SMALL_ORDER_25519)


def _ed448(key: ed448.Ed448PublicKey) -> None:
    y = int.from_bytes(key.public_bytes_raw()[:56], "little")
    _refuse_small_order(y % _P448 in _SMALL_ORDER_448)


def _refuse_small_order(found: bool) -> None:
    if found:
        raise WeakKey("the public key is a point of small order: everybody could sign with it")


_CHECKS: tuple[tuple[type, Callable[..., None]], ...] = (
    (rsa.RSAPublicKey, _rsa),
    (ed25519.Ed25519PublicKey, _ed25519),
    (ed448.Ed448PublicKey, _ed448),
)


# --- the block list -------------------------------------------------------------------------------------------------


def parse_block_list(text: str, *, source: Path) -> frozenset[str]:
    """Read SHA-256 hashes of SubjectPublicKeyInfos: one in hex a line, `#` begins a comment.

    Raises:
        ConfigError: too long, or with the lines that are no hash.
    """
    blocked, wrong = set[str](), list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip().lower()
        if not word:
            continue
        if not re.fullmatch(r"[0-9a-f]{64}", word):
            wrong.append(f"{source}:{number}: {word[:32]!a} is not a SHA-256 of 64 hex digits")
        blocked.add(word)
    if len(wrong) > WRONG_LINES_SHOWN:
        wrong[WRONG_LINES_SHOWN:] = [f"{source}: {len(wrong) - WRONG_LINES_SHOWN} more lines are wrong"]
    if len(blocked) > BLOCKED_MAX:
        wrong.append(f"{source}: {len(blocked)} keys; at most {BLOCKED_MAX} are taken")
    if wrong:
        raise ConfigError(*wrong, advice="hash a key: openssl pkey -pubin -in KEY -outform DER | sha256sum")
    return frozenset(blocked)
