"""A device and its store: checked before it is installed, whole or not at all, whenever the power goes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devicesim import Device, DeviceState, FileKeyStore, TrustAnchors
from devicesim.codec import CsrAttrs, KeyWish
from devicesim.csr import KEY_TYPES, CsrDraft, key_type_of, spki
from devicesim.errors import (
    CannotComply,
    ClockUntrustworthy,
    ConfigInvalid,
    DeviceSimError,
    KeyStoreError,
    Locked,
    StorageError,
    VerificationFailed,
)
from devicesim.wishes import LocalPolicy
from tests.protocol.client_stub import Authority, name

START = datetime(2027, 3, 1, 11, 0, tzinfo=UTC)
P384 = KeyWish("1.2.840.10045.2.1", curve="1.3.132.0.34")


class PowerCut(BaseException):
    """The machine stops here."""


@pytest.fixture(scope="module")
def root():
    return Authority.root(start=START, days=3650)


@pytest.fixture(scope="module")
def issuing(root):
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(root.issue(name("Issuing"), key.public_key(), ca=True, start=START, days=3000), key)


@pytest.fixture(scope="module")
def trust(root):
    return TrustAnchors((root.certificate,))


@pytest.fixture
def device(tmp_path, now):
    return Device("sn-1", store=FileKeyStore(tmp_path / "d"), clock=lambda: now)


def request(draft: CsrDraft) -> x509.CertificateSigningRequest:
    return x509.load_der_x509_csr(draft.sign())


def enrol(device, issuing, trust, **kwargs):
    certificate = issuing.from_csr(request(device.draft(san=("dns:sn-1.example",))), start=START)
    return device.install(certificate, chain=(issuing.certificate,), trust=trust, **kwargs)


def reopened(tmp_path, now) -> Device:
    return Device("sn-1", store=FileKeyStore(tmp_path / "d"), clock=lambda: now)


# --- the states -----------------------------------------------------------------------------------------------------


def test_the_life_of_a_device(device, issuing, trust, tmp_path, now):
    seen = [device.state]
    draft = device.draft()
    seen.append(device.state)
    device.install(issuing.from_csr(request(draft), start=START), chain=(issuing.certificate,), trust=trust)
    seen.append(device.state)
    renewal = device.draft_renewal()
    seen.append(device.state)
    device.install(issuing.from_csr(request(renewal), start=START), chain=(issuing.certificate,), trust=trust)
    seen.append(device.state)
    later = Device("sn-1", store=FileKeyStore(tmp_path / "d"), clock=lambda: now + timedelta(days=400))
    seen.append(later.state)
    assert [state.value for state in seen] == ["factory", "drafted", "enrolled", "renewing", "enrolled", "expired"]


def test_a_draft_survives_a_restart_with_its_key(device, tmp_path, now):
    first = device.draft(san=("dns:a.example",))
    again = reopened(tmp_path, now).draft(san=("dns:a.example",))
    assert spki(again.key) == spki(first.key)
    assert request(again).subject == request(first).subject


def test_a_draft_whose_key_the_server_no_longer_wants_gets_a_new_one(device):
    first = device.draft()
    second = device.draft(CsrAttrs(key=P384))
    assert key_type_of(second.key) == "EC-P384"
    assert spki(second.key) != spki(first.key)
    assert spki(device.draft(CsrAttrs(key=P384)).key) == spki(second.key)


def test_a_draft_that_cannot_be_made_leaves_nothing_behind(tmp_path, now):
    policy = LocalPolicy(key_types=("EC-P256",))
    device = Device("sn-1", store=FileKeyStore(tmp_path / "d"), clock=lambda: now, policy=policy)
    with pytest.raises(CannotComply):
        device.draft(CsrAttrs(key=P384))
    assert device.state is DeviceState.FACTORY


def test_a_discarded_draft_makes_room_for_a_new_key(device):
    first = device.draft()
    device.discard_draft()
    assert spki(device.draft().key) != spki(first.key)


@pytest.mark.parametrize("wrong", ["", "x" * 65, "a\nb"])
def test_what_is_no_device_id_is_refused(wrong, tmp_path, now):
    with pytest.raises(ConfigInvalid):
        Device(wrong, store=FileKeyStore(tmp_path), clock=lambda: now)


def test_the_paths_stay_the_same_and_other_programs_can_use_them(device, issuing, trust, root):
    identity = enrol(device, issuing, trust)
    first = identity.certificate_path.read_bytes()
    assert x509.load_pem_x509_certificates(first) == [identity.certificate, issuing.certificate]
    assert x509.load_pem_x509_certificates(identity.chain_path.read_bytes()) == [issuing.certificate, root.certificate]
    assert x509.load_pem_x509_certificates(identity.trust_path.read_bytes()) == [root.certificate]
    renewal = issuing.from_csr(request(device.draft_renewal()), start=START)
    renewed = device.install(renewal, chain=(issuing.certificate,), trust=trust)
    assert renewed.certificate_path == identity.certificate_path
    assert identity.certificate_path.read_bytes() != first
    assert renewed.client_identity().certificates == (renewed.certificate, issuing.certificate)


def test_the_last_known_good_identity_is_kept_and_can_be_returned_to(device, issuing, trust):
    identities = [enrol(device, issuing, trust)]
    for _ in range(3):
        renewal = issuing.from_csr(request(device.draft_renewal()), start=START)
        identities.append(device.install(renewal, chain=(issuing.certificate,), trust=trust))
    assert len(list((identities[0].directory / "generations").iterdir())) == 2
    assert device.fall_back().certificate == identities[-2].certificate
    renewal = issuing.from_csr(request(device.draft_renewal()), start=START)
    assert device.install(renewal, chain=(issuing.certificate,), trust=trust).certificate == renewal
    assert device.fall_back().certificate == identities[-2].certificate
    with pytest.raises(KeyStoreError, match="no earlier identity"):
        device.fall_back()


def test_the_same_certificate_twice_is_one_identity(device, issuing, trust):
    first = enrol(device, issuing, trust)
    again = device.install(first.certificate, chain=(issuing.certificate,), trust=trust)
    assert again.certificate == first.certificate
    assert len(list((first.directory / "generations").iterdir())) == 1


# --- what comes back is checked -------------------------------------------------------------------------------------


def _refused(device, certificate, issuing, trust) -> str:
    before = device.identity
    with pytest.raises(VerificationFailed) as caught:
        device.install(certificate, chain=(issuing.certificate,), trust=trust)
    assert device.identity == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"subject": name("sn-2")}, "subject is 'CN=sn-2'"),
        ({"san": ()}, "lacks the names dns:sn-1.example"),
        ({"san": (x509.DNSName("other"),)}, "lacks the names"),
        ({"eku": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "authenticate a client"),
        ({"ca": True}, "CA certificate"),
        ({"start": START - timedelta(days=400)}, "it expired on 2027-01-25"),
        ({"start": START + timedelta(days=4)}, "not valid before 2027-03-05"),
    ],
)
def test_a_certificate_that_was_not_asked_for_is_not_installed(device, issuing, trust, changed, said):
    draft = device.draft(san=("dns:sn-1.example",))
    certificate = issuing.from_csr(request(draft), **{"start": START, **changed})
    assert said in _refused(device, certificate, issuing, trust)
    assert device.state is DeviceState.DRAFTED


def test_a_certificate_for_another_key_is_not_installed(device, issuing, trust):
    device.draft()
    other = issuing.from_csr(request(CsrDraft.of(KEY_TYPES["EC-P256"].generate(), "sn-1")), start=START)
    assert "another key" in _refused(device, other, issuing, trust)


def test_a_certificate_of_another_ca_is_not_installed(device, trust):
    stranger = Authority.root("Test Root", start=START)
    certificate = stranger.from_csr(request(device.draft()), start=START)
    assert "chain to a trust anchor" in _refused(device, certificate, stranger, trust)


def test_a_clock_from_before_the_trust_anchor_is_the_one_at_fault(device, issuing, trust):
    certificate = issuing.from_csr(request(device.draft()), start=START)
    with pytest.raises(ClockUntrustworthy, match="1970-01-01") as caught:
        device.install(certificate, chain=(issuing.certificate,), trust=trust, now=datetime(1970, 1, 1, tzinfo=UTC))
    assert caught.value.exit_code == 13
    assert device.state is DeviceState.DRAFTED


def test_everything_wrong_is_said_at_once(device, issuing, trust):
    device.draft(san=("dns:sn-1.example",))
    key = KEY_TYPES["EC-P256"].generate()
    wrong = issuing.from_csr(request(CsrDraft.of(key, "sn-2")), start=START - timedelta(days=400))
    text = _refused(device, wrong, issuing, trust)
    assert all(part in text for part in ("another key", "expired", "subject", "lacks the names"))


def test_more_names_other_case_and_another_string_type_are_accepted(device, issuing, trust):
    draft = device.draft(san=("dns:sn-1.example",))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SN-1", _type=x509.name._ASN1Type.PrintableString)])
    san = (x509.DNSName("SN-1.Example"), x509.DNSName("more.example"))
    certificate = issuing.from_csr(request(draft), start=START, subject=subject, san=san, eku=())
    assert device.install(certificate, chain=(issuing.certificate,), trust=trust).certificate == certificate


def test_a_certificate_without_its_intermediate_is_not_installed(device, issuing, trust):
    certificate = issuing.from_csr(request(device.draft()), start=START)
    with pytest.raises(VerificationFailed):
        device.install(certificate, chain=(), trust=trust)


def test_nothing_is_installed_that_was_not_asked_for(device, issuing, trust):
    certificate = issuing.from_csr(request(CsrDraft.of(KEY_TYPES["EC-P256"].generate(), "sn-1")), start=START)
    assert "no certificate was asked for" in _refused(device, certificate, issuing, trust)


# --- the store ------------------------------------------------------------------------------------------------------


def test_everything_secret_is_closed_to_others(device, issuing, trust, tmp_path):
    old = os.umask(0)
    try:
        enrol(device, issuing, trust)
        device.draft_renewal()
    finally:
        os.umask(old)
    for path in (tmp_path / "d").rglob("*"):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_a_key_that_others_can_read_is_not_used(device, issuing, trust):
    identity = enrol(device, issuing, trust)
    identity.key_path.resolve().chmod(0o644)
    with pytest.raises(KeyStoreError, match="read by others") as caught:
        _ = device.identity
    assert "chmod 600" in caught.value.line


def test_a_passphrase_protects_the_key_and_is_never_shown(tmp_path, now, issuing, trust):
    store = FileKeyStore(tmp_path / "d", b"correct horse")
    identity = enrol(Device("sn-1", store=store, clock=lambda: now), issuing, trust)
    assert b"ENCRYPTED" in identity.key_path.read_bytes()
    assert "horse" not in repr(store)
    assert FileKeyStore(tmp_path / "d", b"correct horse").current().certificate == identity.certificate
    for wrong, said in ((None, "is encrypted"), (b"wrong", "cannot be read")):
        with pytest.raises(KeyStoreError, match=said):
            FileKeyStore(tmp_path / "d", wrong).current()


@pytest.mark.parametrize("damage", ["key.pem", "cert.pem", "trust.pem"])
def test_a_damaged_file_is_said_to_be_one(device, issuing, trust, damage):
    identity = enrol(device, issuing, trust)
    path = (identity.directory / damage).resolve()
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(KeyStoreError):
        _ = device.identity


def test_a_damaged_draft_is_said_to_be_one(device, tmp_path):
    device.draft()
    path = tmp_path / "d" / "pending.pem"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(KeyStoreError, match="pending"):
        device.draft()


def test_two_processes_do_not_change_one_store(device, tmp_path):
    device.draft()
    with (tmp_path / "d" / ".lock").open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Locked):
            device.draft()
    device.draft()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, StorageError), (errno.EACCES, KeyStoreError)])
def test_a_full_disk_and_a_closed_one_are_two_things(device, monkeypatch, number, kind):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(kind):
        device.draft()


# --- power cuts -----------------------------------------------------------------------------------------------------

CALLS = ("fsync", "replace", "rename", "open", "symlink", "unlink", "mkdir")


def _cut_at(monkeypatch, at: int) -> list[str]:
    """Let the machine stop before the nth call that changes the disk."""
    made: list[str] = []

    def before(call):
        original = getattr(os, call)

        def wrapped(*args, **kwargs):
            made.append(call)
            if len(made) == at:
                raise PowerCut(call)
            return original(*args, **kwargs)

        return wrapped

    for call in CALLS:
        monkeypatch.setattr(os, call, before(call))
    return made


def _last_step(action, template: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        made = _cut_at(patch, -1)
        action()
    shutil.rmtree(template)
    return len(made)


def test_a_power_cut_anywhere_in_a_first_enrolment_is_recovered_with_the_same_key(tmp_path, now, issuing, trust):
    steps = _last_step(lambda: enrol(reopened(tmp_path, now), issuing, trust), tmp_path / "d")
    assert steps > 15
    for at in range(1, steps + 1):
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        issued: dict[bytes, x509.Certificate] = {}
        with pytest.MonkeyPatch.context() as patch:
            _cut_at(patch, at)
            with pytest.raises(PowerCut):
                _enrol_with_memory(reopened(tmp_path, now), issuing, trust, issued)
        identity = _enrol_with_memory(reopened(tmp_path, now), issuing, trust, issued)
        assert len(issued) == 1, f"a second key was enrolled after a cut at {at}"
        assert identity.certificate in issued.values()
        assert reopened(tmp_path, now).state is DeviceState.ENROLLED
        assert x509.load_pem_x509_certificate(identity.certificate_path.read_bytes()) == identity.certificate


def _enrol_with_memory(device, issuing, trust, issued):
    """Enrol at a server that gives the same certificate for the same key, as ours does."""
    if device.state is DeviceState.ENROLLED:
        return device.identity
    asked = request(device.draft())
    certificate = issued.setdefault(spki(asked), issuing.from_csr(asked, start=START))
    return device.install(certificate, chain=(issuing.certificate,), trust=trust)


def test_a_power_cut_anywhere_in_a_renewal_leaves_the_old_identity_or_the_new(tmp_path, now, issuing, trust):
    first = enrol(reopened(tmp_path, now), issuing, trust)
    shutil.copytree(tmp_path / "d", tmp_path / "before", symlinks=True)

    def renew(issued=None):
        device = reopened(tmp_path, now)
        asked = request(device.draft_renewal())
        certificate = issuing.from_csr(asked, start=START)
        if issued is not None:
            certificate = issued.setdefault(spki(asked), certificate)
        return device.install(certificate, chain=(issuing.certificate,), trust=trust)

    steps = _last_step(renew, tmp_path / "d")
    for at in range(1, steps + 1):
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        shutil.copytree(tmp_path / "before", tmp_path / "d", symlinks=True)
        issued: dict[bytes, x509.Certificate] = {}
        with pytest.MonkeyPatch.context() as patch:
            _cut_at(patch, at)
            with pytest.raises(PowerCut):
                renew(issued)
        device = reopened(tmp_path, now)
        standing = device.identity
        assert standing.certificate in {first.certificate, *issued.values()}
        assert spki(standing.key) == spki(standing.certificate)
        if standing.certificate == first.certificate:
            assert renew(issued).certificate in issued.values()
            assert len(issued) == 1, f"a second key was enrolled after a cut at {at}"
        assert reopened(tmp_path, now).state is DeviceState.ENROLLED


def test_every_error_of_the_store_is_ours(device, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EIO, "the disk is broken")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(DeviceSimError):
                device.draft()
