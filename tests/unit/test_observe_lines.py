"""Log lines: whatever is in them, one stays one, no field can be forged, and nobody waits for who reads them."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estserver.observe import LogFormat, log_to
from estserver.observe.lines import VALUE_MAX_CHARS, JsonLines, Lines, TextLines, fields

HOSTILE = st.one_of(
    st.text(st.characters()),
    st.text('a="\\ \n', max_size=6),
    st.text("a=", max_size=6),
    st.lists(
        st.sampled_from(
            [
                "\r",
                "\n",
                "\0",
                "\x1b[2J",
                "\x85",
                "\u2028",
                "\ud800",
                " ",
                '"',
                "\\",
                "=",
                " status=200",
                "é",
                "a",
                '\\"',
            ]
        )
    ).map("".join),
)
NAMES = ("id", "path", "reason", "label", "device")
FIELDS = st.dictionaries(st.sampled_from(NAMES), st.one_of(HOSTILE, st.integers(), st.none()))
QUOTED = r'"(?:[^"\\]|\\.)*"'
LINE = re.compile(rf'(\S+) (\S+) (\S+) ({QUOTED}|[^"=\\]*?)((?: [a-z_0-9]+=(?:{QUOTED}|[^\s"=\\]+))*)')
PAIR = re.compile(rf" ([a-z_0-9]+)=({QUOTED}|\S+)")
WHEN = 1_764_000_000.123


def record(message: str, values: dict[str, Any] | None = None, **more: Any) -> logging.LogRecord:
    told = {"name": "estserver.wire", "levelname": "INFO", "msg": message, "created": WHEN}
    return logging.makeLogRecord({**told, **fields(values or {}), **more})


def unquoted(word: str) -> str:
    return str(json.loads(word)) if word.startswith('"') else word


def shown(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value[:VALUE_MAX_CHARS] if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


@given(message=HOSTILE.filter(bool), values=FIELDS)
def test_a_line_of_text_is_read_back_as_it_was_meant(message: str, values: dict[str, Any]) -> None:
    line = TextLines().format(record(message, values))
    assert re.fullmatch(r"[ -~]+", line)
    match = LINE.fullmatch(line)
    assert match is not None, line
    assert match.groups()[:3] == ("2025-11-24T16:00:00.123Z", "INFO", "estserver.wire")
    assert unquoted(match[4]) == message
    read = {name: unquoted(word) for name, word in PAIR.findall(match[5])}
    assert read == {name: str(value) for name, value in shown(values).items()}


@given(message=HOSTILE, values=FIELDS)
def test_a_line_of_json_is_read_back_as_it_was_meant(message: str, values: dict[str, Any]) -> None:
    line = JsonLines().format(record(message, values))
    assert re.fullmatch(r"[ -~]+", line)
    read = json.loads(line)
    known = {"time": "2025-11-24T16:00:00.123Z", "level": "info", "logger": "estserver.wire", "message": message}
    assert read == {**known, **shown(values)}
    assert list(read)[:4] == list(known)


@given(HOSTILE)
def test_nothing_in_a_traceback_looks_like_a_line(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        raise ValueError(text)
    told = record("failed", exc_info=(caught.type, caught.value, caught.tb))
    first, *rest = TextLines().format(told).split("\n")
    assert first.endswith(" failed")
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(re.fullmatch(r"  [ -~]*", line) for line in rest)
    assert text in json.loads(JsonLines().format(told))["traceback"]
    assert "\n" not in JsonLines().format(told)


# --- whoever reads them ---------------------------------------------------------------------------------------------


class Reader:
    """A pipe that is read when it is read."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        self.handler = Lines(self.into)
        self.handler.setFormatter(TextLines())

    def emit(self, message: str = "request", **values: Any) -> float:
        begun = time.monotonic()
        self.handler.handle(record(message, values))
        return time.monotonic() - begun

    def read(self) -> str:
        found = b""
        while select.select([self.out], [], [], 0)[0] and (octets := os.read(self.out, 65536)):
            found += octets
        return found.decode("ascii")


@pytest.fixture
def reader() -> Iterator[Reader]:
    found = Reader()
    yield found
    for file in (found.out, found.into):
        try:
            os.close(file)
        except OSError:
            continue


def test_a_reader_that_stalls_is_waited_for_once_and_told_what_it_missed(reader: Reader) -> None:
    spent = [reader.emit(number=number, padding="x" * 200) for number in range(2000)]
    assert sum(second > 0.05 for second in spent) <= 2, "one wait, and what the machine itself takes"
    assert sum(spent) < 2
    before = re.findall(r" number=(\d+)", reader.read())
    assert before == [str(number) for number in range(len(before))]
    assert 0 < len(before) < 2000
    reader.emit(number=2000)
    told, after = reader.read().splitlines()
    assert told.endswith(f"log lines dropped, their reader is too slow count={2000 - len(before)}")
    assert after.endswith("number=2000")
    reader.emit(number=2001)
    assert reader.read().count("\n") == 1


@pytest.mark.parametrize("end", ["out", "into"])
def test_a_stream_that_was_closed_fails_nobody(reader: Reader, end: str) -> None:
    os.close(getattr(reader, end))
    assert reader.emit() < 1
    assert reader.emit() < 1


def test_a_full_disk_fails_nobody() -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        handler = Lines(full.fileno())
        handler.handle(record("request"))
        handler.handle(record("request"))


def test_a_line_that_cannot_be_formatted_fails_nobody(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    reader.handler.handle(record("%d", args=("secret\nline",)))
    reader.emit("after")
    assert reader.read().endswith(" after\n")
    assert "\nline" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["text", "json"])
def test_all_that_a_process_logs_goes_the_same_way(reader: Reader, form: LogFormat) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        root.handlers = []
        log_to(reader.into, form)
        logging.getLogger("estserver.other").warning("said\n%s", "x=1")
        logging.getLogger("estserver.other").debug("not said")
    finally:
        root.handlers = handlers
        root.setLevel(level)
    (line,) = reader.read().splitlines()
    if form == "json":
        assert json.loads(line)["message"] == "said\nx=1"
    else:
        assert line.endswith(' WARNING estserver.other "said\\nx=1"')
