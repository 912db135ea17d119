"""A label template: what is printed where, with the fields of a unit in braces.

    # a remark
    size WIDTH HEIGHT                   first, once
    qr   X Y SIDE   | {device_id} {cert_serial}
    text X Y HEIGHT | SN {serial}

Rules:
- Lengths are millimetres from the upper left corner, so that a template fits printers of every resolution.
- There is one QR code. It is what is scanned back, so it carries something that the device itself says.
- A field is one of `FIELDS`; a brace that is meant is doubled. Every problem is reported at once, with its line.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from devicesim.labels.errors import LabelFailed
from devicesim.line.findings import Finding, InputInvalid, decode_utf8, read_bounded

TEMPLATE_MAX_BYTES = 64 << 10
ELEMENTS_MAX = 50
TEXT_MAX = 300
SIDE_MAX_MM = 300.0
_NUMBER = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,2})?")

SAID_BY_DEVICE: Mapping[str, str] = {
    "device_id": r"[a-z0-9_-]{1,64}",
    "cert_serial": r"[0-9a-f]{1,40}",
    "cert_sha256": r"[0-9a-f]{64}",
    "spki_sha256": r"[0-9a-f]{64}",
    "not_before": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "not_after": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
}
"""What a device says of itself, read from the certificate in its own store, and the pattern it follows."""
IDENTIFYING = frozenset(SAID_BY_DEVICE) - {"not_before", "not_after"}
OF_THE_ORDER = ("serial", "product", "hw_rev", "mac", "se_id", "group", "batch", "site", "line", "station")
FIELDS = (*SAID_BY_DEVICE, *OF_THE_ORDER)


@dataclass(frozen=True, slots=True)
class Phrase:
    """Text with fields: pairs of literal text and the field after it, which may be empty."""

    parts: tuple[tuple[str, str], ...]

    @property
    def fields(self) -> frozenset[str]:
        """The fields in it."""
        return frozenset(field for _, field in self.parts if field)

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text for a unit, or raise LabelFailed when it cannot stand on a label."""
        text = "".join(literal + (values[field] if field else "") for literal, field in self.parts).strip()
        if len(text) > TEXT_MAX or not text.isprintable():
            raise LabelFailed(f"{text[:40]!r}… is no line of at most {TEXT_MAX} printable characters for a label")
        return text

    def shape(self) -> re.Pattern[str]:
        """Return what every text made from it looks like; a field of the order may be empty, and the spaces at it.

        Its first group, if there is one, is the device id.
        """
        text, before = "", ""
        for literal, field in self.parts:
            is_at_order = not SAID_BY_DEVICE.keys() >= {before, field} - {""}
            text += re.escape(literal).replace("\\ ", " *") if is_at_order else re.escape(literal)
            text += f"({SAID_BY_DEVICE.get(field, '.*')})" if field == "device_id" else ""
            text += f"(?:{SAID_BY_DEVICE.get(field, '.*')})" if field not in {"", "device_id"} else ""
            before = field
        return re.compile(text)


@dataclass(frozen=True, slots=True)
class Element:
    """A QR code or a line of text, its place, and the side or height it has."""

    x_mm: float
    y_mm: float
    size_mm: float
    phrase: Phrase


@dataclass(frozen=True, slots=True)
class Template:
    """A label, without a unit."""

    width_mm: float
    height_mm: float
    qr: Element
    texts: tuple[Element, ...]


def load_template(path: Path | None) -> Template:
    """Read a template, or the one that comes with the program; an InputInvalid carries every problem in it."""
    if path is None:
        return parse_template("default.label", files(__package__).joinpath("default.label").read_text("utf-8"))
    return parse_template(str(path), decode_utf8(path, read_bounded(path, TEMPLATE_MAX_BYTES)))


def parse_template(name: str, text: str) -> Template:
    """Read the text of a template; `name` is what its problems are reported under."""
    reading = _Reading(name, [], [], [], [])
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            reading.line(number, line)
    return reading.template()


@dataclass
class _Reading:
    name: str
    findings: list[Finding]
    size: list[tuple[float, float]]
    qr: list[Element]
    texts: list[Element]

    def line(self, number: int, line: str) -> None:
        try:
            self._line(line)
        except ValueError as error:
            self.findings.append(Finding(self.name, number, "", str(error)))

    def _line(self, line: str) -> None:
        head, bar, text = line.partition("|")
        word, *lengths = head.split()
        if word == "size":
            if bar or self.size:
                raise ValueError("the size stands once: `size WIDTH HEIGHT`")
            width, height = _lengths("size WIDTH HEIGHT", lengths)
            self.size.append((width, height))
        elif word not in {"qr", "text"}:
            raise ValueError(f"{word[:40]!r} is none of `size`, `qr`, `text`")
        elif not bar or not text.strip():
            raise ValueError(f"a {word} has its text after a bar: `{word} X Y SIZE | {{device_id}}`")
        else:
            x_mm, y_mm, size_mm = _lengths(f"{word} X Y SIZE |", lengths)
            self._put(word, Element(x_mm, y_mm, size_mm, _phrase(text.strip())))

    def _put(self, word: str, element: Element) -> None:
        if not self.size:
            raise ValueError("the size of the label comes first: `size WIDTH HEIGHT`")
        width, height = self.size[0]
        span = element.size_mm if word == "qr" else 0.0
        if element.x_mm + span > width or element.y_mm + element.size_mm > height:
            raise ValueError(f"it does not lie within the label of {width:g} x {height:g} mm")
        if word == "qr":
            self._put_qr(element)
        elif len(self.texts) >= ELEMENTS_MAX:
            raise ValueError(f"a label has at most {ELEMENTS_MAX} texts")
        else:
            self.texts.append(element)

    def _put_qr(self, element: Element) -> None:
        if self.qr:
            raise ValueError("there is one QR code on a label: the one that is scanned back")
        if not element.phrase.fields & IDENTIFYING:
            raise ValueError(f"the QR code carries something the device itself says: {', '.join(sorted(IDENTIFYING))}")
        self.qr.append(element)

    def template(self) -> Template:
        if not self.findings and not self.qr:
            self.findings.append(Finding(self.name, 0, "", "there is no QR code: `qr X Y SIDE | {device_id}`"))
        if self.findings:
            raise InputInvalid(self.findings)
        return Template(*self.size[0], self.qr[0], tuple(self.texts))


def _lengths(form: str, words: list[str]) -> list[float]:
    if len(words) != sum(word.isupper() for word in form.split()) or not all(map(_NUMBER.fullmatch, words)):
        raise ValueError(f"it is written `{form}`, in millimetres with at most two decimals")
    lengths = [float(word) for word in words]
    extents = lengths if len(lengths) == 2 else lengths[2:]
    if min(extents) <= 0 or max(lengths) > SIDE_MAX_MM:
        raise ValueError(f"a length is more than 0 and at most {SIDE_MAX_MM:g} mm")
    return lengths


def _phrase(text: str) -> Phrase:
    try:
        found = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError("a brace is open; one that is meant is doubled: {{ }}") from error
    parts = []
    for literal, field, form, conversion in found:
        if field is not None and (field not in FIELDS or form or conversion):
            raise ValueError(f"{{{field[:40]}}} is no field; they are {', '.join(FIELDS)}")
        parts.append((literal, field or ""))
    return Phrase(tuple(parts))
