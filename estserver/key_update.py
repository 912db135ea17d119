"""What an operator does in a rollover: keys made, files written, around the stages of `estserver.rollover`.

Rules:
- A stage is reached by one transaction of the inventory. What it needs is whole on the disk before; what follows from
  it (`root.pem`, `tls.pem`) is written after, and again by every later command: one that was interrupted is given
  again, and completes.
- No key is overwritten and none deleted. The root's key is opened for `cross` alone.
- A running server changes nothing of itself: it reads the inventory when it is started or reloaded.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from estserver.assembly import hierarchy_of, load_certificates, load_issuing_key, passphrase_of
from estserver.ca import SERIAL_BYTES, IssuingCa, answer_sha256, serial_from
from estserver.config import Settings
from estserver.csr import key_facts
from estserver.errors import ConfigError, StateError
from estserver.home import TLS_DEVICE
from estserver.inventory import Inventory
from estserver.key_ids import issuer_key_id, subject_key_id
from estserver.keys import FileSigner
from estserver.model import Der
from estserver.records import Reach, RolloverCertificates, RolloverRecord, Stage, Tier
from estserver.rollover import (
    Ceremony,
    Hierarchy,
    issuing_certificates,
    problems,
    require_movable,
    root_certificates,
)


@dataclass(frozen=True, slots=True)
class RootKey:
    """Where the root's key is, for `cross`; the key of a new root is put beside it.

    Attributes:
        path: None for the one that `estserver init`, or the last rollover, left in the home.
        passphrase: None for that of the CA's other keys.
    """

    path: Path | None = None
    passphrase: bytes | None = None


class KeyUpdate:
    """The rollovers of one CA.

    Args:
        ca: its name in the configuration.
        actor: who is written down as having done it.
    """

    def __init__(
        self,
        settings: Settings,
        inventory: Inventory,
        ca: str,
        *,
        actor: str,
        now: datetime,
        random: Callable[[int], bytes],
    ) -> None:
        if ca not in settings.cas:
            raise ConfigError(f"there is no CA {ca}", advice=f"[cas] has: {', '.join(sorted(settings.cas))}")
        self._settings = settings
        self._inventory = inventory
        self._ca = ca
        self._section = settings.cas[ca]
        self._actor = actor
        self._now = now
        self._random = random

    # --- what there is ----------------------------------------------------------------------------------------------

    def records(self) -> list[RolloverRecord]:
        """Return every rollover of this CA, oldest first."""
        return [record for record in self._inventory.rollovers.all() if record.ca == self._ca]

    def hierarchy(self) -> Hierarchy:
        """Return what the CA is, now."""
        return hierarchy_of(self._settings, self._ca, self.records())

    def reach(self, record: RolloverRecord) -> Reach:
        """Count how far the fleet has followed a rollover."""
        hierarchy = self.hierarchy()
        made = record.made if record.tier is Tier.ISSUING else None
        signs = hierarchy.issuing if made is None else made.new
        labels = {"": self._settings.default_label, **self._settings.labels}
        mine = [name for name, section in labels.items() if section.ca == self._ca]
        answer = answer_sha256(hierarchy.published)
        return self._inventory.rollovers.reach(self._ca, mine, answer, subject_key_id(signs), self._now, but=TLS_DEVICE)

    # --- the verbs --------------------------------------------------------------------------------------------------

    def start(self, tier: Tier, key_kind: str | None, root_key: RootKey) -> RolloverRecord:
        """Announce a rollover and, where the root's key is at hand, sign what it takes; again, to go on.

        Raises:
            StateError: another one is on its way.
            ConfigError: a key is not at hand or not the right one, or this hierarchy cannot be moved.
        """
        with _alone(self._settings.home):
            return self._start(tier, key_kind, root_key)

    def _start(self, tier: Tier, key_kind: str | None, root_key: RootKey) -> RolloverRecord:
        record = self._current()
        if record is None:
            record = self._announce(tier, key_kind)
        elif record.tier is not tier or key_kind not in (None, record.key_kind):
            raise StateError(
                f"a rollover of the {record.tier} CA to {record.key_kind} is on its way, at stage {record.stage}",
                advice="end it first; see: estserver rollover status",
            )
        if record.stage is Stage.ANNOUNCE:
            record = self._cross(record, root_key)
        self._write_files(record)
        return record

    def switch(self, override: str | None = None) -> RolloverRecord:
        """Let the new key sign.

        Args:
            override: why it is done though the fleet has not followed.

        Raises:
            StateError: `too-early`, with what is missing; or there is nothing to switch.
        """
        with _alone(self._settings.home):
            record = self._at(Stage.CROSS, Stage.SWITCH)
            if record.tier is Tier.ISSUING:
                load_issuing_key(self._settings, self._ca, record.key)  # what cannot be opened could not be served
            return self._advance(record, Stage.SWITCH, override)

    def retire(self, override: str | None = None) -> RolloverRecord:
        """Publish the old CA no more; as `switch`."""
        with _alone(self._settings.home):
            return self._advance(self._at(Stage.SWITCH, Stage.RETIRE), Stage.RETIRE, override)

    def _current(self) -> RolloverRecord | None:
        records = self.records()
        return records[-1] if records and records[-1].stage is not Stage.RETIRE else None

    def _at(self, before: Stage, after: Stage) -> RolloverRecord:
        records = self.records()
        if not records or records[-1].stage not in (before, after):
            at = f"is at stage {records[-1].stage}" if records else "was not started"
            raise StateError(
                f"the CA {self._ca} cannot go to {after}: its rollover {at}", advice="see: estserver rollover status"
            )
        return records[-1]

    def _advance(self, record: RolloverRecord, stage: Stage, override: str | None) -> RolloverRecord:
        if record.stage is not stage:
            reach = self.reach(record)
            missing = problems(record, reach)
            if missing and override is None:
                raise StateError(
                    *missing,
                    code="too-early",
                    advice="wait for them, or see `estserver rollover status`; an --override is written into the audit",
                )
            detail: dict[str, object] = {"live": reach.live, "fetched": reach.fetched, "renewed": reach.renewed}
            if missing:
                detail |= {"override": override, "missing": missing}
            record = self._inventory.rollovers.advance(record, stage, self._actor, self._now, detail)
        self._write_files(record)
        return record

    # --- announce and cross -----------------------------------------------------------------------------------------

    def _announce(self, tier: Tier, key_kind: str | None) -> RolloverRecord:
        hierarchy, section = self.hierarchy(), self._section
        require_movable(hierarchy.root, self._now)
        if tier is Tier.ROOT:
            self._require_simple(hierarchy)
        old = hierarchy.root if tier is Tier.ROOT else hierarchy.issuing
        kind = key_kind or key_facts(x509.load_der_x509_certificate(old).public_key()).name
        stem = section.root.stem if tier is Tier.ROOT else section.key.stem
        key = f"{stem}-{self._generation(tier)}.key"
        record = RolloverRecord(
            id=0,
            ca=self._ca,
            tier=tier,
            stage=Stage.ANNOUNCE,
            key_kind=kind,
            key=key if tier is Tier.ROOT else str(section.key.with_name(key)),
            old=old,
            started_at=self._now,
            stage_at=self._now,
        )
        return self._inventory.rollovers.start(record, self._actor)

    def _require_simple(self, hierarchy: Hierarchy) -> None:
        """Move a root only where it is known all that hangs on it."""
        sharing = [name for name, section in self._settings.cas.items() if section.root == self._section.root]
        if len(sharing) > 1:
            raise ConfigError(f"the root is that of several CAs ({', '.join(sharing)}), which is not supported")
        if hierarchy.middle:
            raise ConfigError("there is a CA between root and issuing CA, which is not supported")

    def _generation(self, tier: Tier) -> int:
        return 2 + sum(record.tier is tier and record.stage is not Stage.ANNOUNCE for record in self.records())

    def _cross(self, record: RolloverRecord, root_key: RootKey) -> RolloverRecord:
        hierarchy, passphrase = self.hierarchy(), passphrase_of(self._settings, self._ca)
        path = root_key.path or self._root_key()
        if not path.exists():
            raise ConfigError(
                f"announced; to go on it takes the root's key, and {path} is not there",
                advice="bring the key and give the command again with --root-key FILE",
            )
        root_signer = FileSigner.load(path, root_key.passphrase or passphrase)
        ceremony = Ceremony(hierarchy.root, root_signer, lambda: serial_from(self._random(SERIAL_BYTES)), self._now)
        if record.tier is Tier.ROOT:
            new = _key(path.with_name(record.key), record.key_kind, root_key.passphrase or passphrase)
            made = root_certificates(ceremony, hierarchy.issuing, new)
        else:
            new = _key(self._settings.path(Path(record.key)), record.key_kind, passphrase)
            made = issuing_certificates(ceremony, hierarchy.issuing, new, self._generation(Tier.ISSUING))
            IssuingCa(made.new, hierarchy.chain, new)
        return self._inventory.rollovers.advance(record, Stage.CROSS, self._actor, self._now, _told(made.new), made)

    def _root_key(self) -> Path:
        """Where the root's key is when it never left the home."""
        moved = [r.key for r in self.records() if r.tier is Tier.ROOT and r.stage in (Stage.SWITCH, Stage.RETIRE)]
        name = moved[-1] if moved else f"{self._section.root.stem}.key"
        return self._settings.path(self._section.key.with_name(name))

    # --- what follows -----------------------------------------------------------------------------------------------

    def _write_files(self, record: RolloverRecord) -> None:
        """Write `root.pem` for those who trust it, and the chain of `tls.pem` for those who trust either root."""
        hierarchy, made = self.hierarchy(), record.made
        if record.tier is not Tier.ROOT or made is None:
            return
        beside = {Stage.CROSS: [made.new], Stage.SWITCH: [record.old]}.get(record.stage, [])
        write_pem(self._settings.path(self._section.root), [hierarchy.root, *beside])
        self._write_tls_chain(record.stage, made, hierarchy)

    def _write_tls_chain(self, stage: Stage, made: RolloverCertificates, hierarchy: Hierarchy) -> None:
        """Let the server be verified by who trusts the old root, the new one, or both.

        While the old key signs, an old client meets nothing of the new algorithm before its anchor.
        """
        path = self._settings.path(self._settings.tls.certificate)
        leaf = load_certificates(path)[0]
        signed = [one.certificate for one in hierarchy.keys if subject_key_id(one.certificate) == issuer_key_id(leaf)]
        if not signed:
            return  # it is not of this CA
        link = made.old_with_new
        if signed[0] == hierarchy.issuing:
            link = {Stage.CROSS: made.old_with_new, Stage.SWITCH: made.new_with_old}.get(stage)
        write_pem(path, [leaf, signed[0], *([] if link is None else [link])])


def _told(certificate: Der) -> Mapping[str, object]:
    parsed = x509.load_der_x509_certificate(certificate)
    subject, serial = parsed.subject.rfc4514_string(), f"{parsed.serial_number:x}"
    return {"subject": subject, "serial": serial, "key_id": subject_key_id(certificate)}


def _key(path: Path, kind: str, passphrase: bytes | None) -> FileSigner:
    """Make a key, or take the one that an interrupted command has made: it is whole or not there.

    Raises:
        ConfigError: it cannot be written, or there is another key of that name.
    """
    if not path.exists():
        unfinished = path.with_name(f".{path.name}.new")
        unfinished.unlink(missing_ok=True)
        FileSigner.generate(kind, unfinished, passphrase)
        _into_place(unfinished, path)
    signer = FileSigner.load(path, passphrase)
    if key_facts(load_der_public_key(signer.spki)).name != kind:
        raise ConfigError(f"{path} is there already, and is no key of kind {kind}", advice="move it elsewhere")
    return signer


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Let one command at a time change the CAs of a home.

    Raises:
        StateError: another one does; `locked`.
    """
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError("another rollover command is at work in this home", code="locked") from None
        yield
    finally:
        os.close(descriptor)


def write_pem(path: Path, certificates: Sequence[Der]) -> None:
    """Replace a file of certificates by another, whole: who reads it meanwhile reads the old one or the new one.

    Raises:
        ConfigError: it cannot be written.
    """
    pem = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in certificates)
    unfinished = path.with_name(f".{path.name}.new")
    try:
        if path.read_bytes() == pem:
            return
        with unfinished.open("wb") as file:
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    _into_place(unfinished, path)


def _into_place(unfinished: Path, path: Path) -> None:
    try:
        unfinished.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
