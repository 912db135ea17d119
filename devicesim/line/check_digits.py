"""Check digits of serial numbers: which there are, over which characters each is reckoned, and how many it adds.

Hyphens and other separators are passed over, and so are letters where an algorithm knows digits alone: a template fixes
those. The arithmetic is python-stdnum's.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

from stdnum import luhn
from stdnum.iso7064 import mod_11_2, mod_37_36, mod_97_10

DIGITS = string.digits
LETTERS_AND_DIGITS = string.digits + string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class CheckDigit:
    """One algorithm.

    Attributes:
        covers: the characters that count.
        pattern: what its check characters look like.
        of: reckons them from the characters that count.
    """

    name: str
    covers: str
    pattern: str
    of: Callable[[str], str]

    def for_text(self, text: str) -> str:
        """Return the check characters that belong behind a text."""
        return self.of("".join(character for character in text.upper() if character in self.covers))


def _luhn36(payload: str) -> str:
    return luhn.calc_check_digit(payload, LETTERS_AND_DIGITS)


_ROWS = (
    CheckDigit("luhn36", LETTERS_AND_DIGITS, "[0-9A-Z]", _luhn36),
    CheckDigit("iso7064-37-36", LETTERS_AND_DIGITS, "[0-9A-Z]", mod_37_36.calc_check_digit),
    CheckDigit("iso7064-97-10", LETTERS_AND_DIGITS, "[0-9]{2}", mod_97_10.calc_check_digits),
    CheckDigit("iso7064-11-2", DIGITS, "[0-9X]", mod_11_2.calc_check_digit),
)
CHECK_DIGITS: dict[str, CheckDigit] = {row.name: row for row in _ROWS}
"""Every algorithm, by the name `check` of `[serial]` gives it."""
