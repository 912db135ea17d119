"""The sealed bundle: what crosses an air gap, out as certificate requests, back as certificates.

Rules:
- Requests and certificates are public; what counts is that they are whose they say. So each file is one signed
  statement, by the station on the way out and by the carrier, who is a registration authority too, on the way back.
- The file that comes back names the bundle and the hash of the very file it answers.
- What does not verify is named, unit and field, as far as that can be seen; nothing of such a file is used.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.csr import load_csr
from devicesim.errors import DeviceSimError, VerificationFailed
from devicesim.line.ledger import ChainPlace
from devicesim.line.statements import CERT_BUNDLE, CSR_BUNDLE, Seal, unseal
from devicesim.line.units_csv import UNITS_MAX
from devicesim.mqtt.dsse import envelope_payload
from devicesim.replies import printable
from devicesim.trust import TrustAnchors

BUNDLE_MAX_BYTES = 256 << 20
CACERTS_MAX = 32


class BundleAltered(VerificationFailed):
    """A bundle is not what was sealed. `problems` names each unit and field."""

    code = "bundle-altered"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}", advice="nothing of the file was used; have it made and carried again")


@dataclass(frozen=True, slots=True)
class Request:
    """A unit's certificate request, and the EST label it is for."""

    device_id: str
    label: str
    csr: bytes


@dataclass(frozen=True, slots=True)
class Requests:
    """A bundle on its way out, proven to be of the station it names.

    Attributes:
        sha256: of the whole file, which the answer names.
    """

    bundle: str
    batch: str
    place: Mapping[str, str]
    units: tuple[Request, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a unit's request brought: a certificate, or why there is none."""

    device_id: str
    certificate: x509.Certificate | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """A bundle on its way back."""

    bundle: str
    batch: str
    requests_sha256: str
    cacerts: tuple[x509.Certificate, ...]
    units: tuple[Answer, ...]


# --- out --------------------------------------------------------------------------------------------------------------


def seal_requests(
    bundle: str, batch: str, units: Iterable[Request], head: ChainPlace, seal: Seal, at: datetime
) -> bytes:
    """Return the file that goes out."""
    rows = [
        {"device_id": unit.device_id, "label": unit.label, "csr": _b64(unit.csr), "csr_sha256": _hash(unit.csr)}
        for unit in units
    ]
    ledger = {"seq": head.seq, "head": head.head}
    return seal(CSR_BUNDLE, {"bundle": bundle, "batch": batch, "count": len(rows), "ledger": ledger, "units": rows}, at)


def open_requests(data: bytes, trust: TrustAnchors) -> Requests:
    """Return what a file that went out asks for, proven; else BundleAltered."""
    fields = _payload(data)
    problems = list(_shape(fields, "units"))
    units = [] if problems else [_request(row, problems) for row in fields["units"]]
    place = _proven(data, CSR_BUNDLE, trust, problems)
    known = tuple(unit for unit in units if unit is not None)
    return Requests(fields["bundle"], fields["batch"], place, known, _hash(data))


def _request(row: Any, problems: list[str]) -> Request | None:  # noqa: ANN401 - JSON
    name = _name(row)
    try:
        csr, label, wanted = _unb64(row["csr"]), str(row["label"]), row["csr_sha256"]
        request = load_csr(csr)
        names = [str(found.value) for found in request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        if not request.is_signature_valid or _hash(csr) != wanted:
            problems.append(f"{name}: csr: is not what the device made")
        elif names != [name]:
            problems.append(f"{name}: csr: is for {', '.join(names) or 'nobody'}")
    except (DeviceSimError, UnsupportedAlgorithm, KeyError, TypeError, ValueError):
        problems.append(f"{name}: csr: cannot be read")
        return None
    return Request(name, label, csr)


# --- back -------------------------------------------------------------------------------------------------------------


def seal_answers(
    requests: Requests, units: Iterable[Answer], cacerts: Iterable[x509.Certificate], seal: Seal, at: datetime
) -> bytes:
    """Return the file that goes back."""
    rows = [
        {"device_id": unit.device_id, "certificate": _b64(_der(unit.certificate))}
        if unit.certificate
        else {"device_id": unit.device_id, "refused": unit.refused}
        for unit in units
    ]
    fields = {"bundle": requests.bundle, "batch": requests.batch, "requests_sha256": requests.sha256}
    bag = [_b64(_der(certificate)) for certificate in cacerts]
    return seal(CERT_BUNDLE, {**fields, "count": len(rows), "cacerts": bag, "answers": rows}, at)


def open_answers(data: bytes, trust: TrustAnchors, objections: Callable[[Answers], Iterable[str]]) -> Answers:
    """Return what a file that came back brings, proven and without objections; else BundleAltered."""
    fields = _payload(data)
    problems = list(_shape(fields, "answers"))
    found = None
    if not problems:
        cacerts = tuple(_cacerts(fields, problems))
        units = tuple(unit for row in fields["answers"] if (unit := _answer(row, problems)))
        found = Answers(fields["bundle"], fields["batch"], str(fields.get("requests_sha256")), cacerts, units)
        problems += objections(found)
    _proven(data, CERT_BUNDLE, trust, problems)
    assert found is not None
    return found


def _cacerts(fields: Mapping[str, Any], problems: list[str]) -> Iterator[x509.Certificate]:
    bag = fields.get("cacerts")
    if not isinstance(bag, list) or len(bag) > CACERTS_MAX:
        problems.append("cacerts: is no list of CA certificates")
        return
    for number, text in enumerate(bag, start=1):
        try:
            yield x509.load_der_x509_certificate(_unb64(text))
        except (TypeError, ValueError):
            problems.append(f"cacerts: certificate {number} cannot be read")


def _answer(row: Any, problems: list[str]) -> Answer | None:  # noqa: ANN401 - JSON
    name = _name(row)
    if isinstance(row, dict) and isinstance(row.get("refused"), str) and "certificate" not in row:
        return Answer(name, refused=printable(row["refused"]) or "refused")
    try:
        return Answer(name, x509.load_der_x509_certificate(_unb64(row["certificate"])))
    except (KeyError, TypeError, ValueError):
        problems.append(f"{name}: certificate: cannot be read")
        return None


# --- both -------------------------------------------------------------------------------------------------------------


def _payload(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(envelope_payload(data))
    except (VerificationFailed, ValueError, RecursionError) as fault:
        raise BundleAltered(["the file is no bundle"]) from fault
    if not isinstance(fields, dict):
        raise BundleAltered(["the file is no bundle"])
    return fields


def _shape(fields: Mapping[str, Any], rows: str) -> Iterator[str]:
    for name in ("bundle", "batch"):
        if not isinstance(fields.get(name), str):
            yield f"{name}: is missing"
    units = fields.get(rows)
    if not isinstance(units, list) or not 0 < len(units) <= UNITS_MAX:
        yield f"{rows}: is no list of 1 to {UNITS_MAX} units"
        return
    if fields.get("count") != len(units):
        yield f"count: is {printable(str(fields.get('count')))}, and there are {len(units)} units"
    for name, count in Counter(map(_name, units)).items():
        if count > 1:
            yield f"{name}: device_id: is there {count} times"


def _proven(data: bytes, kind: str, trust: TrustAnchors, problems: list[str]) -> Mapping[str, str]:
    try:
        place = unseal(data, kind, trust).place
    except VerificationFailed as fault:
        problems.append(f"signature: {fault}")
    if problems:
        raise BundleAltered(problems)
    return place


def _name(row: Any) -> str:  # noqa: ANN401 - JSON
    name = row.get("device_id") if isinstance(row, dict) else None
    return printable(name)[:64] if isinstance(name, str) else "a unit without a name"


def _hash(data: bytes) -> str:
    return sha256(data).hexdigest()


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError("base64 text expected")
    return base64.b64decode(text, validate=True)
