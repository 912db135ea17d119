"""`line.toml`: what a station is, whom it enrols with, and where it keeps its records.

Paths are relative to the file. Unknown keys are errors, and every problem is reported at once.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from devicesim.csr import KEY_TYPES
from devicesim.labels.printer import open_printer
from devicesim.line.crew import Crew, Role, Shifts
from devicesim.line.findings import InputInvalid, findings_of, read_toml
from devicesim.line.states import State, Way
from devicesim.mqtt.topics import IDENTIFIER, identifier

BUILD_FLOOR = datetime(2026, 11, 1, tzinfo=UTC)
"""No clock on a line that runs this code can rightly be earlier."""

_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)")
_TIME_OF_DAY = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: object) -> timedelta:
    """Read `200ms`, `10s`, `5m`, `8h` or `7d`."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError('a duration is written "200ms", "10s", "5m", "8h" or "7d"')
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


def _floor(value: object) -> datetime:
    if value == "build":
        return BUILD_FLOOR
    if isinstance(value, datetime) and value.tzinfo is not None:
        return max(value.astimezone(UTC), BUILD_FLOOR)
    raise ValueError('is "build" or a date and time with its offset, as 2027-01-01T00:00:00Z')


def _kind_of_key(name: str) -> str:
    if name not in KEY_TYPES:
        raise ValueError(f"unknown key type {name[:80]!r} — one of {', '.join(KEY_TYPES)}")
    return name


def _patterned(pattern: str) -> WithJsonSchema:
    """Say in the published schema what a check of ours says in Python."""
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern}$"})


def _url_pattern(scheme: str) -> str:
    return rf"{scheme}://[^/?#@\s]+(?:[/?#]\S*)?"


def _url(scheme: str) -> AfterValidator:
    pattern = re.compile(_url_pattern(scheme))

    def check(text: str) -> str:
        if pattern.fullmatch(text) is None or not urlsplit(text).hostname:
            raise ValueError(f"is a URL {scheme}://HOST, without a password")
        return text

    return AfterValidator(check)


def _printer(where: object) -> object:
    is_program = isinstance(where, list) and where and all(isinstance(word, str) and word for word in where)
    open_printer(where if isinstance(where, str) or is_program else "")  # type: ignore[arg-type]  # a list of strings
    return tuple(where) if is_program else where  # type: ignore[arg-type]


def _zone(name: object) -> ZoneInfo:
    try:
        return ZoneInfo(name if isinstance(name, str) else "")
    except (ValueError, OSError, ZoneInfoNotFoundError) as error:
        raise ValueError('is no time zone this machine knows; one is "Europe/Berlin"') from error


def _time_of_day(text: object) -> time:
    if not isinstance(text, str) or _TIME_OF_DAY.fullmatch(text) is None:
        raise ValueError('a time of day is written "06:00"')
    return time.fromisoformat(text)


def _apart(shifts: dict[str, time]) -> dict[str, time]:
    if len(set(shifts.values())) != len(shifts):
        raise ValueError("two shifts begin at the same time")
    return shifts


Identifier = Annotated[str, AfterValidator(identifier), _patterned(IDENTIFIER)]
Duration = Annotated[timedelta, BeforeValidator(duration), _patterned(_DURATION.pattern)]
Floor = Annotated[
    datetime,
    BeforeValidator(_floor),
    WithJsonSchema({"anyOf": [{"const": "build"}, {"type": "string", "format": "date-time"}]}),
]
Label = Annotated[str, Field(pattern=r"^(?:[A-Za-z0-9][A-Za-z0-9._~-]{0,63})?$")]
Zone = Annotated[ZoneInfo, BeforeValidator(_zone), WithJsonSchema({"type": "string"})]
TimeOfDay = Annotated[time, BeforeValidator(_time_of_day), _patterned(_TIME_OF_DAY.pattern)]
KeyAlgorithm = Annotated[str, AfterValidator(_kind_of_key), WithJsonSchema({"type": "string", "enum": [*KEY_TYPES]})]
HttpsUrl = Annotated[str, _url("https"), _patterned(_url_pattern("https"))]
MqttsUrl = Annotated[str, _url("mqtts"), _patterned(_url_pattern("mqtts"))]
PrinterName = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_printer),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^(?:tcp://[^/?#@\s]+:[0-9]{1,5}|file:.+)$"},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            ]
        }
    ),
]
Whole = Annotated[int, Field(strict=True)]
"""A whole number, written as one: neither "4" nor true."""


OldCertificate = Literal["lapse", "revoke"]
"""What becomes of the certificate of an identity that ends: it lapses, or it is to be revoked."""


class Section(BaseModel):
    """A table of the file: frozen, nothing unknown, nothing guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Site(Section):
    """`[site]`: which station this is. `station` is also the CN of its certificate.

    Attributes:
        timezone: the name of the site's time zone, by which the shifts go; UTC when it is left out.
        shifts: the time of day at which each begins, `{ early = "06:00", late = "14:00", night = "22:00" }`, or none.
    """

    id: Identifier
    line: Identifier
    station: Identifier
    slots: Annotated[Whole, Field(ge=1, le=64)] = 4
    timezone: Zone | None = None
    shifts: Annotated[dict[Identifier, TimeOfDay], Field(max_length=24), AfterValidator(_apart)] = Field(
        default_factory=dict
    )

    def calendar(self) -> Shifts:
        """Return the shifts, to be asked for that of a moment."""
        return Shifts(tuple((begins, name) for name, begins in self.shifts.items()), self.timezone or UTC)


class Est(Section):
    """`[est]`: the EST server, and the station's certificate as a registration authority (id-kp-cmcRA).

    Attributes:
        retries: attempts after the first; then the unit fails with E-EST-NET and can be run again.
        backoff, backoff_max: the first pause between attempts and the longest; each is doubled, with jitter.
    """

    url: HttpsUrl
    trust: Path
    cert: Path
    key: Path
    label: Label = ""
    timeout: Duration = timedelta(seconds=10)
    retries: Annotated[Whole, Field(ge=0, le=20)] = 5
    backoff: Duration = timedelta(milliseconds=200)
    backoff_max: Duration = timedelta(seconds=10)


class Key(Section):
    """`[key]`: which kind of key a device makes, and where the simulated devices are kept."""

    alg: KeyAlgorithm = "EC-P256"
    devices: Path = Path("devices")


class Clock(Section):
    """`[clock]`: no enrolment before `floor`, or further than `max_skew` from the EST server's own clock."""

    floor: Floor = BUILD_FLOOR
    max_skew: Duration = timedelta(minutes=5)


class LedgerSection(Section):
    """`[ledger]`: the station's records.

    Attributes:
        checkpoint_every: how many events there are at most between two signed checkpoints.
        known_sets: what other lines have used up (`devicesim ledger export-set`).
    """

    path: Path = Path("line.db")
    checkpoint_every: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    known_sets: tuple[Path, ...] = ()


class Rework(Section):
    """`[rework]`: what becomes of the certificate of a unit that is re-issued or scrapped.

    Attributes:
        old_certificate: "lapse": it is left to expire. "revoke": its revocation is ordered, and owed until confirmed.
    """

    old_certificate: OldCertificate = "lapse"


class Labelling(Section):
    """`[label]`: every unit gets a label; without this section there are none.

    Attributes:
        template: what is on it; the one that comes with the program when it is left out.
        printer: "tcp://HOST:PORT" (raw ZPL), "file:DIR", or a program with its arguments, which reads ZPL.
        dpi: the dots of the printer, per inch.
        scan_back: PASS only when the label was scanned and says what the device says.
    """

    template: Path | None = None
    printer: PrinterName
    dpi: Literal[203, 300, 600] = 203
    scan_back: Annotated[bool, Field(strict=True)] = True


class Mqtt(Section):
    """`[mqtt]`: the broker; without this section nothing is announced.

    Attributes:
        trust: the broker's trust anchors; those of `[est]` when it is left out.
        birth: each device also connects with the certificate it just got, and says so itself.
        drain: how long the end of a run waits for the broker to take what is owed.
    """

    url: MqttsUrl
    domain: Identifier = "est"
    trust: Path | None = None
    birth: Annotated[bool, Field(strict=True)] = True
    drain: Duration = timedelta(seconds=20)


class Settings(Section):
    """A station's whole configuration."""

    site: Site
    est: Est
    key: Key = Key()
    clock: Clock = Clock()
    ledger: LedgerSection = LedgerSection()
    rework: Rework = Rework()
    operators: dict[Identifier, frozenset[Role]] = Field(default_factory=dict)
    mqtt: Mqtt | None = None
    label: Labelling | None = None

    def crew(self) -> Crew:
        """Return the people of `[operators]`: a badge and its roles, `"op-113" = ["operate", "rework"]`."""
        return Crew(self.operators)

    def way(self) -> Way:
        """Return the states that a unit walks at this station."""
        return Way.through() if self.label is None else Way.through(State.LABELLED)


def load_settings(path: Path) -> Settings:
    """Read `line.toml`; relative paths come out relative to its folder."""
    document = read_toml(path)
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        raise InputInvalid(findings_of(path, error)) from error
    return _anchored(settings, path.parent)


def _anchored(settings: Settings, base: Path) -> Settings:
    def at(section: Section, *names: str) -> Section:
        paths = {name: base / value for name in names if (value := getattr(section, name)) is not None}
        return section.model_copy(update=paths)

    known_sets = tuple(base / path for path in settings.ledger.known_sets)
    changes = {
        "est": at(settings.est, "trust", "cert", "key"),
        "key": at(settings.key, "devices"),
        "ledger": at(settings.ledger, "path").model_copy(update={"known_sets": known_sets}),
        "mqtt": settings.mqtt and at(settings.mqtt, "trust"),
        "label": settings.label and _label_at(at(settings.label, "template"), base),
    }
    return settings.model_copy(update=changes)


def _label_at(label: Section, base: Path) -> Section:
    """Anchor the folder that labels are written to."""
    assert isinstance(label, Labelling)
    if not isinstance(label.printer, str) or not label.printer.startswith("file:"):
        return label
    return label.model_copy(update={"printer": f"file:{base / label.printer.removeprefix('file:')}"})


def template(
    *, site: str, line: str, station: str, est: str, trust: str, cert: str, key: str, label: str, mqtt: str | None
) -> str:
    """Write a commented `line.toml`. Values are quoted as TOML basic strings."""
    quoted = {name: _quote(value) for name, value in locals().items() if isinstance(value, str)}
    text = _TEMPLATE.format_map(quoted)
    return _aligned(text + (_MQTT.format_map(quoted) if mqtt else _NO_MQTT))


def _aligned(text: str) -> str:
    """Let all remarks begin in one column, as far as the values leave room."""
    parts = [line.rsplit("  # ", 1) for line in text.splitlines()]
    return "".join(f"{part[0].rstrip():<38}  # {part[1]}\n" if len(part) == 2 else f"{part[0]}\n" for part in parts)


def _quote(text: str) -> str:
    escaped = "".join(f"\\u{ord(c):04x}" if c in '"\\' or ord(c) < 32 or ord(c) == 127 else c for c in text)
    return f'"{escaped}"'


_TEMPLATE = """\
# A provisioning station. Paths are relative to this file; unknown keys are errors.

[site]
id = {site}
line = {line}
station = {station}            # also the common name of the station's certificate
slots = 4                      # units worked on at the same time
# timezone = "Europe/Berlin"
# shifts = {{ early = "06:00", late = "14:00", night = "22:00" }}

[est]
url = {est}
trust = {trust}                # the CA that the EST server and its certificates chain to
cert = {cert}                  # the station's certificate: it asks on behalf of its units (id-kp-cmcRA)
key = {key}                    # readable by nobody else: chmod 600
label = {label}                # where a unit or its product names none
timeout = "10s"
retries = 5                    # after a lost answer: same key, same names, so the same certificate
backoff = "200ms"
backoff_max = "10s"

[key]
alg = "EC-P256"                # what a device makes unless its product says otherwise
devices = "devices"            # where the simulated devices keep their keys

[clock]
floor = "build"                # no enrolment before this: "build" or 2027-01-01T00:00:00Z
max_skew = "5m"                # nor further than this from the EST server's clock

[ledger]
path = "line.db"
checkpoint_every = 500         # events between two checkpoints that the station signs
# known_sets = ["l1.set"]      # what other lines have used up: `devicesim ledger export-set`

# [rework]
# old_certificate = "revoke"   # of a unit re-issued or scrapped; "lapse": left to expire

# [label]                      # a label for each unit, scanned back before it passes
# printer = "tcp://127.0.0.1:9100"
# template = "gw2.label"
# scan_back = true

# [operators]                  # who works here; scrap and re-issue need two of them
# "op-113" = ["operate", "rework"]
# "op-007" = ["operate", "approve"]
"""
_MQTT = """
[mqtt]
url = {mqtt}
domain = "est"
birth = true                   # each device connects with its new certificate and says so itself
drain = "20s"                  # how long the end of a run waits for the broker
"""
_NO_MQTT = """
# Announce what was provisioned: name a broker.
# [mqtt]
# url = "mqtts://broker.example:8883"
"""
