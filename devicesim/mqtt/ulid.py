"""ULIDs: event and attempt ids that sort by time and fit a URL, a file name and a topic.

48 bits of milliseconds and 80 bits of randomness in Crockford's base 32. Both come in as arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RANDOM_BYTES = 10
_SHAPE = re.compile(rf"[0-7][{ALPHABET}]{{25}}")


def new_ulid(now: datetime, randomness: Callable[[int], bytes]) -> str:
    """Make the id of something that happens at `now`; `randomness(n)` gives n random bytes (`secrets.token_bytes`)."""
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds << 80) | int.from_bytes(randomness(RANDOM_BYTES), "big")
    return "".join(ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def is_ulid(text: str) -> bool:
    """Tell whether `text` has the one spelling this package writes (26 upper-case characters)."""
    return _SHAPE.fullmatch(text) is not None
