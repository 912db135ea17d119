"""`estserver.toml` → one frozen, validated `Settings`.

Rules:
- Unknown keys are errors, and every problem is reported at once, with its line and the path of the key.
- Paths in the file are relative to the home directory that holds it.
- Nothing secret stands in the file: keys and passphrases are files of their own.
- Durations are text with a unit: `90s`, `15m`, `8h`, `30d`. Rates are a number and a duration: `600/1m`.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from estserver.csr import DEFAULT_BOUNDS
from estserver.errors import ConfigError
from estserver.limits import COUNT_MAX, DEFAULT_LIMITS, DEFAULT_QUEUE, PERIOD_MAX, PERIOD_MIN, Queue, Rate
from estserver.toml_lines import key_lines, line_of

CONFIG_NAME = "estserver.toml"
RESERVED_LABELS = frozenset({
    "cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs",
    "crls", "eecerts", "pal", "firmware", "symmetrickeys", "tamp", "renewal-info",
})  # fmt: skip
"""Operation names of RFC 7030 §3.2.2, RFC 8295 and the renewal-info draft: a label may be none of them."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(value: object) -> timedelta:
    """Turn `90s`, `15m`, `8h` or `30d` into a timedelta.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"([0-9]{1,7})([smhd])", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("is not a duration such as 90s, 15m, 8h or 30d")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def parse_rate(value: object) -> Rate:
    """Turn `600/1m` into a rate.

    Raises:
        ValueError: for anything else, and for what no bucket is made for.
    """
    if isinstance(value, Rate):
        return value
    match = re.fullmatch(r"([0-9]{1,7})/(.*)", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("is not a rate such as 20/1m or 100/10s")
    rate = Rate(int(match[1]), parse_duration(match[2]))
    if not 1 <= rate.count <= COUNT_MAX or not PERIOD_MIN <= rate.period <= PERIOD_MAX:
        raise ValueError(f"is not a rate of 1 to {COUNT_MAX} in ten seconds to an hour")
    return rate


def _rate_or_off(value: object) -> Rate | None:
    return None if value is None or value == "off" else parse_rate(value)


def _rate_text(rate: Rate | None) -> str:
    return "off" if rate is None else str(rate)


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
RateText = Annotated[Rate, BeforeValidator(parse_rate), PlainSerializer(_rate_text)]
RateOrOff = Annotated[Rate | None, BeforeValidator(_rate_or_off), PlainSerializer(_rate_text)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=4096)


class ServerSection(_Section):
    """`[server]`: where it listens and how much it takes from one client."""

    listen: str = Field(default="127.0.0.1:8443", pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$")
    workers: int = Field(default=1, ge=1, le=64)
    connections_max: int = Field(default=4000, ge=10)
    connections_per_address_max: int = Field(default=0, ge=0, description="0: no limit; a factory sits behind one")
    head_max_bytes: int = Field(default=16_384, ge=1024, le=1_048_576)
    body_max_bytes: int = Field(default=65_536, ge=16_384, le=1_048_576)
    handshake_deadline: Duration = timedelta(seconds=10)
    head_deadline: Duration = timedelta(seconds=10)
    body_deadline: Duration = timedelta(seconds=15)
    idle_deadline: Duration = timedelta(seconds=60)
    graceful_deadline: Duration = timedelta(seconds=15)


class TlsSection(_Section):
    """`[tls]`: what the server shows its clients."""

    certificate: Path = Path("tls.pem")
    key: Path = Path("private/tls.key")


class CaSection(_Section):
    """`[cas.NAME]`: one issuing CA; NAME is the topic level of its events. The root's key is never opened.

    Attributes:
        status_url: below it, certificates of this CA say, are its CRL, its OCSP responder and its own certificate
            (RFC 5280 §4.2.1.13, §4.2.2.1); empty: they say nothing.
    """

    root: Path = Path("root.pem")
    certificate: Path = Path("issuing.pem")
    key: Path = Path("private/issuing.key")
    passphrase_file: Path | None = None
    status_url: str = Field(default="", pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?)?$")


class LabelSection(_Section):
    """`[labels.NAME]`: one path segment, one profile (RFC 7030 §3.2.2).

    Attributes:
        keys_per_binding: how many keys the channel binding of one connection vouches for (RFC 9266 §4.1).
        serverkeygen: whether keys are made here for devices, and leave by TLS alone (RFC 7030 §4.4, §6).
        decryption_keys: file of symmetric keys that devices have too, a line `ID KEY` each in hexadecimal.
    """

    profile: str
    ca: str
    channel_binding: Literal["if-present", "required"] = "if-present"
    keys_per_binding: Literal["one", "any"] = "one"
    serverkeygen: Literal["off", "on", "encrypted-only"] = "off"
    decryption_keys: Path | None = None
    authentication: Literal["either", "both"] = Field(
        default="either", description="a certificate or a credential, or both at once (RFC 7030 §3.2.3)"
    )


class StorageSection(_Section):
    """`[storage]`: the inventory, a file name or a SQLAlchemy URL; servers that share one have each a `server_id`."""

    url: str = "estserver.db"
    server_id: str = Field(default="estserver", pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")


class LimitsSection(_Section):
    """`[limits]`: how often one may ask, how much one request may name, and how much may wait for an operator."""

    station_rate: RateText = DEFAULT_LIMITS.station_rate
    credential_rate: RateText = DEFAULT_LIMITS.credential_rate
    device_rate: RateText = DEFAULT_LIMITS.device_rate
    address_rate: RateOrOff = Field(default=DEFAULT_LIMITS.address_rate, description="off: a factory sits behind one")
    stranger_rate: RateText = DEFAULT_LIMITS.stranger_rate
    guess_rate: RateText = DEFAULT_LIMITS.guess_rate
    names_max: int = Field(default=DEFAULT_BOUNDS.names_max, ge=1, le=1000)
    name_max_chars: int = Field(default=DEFAULT_BOUNDS.name_max_chars, ge=64, le=4096)
    pending_max: int = Field(default=DEFAULT_QUEUE.size_max, ge=1, le=100_000)
    pending_lifetime: Duration = Field(default=DEFAULT_QUEUE.lifetime, ge=timedelta(minutes=1), le=timedelta(days=365))
    pending_retry: Duration = Field(default=DEFAULT_QUEUE.retry_after, ge=timedelta(seconds=1), le=timedelta(days=1))

    @property
    def queue(self) -> Queue:
        """What may wait for an operator."""
        return Queue(self.pending_lifetime, self.pending_max, retry_after=self.pending_retry)


class KeysSection(_Section):
    """`[keys]`: which keys are taken from nobody."""

    blocked: Path | None = Field(default=None, description="a file of SHA-256 hashes of SubjectPublicKeyInfos")


class StatusSection(_Section):
    """`[status]`: how long a CRL and an OCSP answer hold; the next CRL is published at half of its life, or sooner."""

    crl_lifetime: Duration = Field(default=timedelta(days=7), ge=timedelta(minutes=2), le=timedelta(days=366))
    trust_crl_refresh: Duration = Field(
        default=timedelta(hours=1),
        ge=timedelta(minutes=1),
        le=timedelta(days=30),
        description="how often manufacturers' CRLs are fetched",
    )
    ocsp_lifetime: Duration = Field(default=timedelta(hours=1), ge=timedelta(minutes=2), le=timedelta(days=30))


class MqttSection(_Section):
    """`[mqtt]`: where certificates are announced; without a broker nothing is."""

    broker: str = Field(default="", pattern=r"^(mqtts://[^/\s]+:[0-9]{1,5})?$")
    domain: str = Field(default="est", pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    name: str = Field(default="estserver", pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")
    certificate: Path = Path("mqtt/cert.pem")
    key: Path = Path("mqtt/key.pem")
    trust: Path = Path("root.pem")


class MetricsSection(_Section):
    """`[metrics]`: where Prometheus may ask, from this machine alone; empty for nowhere."""

    listen: str = ""

    @field_validator("listen")
    @classmethod
    def _is_of_this_machine(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and not (_is_loopback(host) and re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= 65535):
            raise ValueError("is not a loopback address with a port, such as 127.0.0.1:9464 or [::1]:9464")
        return value


def _is_loopback(host: str) -> bool:
    bracketed = re.fullmatch(r"\[(.+)\]", host)
    try:
        address = ipaddress.IPv6Address(bracketed[1]) if bracketed else ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return address.is_loopback


HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$")]
HeaderOrNone = Annotated[str, Field(pattern=r"^([A-Za-z][A-Za-z0-9-]{0,63})?$")]


class ProxySection(_Section):
    """`[proxy]`: who ends TLS in front of this server, and in which headers it says what it saw (docs/proxy.md).

    Attributes:
        addresses: from which the proxy connects; nobody else is believed, this machine included. Empty: nobody is.
        chain_header, tls_unique_header, cipher_header: empty when this proxy cannot give them.
    """

    addresses: tuple[str, ...] = ()
    certificate_header: HeaderName = "X-SSL-Client-Cert"
    chain_header: HeaderOrNone = "X-SSL-Client-Chain"
    tls_version_header: HeaderName = "X-SSL-Protocol"
    tls_unique_header: HeaderOrNone = "X-SSL-Unique"
    cipher_header: HeaderOrNone = "X-SSL-Cipher"
    address_header: HeaderName = "X-SSL-Client-Address"

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise ValueError(f"{value!r} is not an IP address; networks and names are not taken") from None
        return values

    @model_validator(mode="after")
    def _headers_differ(self) -> ProxySection:
        names = [value.lower() for key, value in self if key.endswith("_header") and value]
        if len(set(names)) < len(names):
            raise ValueError("two of its headers have the same name")
        return self


class Settings(_Section):
    """Everything an operator can decide about one server.

    Attributes:
        home: the directory that paths are relative to; not part of the file.
        realm: shown in the HTTP challenge.
        default_label: what answers when a path carries no label.
        labels: by name, each one path segment.
        cas: by name; the default label's is the one whose certificates authenticate here.
        implicit_trust: whether manufacturers' IDevIDs may bootstrap (RFC 7030 §3.3.2).
    """

    home: Path
    realm: str = Field(default="Estline", pattern=r'^[^"\\\r\n]{1,64}$')
    implicit_trust: bool = True
    default_label: LabelSection
    labels: dict[str, LabelSection] = Field(default_factory=dict)
    server: ServerSection = ServerSection()
    limits: LimitsSection = LimitsSection()
    keys: KeysSection = KeysSection()
    tls: TlsSection = TlsSection()
    cas: dict[Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$")], CaSection] = Field(min_length=1)
    storage: StorageSection = StorageSection()
    status: StatusSection = StatusSection()
    mqtt: MqttSection = MqttSection()
    metrics: MetricsSection = MetricsSection()
    proxy: ProxySection = ProxySection()

    @model_validator(mode="after")
    def _labels_make_sense(self) -> Settings:
        problems = [name for name in self.labels if name in RESERVED_LABELS]
        problems += [name for name in self.labels if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}", name)]
        if problems:
            raise ValueError(f"labels must be one path segment and no operation name: {', '.join(problems)}")
        strays = {section.ca for section in (self.default_label, *self.labels.values())} - set(self.cas)
        if strays:
            raise ValueError(f"labels name CAs that [cas] does not have: {', '.join(sorted(strays))}")
        return self

    def path(self, relative: Path) -> Path:
        """Resolve a path of the file against the home directory."""
        return self.home / relative

    def label(self, name: str) -> LabelSection | None:
        """Return the label's section; the empty name is the default label; None when there is none."""
        return self.default_label if name == "" else self.labels.get(name)


def load_settings(home: Path) -> Settings:
    """Read `estserver.toml` in `home`.

    Raises:
        ConfigError: the file is missing, unreadable, not TOML, or holds anything that is not understood.
    """
    path = home / CONFIG_NAME
    try:
        octets = path.read_bytes()
        return Settings.model_validate({**tomllib.loads(octets.decode()), "home": home})
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", advice=f"make a PKI home with: estserver init {home}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(explain_syntax(path, error, octets)) from None
    except ValidationError as error:
        reasons = explain_validation(path, error, octets.decode())
        raise ConfigError(*reasons, advice="mend the file and run the command again") from None


def explain_syntax(path: Path, error: tomllib.TOMLDecodeError | UnicodeDecodeError, octets: bytes) -> str:
    """Say that a file is not TOML, where, and why."""
    if isinstance(error, UnicodeDecodeError):
        line = octets[: error.start].count(b"\n") + 1
        return f"{path}:{line}: not TOML: not UTF-8"
    reason, _, place = str(error).rpartition(" (at ")
    stated = re.match(r"line ([0-9]+)", place)
    line = int(stated[1]) if stated else len(octets.splitlines())  # "at end of document"
    return f"{path}:{line}: not TOML: {reason}"


def explain_validation(path: Path, error: ValidationError, text: str) -> list[str]:
    """Return one line for every problem pydantic found: file, line, key, what is wrong.

    A check of several keys begins its text with the one that it is about.
    """
    lines, problems = key_lines(text), []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        reason = item["msg"].removeprefix("Value error, ")
        at = tuple(part for part in item["loc"] if part != "[key]")
        line = line_of(at or tuple(reason.split(" ", 1)[0].split(".")), lines)
        problems.append((line, f"{path}:{line}: {'.'.join(map(str, at)) or 'file'}: {reason}"))
    return [problem for _, problem in sorted(problems)]
