"""`manifest.jsonl`: everything that is known of a unit, one signed object a line.

Each line is a DSSE v1.0.2 envelope signed by the station, as its announcements are; the payload says which of how many
lines it is, so that a line taken out, doubled or moved is found, and not only one that was changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from devicesim.errors import VerificationFailed
from devicesim.exports.arrays import compact, read_lines, write_lines
from devicesim.exports.format import Format, Judged, Occasion
from devicesim.exports.provisioned import FIELDS, Facts, Provisioned, as_json, facts_of, from_json
from devicesim.mqtt.connection import common_name
from devicesim.mqtt.dsse import envelope_payload, seal, unseal
from devicesim.trust import TrustAnchors

FILE = "manifest.jsonl"
PAYLOAD_TYPE = "application/vnd.estline.provisioned.v1+json"


def write(units: Iterator[Provisioned], directory: Path, occasion: Occasion) -> None:
    """Sign and write every unit."""

    def lines() -> Iterator[str]:
        for position, unit in enumerate(units, 1):
            place = {"batch": occasion.batch, "position": position, "of": occasion.count}
            payload = compact({"manifest": place, "unit": as_json(facts_of(unit))}).encode()
            station = occasion.station
            yield seal(payload, PAYLOAD_TYPE, key=station.key, chain=station.certificates).decode("ascii")

    write_lines(directory / FILE, lines())


def read(directory: Path) -> Iterator[Facts]:
    """Read the units; whether the signatures hold is for `verify` to say."""
    for line in read_lines(directory / FILE):
        yield from_json(json.loads(envelope_payload(line.encode()))["unit"])


def verify(path: Path, trust: TrustAnchors, now: datetime) -> Iterator[Judged]:
    """Judge every line, and name those that are not there."""
    first: dict[str, Any] = {}
    number, last, bad = 0, 0, 0  # lines read, place of the last sound one, and how many since then were not
    for number, line in enumerate(read_lines(path), 1):
        judged, place = _judge(line, number, trust, now)
        if judged.problem:
            bad += 1
            yield judged
            continue
        first = first or place
        yield Judged(number, judged.device_id, judged.signer, _out_of_place(place, first, last, bad))
        if place["position"] > last:
            last, bad = place["position"], 0
    if last + bad < first.get("of", 0):
        yield Judged(number + 1, "", "", f"{first['of'] - last - bad} of {first['of']} units are missing at the end")


def _judge(line: str, position: int, trust: TrustAnchors, now: datetime) -> tuple[Judged, dict[str, Any]]:
    named = _claimed_name(line)
    try:
        signed = unseal(line.encode(), PAYLOAD_TYPE, trust=trust, now=now)
        document = json.loads(signed.payload)
        place, unit = document["manifest"], from_json(document["unit"])
        if not all(isinstance(place[name], int) for name in ("position", "of")):
            raise ValueError("a place is a number")  # noqa: TRY301 - no unit, like what json refuses
    except VerificationFailed as error:
        return Judged(position, named, "", str(error)), {}
    except (KeyError, TypeError, ValueError, RecursionError):
        return Judged(position, named, "", "what is signed is not a unit"), {}
    return Judged(position, str(unit["device_id"]), common_name(signed.signer) or "", ""), place


def _out_of_place(place: dict[str, Any], first: dict[str, Any], last: int, bad: int) -> str:
    if (place["batch"], place["of"]) != (first["batch"], first["of"]):
        return f"it belongs to another manifest, of batch {place['batch']}"
    if place["position"] <= last:
        return f"it is number {place['position']}, which stands before it already"
    if place["position"] > last + bad + 1:
        return f"it is number {place['position']} and comes after number {last}: units are missing before it"
    return ""


def _claimed_name(line: str) -> str:
    """Return whom an entry says it is about, for the message; nothing rests on it."""
    try:
        return str(json.loads(envelope_payload(line.encode()))["unit"]["device_id"])[:64]
    except (VerificationFailed, KeyError, TypeError, ValueError, RecursionError):
        return ""


FORMAT = Format(
    name="jsonl",
    title="everything, one object a line, signed by the station (DSSE)",
    holds=frozenset(FIELDS),
    write=write,
    read=read,
    manifest=FILE,
    verify=verify,
)
