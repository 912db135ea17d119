"""What this room raises on purpose."""

from __future__ import annotations


class CannotServe(OSError):
    """The server cannot start or reload: one line, what happened and what to do."""


class Refusal(Exception):
    """A request the front answers itself: the application never sees it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
