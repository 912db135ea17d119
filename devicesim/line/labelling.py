"""The labels of a station: what a unit's label says, where it comes out, and how it is read back.

Rules:
- What identifies a unit on its label is read from the device's own store, at the print and again at the scan; the order
  gives what no device knows.
- Printed first and written down after: a crash between the two prints the same label again, never another one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from devicesim.csr import spki
from devicesim.errors import VerificationFailed
from devicesim.labels.label import Label
from devicesim.labels.printer import Printer, open_printer
from devicesim.labels.template import OF_THE_ORDER, Template, load_template
from devicesim.line.ledger import UnitRow
from devicesim.line.settings import Labelling, Settings, Site
from devicesim.mqtt.connection import common_name

Scan = Callable[[int, str], str | None]
"""Waits for what a scanner reads on the label of the unit in a slot: slot, device id → text, or None when the label is
to be printed once more. Raises ScanFailed."""


@dataclass(frozen=True)
class Labels:
    """Makes, prints and checks labels; safe for several slots.

    Attributes:
        scan: reads a label back; None where labels are not scanned.
    """

    site: Site
    template: Template
    printer: Printer
    dpi: int
    scan: Scan | None = None
    _mutex: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def of(self, unit: UnitRow, certificate: x509.Certificate) -> Label:
        """Return the label of a unit whose device holds this certificate."""
        order = {name: unit.facts.get(name, "") for name in OF_THE_ORDER}
        here = {"batch": unit.batch, "site": self.site.id, "line": self.site.line, "station": self.site.station}
        return Label(self.template, {**order, **here, **said_by(certificate)}, self.dpi)

    def print(self, device_id: str, label: Label) -> None:
        """Print a label, one at a time."""
        with self._mutex:
            self.printer.print(device_id, label)


def label_shape(settings: Settings) -> re.Pattern[str] | None:
    """Return what a label that is scanned back looks like; None where none is."""
    if settings.label is None or not settings.label.scan_back:
        return None
    return load_template(settings.label.template).qr.phrase.shape()


def open_labels(settings: Labelling, site: Site, scan: Scan | None = None) -> Labels:
    """Return the labels of a station's settings; a template that is wrong is an InputInvalid."""
    template = load_template(settings.template)
    return Labels(site, template, open_printer(settings.printer), settings.dpi, scan if settings.scan_back else None)


def said_by(certificate: x509.Certificate) -> Mapping[str, str]:
    """Return what a device says of itself by the certificate it holds."""
    return {
        "device_id": common_name(certificate) or "",
        "cert_serial": f"{certificate.serial_number:x}",
        "cert_sha256": sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        "spki_sha256": sha256(spki(certificate)).hexdigest(),
        "not_before": f"{certificate.not_valid_before_utc:%Y-%m-%d}",
        "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
    }


def check_label(label: str, said: str, device_id: str) -> None:
    """Raise VerificationFailed, naming both, unless a label says what its device says."""
    if label != said:
        raise VerificationFailed(
            f"wrong label on {device_id}: the label says {label!r}, the device says {said!r}",
            advice="set the label aside, print the right one again and scan it back",
        )
