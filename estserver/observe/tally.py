"""Numbers that the workers of one server count, each for itself, and that any of them can read and add up.

Rules:
- Counting takes no lock and no system call: each worker writes a row of its own in memory that all of them share.
- A row belongs to who holds its lock, and a lock ends with its process, however that ends. Whoever comes next goes on
  counting where the dead left off, so that no sum ever falls; only levels (open connections) begin again at zero.
- The memory has no name and no file: nothing is left behind, and no full disk can reach it.
- A row is as large as it is: what finds no room in it any more is not counted.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import TypeAlias

Key: TypeAlias = tuple[str, ...]
"""What is counted: a name, then the values of its labels."""

ROW_BYTES = 256 * 1024
_CELL_BYTES = 8
_ROW_CELLS = ROW_BYTES // _CELL_BYTES
_USED = 0  # cell of a row: how many of its cells are in use, this one included


class Tally:
    """Make it before forking; every process that counts calls `claim` first.

    A row is a number of cells, then entries: the length of a key, the key, the value.

    Args:
        rows: how many processes can count at once.
        levels: names of keys that say how many there are of something now, and not how many there ever were.
    """

    def __init__(self, rows: int, levels: frozenset[str] = frozenset()) -> None:
        self._rows = rows
        self._levels = levels
        self._file = os.memfd_create("tally")
        os.ftruncate(self._file, rows * ROW_BYTES)
        self._octets = memoryview(mmap.mmap(self._file, rows * ROW_BYTES))
        self._cells = self._octets.cast("d")
        self._row: int | None = None
        self._mine: dict[Key, int] = {}

    def claim(self) -> bool:
        """Take a free row for this process; False when there is none: then nothing of what it does is counted."""
        self._row, self._mine = None, {}
        for row in range(self._rows):
            if self._lock(row):
                self._reset_levels(row)
                self._row, self._mine = row, dict(self._entries(row))
                return True
        return False

    def add(self, key: Key, amount: float = 1.0) -> None:
        """Count."""
        cell = self._mine.get(key) or self._new(key)
        if cell is not None:
            self._cells[cell] += amount

    def read(self) -> defaultdict[Key, float]:
        """Add up what all processes counted, the dead ones included."""
        total = defaultdict[Key, float](float)
        for row in range(self._rows):
            if row != self._row and self._lock(row):
                self._reset_levels(row)
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, row)
            for key, cell in self._entries(row):
                total[key] += self._cells[cell]
        return total

    def _lock(self, row: int) -> bool:
        """Take a row that no living process has."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row)
        except OSError:
            return False
        return True

    def _new(self, key: Key) -> int | None:
        """Begin an entry; it counts as there once `_USED` says so, after everything else was written."""
        if self._row is None:
            return None
        first = self._row * _ROW_CELLS
        text = json.dumps(key).encode()
        length = first + (int(self._cells[first + _USED]) or 1)
        value = length + 1 + -(-len(text) // _CELL_BYTES)
        if value >= first + _ROW_CELLS:
            return None
        start = (length + 1) * _CELL_BYTES
        self._octets[start : start + len(text)] = text
        self._cells[length], self._cells[value] = len(text), 0.0
        self._cells[first + _USED] = value + 1 - first
        self._mine[key] = value
        return value

    def _entries(self, row: int) -> Iterator[tuple[Key, int]]:
        """Give every key of a row and the cell of its value."""
        first = row * _ROW_CELLS
        cell, end = first + 1, first + int(self._cells[first + _USED])
        while cell < end:
            size = int(self._cells[cell])
            start = (cell + 1) * _CELL_BYTES
            value = cell + 1 + -(-size // _CELL_BYTES)
            yield tuple(json.loads(bytes(self._octets[start : start + size]))), value
            cell = value + 1

    def _reset_levels(self, row: int) -> None:
        for key, cell in self._entries(row):
            if key[0] in self._levels:
                self._cells[cell] = 0.0
