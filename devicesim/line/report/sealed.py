"""The report as the station says it: signed, so that whoever gets it finds any change with the trust anchor alone.

Rules:
- The report as JSON is a statement of the station (`statements`).
- A page bears its seal behind itself, in a comment: a statement of the SHA-256 of every byte before it. Nothing may
  come after it.
- Both name the ledger's head and carry its last checkpoint: `devicesim ledger verify --seen` holds the ledger to them.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from devicesim.errors import VerificationFailed
from devicesim.line.report.model import KIND, YieldReport
from devicesim.line.report.page import yield_page
from devicesim.line.statements import YIELD, YIELD_PAGE, Seal, Statement, unseal
from devicesim.trust import TrustAnchors

REPORT_MAX_BYTES = 64 << 20
_OPEN, _CLOSE = b"<!-- estline seal ", b" -->\n"


@dataclass(frozen=True, slots=True)
class Verified:
    """A report that is as its station signed it; `fields` is the whole of it, of a page what its seal says of it."""

    form: str
    title: str
    fields: dict[str, Any]
    station: dict[str, str]
    at: datetime


def sealed_json(report: YieldReport, seal: Seal) -> bytes:
    """Return the report as a signed envelope."""
    return seal(YIELD, {"report": report.to_dict()}, report.made_at) + b"\n"


def sealed_page(report: YieldReport, seal: Seal) -> bytes:
    """Return the report as a page with its seal."""
    page, told = yield_page(report), report.to_dict()
    named = {name: told[name] for name in ("type", "selection", "ledger", "checkpoint", "made_at")}
    envelope = seal(YIELD_PAGE, {"page_sha256": sha256(page).hexdigest(), "report": named}, report.made_at)
    return page + _OPEN + base64.b64encode(envelope) + _CLOSE


def verify_report(data: bytes, trust: TrustAnchors) -> Verified:
    """Return what a file is, once it is proven to be as its station signed it; else VerificationFailed."""
    if data.lstrip()[:1] == b"{":
        return _verified("json", unseal(data, YIELD, trust))
    page, found, rest = data.rpartition(_OPEN)
    if not found or not rest.endswith(_CLOSE):
        raise VerificationFailed(
            "the file bears no seal, or something stands behind it",
            advice="what `line report --html FILE` and `--sealed FILE` write is signed",
        )
    try:
        envelope = base64.b64decode(rest.removesuffix(_CLOSE), validate=True)
    except binascii.Error as fault:
        raise VerificationFailed("the page's seal is malformed") from fault
    statement = unseal(envelope, YIELD_PAGE, trust)
    if statement.fields.get("page_sha256") != sha256(page).hexdigest():
        raise VerificationFailed("the page was changed after it was signed")
    return _verified("html", statement)


def _verified(form: str, statement: Statement) -> Verified:
    report = statement.fields.get("report")
    if not isinstance(report, dict) or report.get("type") != KIND:
        raise VerificationFailed("this is no yield report of this version")
    try:
        batches = report["selection"]["batches"]
        title = f"batches {', '.join(batches)}" if batches else "all batches"
        ledger = {name: report["ledger"][name] for name in ("seq", "head")}
    except (KeyError, TypeError) as fault:
        raise VerificationFailed("the yield report is malformed") from fault
    return Verified(form, title, {**report, "ledger": {**report["ledger"], **ledger}}, statement.place, statement.at)
