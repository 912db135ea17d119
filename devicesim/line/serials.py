"""Serial numbers of a batch: a range, a template and a check digit, made for units or checked on them.

[serial]
template = "ACM-{n:07}-{check}"   # {n}, {n:07}: the number; {check}: the check digit, behind everything that counts
start = 1                         # the first number of the range
end = 5000                        # its last, or count = 5000; as many as the batch has units when neither is said
check = "luhn36"                  # luhn36, iso7064-37-36, iso7064-97-10 or iso7064-11-2
device_id = "acm-{n:07}"          # the serial in lower case when it is left out
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, model_validator

from devicesim.line.check_digits import CHECK_DIGITS, CheckDigit
from devicesim.line.settings import Section, Whole

NUMBER_MAX = 10**18
_FIELD = r"\{n(?::0(?:[1-9]|1[0-8]))?\}|\{check\}"
_TEMPLATE = rf"(?=.*\{{n[:}}])(?:[^{{}}\x00-\x1f\x7f]|{_FIELD}){{1,128}}"
_PARTS = re.compile(rf"({_FIELD})")
_CHECK_LAST = r"\{check\}[^0-9A-Za-z{}]*$"


def _one_number(text: str) -> str:
    if re.fullmatch(_TEMPLATE, text) is None or text.count("{n") != 1 or text.count("{check}") > 1:
        raise ValueError("holds {n} or {n:07} once, {check} at most once, and no other braces")
    return text


Template = Annotated[
    str, AfterValidator(_one_number), WithJsonSchema({"type": "string", "pattern": f"^{_TEMPLATE}$", "maxLength": 1024})
]


def _rules_as_schema(schema: dict[str, Any]) -> None:
    """Say in the published schema what `Serial` checks across its keys."""
    schema["not"] = {"required": ["end", "count"]}
    has_check = {"properties": {"template": {"pattern": _CHECK_LAST}}}
    has_none = {"properties": {name: {"not": {"pattern": r"\{check\}"}} for name in ("template", "device_id")}}
    schema |= {"if": {"required": ["check"]}, "then": has_check, "else": has_none}


class Serial(Section):
    """`[serial]`: the numbers of a batch, and how a serial is written."""

    model_config = ConfigDict(json_schema_extra=_rules_as_schema)

    template: Template
    device_id: Template | None = None
    start: Annotated[Whole, Field(ge=0, le=NUMBER_MAX)] = 1
    end: Annotated[Whole, Field(ge=0, le=NUMBER_MAX)] | None = None
    count: Annotated[Whole, Field(ge=1, le=NUMBER_MAX)] | None = None
    check: Literal["luhn36", "iso7064-37-36", "iso7064-97-10", "iso7064-11-2"] | None = None

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.end is not None and self.count is not None:
            raise ValueError("say end or count, not both")
        if self.last < self.start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        if self.is_bounded and ":" in self._number and self._width(self.last) > self._width(self.start):
            raise ValueError(
                f"{self.last}, the last number of the range, is longer than {self._number} leaves room for"
            )
        if self.check is None and "{check}" in self.template + (self.device_id or ""):
            raise ValueError(f"has {{check}} but no check: name one of {', '.join(CHECK_DIGITS)}")
        if self.check is not None and re.search(_CHECK_LAST, self.template) is None:
            raise ValueError("a check digit needs {check} behind every letter and digit of template")
        return self

    @property
    def last(self) -> int:
        """The last number of the range."""
        if self.count is not None:
            return self.start + self.count - 1
        return NUMBER_MAX if self.end is None else self.end

    @property
    def is_bounded(self) -> bool:
        """Whether the range has an end of its own."""
        return self.end is not None or self.count is not None

    def _width(self, number: int) -> int:
        return len(self._number.format(n=number))

    @property
    def _number(self) -> str:
        """How the template writes a number."""
        return next(part for part in _PARTS.split(self.template) if part.startswith("{n"))

    @cached_property
    def _digit(self) -> CheckDigit | None:
        return CHECK_DIGITS[self.check] if self.check else None

    @cached_property
    def _shape(self) -> re.Pattern[str]:
        return re.compile("".join(self._part_pattern(part) for part in _PARTS.split(self.template)))

    def _part_pattern(self, part: str) -> str:
        if part == "{check}":
            return f"(?P<check>{self._digit.pattern if self._digit else ''})"
        return r"(?P<n>[0-9]+)" if _PARTS.fullmatch(part) else re.escape(part)

    def serial(self, number: int) -> str:
        """Write the serial of a number."""
        return self._write(self.template, number)

    def device(self, number: int, serial: str) -> str:
        """Write the device id of a number."""
        return self._write(self.device_id, number) if self.device_id else serial.lower()

    def _write(self, template: str, number: int) -> str:
        return template.replace("{check}", self._check_of(number)).format(n=number)

    def _check_of(self, number: int) -> str:
        return self._digit.for_text(self.template.replace("{check}", "").format(n=number)) if self._digit else ""

    def number_of(self, serial: str) -> int:
        """Return the number a serial was written from; raise ValueError when it is none of this range."""
        found = self._shape.fullmatch(serial)
        number = int(found["n"]) if found and len(found["n"]) <= 19 else None
        right = self.serial(number) if number is not None else ""
        if found is None or number is None or len(right) != len(serial):
            raise ValueError(f"{serial[:80]!r} does not follow the template {self.template!r}{self._hint(serial)}")
        if right != serial:
            raise ValueError(f"{serial!r} has a wrong check digit ({self.check}): one of its characters is wrong")
        if not self.start <= number <= self.last:
            raise ValueError(f"{serial!r} is outside of the range {self.start} to {self.last}")
        return number

    def _hint(self, serial: str) -> str:
        """Know the serial that a spreadsheet took for a number."""
        length = len(self.serial(self.start))
        if serial.isdecimal() and len(serial) < length and self._shape.fullmatch(serial.zfill(length)):
            return "; a spreadsheet has taken its leading zeros away: import that column as text"
        return ""
