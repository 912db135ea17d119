"""Keys that nobody should have are refused by name, and no sound key is."""

from __future__ import annotations

import hashlib
import itertools
import math
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from hypothesis import given
from hypothesis import strategies as st

from estserver import csr, weak_keys
from estserver.assembly import bounds_of
from estserver.csr import Bounds
from estserver.errors import ConfigError, MalformedRequest, WeakKey
from estserver.model import Der, SpkiHash
from tests import csr_maker as maker
from tests.est_server import found_home

KEY = maker.new_key()
SMALL_PRIMES = [p for p in range(2, 1000) if all(p % q for q in range(2, math.isqrt(p) + 1))]
SOURCE = Path("blocked.txt")


def next_prime(candidate: int, step: int = 2) -> int:
    small = math.prod(SMALL_PRIMES)
    while math.gcd(candidate, small) != 1 or pow(2, candidate - 1, candidate) != 1:
        candidate += step
    return candidate


def rsa_spki(modulus: int, exponent: int = 65537) -> bytes:
    integers = (maker.tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1)) for value in (modulus, exponent))
    return maker.sequence(
        maker.sequence(maker.oid("1.2.840.113549.1.1.1"), b"\x05\x00"), maker.bits(maker.sequence(*integers))
    )


def refused(public: bytes, words: str) -> None:
    """Held up as a weak key, whatever the signature is: the check comes before the proof of possession."""
    with pytest.raises(WeakKey, match=words) as told:
        csr.parse(Der(maker.request(KEY, public=public)))
    assert told.value.code == "weak-key"


# --- RSA ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def primes() -> list[int]:
    """Sound ones, as cryptography makes them."""
    keys = (rsa.generate_private_key(65537, 2048).private_numbers() for _ in range(36))
    return [prime for key in keys for prime in (key.p, key.q)]


@pytest.mark.parametrize("bits", [1024, 2040, 8200])
def test_rsa_of_another_size_is_refused(bits: int) -> None:
    modulus = (1 << bits) - 1  # how long it is comes first
    with pytest.raises((WeakKey, MalformedRequest), match=rf"RSA-{bits}|cannot be read"):
        csr.parse(Der(maker.request(KEY, public=rsa_spki(modulus))))


@pytest.mark.parametrize("exponent", [1, 3, 17, 257, 65536, 65535, 2**64 + 1])
def test_rsa_exponents_other_than_odd_ones_from_65537_on_are_refused(exponent: int, primes: list[int]) -> None:
    with pytest.raises((WeakKey, MalformedRequest), match=r"exponent|cannot be read"):
        csr.parse(Der(maker.request(KEY, public=rsa_spki(primes[0] * primes[1], exponent))))


@pytest.mark.parametrize("factor", [3, 7, 251, 751])
def test_a_small_factor_is_found(factor: int, primes: list[int]) -> None:
    refused(rsa_spki(primes[0] * primes[1] * factor), "small factor")


def test_factors_too_close_to_each_other_are_found(primes: list[int]) -> None:
    refused(rsa_spki(primes[0] * next_prime(primes[0] + 2)), "too close")


def roca_prime(rng: Random, bits: int, count: int) -> int:
    """A prime as the faulty generator made them: k·M + 65537^a mod M, M the product of the first primes."""
    product = math.prod(SMALL_PRIMES[:count])
    start = rng.getrandbits(bits - product.bit_length()) | 3 << (bits - product.bit_length() - 2)
    return next_prime(start * product + pow(65537, rng.getrandbits(64), product), product)


@pytest.mark.parametrize(("bits", "count"), [(2048, 126), (3072, 126), (4096, 225)])
def test_roca_keys_are_found(bits: int, count: int) -> None:
    """CVE-2017-15361, with the number of primes that the generator took for each length."""
    rng = Random(bits)
    modulus = math.prod(roca_prime(rng, bits // 2, count) for _ in range(2))
    public = pow(65537, rng.getrandbits(64), math.prod(SMALL_PRIMES[1:39]))
    assert weak_keys.roca(public), "65537^k itself"
    refused(rsa_spki(modulus), "ROCA")


def test_a_modulus_that_is_a_power_modulo_each_prime_but_of_no_one_exponent_is_none_of_roca() -> None:
    """What tells the test with one discrete logarithm from the one prime by prime."""
    exponents = {5: 1, 7: 0, 13: 0, 17: 2}
    moduli = SMALL_PRIMES[1:39]
    rest = [pow(65537, exponents.get(prime, 0), prime) for prime in moduli]
    product = math.prod(moduli)
    n = sum(r * (product // p) * pow(product // p, -1, p) for r, p in zip(rest, moduli, strict=True)) % product
    assert all(n % p in {pow(65537, k, p) for k in range(p)} for p in moduli)
    assert not weak_keys.roca(n)


def test_no_sound_rsa_key_is_weak(primes: list[int]) -> None:
    """Every pair of 72 sound primes: 2556 moduli."""
    for left, right in itertools.combinations(primes, 2):
        assert not weak_keys.roca(left * right)
    for left, right in itertools.pairwise(primes):
        if (left * right).bit_length() == 2048:
            weak_keys.screen(rsa.RSAPublicNumbers(65537, left * right).public_key(), SpkiHash("0" * 64))


@given(st.integers(1 << 2047, (1 << 2048) - 1))
def test_numbers_at_random_are_none_of_roca(n: int) -> None:
    assert not weak_keys.roca(n)


# --- points ---------------------------------------------------------------------------------------------------------


def ec_spki(point: bytes) -> bytes:
    algorithm = maker.sequence(maker.oid("1.2.840.10045.2.1"), maker.oid("1.2.840.10045.3.1.7"))
    return maker.sequence(algorithm, maker.bits(point))


def test_points_off_their_curve_and_at_infinity_are_refused() -> None:
    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    x, y = numbers.x.to_bytes(32), numbers.y.to_bytes(32)
    off = (numbers.y ^ 1).to_bytes(32)
    for point in (b"\x04" + x + off, b"\x00", b"\x04" + bytes(64), b"\x04" + x + y[:-1], b"\x04" + b"\xff" * 64, b""):
        with pytest.raises(MalformedRequest, match="cannot be read"):
            csr.parse(Der(maker.request(KEY, public=ec_spki(point))))


P25519, P448 = 2**255 - 19, 2**448 - 2**224 - 1


def small_order_25519() -> set[int]:
    """The y of the eight points: 1, -1, 0 and the roots of d·y⁴ + 2·y² = 1, whose doubles have y = 0."""
    p, d = P25519, -121665 * pow(121666, -1, P25519)

    def root(square: int) -> int | None:
        found = pow(square, (p + 3) // 8, p)
        found = found if (found * found - square) % p == 0 else found * pow(2, (p - 1) // 4, p) % p
        return found if (found * found - square) % p == 0 else None

    of = root(1 + d)
    assert of is not None
    ys = [y for sign in (1, -1) if (y := root((-1 + sign * of) * pow(d, -1, p) % p)) is not None]
    return {0, 1, p - 1, *ys, *(p - y for y in ys)}


def test_ed25519_points_of_small_order_are_refused_in_every_encoding() -> None:
    """With the point of order one as key, R = S·B is a signature of anything."""
    ys = small_order_25519()
    assert len(ys) == 5
    encodings = [y | sign << 255 for y in (*ys, P25519, P25519 + 1) for sign in (0, 1)]
    for encoding in encodings:
        key = ed25519.Ed25519PublicKey.from_public_bytes(encoding.to_bytes(32, "little"))
        with pytest.raises(WeakKey, match="small order"):
            weak_keys.screen(key, SpkiHash(""))
    one = maker.sequence(maker.sequence(maker.oid("1.3.101.112")), maker.bits((1).to_bytes(32, "little")))
    refused(one, "small order")


def test_ed448_points_of_small_order_are_refused() -> None:
    for y in (0, 1, P448 - 1, P448, P448 + 1):
        for sign in (0, 0x80):
            key = ed448.Ed448PublicKey.from_public_bytes(y.to_bytes(56, "little") + bytes([sign]))
            with pytest.raises(WeakKey, match="small order"):
                weak_keys.screen(key, SpkiHash(""))


def test_sound_keys_of_every_other_kind_pass() -> None:
    for kind in (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey, mldsa.MLDSA65PrivateKey):
        for _ in range(20):
            weak_keys.screen(kind.generate().public_key(), SpkiHash(""))


# --- the block list -------------------------------------------------------------------------------------------------


def test_a_blocked_key_is_refused_whoever_brings_it() -> None:
    digest = hashlib.sha256(maker.spki(KEY)).hexdigest()
    blocked = weak_keys.parse_block_list(f"# published\n\n{digest.upper()}  # by mistake\n", source=SOURCE)
    request = Der(maker.request(KEY))
    with pytest.raises(WeakKey, match="block list") as told:
        csr.parse(request, Bounds(blocked=blocked))
    assert told.value.code == "weak-key"
    assert csr.parse(request, Bounds(blocked=frozenset({"0" * 64}))).spki_sha256 == digest
    assert digest not in repr(Bounds(blocked=blocked))


def test_wrong_lines_are_told_with_their_numbers() -> None:
    with pytest.raises(ConfigError) as told:
        weak_keys.parse_block_list(f"{'0' * 64}\nnonsense\n\n{'g' * 64}\n{'0' * 63}", source=SOURCE)
    assert [reason.partition(": ")[0] for reason in told.value.reasons] == [f"blocked.txt:{n}" for n in (2, 4, 5)]
    assert "sha256sum" in told.value.advice
    with pytest.raises(ConfigError, match="30 more lines are wrong"):
        weak_keys.parse_block_list("x\n" * 50, source=SOURCE)


def test_the_block_list_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak_keys, "BLOCKED_MAX", 2)
    lines = [f"{number:064x}" for number in range(3)]
    assert len(weak_keys.parse_block_list("\n".join(lines[:2]), source=SOURCE)) == 2
    with pytest.raises(ConfigError, match="3 keys; at most 2"):
        weak_keys.parse_block_list("\n".join(lines), source=SOURCE)


@given(st.text(max_size=200))
def test_any_text_is_a_block_list_or_an_error_of_ours(text: str) -> None:
    with suppress(ConfigError):
        weak_keys.parse_block_list(text, source=SOURCE)


def test_the_configuration_names_the_block_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = found_home(tmp_path / "home")
    home.configure('[keys]\nblocked = "blocked.txt"\n')
    with pytest.raises(ConfigError, match=r"blocked\.txt cannot be read"):
        bounds_of(home.settings)
    (home.path / "blocked.txt").write_bytes(b"a" * 64 + b"\n")
    assert bounds_of(home.settings).blocked == {"a" * 64}
    (home.path / "blocked.txt").write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match=r"blocked\.txt:1: "):
        bounds_of(home.settings)
    monkeypatch.setattr(weak_keys, "BLOCKED_MAX_BYTES", 1)
    with pytest.raises(ConfigError, match="larger than 1 octets"):
        bounds_of(home.settings)
