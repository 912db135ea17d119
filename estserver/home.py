"""Founding a PKI home: root, issuing CA, the server's TLS certificate, profiles, configuration, empty inventory.

Rules:
- If any file that it would write is there, it refuses and changes nothing.
- Everything is made in a directory of its own first and moved into place at the end, the configuration last.
- The root key signs here and is never opened again by the server; it may be written elsewhere.
- The TLS certificate takes the same path as any other: policy, reservation, signature, record.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib import resources
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from estserver import csr
from estserver.assembly import PEPPER, load_profiles
from estserver.ca import (
    BACKDATE,
    ISSUING_LIFETIME,
    ROOT_LIFETIME,
    SERIAL_BYTES,
    IssuingCa,
    make_ca_certificate,
    serial_from,
    write_name,
    write_san,
)
from estserver.config import CONFIG_NAME, MqttSection
from estserver.errors import ConfigError
from estserver.inventory import Inventory
from estserver.keys import FileSigner, write_secret
from estserver.model import Der, GeneralName, Identity, IdentityKind, NameAttribute, Operation, Reservation
from estserver.policy import Ask, Profile, decide
from estserver.policy.decide import NEVER

TLS_DEVICE = "est-server"
PEPPER_BYTES = 32
NAME_MAX_CHARS = 64 - len(" IDevID Issuing CA")  # RFC 5280 appendix A: ub-common-name
LABELS = ("device", "gateway", "workload", "station", "server", "service")


@dataclass(frozen=True, slots=True)
class Plan:
    """What `estserver init` was asked to make.

    Attributes:
        name: organisation-style name, the start of every CA's common name.
        hosts: DNS names and IP addresses of the server.
        key_kind: row of `estserver.keys.KINDS` for the CA keys.
        root_key_out: directory for the root key; None keeps it under `private/`.
        passphrase: encrypts the CA keys; read again from `passphrase_file` when serving.
        idevid: also make a manufacturer hierarchy without end, under the label `idevid`.
        broker: `mqtts://host:port` to announce to, or empty.
    """

    home: Path
    name: str
    hosts: tuple[str, ...]
    key_kind: str
    root_key_out: Path | None = None
    passphrase: bytes | None = field(default=None, repr=False)
    passphrase_file: Path | None = None
    idevid: bool = False
    broker: str = ""

    @property
    def ca(self) -> str:
        """Name of the default CA: one topic level made from the name."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:64].strip("-")
        return slug or "estline"


def found(plan: Plan, *, now: datetime, random: Callable[[int], bytes]) -> str:
    """Make the home; return the SHA-256 fingerprint of its root, colon-separated.

    Raises:
        ConfigError: something is in the way, cannot be written or makes no sense; nothing was changed.
    """
    _check_words(plan)
    _refuse_to_overwrite(plan)
    try:
        plan.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".init-", dir=plan.home) as name:
            work = Path(name)
            fingerprint = _make(plan, work, now=now, random=random)
            _move_into_place(plan, work)
    except OSError as error:
        raise ConfigError(f"{error.filename or plan.home} cannot be written: {error.strerror}") from None
    return fingerprint


def _check_words(plan: Plan) -> None:
    """Refuse what no certificate or configuration can hold."""
    if not re.fullmatch(rf"(?=.*\S)[^\x00-\x1f\x7f-\x9f]{{1,{NAME_MAX_CHARS}}}", plan.name):
        raise ConfigError(f"the name {plan.name!r} is not 1 to {NAME_MAX_CHARS} printable characters")
    try:
        MqttSection(broker=plan.broker)
    except ValidationError:
        raise ConfigError(f"the broker {plan.broker!r} is not mqtts://HOST:PORT") from None


def _targets(plan: Plan) -> list[str]:
    names = ["root.pem", "issuing.pem", "tls.pem", "profiles", "private", "estserver.db"]
    return [*names, *(["idevid-root.pem", "idevid.pem"] if plan.idevid else []), CONFIG_NAME]


def _refuse_to_overwrite(plan: Plan) -> None:
    there = [plan.home / name for name in _targets(plan) if os.path.lexists(plan.home / name)]
    if plan.root_key_out is not None:
        there += [
            path for path in (plan.root_key_out / f"{stem}.key" for stem in _roots(plan)) if os.path.lexists(path)
        ]
    if there:
        raise ConfigError(
            *(f"{path} exists already" for path in there), advice="nothing was changed; choose another directory"
        )


def _roots(plan: Plan) -> list[str]:
    return ["root", "idevid-root"] if plan.idevid else ["root"]


def _make(plan: Plan, work: Path, *, now: datetime, random: Callable[[int], bytes]) -> str:
    (work / "private").mkdir(mode=0o700)
    (work / "roots").mkdir(mode=0o700)
    _copy_profiles(work / "profiles", idevid=plan.idevid)
    write_secret(work / PEPPER, random(PEPPER_BYTES))
    root, ca = _make_ca(plan, work, "root", "issuing", plan.name, now=now, random=random)
    if plan.idevid:
        _make_ca(plan, work, "idevid-root", "idevid", f"{plan.name} IDevID", now=now, random=random)
    with Inventory.open(work / "estserver.db", create=True) as inventory:
        profile = load_profiles(work / "profiles")["server"]
        _make_tls(plan, work, ca, profile, inventory, now=now, random=random)
    (work / CONFIG_NAME).write_text(configuration(plan), "utf-8")
    return ":".join(f"{octet:02X}" for octet in root.fingerprint(hashes.SHA256()))


def _make_ca(
    plan: Plan, work: Path, root: str, issuing: str, name: str, *, now: datetime, random: Callable[[int], bytes]
) -> tuple[x509.Certificate, IssuingCa]:
    """Make one hierarchy: a root that is put aside, and the issuing CA below it."""
    endless = issuing == "idevid"
    root_signer = FileSigner.generate(plan.key_kind, work / "roots" / f"{root}.key", plan.passphrase)
    root_der = make_ca_certificate(
        subject=f"{name} Root CA",
        spki=root_signer.spki,
        serial=serial_from(random(SERIAL_BYTES)),
        not_before=now - BACKDATE,
        not_after=NEVER if endless else now + ROOT_LIFETIME,
        issuer=root_signer,
    )
    root_certificate = x509.load_der_x509_certificate(root_der)
    signer = FileSigner.generate(plan.key_kind, work / "private" / f"{issuing}.key", plan.passphrase)
    issuing_der = make_ca_certificate(
        subject=f"{name} Issuing CA",
        spki=signer.spki,
        serial=serial_from(random(SERIAL_BYTES)),
        not_before=now - BACKDATE,
        not_after=NEVER if endless else now + ISSUING_LIFETIME,
        issuer=(root_certificate, root_signer),
    )
    _write_pem(work / f"{root}.pem", [root_der])
    _write_pem(work / f"{issuing}.pem", [issuing_der])
    return root_certificate, IssuingCa(issuing_der, [root_der], signer)


def _make_tls(
    plan: Plan,
    work: Path,
    ca: IssuingCa,
    profile: Profile,
    inventory: Inventory,
    *,
    now: datetime,
    random: Callable[[int], bytes],
) -> None:
    signer = FileSigner.generate("P-256", work / "private" / "tls.key")
    names = tuple(sorted({host_name(host) for host in plan.hosts}))
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(write_name([NameAttribute("2.5.4.3", TLS_DEVICE)]))
        .add_extension(write_san(names), critical=False)
    )
    request = csr.parse(Der(signer.sign_request(builder).public_bytes(Encoding.DER)))
    operator = Identity(IdentityKind.CREDENTIAL, "init", (TLS_DEVICE,), tuple(map(str, names)))
    ask = Ask(Operation.SIMPLEENROLL, "server", operator, request, None, "absent", now, ca.not_after)
    grant = replace(decide(profile, ask), requester="operator:init", credential=None)
    reservation = inventory.reserve(grant, serial_from(random(SERIAL_BYTES)), now)
    assert isinstance(reservation, Reservation)  # the inventory is empty
    issued = inventory.record(reservation, ca.issue(reservation), [], now, issuer=ca.key_id)
    _write_pem(work / "tls.pem", [issued.certificate, ca.certificate])


def host_name(host: str) -> GeneralName:
    """Read a DNS name or IP address of the server.

    Raises:
        ConfigError: neither.
    """
    try:
        return GeneralName("ip", str(ipaddress.ip_address(host)))
    except ValueError:
        pass
    if not re.fullmatch(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9][a-z0-9-]{0,62})*", host.lower()):
        raise ConfigError(f"{host!r} is neither a DNS name nor an IP address")
    return GeneralName("dns", host.lower())


def _copy_profiles(directory: Path, *, idevid: bool) -> None:
    directory.mkdir()
    for entry in (resources.files("estserver.policy") / "profiles").iterdir():
        if entry.name.endswith(".toml") and (idevid or entry.name != "idevid.toml"):
            (directory / entry.name).write_text(entry.read_text("utf-8"), "utf-8")


def _write_pem(path: Path, certificates: Sequence[Der]) -> None:
    pems = [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in certificates]
    path.write_bytes(b"".join(pems))


def _move_into_place(plan: Plan, work: Path) -> None:
    """Put everything where it belongs, or leave nothing of it behind."""
    roots = plan.root_key_out or work / "private"
    roots.mkdir(mode=0o700, parents=True, exist_ok=True)
    placed = list[Path]()
    try:
        for stem in _roots(plan):
            write_secret(roots / f"{stem}.key", (work / "roots" / f"{stem}.key").read_bytes())
            placed.append(roots / f"{stem}.key")
        for name in _targets(plan):
            (work / name).rename(plan.home / name)
            placed.append(plan.home / name)
    except BaseException:
        for path in placed:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def _quoted(value: object) -> str:
    """Write a TOML basic string; it escapes what JSON does."""
    return json.dumps(str(value), ensure_ascii=False)


def configuration(plan: Plan) -> str:
    """Write `estserver.toml`: what an operator is likely to touch, with its meaning beside it."""
    passphrase = f"\npassphrase_file = {_quoted(plan.passphrase_file)}" if plan.passphrase_file is not None else ""
    labels = "\n".join(f'[labels.{name}]\nprofile = "{name}"\nca = "{plan.ca}"\n' for name in LABELS)
    idevid = ""
    if plan.idevid:
        labels += f'\n[labels.idevid]\nprofile = "idevid"\nca = "{plan.ca}-idevid"\n'
        idevid = (
            f'\n[cas.{plan.ca}-idevid]\nroot = "idevid-root.pem"\ncertificate = "idevid.pem"\n'
            f'key = "private/idevid.key"{passphrase}\n'
        )
    return f"""\
# Configuration of one Estline EST server. Paths are relative to this file; unknown keys are errors.
# `estserver config show` prints everything that can be set, with its value.

[server]
listen = "127.0.0.1:8443"
workers = 1

# Where certificates are announced, as an MQTT client with a certificate of the label `service`. Empty: nowhere.
[mqtt]
broker = {_quoted(plan.broker)}

# What answers /.well-known/est/<operation>, without a label.
[default_label]
profile = "device"
ca = "{plan.ca}"

# What answers /.well-known/est/<label>/<operation>.
{labels}
[cas.{plan.ca}]
root = "root.pem"
certificate = "issuing.pem"
key = "private/issuing.key"{passphrase}
{idevid}"""
