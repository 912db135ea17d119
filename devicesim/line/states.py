"""The life of a unit on the line, as a table.

    planned → keyed → drafted → enrolled → installed → verified → (labelled →) recorded → announced
    scrapped: taken off the line for ever, from wherever it stood

Rules:
- Which states a unit walks is computed once, from the station's settings (`Way`); nobody else asks what is switched on.
- A unit moves one edge at a time, in this order, and every edge may be walked again without harm.
- A failure is written beside the state the unit failed in; the next run goes on from that state.
- PASS is `recorded`: the certificate was read back from the device, the label scanned where there is one, and ledger
  row and announcement are durable.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

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
from devicesim.labels.errors import LabelFailed, ScanFailed
from devicesim.line.crew import OperatorRefused


class State(StrEnum):
    """How far a unit has come; each state is durable before the next step begins."""

    PLANNED = "planned"
    KEYED = "keyed"
    DRAFTED = "drafted"
    ENROLLED = "enrolled"
    INSTALLED = "installed"
    VERIFIED = "verified"
    LABELLED = "labelled"
    RECORDED = "recorded"
    ANNOUNCED = "announced"
    SCRAPPED = "scrapped"


ORDER: tuple[State, ...] = tuple(state for state in State if state is not State.SCRAPPED)
PASSED = frozenset({State.RECORDED, State.ANNOUNCED})
ENDED = PASSED | {State.SCRAPPED}
_OPTIONAL = frozenset({State.LABELLED})


@dataclass(frozen=True, slots=True)
class Way:
    """The states that a unit walks at this station, in order."""

    states: tuple[State, ...]

    @classmethod
    def through(cls, *optional: State) -> Self:
        """Return the way that passes the states every unit passes, and these."""
        return cls(tuple(state for state in ORDER if state not in _OPTIONAL or state in optional))

    def after(self, state: State) -> State:
        """Return what comes next; a state that is no longer on the way is behind the unit like any other."""
        return next(later for later in self.states if ORDER.index(later) > ORDER.index(state))


class FailureCode(StrEnum):
    """Why a unit did not pass; part of the interface."""

    SCAN = "E-SCAN"
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
    LABEL = "E-LABEL"
    MQTT = "E-MQTT"
    DISK = "E-DISK"
    OPERATOR = "E-OPERATOR"

    @property
    def exit_code(self) -> int:
        """What a command ends with when this stopped it."""
        return _MEANING[self][0]

    @property
    def advice(self) -> str:
        """What to do about a unit that failed with it."""
        return _MEANING[self][1]


_AGAIN = "run the batch again"
_MEANING: dict[FailureCode, tuple[int, str]] = {  # exit code, advice
    FailureCode.SCAN: (10, "scan it again; a code that cannot be read is replaced, a wrong unit set aside"),
    FailureCode.DUPLICATE: (5, "set it aside: something of it belongs to another unit; scrap one of the two"),
    FailureCode.POLICY: (7, "have the server's CSR attributes or this station's key type changed"),
    FailureCode.KEY: (8, "check the device's key store and its connection, then " + _AGAIN),
    FailureCode.CSR: (10, "the device makes wrong requests: check its firmware, then " + _AGAIN),
    FailureCode.CLOCK: (13, "set the station's clock, then " + _AGAIN),
    FailureCode.EST_NET: (6, "check the network and the EST server, then " + _AGAIN + ": nothing is lost"),
    FailureCode.EST_AUTH: (7, "check the station's certificate and its trust anchors, then " + _AGAIN),
    FailureCode.EST_DENY: (7, "have the operator of the EST server allow it, then " + _AGAIN),
    FailureCode.CERT: (10, "the CA answered with a certificate that must not be used: tell its operator"),
    FailureCode.INSTALL: (8, "check the device; if its store was replaced, re-issue the unit"),
    FailureCode.VERIFY: (10, "the device does not hold what it was given: re-issue the unit, or scrap it"),
    FailureCode.LABEL: (10, "set the label aside, print it again and scan it back"),
    FailureCode.MQTT: (9, "check the broker, then " + _AGAIN + ": what is owed is sent"),
    FailureCode.DISK: (12, "free some space or mend the disk, then " + _AGAIN),
    FailureCode.OPERATOR: (2, "have it done by somebody whom [operators] lists for it"),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit failed, for a program and for a person."""

    code: FailureCode
    text: str


_BY_ERROR: tuple[tuple[type[DeviceSimError], FailureCode], ...] = (  # the first that fits
    (OperatorRefused, FailureCode.OPERATOR),
    (LabelFailed, FailureCode.LABEL),
    (ScanFailed, FailureCode.SCAN),
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
_BY_STEP: dict[State, FailureCode] = {  # what a failed check means depends on what was being checked
    State.KEYED: FailureCode.KEY,
    State.DRAFTED: FailureCode.CSR,
    State.ENROLLED: FailureCode.CERT,
    State.INSTALLED: FailureCode.INSTALL,
    State.VERIFIED: FailureCode.VERIFY,
    State.LABELLED: FailureCode.LABEL,
}


def failure_of(error: DeviceSimError, step: State) -> Failure:
    """Name the failure of a unit that was on its way to the state `step` when `error` ended its attempt."""
    return Failure(_code_of(error, step), error.line)


def _code_of(error: DeviceSimError, step: State) -> FailureCode:
    if isinstance(error, EstRefused) and error.status in {None, 401}:
        return FailureCode.EST_AUTH
    if isinstance(error, KeyStoreError) and step in {State.INSTALLED, State.VERIFIED}:
        return _BY_STEP[step]
    if isinstance(error, VerificationFailed) and not isinstance(error, ServerNotTrusted | BadAnswer):
        return _BY_STEP.get(step, FailureCode.VERIFY)
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), FailureCode.KEY)
