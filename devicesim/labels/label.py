"""A label of one unit, drawn: as ZPL II, which the printer turns into dots itself, and as PNG.

The QR code is of model 2, error correction Q: a quarter of it may be scratched away. One dot more or less of a
module makes no difference to a reader, so a module is as many whole dots as fit.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import segno

from devicesim.labels.errors import LabelFailed
from devicesim.labels.template import Element, Template

MM_PER_INCH = 25.4
MAGNIFICATION_MAX = 10
"""Of ZPL's ^BQ."""


@dataclass(frozen=True, slots=True)
class Label:
    """A template filled in for one unit, at the resolution of a printer."""

    template: Template
    values: Mapping[str, str]
    dpi: int

    @property
    def text(self) -> str:
        """What a scanner reads from it."""
        return self.template.qr.phrase.fill(self.values)

    def zpl(self) -> str:
        """Return it as ZPL II, in UTF-8 (^CI28)."""
        template, qr = self.template, self.template.qr
        _, module = self._qr()
        code = f"^BQN,2,{min(module, MAGNIFICATION_MAX)}^FH^FDQA,{_escaped(self.text)}^FS"
        lines = [
            f"^XA^CI28^PW{self._dots(template.width_mm)}^LL{self._dots(template.height_mm)}^LH0,0",
            f"{self._origin(qr)}{code}",
        ]
        for element in template.texts:
            text = element.phrase.fill(self.values)
            lines.append(f"{self._origin(element)}^A0N,{self._dots(element.size_mm)}^FH^FD{_escaped(text)}^FS")
        return "\n".join([*lines, "^XZ\n"])

    def png(self) -> bytes:
        """Return it as PNG, black on white, one pixel a dot."""
        from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - loaded when somebody draws

        template, qr = self.template, self.template.qr
        image = Image.new("1", (self._dots(template.width_mm), self._dots(template.height_mm)), 1)
        draw = ImageDraw.Draw(image)
        code, module = self._qr()
        left, top = self._dots(qr.x_mm), self._dots(qr.y_mm)
        for row, bits in enumerate(code.matrix):
            for column, bit in enumerate(bits):
                x, y = left + column * module, top + row * module
                if bit:
                    draw.rectangle((x, y, x + module - 1, y + module - 1), fill=0)
        for element in template.texts:
            place = self._dots(element.x_mm), self._dots(element.y_mm)
            font = ImageFont.load_default(self._dots(element.size_mm))
            draw.text(place, element.phrase.fill(self.values), fill=0, font=font)
        out = io.BytesIO()
        image.save(out, "PNG", dpi=(self.dpi, self.dpi))
        return out.getvalue()

    def _qr(self) -> tuple[segno.QRCode, int]:
        """Return the code and the side of its modules, in dots."""
        code = segno.make_qr(self.text, error="q", boost_error=False)
        modules = len(code.matrix)
        side = self._dots(self.template.qr.size_mm) // modules
        if side < 2:
            raise LabelFailed(
                f"the QR code of {self.template.qr.size_mm:g} mm is too small for {len(self.text)} characters"
                f" at {self.dpi} dpi",
                advice="give it a longer side in the template, or less to say",
            )
        return code, side

    def _origin(self, element: Element) -> str:
        return f"^FO{self._dots(element.x_mm)},{self._dots(element.y_mm)}"

    def _dots(self, length_mm: float) -> int:
        return round(length_mm * self.dpi / MM_PER_INCH)


def _escaped(text: str) -> str:
    """Write field data so that nothing in it is a command: with ^FH, `_5E` is a caret."""
    return "".join(f"_{ord(c):02X}" if c in "^~_\\" else c for c in text)
