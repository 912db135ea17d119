"""The three forms of an ML-DSA private key in PKCS#8 (RFC 9881 §6): seed [0], expandedKey, and both.

Rules:
- What is written is the seed: 54 octets of PKCS#8, whatever the parameter set.
- `both` is read by its seed, once OpenSSL has found that the expanded key is the one which the seed makes.
- `expandedKey` alone is refused by name: no seed can be found from it, and nothing here signs without one.
"""

from __future__ import annotations

import warnings

from asn1crypto import parser
from OpenSSL import crypto

from devicesim.der import der_value

_SEED, _EXPANDED, _BOTH = 0x80, 0x04, 0x30
_ALGORITHMS = tuple(bytes.fromhex(f"300b06096086480165030403{arc:02x}") for arc in (0x11, 0x12, 0x13))


class ExpandedKeyOnly(ValueError):
    """An ML-DSA key without its seed."""


def seed_form(data: bytes, passphrase: bytes | None = None) -> bytes | None:
    """Return the PKCS#8 in DER, in clear, that holds only the seed of an ML-DSA key in DER or PEM; None for other keys.

    Raises:
        ExpandedKeyOnly: it holds none.
    """
    pem = b"-----BEGIN" in data
    try:
        with warnings.catch_warnings():
            # a cryptography key is what pyOpenSSL would rather have, and cryptography does not read these forms
            warnings.simplefilter("ignore", DeprecationWarning)
            pkey = (
                crypto.load_privatekey(crypto.FILETYPE_PEM, data, passphrase or b"")  # without one it would ask
                if pem
                else crypto.load_privatekey(crypto.FILETYPE_ASN1, data)
            )
            der = crypto.dump_privatekey(crypto.FILETYPE_ASN1, pkey)
    except (crypto.Error, ValueError, TypeError):
        return None
    version, algorithm, octets = _children(der)[:3]
    if algorithm not in _ALGORITHMS:
        return None
    inner = parser.parse(octets)[4]
    if inner[0] == _EXPANDED:
        raise ExpandedKeyOnly("an ML-DSA key in expanded form, without its seed (RFC 9881 §6)")
    seed = parser.parse(_children(inner)[0] if inner[0] == _BOTH else inner)[4]
    return der_value(0x30, version, algorithm, der_value(_EXPANDED, der_value(_SEED, seed)))


def _children(der: bytes) -> list[bytes]:
    content, found = parser.parse(der)[4], []
    while content:
        length = parser.peek(content)
        found.append(content[:length])
        content = content[length:]
    return found
