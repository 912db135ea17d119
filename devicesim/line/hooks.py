"""Who else has a say, and who else is told: the allow hook before a certificate, the done hook after a PASS.

Rules:
- No unit is asked a certificate for unless the allow hook said yes, in this very attempt; where it cannot be asked,
  `on_error` decides, and a yes that nobody said is an event of the ledger.
- What the done hook is told is written in the transaction of the PASS, under an idempotency key that never changes, and
  told in order, one after the other: what is not heard holds up what comes after it.
- With `on_error = "stop"` the line holds until it was heard, with "queue" it goes on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from cryptography import x509

from devicesim.errors import Backlog, Denied
from devicesim.line.beside import Beside
from devicesim.line.calling import Caller, HookFailed
from devicesim.line.ledger import ChainPlace, Ledger, MakePush, Push, UnitRow
from devicesim.line.settings import AllowHook, DoneHook
from devicesim.line.statements import sealing
from devicesim.line.station import Station
from devicesim.line.voice import cert_facts, unit_facts
from devicesim.line.world import World
from devicesim.mqtt.events import canonical_json, utc_text
from devicesim.mqtt.ulid import new_ulid
from devicesim.trust import TrustAnchors

BATCH_ROWS = 100
IDLE_SECONDS = 0.5
PAUSE_MAX_SECONDS = 30.0


class Unasked(Denied):
    """The allow hook could not be asked, where that means no: the next unit will fare no better."""

    code = "hook-unasked"
    advice = "have it answer again, then run the batch again"


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of a station; without any, everybody may and nobody is told."""

    ledger: Ledger
    world: World
    allow: Caller | None = None
    done: Caller | None = None
    _telling: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, station: Station, ledger: Ledger, world: World) -> Self:
        """Return the hooks that the settings name."""
        named = station.settings.hooks

        def caller(name: str, hook: AllowHook | DoneHook | None) -> Caller | None:
            if hook is None:
                return None
            trust = TrustAnchors.from_file(hook.trust) if hook.trust else station.trust
            return Caller(name, hook, station.identity, trust, sealing(station.identity, ledger.place()), world.clock)

        return cls(ledger, world, caller("allow", named.allow), caller("done", named.done))

    # --- before -----------------------------------------------------------------------------------------------------

    def admit(self, unit: UnitRow, slot: int) -> None:
        """Raise Denied unless a unit may have a certificate."""
        if self.allow is None:
            return
        body = self._body("allow", unit, slot=slot, operator=self.ledger.duty.operator)
        try:
            said = self.allow.call(body, unit.attempt_id or unit.device_id)
        except HookFailed as error:
            assert isinstance(self.allow.hook, AllowHook)
            if self.allow.hook.on_error == "deny":
                raise Unasked(str(error)) from error
            self.ledger.tell("allowed-unasked", {"device_id": unit.device_id, "text": str(error)})
            return
        if not said.yes:
            raise Denied(f"the allow hook denies {unit.device_id}" + (f": {said.words}" if said.words else ""))

    # --- after ------------------------------------------------------------------------------------------------------

    def push_of(self, unit: UnitRow) -> MakePush | None:
        """Return what makes the push of a PASS while it is written; None when nobody is told."""
        if self.done is None or unit.certificate is None:
            return None
        cert = cert_facts(x509.load_der_x509_certificate(unit.certificate))

        def make(place: ChainPlace) -> Push:
            key = new_ulid(self.world.clock(), self.world.randomness)
            facts = {"id": key, "outcome": "pass", "generation": unit.generation, "cert": cert, "at": self._at()}
            ledger = {"seq": place.seq, "head": place.head}
            body = self._body("done", unit, **facts, spki_sha256=unit.spki_sha256, label=unit.label, ledger=ledger)
            return Push(key, unit.device_id, body)

        return make

    def hold(self) -> None:
        """Where the line stops for it, raise Backlog unless every PASS so far was heard of."""
        if self.done is not None and isinstance(self.done.hook, DoneHook) and self.done.hook.on_error == "stop":
            reason = self.tell()
            if reason is not None:
                raise Backlog(
                    f"{self.ledger.pushes_owed()} PASSes are still to be told: {reason}",
                    advice="they stay owed, and are told first when the line runs again",
                )

    def tell(self) -> str | None:
        """Tell every PASS that is owed, in order; return why it ended before the last."""
        if self.done is None:
            return None
        with self._telling:
            while waiting := self.ledger.pushes(BATCH_ROWS):
                for push in waiting:
                    reason = self._told(self.done, push)
                    self.ledger.settle_push(push, reason)
                    if reason is not None:
                        return reason
        return None

    def _told(self, done: Caller, push: Push) -> str | None:
        try:
            said = done.call(push.body, push.id)
        except HookFailed as error:
            return str(error)
        return None if said.yes else f"the done hook refuses {push.device_id}: {said.words or 'no word why'}"

    def _body(self, event: str, unit: UnitRow, **more: object) -> str:
        facts: Mapping[str, Any] = {
            "event": event,
            **self.ledger.place(),
            **unit_facts(unit),
            **{name: unit.facts[name] for name in ("mac", "se_id", "group")},
            "attrs": json.loads(unit.facts["attrs_json"]),
            **more,
        }
        return canonical_json(
            {name: value for name, value in facts.items() if value is not None and value != ""}
        ).decode()

    def _at(self) -> str:
        return utc_text(self.world.clock().replace(microsecond=0))


class Telling(Beside):
    """Tells what is owed while its context lasts, then once more; with pauses that grow while nobody hears."""

    def __init__(self, hooks: Hooks) -> None:
        super().__init__("telling")
        self._hooks = hooks
        self.reason: str | None = None

    def work(self) -> None:
        """Tell now and then."""
        pause = IDLE_SECONDS
        while not self.ended.wait(pause):
            self.reason = self._hooks.tell()
            pause = min(pause * 2, PAUSE_MAX_SECONDS) if self.reason else IDLE_SECONDS

    def finish(self) -> None:
        """Tell once more."""
        self.reason = self._hooks.tell()
