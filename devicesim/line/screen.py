"""What an operator sees of the loop: PASS and FAIL over the full width, and always what to do next.

On a terminal in colour; the words are there without it. Elsewhere one plain line for each thing that is said.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import click

from devicesim.line.shift import Notice

PLAIN_WIDTH = 80
BELL = "\a"


@dataclass(frozen=True, slots=True)
class Screen:
    """Shows notices.

    Attributes:
        say: writes one text.
        is_terminal: whether a person looks at it.
        colour: whether that person may be shown colours.
        bell: ring once for PASS and twice for what went wrong.
    """

    say: Callable[[str], None]
    is_terminal: bool
    colour: bool
    bell: bool = False

    def show(self, notice: Notice) -> None:
        """Show one."""
        if notice.what == "pass":
            self._banner(f"PASS  {notice.device_id}", "=", "green", rings=1)
        elif notice.what == "fail":
            self._banner(f"FAIL  {notice.device_id}  {notice.code}", "!", "red", rings=2)
            self.say(f"      {notice.text}")
        elif notice.what == "wrong":
            ring = BELL * 2 if self.bell else ""
            self.say(ring + self._styled(f"{notice.code}  {notice.text}; expected: {notice.expected}", fg="yellow"))
        elif notice.what == "next":
            self.say(self._styled(f"NEXT  {notice.text}", bold=True) + f"  ({_counts(notice)})")
        else:
            self.say(f"      {notice.text}")

    def _banner(self, text: str, fill: str, background: str, *, rings: int) -> None:
        ring = BELL * rings if self.bell else ""
        if not self.is_terminal:
            self.say(ring + f"{text}  ".ljust(PLAIN_WIDTH, fill))
            return
        width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
        bars = (fill * width, text.center(width), fill * width)
        bars = (" " * width, bars[1], " " * width) if self.colour else bars
        self.say(ring + "\n".join(self._styled(bar, fg="bright_white", bg=background, bold=True) for bar in bars))

    def _styled(self, text: str, fg: str | None = None, bg: str | None = None, *, bold: bool = False) -> str:
        return click.style(text, fg=fg, bg=bg, bold=bold) if self.colour else text


def _counts(notice: Notice) -> str:
    told = notice.shift or {}
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in told.items())
