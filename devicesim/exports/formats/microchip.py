"""`manifest.json`: the shape of Microchip's Trust Platform manifests, signed by the station as log signer.

A JSON array of JWS objects `{payload, protected, header: {uniqueId}, signature}`; the payload is a SecureElement with
its key as a JWK whose `x5c` begins with the device's certificate. Shape and protected header (`typ`, `alg`, `kid`,
`x5t#S256`) after Microchip's "Trust Platform Manifest File Format" and the generator of its secure-element kits; `x5c`
beside `uniqueId` is ours, and standard (RFC 7515 §4.1.6).
`uniqueId` is the secure element's serial number where the unit has one, otherwise the device id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from devicesim.errors import VerificationFailed
from devicesim.exports import jws
from devicesim.exports.arrays import compact, read_array, write_array
from devicesim.exports.format import Format, Judged, Occasion, Problem
from devicesim.exports.provisioned import Facts, Provisioned, as_json, from_json
from devicesim.mqtt.connection import common_name
from devicesim.trust import TrustAnchors

FILE = "manifest.json"
KEYS = ("EC-P256", "EC-P384", "EC-P521", "RSA-2048", "RSA-3072", "RSA-4096", "Ed25519")


def write(units: Iterator[Provisioned], directory: Path, occasion: Occasion) -> None:
    """Sign and write every unit."""
    protected, x5c = jws.protected_header(occasion.station), jws.x5c(occasion.station)

    def entries() -> Iterator[Mapping[str, Any]]:
        for unit in units:
            signed = jws.sign(compact(_secure_element(unit)).encode(), protected, occasion.station)
            yield {**signed, "header": {"uniqueId": unit.se_id or unit.device_id, "x5c": x5c}}

    write_array(directory / FILE, entries())


def read(directory: Path) -> Iterator[Facts]:
    """Read the units; whether the signatures hold is for `verify` to say."""
    for entry in read_array(directory / FILE):
        yield _facts(json.loads(jws.unb64url(entry["payload"])))


def verify(path: Path, trust: TrustAnchors, now: datetime) -> Iterator[Judged]:
    """Judge every entry; the same unit twice is told, one that was taken out cannot be: the shape has no count."""
    seen: set[str] = set()
    for position, entry in enumerate(read_array(path), 1):
        named = _claimed_name(entry)
        try:
            payload, signer = jws.verify(entry, trust=trust, now=now)
            element = json.loads(payload)
            facts = _facts(element)
            if entry["header"]["uniqueId"] != element["uniqueId"]:
                raise VerificationFailed("uniqueId is not that of the signed unit")  # noqa: TRY301 - judged like the rest
        except VerificationFailed as error:
            yield Judged(position, named, "", str(error))
            continue
        except (KeyError, TypeError, ValueError, IndexError, RecursionError):
            yield Judged(position, named, "", "what is signed is not a secure element with its certificate")
            continue
        name = str(facts["device_id"])
        yield Judged(position, name, common_name(signer) or "", "it stands in the manifest twice" * (name in seen))
        seen.add(name)


def check(unit: Provisioned) -> Iterator[Problem]:
    """Refuse what the shape cannot say."""
    if unit.key_alg not in KEYS:
        yield Problem("key_alg", f"{unit.key_alg} has no JSON Web Key here: EC, RSA and Ed25519 have")
    if unit.se_id == unit.device_id:
        yield Problem("se_id", "is the device id too: which of them uniqueId is could not be told")
    if common_name(x509.load_der_x509_certificate(unit.certificate)) != unit.device_id:
        yield Problem("device_id", "is not the common name of the certificate, where a reader finds it")


def _secure_element(unit: Provisioned) -> dict[str, Any]:
    certificate = x509.load_der_x509_certificate(unit.certificate)
    chain = as_json({"chain": (unit.certificate, *unit.chain)})["chain"]
    made_at = {"organizationName": unit.site, "organizationalUnitName": unit.line}
    return {
        "version": 1,
        "model": unit.model,
        "partNumber": unit.hw_rev,
        "manufacturer": made_at,
        "provisioner": {"organizationName": unit.site, "organizationalUnitName": unit.station},
        "distributor": made_at,
        "groupId": unit.group,
        "provisioningTimestamp": unit.provisioned_at,
        "uniqueId": unit.se_id or unit.device_id,
        "publicKeySet": {"keys": [{"kid": "0", **jws.jwk(certificate.public_key()), "x5c": chain}]},
    }


def _facts(element: Mapping[str, Any]) -> Facts:
    key = element["publicKeySet"]["keys"][0]
    octets = from_json({"chain": key["x5c"]})["chain"]
    assert isinstance(octets, tuple)
    certificate = x509.load_der_x509_certificate(octets[0])
    device_id = common_name(certificate) or ""
    if any(key.get(name) != value for name, value in jws.jwk(certificate.public_key()).items()):
        raise ValueError("the key is not that of its certificate")
    return {
        "device_id": device_id,
        "se_id": "" if element["uniqueId"] == device_id else element["uniqueId"],
        "model": element["model"],
        "hw_rev": element["partNumber"],
        "group": element["groupId"],
        "site": element["provisioner"]["organizationName"],
        "line": element["manufacturer"]["organizationalUnitName"],
        "station": element["provisioner"]["organizationalUnitName"],
        "provisioned_at": element["provisioningTimestamp"],
        "certificate": octets[0],
        "chain": octets[1:],
    }


def _claimed_name(entry: Any) -> str:  # noqa: ANN401 - whatever a file holds
    try:
        return str(entry["header"]["uniqueId"])[:64]
    except (KeyError, TypeError):
        return ""


FORMAT = Format(
    name="microchip",
    title="Microchip Trust Platform manifest, a JSON array of JWS signed by the station",
    holds=frozenset(
        {"device_id", "se_id", "model", "hw_rev", "group", "site", "line", "station", "provisioned_at"}
        | {"certificate", "chain"}
    ),
    write=write,
    read=read,
    check=check,
    limits=("keys of units and station: EC, RSA, Ed25519", "a unit taken out is not noticed: the shape has no count"),
    manifest=FILE,
    verify=verify,
)
