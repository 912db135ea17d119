"""`<device_id>/{cert.pem,chain.pem,csr.der,record.json}`: a folder a device, without its key.

The one format of many entries: they are moved into place one after the other, each complete. `units.txt` keeps
the order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from devicesim.exports.arrays import read_lines, write_lines
from devicesim.exports.files import new_bytes, new_directory, new_file
from devicesim.exports.format import Format, Occasion
from devicesim.exports.provisioned import FIELDS, Facts, Provisioned, as_json, facts_of, from_json, pem, unpem

INDEX = "units.txt"
IN_FILES = frozenset({"certificate", "chain", "csr"})


def write(units: Iterator[Provisioned], directory: Path, _: Occasion) -> None:
    """Write a folder a device."""

    def names() -> Iterator[str]:
        for unit in units:
            folder = new_directory(directory / unit.device_id)
            new_bytes(folder / "cert.pem", pem(unit.certificate).encode())
            new_bytes(folder / "chain.pem", "".join(map(pem, unit.chain)).encode())
            new_bytes(folder / "csr.der", unit.csr)
            with new_file(folder / "record.json") as file:
                record = as_json(facts_of(unit, frozenset(FIELDS) - IN_FILES))
                file.write(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
            yield unit.device_id

    write_lines(directory / INDEX, names())


def read(directory: Path) -> Iterator[Facts]:
    """Read the folders in the order they were written in."""
    for name in read_lines(directory / INDEX):
        folder = directory / name
        yield {
            **from_json(json.loads((folder / "record.json").read_text("utf-8"))),
            "certificate": unpem((folder / "cert.pem").read_text("ascii"))[0],
            "chain": unpem((folder / "chain.pem").read_text("ascii")),
            "csr": (folder / "csr.der").read_bytes(),
        }


FORMAT = Format(
    name="tree",
    title="a folder a device: certificate, chain, request, record",
    holds=frozenset(FIELDS),
    write=write,
    read=read,
)
