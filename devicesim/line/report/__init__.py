"""The yield of a line: counted from its ledger, written for people, spreadsheets and programs, sealed by the station.

    model ← times ← tally ← counting          text · sheet · plots → page          sealed

What is counted is one value (`YieldReport`); how it is shown knows nothing of the ledger.
"""

from __future__ import annotations

from devicesim.line.report.counting import count_yield
from devicesim.line.report.model import Selection, YieldReport

__all__ = ["Selection", "YieldReport", "count_yield"]
