"""The ledger of a station: one SQLite file, and the only SQL of the line.

    disk → schema → chain → rows → writing → guards · pushes → intake · edges · rework · checkpoints → ledger

Each room is functions over one open transaction; `Ledger` opens the transactions.
"""

from __future__ import annotations

from devicesim.line.ledger.chain import ChainPlace, EventRow
from devicesim.line.ledger.edges import BirthFacts
from devicesim.line.ledger.ledger import Ledger
from devicesim.line.ledger.pushes import MakePush, Push
from devicesim.line.ledger.rework import Why
from devicesim.line.ledger.rows import AttemptRow, RevocationRow, SupersededRow, UnitRow
from devicesim.line.ledger.writing import Announce, Announcement, Told

__all__ = [
    "Announce",
    "Announcement",
    "AttemptRow",
    "BirthFacts",
    "ChainPlace",
    "EventRow",
    "Ledger",
    "MakePush",
    "Push",
    "RevocationRow",
    "SupersededRow",
    "Told",
    "UnitRow",
    "Why",
]
