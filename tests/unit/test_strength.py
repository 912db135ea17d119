"""The strength of keys and cipher suites: every kind of key and every suite has its row."""

from __future__ import annotations

import pytest
from OpenSSL import SSL

from estserver.errors import PolicyRefused
from estserver.keys import DEVICE_KINDS
from estserver.serving.context import CIPHERS_TLS12
from estserver.strength import KEY_BITS, cipher_bits, require_suite


def test_every_kind_of_key_has_its_strength() -> None:
    assert KEY_BITS.keys() == DEVICE_KINDS.keys()


def test_every_suite_that_is_spoken_has_its_strength_and_the_strongest_come_first() -> None:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_cipher_list(CIPHERS_TLS12)
    names = SSL.Connection(context).get_cipher_list()
    tls13 = [cipher_bits(name) for name in names if name.startswith("TLS_")]
    tls12 = [cipher_bits(name) for name in names if not name.startswith("TLS_")]
    for bits in (tls13, tls12):
        assert bits == sorted(bits, reverse=True)
        assert {*bits} == {128, 256}


@pytest.mark.parametrize("suite", ["", "NULL-SHA256", "DES-CBC3-SHA", "TLS_SM4_GCM_SM3"])
def test_what_is_not_in_the_table_protects_nothing(suite: str) -> None:
    with pytest.raises(PolicyRefused) as refused:
        require_suite(suite, "RSA-2048")
    assert refused.value.code == "weak-cipher-suite"
