"""`nrf/onboard-0001.csv` …: onboarding of nRF Cloud, at most 1,000 devices a file.

Rows without a header: device id, sub type, tags joined by |, firmware types joined by |, certificate in PEM, as
`nrf_cloud_onboard` of nRF Cloud Utils sends them to the onboarding endpoint and its `save_onboarding_csv` writes them
(https://github.com/nRFCloud/utils). Devices prove themselves with an ES256 token, so keys are P-256.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from devicesim.exports.files import new_directory
from devicesim.exports.format import Format, Occasion, Problem
from devicesim.exports.provisioned import Facts, Provisioned, pem, unpem
from devicesim.exports.tables import read_table, runnable, write_table

FOLDER = "nrf"
ROWS_MAX = 1000


def write(units: Iterator[Provisioned], directory: Path, _: Occasion) -> None:
    """Write as many files as are needed."""
    folder = new_directory(directory / FOLDER)
    for number, first in enumerate(units, 1):
        rows = map(_row, chain([first], islice(units, ROWS_MAX - 1)))
        write_table(folder / f"onboard-{number:04d}.csv", (), rows)


def read(directory: Path) -> Iterator[Facts]:
    """Read every file."""
    for path in sorted((directory / FOLDER).glob("onboard-*.csv")):
        for device_id, model, tags, _types, certificate in read_table(path, ()):
            batch, _bar, group = tags.partition("|")
            facts = {"device_id": device_id, "model": model, "batch": batch, "group": group}
            yield {**facts, "certificate": unpem(certificate)[0]}


def check(unit: Provisioned) -> Iterator[Problem]:
    """Refuse what nRF Cloud refuses, or would be run."""
    yield from runnable(unit, "group")
    if "|" in unit.group:
        yield Problem("group", "contains |, which parts tags")
    if unit.key_alg != "EC-P256":
        yield Problem("key_alg", f"{unit.key_alg} signs no ES256 token: EC-P256 does")


def _row(unit: Provisioned) -> tuple[str, ...]:
    tags = f"{unit.batch}|{unit.group}" if unit.group else unit.batch
    return unit.device_id, unit.model, tags, "", pem(unit.certificate)


FORMAT = Format(
    name="nrf",
    title="nRF Cloud onboarding, at most 1,000 devices a file",
    holds=frozenset({"device_id", "model", "batch", "group", "certificate"}),
    write=write,
    read=read,
    check=check,
    limits=("1,000 rows a file", "keys: EC-P256", "no value that a spreadsheet would run as a formula"),
)
