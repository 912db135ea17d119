"""Work that goes on beside the line, in a thread of its own, for as long as a context lasts."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self


class Beside:
    """A thread that is waited for at the end; what went wrong in it is raised there, unless something else was."""

    def __init__(self, name: str) -> None:
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._watched, name=name, daemon=True)
        self._fault: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._thread.join()
        if error is not None:
            return
        if self._fault is not None:
            raise self._fault
        self.finish()

    def work(self) -> None:
        """Do what there is to do until `ended` is set."""
        raise NotImplementedError

    def finish(self) -> None:
        """Do what is left, in the thread that waited; nothing went wrong before."""

    def failed(self) -> None:
        """Hear, in the thread itself, that the work has failed."""

    def _watched(self) -> None:
        try:
            self.work()
        except Exception as fault:  # noqa: BLE001 - raised by __exit__, in the thread that waits
            self._fault = fault
            self.failed()
