"""What a rollover makes are CA certificates, and with them every leaf verifies for everybody (RFC 4210 §4.4)."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from estserver.assembly import load_ca
from estserver.errors import ConfigError
from estserver.key_ids import issuer_key_id, subject_key_id
from estserver.key_update import KeyUpdate
from estserver.records import Tier
from tests.conftest import require_program
from tests.est_server import Home, found_home
from tests.rollover_support import (
    LATER,
    NOW,
    YEAR,
    cert,
    der_of,
    leaf_of,
    start,
    updating,
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return found_home(tmp_path / "home", now=NOW)


MOVES = [("P-256", "P-384"), ("P-384", "Ed25519"), ("Ed25519", "ML-DSA-44"), ("P-256", "ML-DSA-65"),
         ("P-256", "ML-DSA-87"), ("P-256", "RSA-3072"), ("P-256", "P-256")]  # fmt: skip


@pytest.mark.parametrize(("old_kind", "new_kind"), MOVES)
def test_r_02_the_four_are_ca_certificates_of_the_validity_they_must_have(
    tmp_path: Path, old_kind: str, new_kind: str
) -> None:
    home = found_home(tmp_path / "home", now=NOW, key_kind=old_kind)
    with updating(home) as update:
        record = start(update, Tier.ROOT, new_kind)
    assert record.made is not None
    old, new = cert(record.old), cert(record.made.new)
    new_with_old, old_with_new = cert(record.made.new_with_old), cert(record.made.old_with_new)
    for certificate, signer, subject in (
        (old, old, old),
        (new, new, new),
        (new_with_old, old, new),
        (old_with_new, new, old),
    ):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=None))
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, True, True)
        assert certificate.public_key() == subject.public_key()
        assert subject_key_id(der_of(certificate)) == subject_key_id(der_of(subject))
        assert issuer_key_id(der_of(certificate)) == subject_key_id(der_of(signer))
        certificate.verify_directly_issued_by(signer)
        assert certificate.subject.public_bytes() == certificate.issuer.public_bytes() == old.subject.public_bytes()
    assert new_with_old.not_valid_before_utc == new.not_valid_before_utc
    assert new_with_old.not_valid_after_utc <= old.not_valid_after_utc
    assert old_with_new.not_valid_before_utc == old.not_valid_before_utc
    assert old_with_new.not_valid_after_utc == old.not_valid_after_utc
    assert old.not_valid_before_utc <= new.not_valid_before_utc <= old.not_valid_after_utc < new.not_valid_after_utc
    serials = {certificate.serial_number for certificate in (old, new, new_with_old, old_with_new)}
    assert len(serials) == 4


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("stage", ["cross", "switch"])
@pytest.mark.parametrize("kind", ["P-384", "Ed25519", "ML-DSA-65"])
def test_r_04_leaves_of_either_key_verify_for_who_holds_either_root(
    home: Home, tmp_path: Path, tier: Tier, stage: str, kind: str
) -> None:
    """With one anchor and what `/cacerts` holds; by openssl where the system's can read the keys."""
    with updating(home) as update:
        before = load_ca(home.settings, "acme", update.hierarchy())
        start(update, tier, kind)
        if stage == "switch":
            update.switch()
        hierarchy = update.hierarchy()
        after = load_ca(home.settings, "acme", hierarchy)
    bag = [cert(der) for der in hierarchy.published]
    anchors = [
        certificate for certificate in bag if subject_key_id(der_of(certificate)) == issuer_key_id(der_of(certificate))
    ]
    assert len(anchors) == (2 if tier is Tier.ROOT else 1)
    for leaf, anchor in itertools.product((leaf_of(before, LATER), leaf_of(after, LATER)), anchors):
        others = [certificate for certificate in bag if certificate not in anchors]
        assert verifies(leaf, anchor, others)
        if not kind.startswith("ML-DSA"):
            assert openssl_says(tmp_path, leaf, anchor, others) == "leaf.pem: OK\n"
        if tier is Tier.ROOT and stage == "switch":
            unlinked = [certificate for certificate in others if certificate.subject != certificate.issuer]
            below = [c for c in unlinked if issuer_key_id(der_of(c)) != subject_key_id(der_of(anchor))]
            assert not verifies(leaf, anchor, below), "it is the link that makes it verify"


def self_signed(certificate: x509.Certificate) -> bool:
    return subject_key_id(der_of(certificate)) == issuer_key_id(der_of(certificate))


def verifies(leaf: x509.Certificate, anchor: x509.Certificate, others: list[x509.Certificate]) -> bool:
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(anchor))
    store.set_time(LATER.replace(tzinfo=None))
    chain = [crypto.X509.from_cryptography(certificate) for certificate in others]
    try:
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf), chain).verify_certificate()
    except crypto.X509StoreContextError:
        return False
    return True


def openssl_says(
    directory: Path, leaf: x509.Certificate, anchor: x509.Certificate, others: list[x509.Certificate]
) -> str:
    for name, certificates in (("leaf", [leaf]), ("anchor", [anchor]), ("others", others)):
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
        (directory / f"{name}.pem").write_bytes(pem)
    command = [require_program("openssl", "openssl"), "verify", "-x509_strict", "-no-CApath", "-no-CAstore"]
    command += ["-attime", str(int(LATER.timestamp())), "-purpose", "sslclient"]
    command += ["-CAfile", "anchor.pem", "-untrusted", "others.pem", "leaf.pem"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False).stdout


# --- R-05 -----------------------------------------------------------------------------------------------------------


def test_r_05_where_the_root_has_expired_no_link_helps_and_that_is_said(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home", now=datetime.now(UTC).replace(microsecond=0) - 21 * YEAR)
    command = [sys.executable, "-m", "estserver", "rollover", "start", "root", "--home", str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "no link from it can be verified any more" in done.stderr
    assert "to every device by hand (bootstrap)" in done.stderr
    assert "Traceback" not in done.stderr
    with updating(home) as update:
        assert update.records() == []


def test_r_05_with_an_expired_anchor_not_even_the_links_verify(home: Home) -> None:
    """Who slept through the whole overlap needs the new root by hand."""
    with updating(home) as update:
        start(update, Tier.ROOT)
        update.switch()
        hierarchy = update.hierarchy()
        leaf = leaf_of(load_ca(home.settings, "acme", hierarchy), LATER)
    others = [cert(der) for der in hierarchy.published]
    chain = [crypto.X509.from_cryptography(c) for c in others if c != home.root]
    old = next(c for c in others if self_signed(c) and der_of(c) != hierarchy.root)
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(old))
    store.set_time((old.not_valid_after_utc + timedelta(days=1)).replace(tzinfo=None))
    with pytest.raises(crypto.X509StoreContextError, match="certificate has expired"):
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf), chain).verify_certificate()


def test_a_ca_without_end_is_never_rolled_over(tmp_path: Path) -> None:
    home = found_home(tmp_path / "home", now=NOW, idevid=True)
    with home.inventory() as inventory:
        update = KeyUpdate(home.settings, inventory, "acme-idevid", actor="test", now=LATER, random=os.urandom)
        with pytest.raises(ConfigError, match="without end"):
            start(update, Tier.ISSUING)
