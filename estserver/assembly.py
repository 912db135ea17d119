"""Settings → the parts of a running server: the only place that knows which file becomes which room.

Rules:
- Everything is read and checked before anything is served: a home that is not whole is one `ConfigError`, with every
  profile's problems at once.
- The root's key is never opened.
- What a CA is now follows from the files it was founded with and from its rollovers in the inventory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import csr, weak_keys
from estserver.attempt import Door
from estserver.ca import IssuingCa, StatusUrls
from estserver.config import LabelSection, Settings, explain_syntax
from estserver.enroll import Enrollment
from estserver.errors import ConfigError
from estserver.identity import Anchor, AnchorSet, Authenticator, CredentialVerifier
from estserver.inventory import Inventory
from estserver.key_ids import subject_key_id
from estserver.keygen import KeyGeneration
from estserver.keys import FileSigner, read_shared_keys
from estserver.limits import Limits
from estserver.model import Der
from estserver.policy import Profile, parse_profile
from estserver.records import RolloverRecord, Tier
from estserver.rollover import Hierarchy, keys_to_publish
from estserver.sealing import Generator
from estserver.status.delegate import responder_name
from estserver.status.directory import status_urls

PROFILES = Path("profiles")
PEPPER = Path("private/credential.key")


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be had, as a home said at one moment: a worker that begins later begins with the same.

    Attributes:
        rollovers: None when they were not read yet, since the inventory was not open.
    """

    profiles: Mapping[str, Profile]
    bounds: csr.Bounds
    rollovers: tuple[RolloverRecord, ...] | None = None


def rules_of(settings: Settings) -> Rules:
    """Read profiles and block list.

    Raises:
        ConfigError: with the problems of all of them.
    """
    profiles, bounds, problems = dict[str, Profile](), csr.DEFAULT_BOUNDS, list[str]()
    try:
        profiles = load_profiles(settings.path(PROFILES))
    except ConfigError as error:
        problems += error.reasons
    try:
        bounds = bounds_of(settings)
    except ConfigError as error:
        problems += error.reasons
    if problems:
        raise ConfigError(*problems, advice="mend what the lines name and try again")
    return Rules(profiles, bounds)


def inventory_of(settings: Settings) -> Inventory:
    """Open the inventory that the settings name.

    Raises:
        ConfigError: missing, damaged, or of a newer program.
    """
    url = settings.storage.url
    where = url if "://" in url else settings.path(Path(url))
    return Inventory.open(where, server_id=settings.storage.server_id)


def enrollment_of(
    settings: Settings,
    inventory: Inventory,
    *,
    clock: Callable[[], datetime],
    random: Callable[[int], bytes],
    rules: Rules | None = None,
) -> Enrollment:
    """Assemble the enrolment path of a home.

    Args:
        rules: those that were read before; by default they are read.

    Raises:
        ConfigError: a file is missing or wrong, or a label names what does not exist.
    """
    rules = rules or rules_of(settings)
    rollovers = inventory.rollovers.all() if rules.rollovers is None else rules.rollovers
    hierarchies = {name: hierarchy_of(settings, name, rollovers) for name in settings.cas}
    cas = {name: load_ca(settings, name, hierarchy) for name, hierarchy in hierarchies.items()}
    labels = {"": settings.default_label, **settings.labels}
    doors = {label: _door(settings, label, section, rules.profiles, cas) for label, section in labels.items()}
    own = hierarchies[settings.default_label.ca]
    authenticator = Authenticator(
        inventory,
        AnchorSet([Anchor("estline", root) for root in own.anchors], own.helpers),
        CredentialVerifier(read_bytes(settings.path(PEPPER))),
        implicit_trust=settings.implicit_trust,
        lists=inventory.foreign,
    )
    responders = {responder_name(ca.key_id, settings.storage.server_id) for ca in cas.values()}
    site_names = frozenset({settings.mqtt.name, *responders})
    return Enrollment(
        doors,
        authenticator,
        inventory,
        clock=clock,
        random=random,
        site_names=site_names,
        limits=limits_of(settings),
        bounds=rules.bounds,
    )


def limits_of(settings: Settings) -> Limits:
    """Return how often one may ask; each limit has the name of its setting."""
    return Limits(**{field.name: getattr(settings.limits, field.name) for field in fields(Limits)})


def bounds_of(settings: Settings) -> csr.Bounds:
    """Return what no request may go beyond; the block list is read.

    Raises:
        ConfigError: the block list cannot be read, or lines of it are wrong.
    """
    blocked = frozenset[str]()
    if settings.keys.blocked is not None:
        path = settings.path(settings.keys.blocked)
        octets = read_bytes(path, weak_keys.BLOCKED_MAX_BYTES)
        blocked = weak_keys.parse_block_list(octets.decode("utf-8", "replace"), source=path)
    return csr.Bounds(settings.limits.names_max, settings.limits.name_max_chars, blocked)


def _door(
    settings: Settings,
    label: str,
    section: LabelSection,
    profiles: Mapping[str, Profile],
    cas: Mapping[str, IssuingCa],
) -> Door:
    profile = profiles.get(section.profile)
    if profile is None:
        where = f"label {label!r}" if label else "default_label"
        raise ConfigError(
            f"{where} names the profile {section.profile!r}, and profiles/{section.profile}.toml is missing"
        )
    if section.serverkeygen != "off" and profile.approval == "required":
        raise ConfigError(
            f"label {label!r} makes keys by a profile whose requests wait for approval",
            advice="a key made by the server is new at every request, so that none could be approved",
        )
    return Door(
        profile,
        cas[section.ca],
        section.ca,
        binding_required=section.channel_binding == "required",
        many_keys_bound=section.keys_per_binding == "any",
        both_required=section.authentication == "both",
        keygen=_key_generation(settings, section),
    )


def _key_generation(settings: Settings, section: LabelSection) -> KeyGeneration | None:
    """Let the server's TLS key, which its clients trust already, answer for the keys it makes (RFC 7030 §4.4.2)."""
    if section.serverkeygen == "off":
        return None
    certificates = tuple(load_certificates(settings.path(settings.tls.certificate)))
    generator = Generator(FileSigner.load(settings.path(settings.tls.key)), certificates)
    path = section.decryption_keys
    shared = {} if path is None else read_shared_keys(settings.path(path))
    return KeyGeneration(generator, shared, encrypted_only=section.serverkeygen == "encrypted-only")


def load_profiles(directory: Path) -> dict[str, Profile]:
    """Read every profile of a directory.

    Raises:
        ConfigError: with the problems of all of them, each with its file and line.
    """
    profiles, problems = {}, list[str]()
    for path in sorted(directory.glob("*.toml")):
        try:
            octets = read_bytes(path)
            profiles[path.stem] = parse_profile(path.stem, octets.decode(), source=path)
        except ConfigError as error:
            problems += error.reasons
        except UnicodeDecodeError as error:
            problems.append(explain_syntax(path, error, octets))
    if problems or not profiles:
        raise ConfigError(*(problems or [f"there is no profile in {directory}"]))
    return profiles


def hierarchy_of(settings: Settings, name: str, rollovers: Iterable[RolloverRecord]) -> Hierarchy:
    """Return what a CA is: what its files say that it was founded as, and what became of it since.

    Raises:
        ConfigError: a file cannot be read, or holds no certificate.
    """
    section, mine = settings.cas[name], [record for record in rollovers if record.ca == name]
    issuing, *middle = load_certificates(settings.path(section.certificate))
    # from its first rollover on, root.pem is for those who trust it, and changes
    first = next((record.old for record in mine if record.tier is Tier.ROOT), None)
    *above, root = load_certificates(settings.path(section.root)) if first is None else [first]
    return Hierarchy.founded(issuing, (*middle, *above), root).after(mine)


def load_ca(settings: Settings, name: str, hierarchy: Hierarchy) -> IssuingCa:
    """Open an issuing CA: its certificate, its chain, and the only private key that serving needs."""
    signer, urls = load_issuing_key(settings, name, hierarchy.key), status_urls_of(settings, name, hierarchy.issuing)
    return IssuingCa(hierarchy.issuing, hierarchy.chain, signer, urls, hierarchy.besides)


def status_urls_of(settings: Settings, name: str, certificate: Der) -> StatusUrls:
    """Return where the certificates that this one signs say to look them up."""
    return status_urls(settings.cas[name].status_url, subject_key_id(certificate))


def load_publishers(settings: Settings, inventory: Inventory, now: datetime) -> dict[str, list[IssuingCa]]:
    """Open, for each CA, every key that must go on publishing CRLs: those whose leaves are still in time.

    Raises:
        ConfigError: one of them is not there.
    """
    rollovers, in_use = inventory.rollovers.all(), inventory.rollovers.issuers_in_use(now)
    found = dict[str, list[IssuingCa]]()
    for name in settings.cas:
        hierarchy = hierarchy_of(settings, name, rollovers)
        found[name] = [
            IssuingCa(
                one.certificate,
                (),
                load_issuing_key(settings, name, one.key),
                status_urls_of(settings, name, one.certificate),
            )
            for one in keys_to_publish(hierarchy, in_use)
        ]
    return found


def load_issuing_key(settings: Settings, name: str, key: str | None) -> FileSigner:
    """Open a key of a CA: the configured one, or the one that a rollover has made."""
    section = settings.cas[name]
    return FileSigner.load(settings.path(section.key if key is None else Path(key)), passphrase_of(settings, name))


def passphrase_of(settings: Settings, name: str) -> bytes | None:
    """Read what the keys of a CA are encrypted with, if they are."""
    path = settings.cas[name].passphrase_file
    return None if path is None else read_bytes(settings.path(path)).rstrip(b"\r\n")


def load_certificates(path: Path) -> list[Der]:
    """Read the certificates of a PEM file.

    Raises:
        ConfigError: missing, or nothing in it that is a certificate.
    """
    try:
        parsed = x509.load_pem_x509_certificates(read_bytes(path))
    except ValueError:
        raise ConfigError(f"{path} holds no PEM certificate") from None
    return [Der(certificate.public_bytes(Encoding.DER)) for certificate in parsed]


def read_bytes(path: Path, most: int = 1 << 20) -> bytes:
    """Read a file of the home.

    Raises:
        ConfigError: it cannot be read, or has more than `most` octets.
    """
    try:
        with path.open("rb") as file:
            octets = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(octets) > most:
        raise ConfigError(f"{path} is larger than {most} octets")
    return octets
