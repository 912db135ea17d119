"""Enrolments that are admitted in one turn of the server's loop are issued together, when the first answer is wanted.

The server calls the application for every request that has arrived, and collects the answers after that (PEP 3333 lets
an application wait with `start_response` until then). So the first answer that is looked at finds all that the turn
admitted, and one synced commit serves them all. A server that collects each answer at once has turns of one request.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flask import Response

from estserver.attempt import Admission
from estserver.errors import EstError, InternalError
from estserver.model import Issued

_log = logging.getLogger(__name__)


class Ticket:
    """One admission's place in its turn."""

    def __init__(self, turn: Turn, admission: Admission) -> None:
        self._turn = turn
        self.admission = admission
        self.outcome: Issued | EstError | None = None

    def result(self) -> Issued:
        """Return what was issued, for which the whole turn may have to be issued first.

        Raises:
            EstError: it was not.
        """
        if self.outcome is None:
            self._turn.settle()
        assert self.outcome is not None
        if isinstance(self.outcome, EstError):
            raise self.outcome
        return self.outcome


class Turn:
    """What was admitted and not yet issued; one for each application.

    Args:
        issue: `Enrollment.issue`.
    """

    def __init__(self, issue: Callable[[Sequence[Admission]], list[Issued | EstError]]) -> None:
        self._issue = issue
        self._waiting: deque[Ticket] = deque()
        self._settling = threading.Lock()

    def join(self, admission: Admission) -> Ticket:
        """Wait for the turn to be settled."""
        ticket = Ticket(self, admission)
        self._waiting.append(ticket)
        return ticket

    def settle(self) -> None:
        """Issue all that waits, and come back when none of it does any more."""
        with self._settling:
            tickets = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not tickets:
                return  # another thread has settled it meanwhile
            try:
                outcomes = self._issue([ticket.admission for ticket in tickets])
            except Exception:  # noqa: BLE001 - whatever it was, every one of these requests is to be answered
                _log.exception("issuing failed")
                outcomes = [InternalError("the certificates could not be issued")] * len(tickets)
            for ticket, outcome in zip(tickets, outcomes, strict=True):
                ticket.outcome = outcome


class Later(Response):
    """An answer that is found when the server first looks at it."""

    def __init__(self, find: Callable[[], Response]) -> None:
        super().__init__()
        self._find = find

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:  # noqa: ANN401 - PEP 3333
        """Find the answer, then give it."""
        yield from self._find()(environ, start_response)
