"""A batch: `batch.toml` and the `units.csv` beside it, read into one frozen value or refused with every problem.

id = "2026w48-a"              # identifier
quantity = 25                 # how many rows units.csv must have
units = "units.csv"           # beside this file; with [serial] only where it is named
leased = true                 # optional: a station makes what its lease names, never the whole batch
[serial]                      # optional: serials.py
template = "ACM-{n:07}-{check}"
check = "luhn36"
[product.sensor]              # one table for each model; a unit's `model` column names it
quantity = 15                 # optional; profile (the EST label), hw_rev, key_type as defaults for its units
[unit."gw-0007"]              # units that do not enrol through the station
enrol = "otp"                 # user, password_file
[unit."gw-0008"]
enrol = "idevid"              # cert, key: what the device was born with
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from devicesim.line.findings import Finding, InputInvalid, errors_of, findings_of, read_toml
from devicesim.line.serials import Serial
from devicesim.line.settings import Identifier, KeyAlgorithm, Label, Section, Whole
from devicesim.line.units_csv import UNITS_MAX, Row, check_unique, read_units
from devicesim.mqtt.topics import identifier


@dataclass(frozen=True, slots=True)
class ByStation:
    """The station asks for the unit, as registration authority."""


@dataclass(frozen=True, slots=True)
class ByOneTimePassword:
    """The unit asks for itself, with HTTP Basic. The password stays in its file."""

    user: str
    password_file: Path


@dataclass(frozen=True, slots=True)
class ByIdevid:
    """The unit asks for itself, with the certificate its manufacturer gave it."""

    cert: Path
    key: Path


EnrolBy = ByStation | ByOneTimePassword | ByIdevid


@dataclass(frozen=True, slots=True)
class Unit:
    """One device to be provisioned. `facts()` is what makes it this unit and may not change once it is in a ledger."""

    device_id: str
    serial: str
    product: str
    hw_rev: str = ""
    label: str = ""
    key_type: str = ""
    mac: str = ""
    se_id: str = ""
    group: str = ""
    attrs_json: str = "{}"
    enrol_by: EnrolBy = field(default=ByStation(), compare=False)

    def facts(self) -> dict[str, str]:
        """Return what the ledger keeps of it."""
        names = ("device_id", "serial", "product", "hw_rev", "label", "key_type", "mac", "se_id", "group", "attrs_json")
        return {name: str(getattr(self, name)) for name in names}


def unit_of(facts: Mapping[str, str]) -> Unit:
    """Return the unit that a ledger keeps such facts of, asked for by its station."""
    values: dict[str, Any] = dict(facts)
    return Unit(**values)


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a batch that one station has leased, by the places of its units: those of a batch begin at 1."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"


@dataclass(frozen=True, slots=True)
class Batch:
    """What a line is asked to make.

    Attributes:
        leased: stations make parts of it, under leases.
        span: the part that `units` is; None when it is all of the batch.
        whole_sha256: the content of the whole batch, where this is a part.
        warnings: what the linter would have somebody look at.
    """

    id: str
    units: tuple[Unit, ...]
    leased: bool = False
    span: Span | None = None
    whole_sha256: str = ""
    warnings: tuple[Finding, ...] = field(default=(), compare=False)

    def part(self, span: Span) -> Batch:
        """Return the part of it that a lease names."""
        units = self.units[span.first - 1 : span.last]
        return replace(self, units=units, span=span, whole_sha256=self.sha256())

    def sha256(self) -> str:
        """Identify the content, however the files are written; a part has that of its whole."""
        return self.whole_sha256 or content_sha256(self.id, [unit.facts() for unit in self.units])


def content_sha256(batch_id: str, facts: Sequence[Mapping[str, str]]) -> str:
    """Hash what a batch is asked to make: its id, and what makes each unit this unit, in order."""
    return hashlib.sha256(json.dumps([batch_id, [dict(each) for each in facts]], sort_keys=True).encode()).hexdigest()


class _Product(Section):
    quantity: Annotated[Whole, Field(ge=1, le=UNITS_MAX)] | None = None
    profile: Label = ""
    hw_rev: Annotated[str, Field(max_length=64)] = ""
    key_type: KeyAlgorithm | None = None


class _Station(Section):
    enrol: Literal["station"]

    def by(self, device_id: str, base: Path) -> EnrolBy:
        return ByStation()


class _Otp(Section):
    enrol: Literal["otp"]
    user: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^:\x00-\x1f\x7f]+$")] | None = None
    password_file: Path

    def by(self, device_id: str, base: Path) -> EnrolBy:
        return ByOneTimePassword(self.user or device_id, base / self.password_file)


class _Idevid(Section):
    enrol: Literal["idevid"]
    cert: Path
    key: Path

    def by(self, device_id: str, base: Path) -> EnrolBy:
        return ByIdevid(base / self.cert, base / self.key)


class Head(Section):
    """`batch.toml`."""

    id: Identifier
    quantity: Annotated[Whole, Field(ge=1, le=UNITS_MAX)]
    units: Path = Path("units.csv")
    leased: Annotated[bool, Field(strict=True)] = False
    serial: Serial | None = None
    profile: Label = ""
    key_type: KeyAlgorithm = ""
    product: Annotated[dict[Identifier, _Product], Field(min_length=1)]
    unit: dict[Identifier, Annotated[_Station | _Otp | _Idevid, Field(discriminator="enrol")]] = Field(
        default_factory=dict
    )


def load_batch(path: Path) -> Batch:
    """Read and check a batch; an InputInvalid carries every problem found in both files."""
    document = read_toml(path)
    findings: list[Finding] = []
    try:
        head = Head.model_validate(document)
    except ValidationError as error:
        findings = findings_of(path, error)
        _also_read_units(path, document, findings)
        raise InputInvalid(findings) from error
    source, rows = _rows(path, head, findings)
    check_unique(source, rows, findings)
    units = tuple(_unit(path, head, row, findings, source) for row in rows)
    findings.extend(_whole(path, head, source, units) if not errors_of(findings) else [])
    if errors_of(findings):
        raise InputInvalid(findings)
    return Batch(head.id, units, leased=head.leased, warnings=tuple(findings))


def _also_read_units(path: Path, document: Mapping[str, object], findings: list[Finding]) -> None:
    """Lint the rows too when the head is wrong: a person mends both at once."""
    name = document.get("units", None if "serial" in document else "units.csv")
    if isinstance(name, str):
        read_units(path.parent / name, findings, numbered="serial" in document)


def _rows(path: Path, head: Head, findings: list[Finding]) -> tuple[Path, list[Row]]:
    """Return the units, and the file that names them: read, or made from `[serial]`, or both."""
    source = path.parent / head.units
    if head.serial is None:
        return source, read_units(source, findings)
    if "units" in head.model_fields_set:
        rows = read_units(source, findings, numbered=True)
        return source, _numbered(source, head.serial, rows, findings)
    if source.exists():
        text = f'{source.name} is beside this file: name it (units = "{source.name}"), or take it away'
        findings.append(Finding(str(path), 0, "units", text))
    return path, _numbered(path, head.serial, _blank_rows(path, head, findings), findings)


def _blank_rows(path: Path, head: Head, findings: list[Finding]) -> list[Row]:
    """Return a row for each unit that no file names: the products in their order, each as often as it says."""
    if len(head.product) == 1:
        return [Row(0)] * head.quantity
    silent = [name for name, product in head.product.items() if product.quantity is None]
    findings += [Finding(str(path), 0, f"product.{name}.quantity", "is required without units.csv") for name in silent]
    models = [name for name, product in head.product.items() for _ in range(product.quantity or 0)]
    return [Row(0, model=model) for model in models]


def _numbered(source: Path, serial: Serial, rows: list[Row], findings: list[Finding]) -> list[Row]:
    """Give each row the serial and device id it lacks, and check those it has."""
    if serial.is_bounded and serial.last - serial.start + 1 < len(rows):
        text = f"has room for {serial.last - serial.start + 1} units, not for {len(rows)}"
        findings.append(Finding(str(source), 0, "serial", text))
        return rows
    made = []
    for place, row in enumerate(rows):
        try:
            number = serial.number_of(row.serial) if row.serial else serial.start + place
            written = row.serial or serial.serial(number)
            made.append(
                replace(row, serial=written, device_id=row.device_id or identifier(serial.device(number, written)))
            )
        except ValueError as error:
            findings.append(Finding(str(source), row.number, "serial", str(error)))
            if not row.number:  # no file's fault, and all others have it too
                break
    return made


def _unit(path: Path, head: Head, row: Row, findings: list[Finding], csv_path: Path) -> Unit:
    name = row.model or (next(iter(head.product)) if len(head.product) == 1 else "")
    product = head.product.get(name)
    if product is None:
        text = f"{name!r} is no product of this batch; they are {', '.join(head.product)}" if name else "is required"
        findings.append(Finding(str(csv_path), row.number, "model", text))
        product = _Product()
    override = head.unit.get(row.device_id)
    if override and row.otp_file:
        text = f"{path.name} also says how {row.device_id} enrols; say it once"
        findings.append(Finding(str(csv_path), row.number, "otp_file", text))
    own: EnrolBy = ByOneTimePassword(row.device_id, csv_path.parent / row.otp_file) if row.otp_file else ByStation()
    return Unit(
        device_id=row.device_id,
        serial=row.serial,
        product=name,
        hw_rev=row.hw_rev or product.hw_rev,
        label=row.profile or product.profile or head.profile,
        key_type=product.key_type or head.key_type,
        mac=row.mac,
        se_id=row.se_id,
        group=row.group,
        attrs_json=row.attrs_json or "{}",
        enrol_by=override.by(row.device_id, path.parent) if override else own,
    )


def _whole(path: Path, head: Head, source: Path, units: tuple[Unit, ...]) -> list[Finding]:
    """Check what only the whole batch can show."""
    made = Counter(unit.product for unit in units)
    ids = {unit.device_id for unit in units}
    wanted: list[tuple[str, int | None, int]] = [("quantity", head.quantity, len(units))]
    wanted += [(f"product.{name}.quantity", product.quantity, made[name]) for name, product in head.product.items()]
    findings = [
        Finding(str(path), 0, key, f"is {quantity}, but {source.name} has {count}")
        for key, quantity, count in wanted
        if quantity is not None and quantity != count
    ]
    findings += [
        Finding(str(path), 0, f"unit.{name}", f"no unit of {source.name} has this device_id")
        for name in head.unit
        if name not in ids
    ]
    return findings
