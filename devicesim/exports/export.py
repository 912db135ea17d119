"""An export, in the order it happens: check every unit, write beside, read back, compare, publish.

Nothing is published that was not read back and found to be the same, field by field; what fails leaves nothing behind.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, zip_longest
from pathlib import Path

from devicesim.errors import UsageProblem, VerificationFailed
from devicesim.exports.files import publish, storage_problems
from devicesim.exports.format import Format, Occasion
from devicesim.exports.provisioned import Facts, Provisioned, facts_of
from devicesim.line.findings import Finding, InputInvalid
from devicesim.trust import TrustAnchors

FINDINGS_MAX = 100
_UNREADABLE = (KeyError, IndexError, TypeError, ValueError, OSError, csv.Error)
Units = Callable[[], Iterator[Provisioned]]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to: how many units were compared, and the files or folders they are in."""

    units: int
    paths: tuple[Path, ...]


def export(
    form: Format, units: Units, occasion: Occasion, out: Path, *, trust: TrustAnchors, now: datetime
) -> Exported:
    """Write the units of a batch under `out/<batch>/`, or nothing.

    Raises InputInvalid with every unit and field the format does not take, Conflict when something would be written
    over, VerificationFailed when what was read back is not what was written.
    """
    if not occasion.count:
        raise UsageProblem(f"no unit of batch {occasion.batch} has passed", advice="there is nothing to export yet")
    findings = list(islice(_findings(form, units()), FINDINGS_MAX))
    if findings:
        raise InputInvalid(findings)
    target = out / occasion.batch
    with storage_problems(target):
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.mkdir(mode=0o700, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{form.name}-", suffix=".new", dir=target))
    try:
        with storage_problems(staged):
            form.write(units(), staged, occasion)
        try:
            _compare(form, units(), staged)
        except _UNREADABLE as error:
            raise VerificationFailed(f"{form.name}: what was written cannot be read back: {error}") from error
        if form.verify is not None:
            _verified(form, staged / form.manifest, trust, now)
        return Exported(occasion.count, tuple(publish(staged, target)))
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _findings(form: Format, units: Iterator[Provisioned]) -> Iterator[Finding]:
    for unit in units:
        for problem in form.check(unit):
            yield Finding(unit.device_id, 0, problem.field, f"{problem.text} ({form.name})")


def _compare(form: Format, units: Iterator[Provisioned], staged: Path) -> None:
    for unit, found in zip_longest(units, form.read(staged)):
        if unit is None or found is None:
            name = unit.device_id if unit else str(found["device_id"])
            raise VerificationFailed(f"{form.name}: {name} is in the ledger or in the file, but not in both")
        wrong = differences(facts_of(unit, form.holds), found)
        if wrong:
            raise VerificationFailed(f"{form.name}: {unit.device_id}: read back differently: {', '.join(wrong)}")


def differences(wanted: Facts, found: Facts) -> list[str]:
    """Name the fields in which two sets of facts differ, those that only one of them has among them."""
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def _verified(form: Format, path: Path, trust: TrustAnchors, now: datetime) -> None:
    assert form.verify is not None
    for judged in form.verify(path, trust, now):
        if judged.problem:
            raise VerificationFailed(
                f"{form.name}: the signature of this station does not verify: {judged.problem}",
                advice="renew the station's certificate, or check [est] trust",
            )
