"""ML-DSA private keys (Q-03, RFC 9881 §6): written as a seed, read by tag, and never where the two forms differ."""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import pem as armour
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from OpenSSL import crypto

from devicesim.envelope import load_pkcs8
from devicesim.errors import BadAnswer, KeyStoreError
from devicesim.keystore import FileKeyStore, load_key
from devicesim.mldsa import seed_form
from estserver.errors import ConfigError
from estserver.keys import KINDS, FileSigner, GeneratedKey
from tests.csr_maker import sequence, spki, tlv, values

PARAMETER_SETS = ["ML-DSA-44", "ML-DSA-65", "ML-DSA-87"]
EXPANDED_BYTES = {"ML-DSA-44": 2560, "ML-DSA-65": 4032, "ML-DSA-87": 4896}  # FIPS 204 table 2
each = pytest.mark.parametrize("kind", PARAMETER_SETS)


class Forms:
    """One key in every form; the expanded key is OpenSSL's, which writes both."""

    def __init__(self, kind: str) -> None:
        self.seed_form = GeneratedKey(kind).pkcs8()
        self.key: Any = load_der_private_key(self.seed_form, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pkey = crypto.load_privatekey(crypto.FILETYPE_ASN1, self.seed_form)
            written = crypto.dump_privatekey(crypto.FILETYPE_ASN1, pkey)
        self._version, self._algorithm, octets = values(written)
        (both,) = values(octets)
        seed, expanded = values(both)
        self.seed, self.expanded = seed[2:], expanded[4:]

    def pkcs8(self, inner: bytes) -> bytes:
        return sequence(self._version, self._algorithm, tlv(0x04, inner))

    def both(self, seed: bytes, expanded: bytes) -> bytes:
        return self.pkcs8(sequence(tlv(0x04, seed), tlv(0x04, expanded)))


def pem(der: bytes) -> bytes:
    return armour.armor("PRIVATE KEY", der)


def file_of(der: bytes, directory: Path) -> Path:
    path = directory / "a.key"
    path.touch(0o600)
    path.write_bytes(pem(der))
    return path


@each
def test_q_03_a_key_is_written_as_its_seed_of_32_octets(kind: str, tmp_path: Path) -> None:
    forms = Forms(kind)
    assert len(forms.seed_form) == 54
    assert forms.seed_form == forms.pkcs8(tlv(0x80, forms.seed))
    assert len(forms.expanded) == EXPANDED_BYTES[kind]
    made = FileKeyStore(tmp_path).generate(kind)
    written = made.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert (len(written), written[-34:-32]) == (54, b"\x80\x20")
    if kind in KINDS:
        FileSigner.generate(kind, tmp_path / "ca.key")
        stored = base64.b64decode(b"".join((tmp_path / "ca.key").read_bytes().splitlines()[1:-1]))
        assert len(stored) == 54


@each
@pytest.mark.parametrize("form", ["seed", "both"])
def test_q_03_seed_and_both_are_read_alike_on_either_side(kind: str, form: str, tmp_path: Path) -> None:
    """OpenSSL 3.5 writes both by default."""
    forms = Forms(kind)
    der = forms.seed_form if form == "seed" else forms.both(forms.seed, forms.expanded)
    assert seed_form(der) == forms.seed_form
    assert spki(load_pkcs8(der)) == spki(forms.key)
    path = file_of(der, tmp_path)
    assert spki(load_key(path.read_bytes(), path)) == spki(forms.key)
    assert FileSigner.load(path).spki == spki(forms.key)


@each
def test_q_03_both_that_differ_are_refused(kind: str, tmp_path: Path) -> None:
    forms = Forms(kind)
    flipped = [
        forms.expanded[:at] + bytes([forms.expanded[at] ^ 1]) + forms.expanded[at + 1 :]
        for at in (0, 40, 70, 200, len(forms.expanded) - 1)  # of every part: rho, K, tr, s1, t0
    ]
    for der in (
        *(forms.both(forms.seed, wrong) for wrong in flipped),
        forms.both(Forms(kind).seed, forms.expanded),
        forms.both(forms.seed, forms.expanded[:-1]),
        forms.pkcs8(tlv(0x80, forms.seed[1:])),
        forms.pkcs8(tlv(0x04, forms.seed)),
    ):
        path = file_of(der, tmp_path)
        with pytest.raises(BadAnswer):
            load_pkcs8(der)
        with pytest.raises(KeyStoreError):
            load_key(path.read_bytes(), path)
        with pytest.raises(ConfigError):
            FileSigner.load(path)


@each
def test_q_03_an_expanded_key_alone_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    forms = Forms(kind)
    der = forms.pkcs8(tlv(0x04, forms.expanded))
    path = file_of(der, tmp_path)
    with pytest.raises(BadAnswer):
        load_pkcs8(der)
    with pytest.raises(KeyStoreError, match="expanded form, without its seed"):
        load_key(path.read_bytes(), path)
    with pytest.raises(ConfigError, match="no usable key"):
        FileSigner.load(path)


def test_q_03_an_encrypted_file_with_both_is_read_with_its_passphrase(tmp_path: Path) -> None:
    forms = Forms("ML-DSA-65")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pkey = crypto.load_privatekey(crypto.FILETYPE_ASN1, forms.seed_form)
        sealed = crypto.dump_privatekey(crypto.FILETYPE_PEM, pkey, "aes256", b"secret words")
    path = tmp_path / "sealed.key"
    path.touch(0o600)
    path.write_bytes(sealed)
    assert spki(load_key(sealed, path, b"secret words")) == spki(forms.key)
    assert FileSigner.load(path, b"secret words").spki == spki(forms.key)
    with pytest.raises(ConfigError):
        FileSigner.load(path, b"other words")
    own = forms.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret words"))
    assert spki(load_key(own, path, b"secret words")) == spki(forms.key)
