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

_SEED_BYTES, _SEED, _EXPANDED, _BOTH = 32, 0x80, 0x04, 0x30
_ALGORITHMS = tuple(bytes.fromhex(f"300b06096086480165030403{arc:02x}") for arc in (0x11, 0x12, 0x13))


class ExpandedKeyOnly(ValueError):
    """An ML-DSA key without its seed."""


def seed_form(data: bytes, passphrase: bytes | None = None) -> bytes | None:
    """Return the PKCS#8 in DER, in clear, that holds only the seed of an ML-DSA key in DER or PEM; None for other keys.

    Raises:
        ExpandedKeyOnly: it holds none.
    """
    kind = crypto.FILETYPE_PEM if data.lstrip().startswith(b"-----") else crypto.FILETYPE_ASN1
    try:
        with warnings.catch_warnings():
            # a cryptography key is what pyOpenSSL would rather have, and cryptography does not read these forms
            warnings.simplefilter("ignore", DeprecationWarning)
            pkey = crypto.load_privatekey(kind, data, passphrase or b"")
            der = crypto.dump_privatekey(crypto.FILETYPE_ASN1, pkey)
    except (crypto.Error, ValueError, TypeError):
        return None
    version, algorithm, octets = _children(der)[:3]
    if algorithm not in _ALGORITHMS:
        return None
    inner = parser.parse(octets)[4]
    tag = inner[0]
    seed = parser.parse(inner)[4] if tag == _SEED else parser.parse(_children(inner)[0])[4] if tag == _BOTH else b""
    if len(seed) != _SEED_BYTES:
        raise ExpandedKeyOnly("an ML-DSA key in expanded form, without its seed (RFC 9881 §6)")
    return der_value(0x30, version, algorithm, der_value(_EXPANDED, der_value(_SEED, seed)))


def _children(der: bytes) -> list[bytes]:
    content, found = parser.parse(der)[4], []
    while content:
        length = len(b"".join(parser.parse(content)[3:]))
        found.append(content[:length])
        content = content[length:]
    return found
