"""What an HTTP answer means to EST: the body it must carry, or the error it is (RFC 7030 §4, RFC 8951 §5).

Only here are status numbers turned into errors, and only here is a server's text made fit to be shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import ClassVar

from devicesim.codec import decode_body
from devicesim.errors import BadAnswer, DeviceSimError, EstRefused, Pending, Unreachable
from devicesim.transport import Answer

RETRY_AFTER_DEFAULT_SECONDS = 60.0
RETRY_AFTER_MAX_SECONDS = 24 * 3600.0
_TEXT_MAX = 400


@dataclass(frozen=True, slots=True)
class Body:
    """A kind of body: its media type, and the smime-type it may carry."""

    media_type: str
    smime_type: str | None = None

    CERTS_ONLY: ClassVar[Body]
    CSR_ATTRS: ClassVar[Body]


Body.CERTS_ONLY = Body("application/pkcs7-mime", "certs-only")
Body.CSR_ATTRS = Body("application/csrattrs")


def expect(answer: Answer, body: Body) -> bytes:
    """Return the DER of an answer that must be of this kind; parameters, their order and case do not matter."""
    header = Message()
    header["Content-Type"] = answer.headers.get("content-type", "")
    found = header.get_content_type() if header["Content-Type"] else "nothing"
    smime_type = header.get_param("smime-type")
    wrong_kind = body.smime_type and isinstance(smime_type, str) and smime_type.lower() != body.smime_type
    if found != body.media_type or wrong_kind:
        raise BadAnswer(f"the answer should be {body.media_type} and is {printable(found)}")
    return decode_body(answer.body)


def refusal(answer: Answer, operation: str) -> DeviceSimError:
    """Return the error an answer other than success means."""
    text = _server_text(answer)
    said = f": {text}" if text else ""
    status = answer.status
    if status == 202:
        wait = retry_after_seconds(answer)
        return Pending(RETRY_AFTER_DEFAULT_SECONDS if wait is None else wait, message=_pending_text(wait))
    if status == 429 or (status >= 500 and status != 501):
        return Unreachable(
            f"the server cannot do {operation} now ({status}){said}",
            advice="run it again later: nothing is lost",
            retry_after_seconds=retry_after_seconds(answer),
        )
    if status in _MEANINGS:
        meaning, advice = _MEANINGS[status]
        return EstRefused(f"{meaning} ({operation}, {status}){said}", status=status, body_text=text, advice=advice)
    if 400 <= status <= 501:
        return EstRefused(f"the server refused {operation} ({status}){said}", status=status, body_text=text)
    return BadAnswer(f"the server answered {operation} with status {status}{said}")


_MEANINGS = {
    401: ("the server did not accept who is asking", "check the name and password, or the client certificate"),
    403: ("the server does not allow this", "ask whoever runs the server; repeating it will not help"),
    404: ("the server does not have this operation or label", "check the address and the label"),
    501: ("the server does not offer this operation", "go on without it"),
}


def retry_after_seconds(answer: Answer) -> float | None:
    """Read Retry-After, seconds or a date (RFC 9110 §10.2.3), bounded; None when it is absent or unreadable.

    A date is measured against the answer's own Date, so that a device's clock has no part in it.
    """
    value = answer.headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,12}", value):
        return min(float(value), RETRY_AFTER_MAX_SECONDS)
    then, now = http_date(value), http_date(answer.headers.get("date", ""))
    if then is None:
        return None
    if now is None:
        return RETRY_AFTER_DEFAULT_SECONDS
    return min(max((then - now).total_seconds(), 0.0), RETRY_AFTER_MAX_SECONDS)


def http_date(value: str) -> datetime | None:
    """Read a date of HTTP (RFC 9110 §5.6.7); None when it is none."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _pending_text(wait_seconds: float | None) -> str:
    if wait_seconds is None:
        return "the request waits for approval; the server, against RFC 7030 §4.2.3, does not say for how long"
    return f"the request waits for approval; the server asks to come back in {wait_seconds:.0f} s"


def _server_text(answer: Answer) -> str:
    """Return what the server wrote: one line, printable, shortened, without the tags of an HTML page."""
    text = answer.body[: 16 * _TEXT_MAX].decode("utf-8", "replace")
    if "html" in answer.headers.get("content-type", "").lower() or text.lstrip()[:1] == "<":
        text = re.sub(r"(?is)<(style|script)\b.*?(</\1>|$)|<[^>]*>?", " ", text)
    return printable(text)


def printable(text: str) -> str:
    """Make what somebody else wrote fit to be shown: one line, printable, shortened."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _TEXT_MAX else line[: _TEXT_MAX - 1] + "…"
