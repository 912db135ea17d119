"""`azure-dps.json`: individual enrolments of Azure's Device Provisioning Service, X.509, one object a unit.

A JSON array of IndividualEnrollment objects of the service API, version 2021-10-01
(https://learn.microsoft.com/rest/api/iot-dps/service/individual-enrollment): `registrationId` is up to 128 letters,
digits and - . _ :, the last one a letter, a digit or -, and the common name of the certificate that the device shows.
What has no place of its own is in the tags of the initial twin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509

from devicesim.exports.arrays import read_array, write_array
from devicesim.exports.format import Format, Occasion, Problem
from devicesim.exports.provisioned import Facts, Provisioned, as_json, from_json
from devicesim.mqtt.connection import common_name

FILE = "azure-dps.json"
TAGS = ("serial", "batch", "model", "hw_rev", "mac", "se_id", "group", "provisioned_at")
KEYS = ("EC-P256", "EC-P384", "EC-P521", "RSA-2048", "RSA-3072", "RSA-4096")
_REGISTRATION = re.compile(r"[a-z0-9._:-]{0,127}[a-z0-9-]")


def write(units: Iterator[Provisioned], directory: Path, _: Occasion) -> None:
    """Write the enrolments."""
    write_array(directory / FILE, map(_enrolment, units))


def read(directory: Path) -> Iterator[Facts]:
    """Read the enrolments."""
    for found in read_array(directory / FILE):
        certificate = found["attestation"]["x509"]["clientCertificates"]["primary"]["certificate"]
        tags = found["initialTwin"]["tags"]
        yield from_json({"device_id": found["registrationId"], "certificate": certificate, **tags})


def check(unit: Provisioned) -> Iterator[Problem]:
    """Refuse what the service refuses."""
    if not _REGISTRATION.fullmatch(unit.device_id):
        yield Problem("device_id", "is no registration id: up to 128 of a-z 0-9 - . _ :, the last of a-z 0-9 -")
    if common_name(x509.load_der_x509_certificate(unit.certificate)) != unit.device_id:
        yield Problem("device_id", "is not the common name of the certificate, as a registration id must be")
    if unit.key_alg not in KEYS:
        yield Problem("key_alg", f"{unit.key_alg} is no key that the service takes: RSA and EC are")


def _enrolment(unit: Provisioned) -> dict[str, Any]:
    certificate = as_json({"certificate": unit.certificate})
    return {
        "registrationId": unit.device_id,
        "deviceId": unit.device_id,
        "attestation": {"type": "x509", "x509": {"clientCertificates": {"primary": certificate}}},
        "initialTwin": {"tags": {name: getattr(unit, name) for name in TAGS}, "properties": {"desired": {}}},
        "provisioningStatus": "enabled",
    }


FORMAT = Format(
    name="azure-dps",
    title="Azure Device Provisioning Service, individual X.509 enrolments",
    holds=frozenset({"device_id", "certificate", *TAGS}),
    write=write,
    read=read,
    check=check,
    limits=("the device id must be the common name of the certificate", "keys: EC, RSA"),
)
