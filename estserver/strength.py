"""How strong a key is, and the cipher that protects it on its way: the two columns of one comparison.

Rules:
- Bits of security as NIST SP 800-57 part 1 rev. 5 §5.6.1 counts them; of ML-DSA those of its category (FIPS 204 §4).
- Of a cipher suite its cipher counts: what keeps the key confidential (RFC 7030 §4.4). A suite that is not in the
  table, and one that is not known, keeps nothing.
"""

from __future__ import annotations

from estserver.errors import PolicyRefused

KEY_BITS = {
    "RSA-2048": 112,
    "RSA-3072": 128,
    "P-256": 128,
    "P-384": 192,
    "P-521": 256,
    "Ed25519": 128,
    "ML-DSA-44": 128,
    "ML-DSA-65": 192,
    "ML-DSA-87": 256,
}
"""Bits of security by kind of key, for every kind that is made for devices."""

_CIPHERS = (("AES256", 256), ("CHACHA20", 256), ("AES128", 128))


def cipher_bits(suite: str) -> int:
    """Return the bits of security of a suite by its name in OpenSSL: `TLS_AES_128_GCM_SHA256`, `…-AES256-CCM`."""
    name = suite.replace("_", "").replace("-", "")
    return next((bits for cipher, bits in _CIPHERS if cipher in name), 0)


def require_suite(suite: str, kind: str) -> None:
    """Refuse to send a key through a cipher suite that is weaker than the key (RFC 7030 §4.4).

    Raises:
        PolicyRefused: it is, or nobody says which suite it is.
    """
    needed, offered = KEY_BITS[kind], cipher_bits(suite)
    if offered < needed:
        raise PolicyRefused(
            f"a {kind} key ({needed} bits of security) is not sent through {suite or 'an unknown cipher suite'} "
            f"({offered}): connect with AES-256 or ChaCha20 (RFC 7030 §4.4)",
            code="weak-cipher-suite",
        )
