"""`line.toml`: what a station is, whom it enrols with, and where it keeps its records.

Paths are relative to the file. Unknown keys are errors, and every problem is reported at once.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
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

_RATE = re.compile(r"([1-9][0-9]{0,5})/([smh])")
_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)")
_TIME_OF_DAY = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: object) -> timedelta:
    """Read `200ms`, `10s`, `5m`, `8h` or `7d`."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError('a duration is written "200ms", "10s", "5m", "8h" or "7d"')
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


class Rate(NamedTuple):
    """So many in so many seconds."""

    number: int
    seconds: int

    @property
    def every_seconds(self) -> float:
        """How far apart they are."""
        return self.seconds / self.number


def rate(text: object) -> Rate:
    """Read `10/s`, `60/m` or `1000/h`."""
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError('a rate is written "10/s", "60/m" or "1000/h"')
    return Rate(int(found[1]), int(_SECONDS[found[2]]))


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
    return tuple(where) if is_program else where  # type: ignore[arg-type]  # as above


LOOPBACK = "(?:localhost|127\\.0\\.0\\.1|\\[::1\\])"
_HOOK_URL = rf"(?:{_url_pattern('https')}|http://{LOOPBACK}(?::[0-9]{{1,5}})?(?:/\S*)?)"


def _hook_url(text: str) -> str:
    if re.fullmatch(_HOOK_URL, text) is None or not urlsplit(text).hostname:
        raise ValueError("is a URL https://HOST, or http:// on this machine alone, without a password")
    return text


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
RateLimit = Annotated[Rate, BeforeValidator(rate), _patterned(_RATE.pattern)]
HookUrl = Annotated[str, AfterValidator(_hook_url), _patterned(_HOOK_URL)]
HookProgram = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=64)]
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
        rate: enrolments at most, over all slots; `burst` of them may go at once after a quiet time.
        breaker: failures in a row, over all slots, after which one slot tries for all.
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
    rate: RateLimit | None = None
    burst: Annotated[Whole, Field(ge=1, le=10_000)] = 1
    breaker: Annotated[Whole, Field(ge=1, le=1000)] = 5


class Key(Section):
    """`[key]`: which kind of key a device makes, and where the simulated devices are kept."""

    alg: KeyAlgorithm = "EC-P256"
    devices: Path = Path("devices")


class Clock(Section):
    """`[clock]`: no enrolment before `floor`, or further than `max_skew` from the EST server's own clock.

    Attributes:
        warn_skew: further away than this is told; a jump of more than this during a run stops it.
    """

    floor: Floor = BUILD_FLOOR
    max_skew: Duration = timedelta(minutes=5)
    warn_skew: Duration = timedelta(seconds=30)

    @property
    def warn_seconds(self) -> float:
        """What is worth a word: `warn_skew`, and never more than what stops the line."""
        return min(self.warn_skew, self.max_skew).total_seconds()


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
        spool_max: how many announcements may be owed; then the line stops, because PASS owes one more.
    """

    url: MqttsUrl
    domain: Identifier = "est"
    trust: Path | None = None
    birth: Annotated[bool, Field(strict=True)] = True
    drain: Duration = timedelta(seconds=20)
    spool_max: Annotated[Whole, Field(ge=1, le=10_000_000)] = 10_000


class Hook(Section):
    """Somebody else who is asked or told: a URL that takes JSON, or a program with its arguments that reads it.

    Attributes:
        call: "https://HOST/PATH", "http://127.0.0.1:PORT/PATH", or ["PROGRAM", "ARGUMENT"].
        timeout: how long an answer may take.
        token_file: whose first line is sent as a bearer token; readable by nobody else.
        trust: the anchors of an https URL; those of `[est]` when it is left out.
        sign: the body is a DSSE envelope, signed by the station, instead of the plain JSON in it.
    """

    call: HookUrl | HookProgram
    timeout: Duration = timedelta(seconds=2)
    token_file: Path | None = None
    trust: Path | None = None
    sign: Annotated[bool, Field(strict=True)] = False


class AllowHook(Hook):
    """`[hooks.allow]`: asked before a unit gets a certificate. `on_error`: what an answer that does not come means."""

    on_error: Literal["deny", "allow"]


class DoneHook(Hook):
    """`[hooks.done]`: told of every PASS. `on_error`: the line stops until it is heard, or it is owed, in order."""

    on_error: Literal["stop", "queue"]


class Hooks(Section):
    """`[hooks]`: who else has a say, and who else is told."""

    allow: AllowHook | None = None
    done: DoneHook | None = None


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
    hooks: Hooks = Hooks()

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
        "hooks": settings.hooks.model_copy(
            update={
                name: hook and at(hook, "token_file", "trust")
                for name, hook in (("allow", settings.hooks.allow), ("done", settings.hooks.done))
            }
        ),
    }
    return settings.model_copy(update=changes)


def _label_at(label: Section, base: Path) -> Section:
    """Anchor the folder that labels are written to."""
    assert isinstance(label, Labelling)
    if not isinstance(label.printer, str) or not label.printer.startswith("file:"):
        return label
    return label.model_copy(update={"printer": f"file:{base / label.printer.removeprefix('file:')}"})
