"""What can go wrong with a label."""

from __future__ import annotations

from devicesim.errors import DeviceSimError


class LabelFailed(DeviceSimError):
    """A label could not be made or printed (E-LABEL)."""

    code = "label"
    exit_code = 10
    advice = "check the template and the printer"


class ScanFailed(DeviceSimError):
    """Nothing that could be used came from the scanner (E-SCAN)."""

    code = "scan"
    exit_code = 10
    advice = "check the scanner, and scan it again"
