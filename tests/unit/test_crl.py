"""A list is what RFC 5280 §5 says, whatever the key, the time and the length; another library reads it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from estserver import crl
from estserver.ca import IssuingCa, make_ca_certificate, serial_from
from estserver.key_ids import issuer_key_id, subject_key_id
from estserver.keys import KINDS, FileSigner
from estserver.model import Der, Serial
from tests.conftest import require_program

NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
WEEK = timedelta(days=7)
REASONS = (*crl.REASON_CODES, "unspecified")


def ca_of(kind: str = "P-256") -> IssuingCa:
    signer = FileSigner(KINDS[kind]())
    der = make_ca_certificate(
        subject="Acme Root CA",
        spki=signer.spki,
        serial=serial_from(bytes(20)),
        not_before=NOW - WEEK,
        not_after=NOW + 520 * WEEK,
        issuer=signer,
    )
    return IssuingCa(der, [], signer)


CA = ca_of()


def written(entries: Sequence[crl.Revoked], *, ca: IssuingCa = CA, now: datetime = NOW, number: int = 7) -> bytes:
    with tempfile.TemporaryFile() as spool:
        start, count = ca.write_crl(spool, entries, number=number, this_update=now, next_update=now + WEEK)
        assert count == len(entries)
        spool.seek(start)
        return spool.read()


def key_of(ca: IssuingCa) -> Any:
    return x509.load_der_x509_certificate(ca.certificate).public_key()


def test_v_01_a_list_has_the_form_of_the_profile() -> None:
    der = written([crl.Revoked(Serial(5), NOW, "keyCompromise")])
    read = x509.load_der_x509_crl(der)
    number = read.extensions.get_extension_for_class(x509.CRLNumber)
    authority = read.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert (number.critical, number.value.crl_number) == (False, 7)
    assert (authority.critical, authority.value.key_identifier.hex()) == (False, CA.key_id)  # type: ignore[union-attr]
    assert (authority.value.authority_cert_issuer, authority.value.authority_cert_serial_number) == (None, None)
    assert (read.last_update_utc, read.next_update_utc) == (NOW, NOW + WEEK)
    assert b"\x02\x01\x01\x30" in der[:12]  # version 2
    assert read.is_signature_valid(key_of(CA))
    assert len(read.extensions) == 2


def test_v_01_a_list_of_nobody_has_no_revoked_certificates() -> None:
    der = written([])
    read = x509.load_der_x509_crl(der)
    assert len(read) == 0
    time_of_next = read.next_update_utc
    assert time_of_next is not None
    after_times = der[der.index(f"{time_of_next:%y%m%d%H%M%S}Z".encode()) + 13 :]
    assert after_times[0] == 0xA0  # extensions follow at once (§5.1.2.6: "MUST be absent")


@pytest.mark.parametrize(
    ("year", "tags"), [(2027, (0x17, 0x17)), (2049, (0x17, 0x18)), (2050, (0x18, 0x18)), (2126, (0x18, 0x18))]
)
def test_v_01_times_are_written_as_in_certificates(year: int, tags: tuple[int, int]) -> None:
    now = datetime(year, 12, 31, 12, 0, 0, tzinfo=UTC)
    der = written([crl.Revoked(Serial(1), now, "superseded")], now=now)
    read = x509.load_der_x509_crl(der)
    assert (read.last_update_utc, read.next_update_utc) == (now, now + WEEK)
    forms = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
    for at, tag in zip((now, now + WEEK), tags, strict=True):
        text = at.strftime(forms[tag]).encode()
        assert bytes((tag, len(text))) + text in der
    (entry,) = read
    assert entry.revocation_date_utc == now


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-3072", "ML-DSA-65"])
def test_every_kind_of_ca_signs_lists(kind: str) -> None:
    ca = ca_of(kind)
    read = x509.load_der_x509_crl(written([crl.Revoked(Serial(9), NOW, "unspecified")] * 9, ca=ca))
    assert len(read) == 9
    if kind != "ML-DSA-65":
        assert read.is_signature_valid(key_of(ca))
    else:
        key_of(ca).verify(read.signature, read.tbs_certlist_bytes)


@given(
    st.lists(
        st.tuples(st.integers(1, (1 << 159) - 1), st.integers(0, 86_400 * 365), st.sampled_from(REASONS)),
        max_size=12,
        unique_by=lambda entry: entry[0],
    ),
    st.integers(1, 1 << 64),
)
@settings(max_examples=60, deadline=None)
def test_another_reader_finds_what_was_written(entries: list[tuple[int, int, str]], number: int) -> None:
    revoked = [crl.Revoked(Serial(serial), NOW - timedelta(seconds=ago), reason) for serial, ago, reason in entries]
    read = x509.load_der_x509_crl(written(revoked, number=number))
    assert read.is_signature_valid(key_of(CA))
    assert read.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number
    found = [(entry.serial_number, entry.revocation_date_utc, _reason(entry)) for entry in read]
    assert found == [tuple(entry) for entry in revoked]


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        return str(entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value)
    except x509.ExtensionNotFound:
        return "unspecified"


def test_a_list_that_is_longer_than_a_batch_is_whole() -> None:
    entries = [crl.Revoked(Serial(1 << 158 | number), NOW, "keyCompromise") for number in range(10_001)]
    read = x509.load_der_x509_crl(written(entries))
    assert read.is_signature_valid(key_of(CA))
    assert [entry.serial_number for entry in read] == [entry.serial for entry in entries]


def test_openssl_reads_and_verifies_it(tmp_path: Path) -> None:
    openssl = require_program("openssl", "openssl")
    (tmp_path / "list.der").write_bytes(written([crl.Revoked(Serial(0xAB), NOW, "privilegeWithdrawn")]))
    pem = x509.load_der_x509_certificate(CA.certificate).public_bytes(Encoding.PEM)
    (tmp_path / "ca.pem").write_bytes(pem)
    command = [openssl, "crl", "-inform", "DER", "-in", "list.der", "-noout", "-text", "-CAfile", "ca.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "verify OK" in done.stderr
    assert "Version 2" in done.stdout
    assert "Serial Number: AB" in done.stdout
    assert "Privilege Withdrawn" in done.stdout


def test_who_issued_a_certificate_is_its_key_identifier() -> None:
    assert issuer_key_id(CA.certificate) == CA.key_id == subject_key_id(CA.certificate)
    assert issuer_key_id(Der(b"no certificate")) == ""
