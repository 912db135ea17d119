"""What comes from scanners and keyboards, one text a line.

A hand scanner is a keyboard (it types into standard input) or a serial line (`/dev/ttyACM0`); it ends a code with CR,
LF or both. Whatever it sends, a text is bounded, and what is no UTF-8 comes out as signs that match nothing.
"""

from __future__ import annotations

import os
import re
import select
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from devicesim.errors import ConfigInvalid
from devicesim.line.beside import Beside

TEXT_MAX_BYTES = 1024
TICK_SECONDS = 0.2
_END = re.compile(rb"[\r\n]+")


def open_scanner(path: Path) -> int:
    """Open the device of a scanner and return its descriptor; a serial line is read as it comes, nothing echoed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigInvalid(f"cannot open the scanner {path}: {error.strerror}", advice="check --scanner") from error
    if os.isatty(handle):
        modes = termios.tcgetattr(handle)
        modes[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
        termios.tcsetattr(handle, termios.TCSANOW, modes)
    return handle


def scans(handles: Sequence[int], is_over: Callable[[], bool]) -> Iterator[str]:
    """Give each text as it comes, until every source has ended or `is_over`."""
    rests = dict.fromkeys(handles, b"")
    while rests and not is_over():
        for handle in select.select(list(rests), [], [], TICK_SECONDS)[0]:
            data = _read(handle)
            *whole, rest = _END.split(rests[handle] + data)
            if data:
                rests[handle] = rest[: TEXT_MAX_BYTES + 1]  # one octet too long is all that a long one needs
            else:
                del rests[handle]
                whole.append(rest)
            yield from (text for line in whole if (text := _text(line)))


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, TEXT_MAX_BYTES)
    except OSError:  # a scanner that was unplugged, a terminal that was closed
        return b""


def _text(line: bytes) -> str:
    return line[:TEXT_MAX_BYTES].decode("utf-8", "replace").strip()


class Hearing(Beside):
    """A thread that hands what is scanned to the line for as long as the context lasts.

    Args:
        handles: what is read.
        hear: gets each text.
        deaf: is called when nothing more can come, before the context has ended.
        stop: is set when `hear` failed; its error is raised at the end.
    """

    def __init__(
        self,
        handles: Sequence[int],
        *,
        hear: Callable[[str], None],
        deaf: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        super().__init__("scanner")
        self._handles, self._hear, self._deaf, self._stop = handles, hear, deaf, stop

    def work(self) -> None:
        """Hear until the context or the scanner ends."""
        for text in scans(self._handles, self.ended.is_set):
            self._hear(text)
        if not self.ended.is_set():
            self._deaf()

    def failed(self) -> None:
        """Stop those who wait for a scan."""
        self._stop.set()
