"""Why a unit is reworked: a closed list, part of the interface (docs/line-engineer.md)."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a unit is tried again, re-issued or scrapped."""

    STATION_FAULT = "station-fault"
    NETWORK_FAULT = "network-fault"
    OPERATOR_ERROR = "operator-error"
    WRONG_DATA = "wrong-data"
    LABEL_DAMAGED = "label-damaged"
    COMPONENT_REPLACED = "component-replaced"
    KEY_LOST = "key-lost"
    KEY_COMPROMISED = "key-compromised"
    TEST_FAILED = "test-failed"
    DAMAGED = "damaged"
    LOST = "lost"
    RETURNED = "returned"
    OTHER = "other"

    @property
    def text(self) -> str:
        """What it means."""
        return _TEXTS[self]


_TEXTS: dict[Reason, str] = {
    Reason.STATION_FAULT: "the station or its fixture was at fault, not the unit",
    Reason.NETWORK_FAULT: "the network, the EST server or the broker was at fault",
    Reason.OPERATOR_ERROR: "it was handled wrongly",
    Reason.WRONG_DATA: "serial, model or another fact of the unit is wrong",
    Reason.LABEL_DAMAGED: "its label is damaged or missing",
    Reason.COMPONENT_REPLACED: "a part that holds identity was replaced: board, secure element, flash",
    Reason.KEY_LOST: "its key store was erased or cannot be read",
    Reason.KEY_COMPROMISED: "its key may be known to somebody else",
    Reason.TEST_FAILED: "it failed a test after this station",
    Reason.DAMAGED: "it is broken",
    Reason.LOST: "it cannot be found",
    Reason.RETURNED: "it came back from further down the line or from a customer",
    Reason.OTHER: "none of these: a note says what",
}
