"""The life of a unit on the line, as a table.

    planned → keyed → drafted → enrolled → installed → verified → recorded → announced

Rules:
- A unit moves one edge at a time, in this order, and every edge may be walked again without harm.
- A failure is written beside the state the unit failed in; the next run goes on from that state.
- PASS is `recorded`: the certificate was read back from the device, and ledger row and announcement are durable.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from devicesim.errors import (
    BadAnswer,
    CannotComply,
    ClockUntrustworthy,
    ConfigInvalid,
    Conflict,
    DeviceSimError,
    EstRefused,
    KeyStoreError,
    Locked,
    ServerNotTrusted,
    StorageError,
    Unreachable,
    VerificationFailed,
)


class State(StrEnum):
    """How far a unit has come; each state is durable before the next step begins."""

    PLANNED = "planned"
    KEYED = "keyed"
    DRAFTED = "drafted"
    ENROLLED = "enrolled"
    INSTALLED = "installed"
    VERIFIED = "verified"
    RECORDED = "recorded"
    ANNOUNCED = "announced"


ORDER: tuple[State, ...] = tuple(State)
NEXT: dict[State, State] = dict(pairwise(ORDER))
PASSED = frozenset({State.RECORDED, State.ANNOUNCED})


class FailureCode(StrEnum):
    """Why a unit did not pass; part of the interface."""

    DUPLICATE = "E-DUP"
    POLICY = "E-POLICY"
    KEY = "E-KEY"
    CSR = "E-CSR"
    CLOCK = "E-CLOCK"
    EST_NET = "E-EST-NET"
    EST_AUTH = "E-EST-AUTH"
    EST_DENY = "E-EST-DENY"
    CERT = "E-CERT"
    INSTALL = "E-INSTALL"
    VERIFY = "E-VERIFY"
    MQTT = "E-MQTT"
    DISK = "E-DISK"

    @property
    def exit_code(self) -> int:
        """What a command ends with when this stopped it."""
        return _EXIT_CODES[self]


_EXIT_CODES: dict[FailureCode, int] = {
    FailureCode.DUPLICATE: 5,
    FailureCode.POLICY: 7,
    FailureCode.KEY: 8,
    FailureCode.CSR: 10,
    FailureCode.CLOCK: 13,
    FailureCode.EST_NET: 6,
    FailureCode.EST_AUTH: 7,
    FailureCode.EST_DENY: 7,
    FailureCode.CERT: 10,
    FailureCode.INSTALL: 8,
    FailureCode.VERIFY: 10,
    FailureCode.MQTT: 9,
    FailureCode.DISK: 12,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit failed, for a program and for a person."""

    code: FailureCode
    text: str


_BY_ERROR: tuple[tuple[type[DeviceSimError], FailureCode], ...] = (  # the first that fits
    (Conflict, FailureCode.DUPLICATE),
    (CannotComply, FailureCode.POLICY),
    (ClockUntrustworthy, FailureCode.CLOCK),
    (Unreachable, FailureCode.EST_NET),
    (ServerNotTrusted, FailureCode.EST_AUTH),
    (EstRefused, FailureCode.EST_DENY),
    (ConfigInvalid, FailureCode.EST_AUTH),
    (KeyStoreError, FailureCode.KEY),
    (Locked, FailureCode.KEY),
    (StorageError, FailureCode.DISK),
    (BadAnswer, FailureCode.CERT),
)
_BY_STATE: dict[State, FailureCode] = {  # what a failed check means depends on what was being checked
    State.PLANNED: FailureCode.KEY,
    State.KEYED: FailureCode.CSR,
    State.DRAFTED: FailureCode.CERT,
    State.ENROLLED: FailureCode.INSTALL,
    State.INSTALLED: FailureCode.VERIFY,
    State.VERIFIED: FailureCode.VERIFY,
}


def failure_of(error: DeviceSimError, state: State) -> Failure:
    """Name the failure of a unit that was in `state` when `error` ended its attempt."""
    return Failure(_code_of(error, state), error.line)


def _code_of(error: DeviceSimError, state: State) -> FailureCode:
    if isinstance(error, EstRefused) and error.status in {None, 401}:
        return FailureCode.EST_AUTH
    if isinstance(error, KeyStoreError) and state in {State.ENROLLED, State.INSTALLED}:
        return _BY_STATE[state]
    if isinstance(error, VerificationFailed) and not isinstance(error, ServerNotTrusted | BadAnswer):
        return _BY_STATE.get(state, FailureCode.VERIFY)
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), FailureCode.KEY)
