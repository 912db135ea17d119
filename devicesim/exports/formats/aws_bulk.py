"""`aws-bulk/`: what AWS IoT Core's bulk registration takes, and the provisioning template that reads it.

`things.jsonl` is the newline-delimited JSON of `start-thing-registration-task`, every value a string
(https://docs.aws.amazon.com/iot/latest/developerguide/bulk-provisioning.html); the parameters are those that
`template.json` declares (…/provision-template.html). Certificates are our own CA's, so the CA is registered with AWS
first. Thing names: 1 to 128 of a-z A-Z 0-9 : _ -; attribute values: up to 800 of a-z A-Z 0-9 _ . , @ / : # = [ ] -
(API reference, CreateThing and AttributePayload).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devicesim.exports.arrays import compact, read_lines, write_lines
from devicesim.exports.files import new_directory, new_file
from devicesim.exports.format import Format, Occasion, Problem
from devicesim.exports.provisioned import Facts, Provisioned, pem, unpem

FOLDER, FILE = "aws-bulk", "things.jsonl"
PARAMETERS = {"ThingName": "device_id", "SerialNumber": "serial", "Model": "model", "Batch": "batch"}
KEYS = ("EC-P256", "EC-P384", "EC-P521", "RSA-2048", "RSA-3072", "RSA-4096")
_THING = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_VALUE = re.compile(r"[a-zA-Z0-9_.,@/:#=\[\]-]{0,800}")


def write(units: Iterator[Provisioned], directory: Path, _: Occasion) -> None:
    """Write the things, and the template."""
    folder = new_directory(directory / FOLDER)
    write_lines(folder / FILE, (compact(_thing(unit)) for unit in units))
    with new_file(folder / "template.json") as file:
        file.write(json.dumps(TEMPLATE, indent=2) + "\n")


def read(directory: Path) -> Iterator[Facts]:
    """Read the things."""
    for line in read_lines(directory / FOLDER / FILE):
        thing = json.loads(line)
        facts = {field: thing[name] for name, field in PARAMETERS.items()}
        yield {**facts, "certificate": unpem(thing["CertificatePem"])[0]}


def check(unit: Provisioned) -> Iterator[Problem]:
    """Refuse what AWS IoT refuses."""
    if not _THING.fullmatch(unit.device_id):
        yield Problem("device_id", "is no thing name: 1 to 128 letters, digits, : _ -")
    for name in ("serial", "model", "batch"):
        if not _VALUE.fullmatch(getattr(unit, name)):
            value = getattr(unit, name)[:80]
            yield Problem(name, f"{value!r} is no attribute value: 800 letters, digits, _ . , @ / : # = [ ] - at most")
    if unit.key_alg not in KEYS:
        yield Problem("key_alg", f"{unit.key_alg} is no key that AWS IoT takes: RSA and EC are")


def _thing(unit: Provisioned) -> dict[str, str]:
    named = {name: getattr(unit, field) for name, field in PARAMETERS.items()}
    return {**named, "CertificatePem": pem(unit.certificate), "CACertificatePem": pem(unit.chain[0])}


def _ref(name: str) -> dict[str, str]:
    return {"Ref": name}


TEMPLATE: dict[str, Any] = {
    "Parameters": {name: {"Type": "String"} for name in (*PARAMETERS, "CertificatePem", "CACertificatePem")},
    "Resources": {
        "thing": {
            "Type": "AWS::IoT::Thing",
            "Properties": {
                "ThingName": _ref("ThingName"),
                "AttributePayload": {
                    "serialNumber": _ref("SerialNumber"),
                    "model": _ref("Model"),
                    "batch": _ref("Batch"),
                },
            },
        },
        "certificate": {
            "Type": "AWS::IoT::Certificate",
            "Properties": {
                "CertificatePem": _ref("CertificatePem"),
                "CACertificatePem": _ref("CACertificatePem"),
                "Status": "ACTIVE",
            },
        },
    },
}
"""No policy: which one a thing gets is the account's to say; add it before the template is used."""

FORMAT = Format(
    name="aws-bulk",
    title="AWS IoT Core bulk registration (JSON lines) and its provisioning template",
    holds=frozenset({*PARAMETERS.values(), "certificate"}),
    write=write,
    read=read,
    check=check,
    limits=("thing names and attribute values have few characters, no space among them", "keys: EC, RSA"),
)
