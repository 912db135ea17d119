"""How log lines are written: text for people, JSON for programs; whatever is in them, one line stays one line.

Rules:
- A line holds printable ASCII only; everything else is written as JSON escapes it, line separators of Unicode included.
- In text, what is not one plain word is quoted, and so is a message that could be taken for a field: nothing in a line
  can look like another field.
- A traceback goes on below its line, indented, so that nothing in it can look like a line.
- Nobody waits for whoever reads the lines, but for a moment: what finds no room is dropped, and told when there is.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]

VALUE_MAX_CHARS = 256
MESSAGE_MAX_CHARS = 2000
PATIENCE_MILLISECONDS = 100
_WORD = re.compile(r"[!#-<>-\[\]-~]+")  # printable, no space, quote, equals sign or backslash
_MESSAGE = re.compile(r"[ !#-<>-\[\]-~]+")
_PRINTABLE = re.compile(r"[ -\[\]-~]*")
_FIELDS = "fields"


def fields(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Give a log call its fields: `log.info("request", extra=fields({...}))`; None is left out."""
    return {_FIELDS: {name: _bounded(value) for name, value in values.items() if value is not None}}


def log_to(file: int, form: LogFormat) -> None:
    """Write all that this process and its children log to an open file, which is not closed."""
    # no line says where in the sources it was written, nor by which thread: then it need not be found out for each
    logging._srcfile = None  # noqa: SLF001 - the way that logging's HOWTO shows
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = Lines(file)
    handler.setFormatter(_FORMATTERS[form]())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class Lines(logging.Handler):
    """Writes each line with one call, so that the lines of several processes do not mix.

    A reader that is too slow is waited for once, for a moment; until it reads again its lines are dropped at once. A
    pipe that can be written takes 4096 octets without waiting (POSIX's PIPE_BUF): only tracebacks are longer.
    """

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file
        self._poll = select.poll()
        self._poll.register(file, select.POLLOUT)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or drop it; nothing is raised."""
        try:
            self._emit(record)
        except OSError:  # closed, or a full disk
            self._dropped += 1
        except Exception:  # noqa: BLE001 - a line that cannot be formatted must not fail what it tells of
            self.handleError(record)

    def _emit(self, record: logging.LogRecord) -> None:
        ready = self._poll.poll(0 if self._dropped else PATIENCE_MILLISECONDS)
        if not ready or not ready[0][1] & select.POLLOUT:
            self._dropped += 1
            return
        line = self.format(record)
        if self._dropped:
            line = f"{self.format(_dropped(self._dropped, record))}\n{line}"
        os.write(self._file, f"{line}\n".encode("ascii"))
        self._dropped = 0


class TextLines(logging.Formatter):
    """`TIME LEVEL LOGGER MESSAGE key=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line, and below it the traceback if there is one."""
        message = record.getMessage()[:MESSAGE_MAX_CHARS]
        shown = message if _MESSAGE.fullmatch(message) else json.dumps(message)
        pairs = "".join([f" {name}={_word(value)}" for name, value in getattr(record, _FIELDS, {}).items()])
        line = f"{_time(record)} {record.levelname} {record.name} {shown}{pairs}"
        return "\n  ".join([line, *map(_escaped, _traceback(self, record).splitlines())])


class JsonLines(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line; a traceback is a field of it."""
        values = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MESSAGE_MAX_CHARS],
            **getattr(record, _FIELDS, {}),
        }
        traceback = _traceback(self, record)
        return json.dumps(values | {"traceback": traceback} if traceback else values)


_FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {"text": TextLines, "json": JsonLines}


def _bounded(value: object) -> object:
    return value[:VALUE_MAX_CHARS] if isinstance(value, str) else value


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _word(value: object) -> str:
    text = str(value)
    return text if _WORD.fullmatch(text) else json.dumps(text)


def _escaped(text: str) -> str:
    return text if _PRINTABLE.fullmatch(text) else json.dumps(text)[1:-1].replace('\\"', '"')


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _dropped(count: int, record: logging.LogRecord) -> logging.LogRecord:
    told = {"name": __name__, "levelname": "WARNING", "msg": "log lines dropped, their reader is too slow"}
    return logging.makeLogRecord({**told, "created": record.created, **fields({"count": count})})
