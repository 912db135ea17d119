"""How log lines are written: text for people, JSON for programs; whatever is in them, one line stays one line.

Rules:
- A line holds printable ASCII only; everything else is written as JSON escapes it, line separators of Unicode included.
- In text, a value is quoted unless it is one plain word, so that no value can look like another field.
- A traceback goes on below its line, indented, so that nothing in it can look like a line.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["text", "json"]

VALUE_MAX_CHARS = 256
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")  # printable, no space, quote, equals sign or backslash
_PRINTABLE = re.compile(r"[ -\[\]-~]*")
_FIELDS = "fields"


def fields(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give a log call its fields: `log.info("request", extra=fields({...}))`; None is left out."""
    return {_FIELDS: {name: _bounded(value) for name, value in values.items() if value is not None}}


def log_to(stream: TextIO, form: LogFormat) -> None:
    """Write all that this process and its children log to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_FORMATTERS[form]())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """`TIME LEVEL LOGGER MESSAGE key=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line, and below it the traceback if there is one."""
        pairs = "".join(f" {name}={_word(value)}" for name, value in getattr(record, _FIELDS, {}).items())
        line = f"{_time(record)} {record.levelname} {record.name} {_escaped(record.getMessage())}{pairs}"
        return "\n  ".join([line, *map(_escaped, _traceback(self, record).splitlines())])


class JsonLines(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line; a traceback is a field of it."""
        values = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
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
    text = value if isinstance(value, str) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _escaped(text: str) -> str:
    return text if _PRINTABLE.fullmatch(text) else json.dumps(text)[1:-1].replace('\\"', '"')


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
