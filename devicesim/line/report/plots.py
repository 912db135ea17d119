"""The plots of the page, as SVG: written here, for a library of plots would be larger than the program.

Colours are classes, so that the page chooses them for light, dark and paper. Every plot also says in words what it
shows, and every bar has its figures as a title.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from devicesim.line.report.markup import Markup, inside, tag
from devicesim.line.report.tally import Figures
from devicesim.line.report.text import percent, seconds
from devicesim.line.report.times import Bar, Times

HOURS_SHOWN = 96
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 250, 44, 10, 26, 40
_INNER_HEIGHT = _HEIGHT - _TOP - _BOTTOM
_HOURS_WIDTH, _CYCLES_WIDTH = 960, 480
_LABEL_WIDTH = 34


def hours_plot(hours: Mapping[str, Figures]) -> Markup:
    """Draw the attempts of each hour, those that failed on top, and the first-pass yield over them."""
    shown = [*hours.items()][-HOURS_SHOWN:]
    top = _nice(max(part.passes + part.failures for _, part in shown))
    pitch = _inner(_HOURS_WIDTH) / max(len(shown), 6)
    parts, day = [_grid(top, _HOURS_WIDTH)], ""
    for number, (hour, part) in enumerate(shown):
        x, width = _LEFT + number * pitch + pitch * 0.12, pitch * 0.76
        title = f"{hour}: {part.passes} passed, {part.failures} failed, first pass {percent(part.first_pass_yield)}"
        good = _column(x, width, 0, part.passes, top, "good")
        bad = _column(x, width, part.passes, part.failures, top, "bad")
        parts.append(tag("g", tag("title", title), good, bad))
        if pitch >= _LABEL_WIDTH:
            high = _y(part.passes + part.failures, top) - 5
            parts.append(_text(x + width / 2, high, percent(part.first_pass_yield), "middle", "strong"))
        every = max(math.ceil(_LABEL_WIDTH / pitch), 1)
        if number % every == 0:
            parts.append(_text(x + width / 2, _HEIGHT - _BOTTOM + 15, hour[11:16], "middle"))
        if hour[:10] != day and number % every == 0:
            day = hour[:10]
            parts.append(_text(x + width / 2, _HEIGHT - _BOTTOM + 30, day[5:], "middle", "strong"))
    return _svg("hours", _HOURS_WIDTH, "Attempts in each hour, passed and failed", *parts)


def cycle_plot(bars: Sequence[Bar], cycle: Times) -> Markup:
    """Draw how long units took, with the percentiles."""
    top, pitch = _nice(max(bar.count for bar in bars)), _inner(_CYCLES_WIDTH) / len(bars)
    ends = [bar.up_to_ms for bar in bars if bar.up_to_ms is not None]
    parts, below = [_grid(top, _CYCLES_WIDTH)], 0.0
    for number, bar in enumerate(bars):
        upto = f"to {seconds(bar.up_to_ms)}" if bar.up_to_ms is not None else "and more"
        column = _column(_LEFT + number * pitch + 1, pitch - 2, 0, bar.count, top, "good")
        parts.append(tag("g", tag("title", f"{seconds(below)} {upto}: {bar.count} units"), column))
        if number % 4 == 0:
            parts.append(
                _text(_LEFT + number * pitch, _HEIGHT - _BOTTOM + 15, seconds(below) if below else "0", "middle")
            )
        below = bar.up_to_ms or below
    if not ends:
        return _svg("cycles", _CYCLES_WIDTH, "Cycle times", *parts)
    for number, (name, ms) in enumerate((("p50", cycle.p50_ms), ("p95", cycle.p95_ms), ("p99", cycle.p99_ms))):
        x, y = _LEFT + min(ms / ends[0] * pitch, _inner(_CYCLES_WIDTH)), 10 + number * 13
        parts.append(tag("line", x1=_n(x), x2=_n(x), y1=y + 2, y2=_HEIGHT - _BOTTOM, class_="mark"))
        anchor = "end" if x > _CYCLES_WIDTH * 0.75 else "start"
        parts.append(_text(x + (-4 if anchor == "end" else 4), y, f"{name} {seconds(ms)}", anchor, "strong"))
    return _svg("cycles", _CYCLES_WIDTH, "How long units took", *parts)


def share_bar(share: float, kind: str) -> Markup:
    """Draw one bar from the left, as wide as its share of the room there is."""
    return _strip([(share, kind, "")])


def steps_bar(steps: Mapping[str, Times], widest_ms: float) -> Markup:
    """Draw the mean time of each step, one behind the other."""
    return _strip(
        [
            (times.mean_ms / widest_ms, f"step-{step}", f"{step}: {seconds(times.mean_ms)} on average")
            for step, times in steps.items()
        ]
    )


def _strip(parts: Sequence[tuple[float, str, str]]) -> Markup:
    x, drawn = 0.0, []
    for share, kind, title in parts:
        words = (tag("title", title),) if title else ()
        drawn.append(tag("rect", *words, x=_n(x), y=0, width=_n(share * 1000), height=10, class_=kind))
        x += share * 1000
    return tag("svg", *drawn, viewBox="0 0 1000 10", preserveAspectRatio="none", class_="strip", aria_hidden="true")


def _svg(kind: str, width: int, title: str, *parts: Markup) -> Markup:
    drawn = tag("svg", tag("title", title), *parts, viewBox=f"0 0 {width} {_HEIGHT}", role="img", class_=f"plot {kind}")
    return tag("div", drawn, class_="scroll")


def _grid(top: float, width: int) -> Markup:
    lines = []
    for n in range(5):
        value = top * n / 4
        y = _n(_y(value, top))
        lines.append(tag("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="grid"))
        if value == int(value):
            lines.append(_text(_LEFT - 6, _y(value, top) + 4, str(int(value)), "end"))
    return inside(*lines)


def _column(x: float, width: float, below: float, count: float, top: float, kind: str) -> Markup:
    y, height = _y(below + count, top), count / top * _INNER_HEIGHT
    return tag("rect", x=_n(x), y=_n(y), width=_n(width), height=_n(height), class_=kind)


def _text(x: float, y: float, text: str, anchor: str, kind: str | None = None) -> Markup:
    return tag("text", text, x=_n(x), y=_n(y), text_anchor=anchor, class_=kind)


def _inner(width: int) -> int:
    return width - _LEFT - _RIGHT


def _y(value: float, top: float) -> float:
    return _TOP + _INNER_HEIGHT * (1 - value / top)


def _nice(value: float) -> int:
    """Return where an axis ends: a value that quarters well."""
    unit = 10 ** max(math.floor(math.log10(max(value, 1))) - 1, 0)
    return int(next(step * unit for step in (4, 8, 12, 20, 40, 60, 80, 100) if step * unit >= value))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
