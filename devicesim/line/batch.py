"""A batch: `batch.toml` and the `units.csv` beside it, read into one frozen value or refused with every problem.

id = "2026w48-a"              # identifier
quantity = 25                 # how many rows units.csv must have
units = "units.csv"           # beside this file
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from devicesim.line.findings import Finding, InputInvalid, findings_of, read_toml
from devicesim.line.settings import Identifier, KeyAlgorithm, Label, Section
from devicesim.line.units_csv import UNITS_MAX, Row, read_units


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


@dataclass(frozen=True, slots=True)
class Batch:
    """What a line is asked to make."""

    id: str
    units: tuple[Unit, ...]

    def sha256(self) -> str:
        """Identify the content, however the files are written."""
        return content_sha256(self.id, [unit.facts() for unit in self.units])


def content_sha256(batch_id: str, facts: Sequence[Mapping[str, str]]) -> str:
    """Hash what a batch is asked to make: its id, and what makes each unit this unit, in order."""
    return hashlib.sha256(json.dumps([batch_id, [dict(each) for each in facts]], sort_keys=True).encode()).hexdigest()


class _Product(Section):
    quantity: Annotated[int, Field(ge=1, le=UNITS_MAX)] | None = None
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


class _Head(Section):
    id: Identifier
    quantity: Annotated[int, Field(ge=1, le=UNITS_MAX)]
    units: Path = Path("units.csv")
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
        head = _Head.model_validate(document)
    except ValidationError as error:
        findings = findings_of(path, error)
        _also_read_units(path, document, findings)
        raise InputInvalid(findings) from error
    csv_path = path.parent / head.units
    rows = read_units(csv_path, findings)
    units = tuple(_unit(path, head, row, findings, csv_path) for row in rows)
    findings.extend(_whole(path, head, units) if not findings else [])
    if findings:
        raise InputInvalid(findings)
    return Batch(head.id, units)


def _also_read_units(path: Path, document: Mapping[str, object], findings: list[Finding]) -> None:
    """Lint the rows too when the head is wrong: a person mends both at once."""
    name = document.get("units", "units.csv")
    if isinstance(name, str):
        read_units(path.parent / name, findings)


def _unit(path: Path, head: _Head, row: Row, findings: list[Finding], csv_path: Path) -> Unit:
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


def _whole(path: Path, head: _Head, units: tuple[Unit, ...]) -> list[Finding]:
    """Check what only the whole batch can show."""
    made = Counter(unit.product for unit in units)
    ids = {unit.device_id for unit in units}
    wanted: list[tuple[str, int | None, int]] = [("quantity", head.quantity, len(units))]
    wanted += [(f"product.{name}.quantity", product.quantity, made[name]) for name, product in head.product.items()]
    findings = [
        Finding(str(path), 0, key, f"is {quantity}, but {head.units} has {count}")
        for key, quantity, count in wanted
        if quantity is not None and quantity != count
    ]
    findings += [
        Finding(str(path), 0, f"unit.{name}", f"no row of {head.units} has this device_id")
        for name in head.unit
        if name not in ids
    ]
    return findings
