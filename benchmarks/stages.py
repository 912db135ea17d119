"""`estserver serve` with a clock at every stage of an enrolment: `stages.py REPORT.json WARM_UP serve …`.

Functions of the server are wrapped in this process before it forks its worker; the server's own code knows nothing of
it. Every stage counts its own time alone: what a stage within it uses is subtracted. Two clocks run, the CPU time of
the thread and the time on the wall; they part where the worker waits, for sockets or for the disk. The clocks
themselves cost something, and it is in the numbers: compare the total with that of a server without them.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Stage(NamedTuple):
    """One row: what it is called, and the function that it is, as `module:attribute` or `module:Class.attribute`.

    Before the colon is the room. A label that begins with `+` is a part of whatever room it happens in.
    """

    label: str
    where: str


STAGES = (
    Stage("front: accept", "estserver.serving.worker:FrontWorker._accept"),
    Stage("front: HTTP head", "estserver.serving.connection:Request"),
    Stage("front: environ", "estserver.serving.connection:Connection.environ"),
    Stage("front: who is the peer", "estserver.serving.connection:peer_of"),
    Stage("front: format the answer", "estserver.serving.worker:format_answer"),
    Stage("front: close", "estserver.serving.worker:FrontWorker._drop"),
    Stage("front: the loop", "estserver.serving.worker:FrontWorker._turn"),
    Stage("waiting for sockets", "selectors:DefaultSelector.select"),
    Stage("Flask glue", "estserver.serving.worker:Call.collect"),
    Stage("Flask glue", "estserver.serving.worker:Call"),
    Stage("enroll: admit", "estserver.enroll:Enrollment.admit"),
    Stage("enroll: issue", "estserver.enroll:Enrollment.issue"),
    Stage("parse: base64", "estserver.asn1:decode_body"),
    Stage("parse: CSR", "estserver.csr:parse"),
    Stage("parse: take it apart", "estserver.asn1:request_parts"),
    Stage("parse: proof of possession", "estserver.csr:_verify"),
    Stage("identity", "estserver.identity:Authenticator.identify"),
    Stage("identity: find the certificate", "estserver.inventory:Inventory.certificate"),
    Stage("identity: find the station", "estserver.inventory:Inventory.station"),
    Stage("identity: path validation", "estserver.identity.paths:AnchorSet.path"),
    Stage("channel binding", "estserver.binding:check"),
    Stage("policy", "estserver.enroll:decide"),
    Stage("reserve", "estserver.inventory:Inventory.reserve_all"),
    Stage("sign", "estserver.ca:IssuingCa.issue"),
    Stage("sign: read back and compare", "estserver.ca:IssuingCa._compare"),
    Stage("announce: make the event", "estserver.events:issued"),
    Stage("record", "estserver.inventory:Inventory.record_all"),
    Stage("encode", "estserver.asn1:certs_only"),
    Stage("encode", "estserver.asn1:encode_body"),
    Stage("+audit row", "estserver.inventory.audit:append"),
    Stage("+outbox row", "estserver.inventory.outbox:add"),
    Stage("+begin", "estserver.inventory.database:_begin"),
    Stage("+commit", "estserver.inventory.database:_commit"),
    Stage("+statements", "estserver.inventory.prepared:Prepared.one"),
    Stage("+statements", "estserver.inventory.prepared:Prepared.all"),
    Stage("+statements", "estserver.inventory.prepared:Prepared.run"),
)
STEPS = {"HANDSHAKE": "front: handshake", "IDLE": "front: receive", "HEAD": "front: receive", "BODY": "front: receive",
         "ANSWER": "front: send", "LINGER": "front: close"}  # fmt: skip
"""The connection keeps its steps in a table by phase: these are wrapped there."""


class Clock:
    """Time by stage, each its own alone."""

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._cpu = self._wall = 0
        self.forget()

    def forget(self) -> None:
        """Begin again: what came before was warming up."""
        self.calls: dict[str, int] = {}
        self.cpu_ns: dict[str, int] = {}
        self.wall_ns: dict[str, int] = {}

    def enter(self, label: str) -> None:
        """Begin a stage, within the one that is on."""
        self._settle()
        if label.startswith("+"):
            label = f"{self._stack[-1].partition(' +')[0].partition(':')[0] if self._stack else 'start'} {label}"
        self._stack.append(label)
        self.calls[label] = self.calls.get(label, 0) + 1

    def leave(self) -> None:
        """End the stage that is on."""
        self._settle()
        self._stack.pop()

    def _settle(self) -> None:
        """Put the time since the last look on the account of the stage that is on."""
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        if self._stack:
            top = self._stack[-1]
            self.cpu_ns[top] = self.cpu_ns.get(top, 0) + cpu - self._cpu
            self.wall_ns[top] = self.wall_ns.get(top, 0) + wall - self._wall
        self._cpu, self._wall = cpu, wall

    def wrap(self, label: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function a stage."""

        @functools.wraps(inner, updated=())
        def timed(*args: Any, **named: Any) -> Any:  # noqa: ANN401  (whatever the stage takes and gives)
            self.enter(label)
            try:
                return inner(*args, **named)
            finally:
                self.leave()

        return timed

    def report(self, requests: int) -> dict[str, Any]:
        """Return all that was counted, for so many requests."""
        return {"requests": requests, "calls": self.calls, "cpu_ns": self.cpu_ns, "wall_ns": self.wall_ns}


def instrument(clock: Clock, report: Path, warm_up: int) -> None:
    """Wrap every stage; the worker writes the report when it ends, about the requests after the first `warm_up`."""
    from estserver.serving.connection import Connection, Phase  # noqa: PLC0415  (what is wrapped is loaded here)
    from estserver.serving.worker import FrontWorker  # noqa: PLC0415  (as above)

    for label, where in STAGES:
        module, _, path = where.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, name, clock.wrap(label, getattr(owner, name)))
    steps = vars(Connection)["_STEPS"]
    steps.update({Phase[phase]: clock.wrap(label, steps[Phase[phase]]) for phase, label in STEPS.items()})
    gc.callbacks.append(lambda phase, _: clock.enter("garbage collection") if phase == "start" else clock.leave())
    _count(clock, FrontWorker, report, warm_up)


def _count(clock: Clock, worker: type, report: Path, warm_up: int) -> None:
    serve, run = vars(worker)["_serve"], vars(worker)["run"]
    served = before = 0

    def counted(self: object, ready: Sequence[object]) -> None:
        nonlocal served, before
        if served < warm_up <= served + len(ready):
            clock.forget()
            before = served
        served += len(ready)
        serve(self, ready)

    def reported(self: object) -> None:
        run(self)
        report.write_text(json.dumps(clock.report(served - before)))

    setattr(worker, "_serve", counted)  # noqa: B010  (not a name to write: the class is not ours)
    setattr(worker, "run", reported)  # noqa: B010  (as above)


def main() -> None:
    report, warm_up, *arguments = sys.argv[1:]
    from estserver.cli import main as estserver  # noqa: PLC0415  (it reads the arguments when it is called)

    instrument(Clock(), Path(report), int(warm_up))
    sys.argv = ["estserver", *arguments]
    estserver()


if __name__ == "__main__":
    main()
