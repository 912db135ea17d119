"""The report as one page of HTML: nothing is loaded, nothing runs; light, dark, narrow and on paper.

Its content security policy allows its own style and nothing else, so that even what would slip past the escaping
could do nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.resources import files

from devicesim.line.report.markup import Markup, inside, tag
from devicesim.line.report.model import YieldReport, zone_name
from devicesim.line.report.plots import HOURS_SHOWN, cycle_plot, hours_plot, share_bar, steps_bar
from devicesim.line.report.tally import Figures
from devicesim.line.report.text import NOBODY, PART_HEADER, part_row, percent, seconds

PARTS_SHOWN = HOURS_SHOWN
_GOOD, _FAIR = 0.98, 0.9
_TITLES = {
    "shift": "Shifts",
    "operator": "Operators",
    "station": "Stations",
    "slot": "Slots",
    "product": "Products",
    "hour": "Hours",
}
_TERMS = (
    ("First-pass yield", "of the units whose first attempt has ended, those that passed at it"),
    ("Final yield", "of the units that passed, failed or were scrapped, those that stand as passed now"),
    ("Rework", "units that needed more than one attempt, also those re-issued after a PASS"),
    ("Cycle time", "all attempts that led to one PASS, without the waits between them"),
    ("EST's share", "the step that enrols, of the time of all steps"),
    ("Units per hour", "PASSes in the time at work; pauses of more than 15 minutes are no work"),
    ("By operator, slot …", "attempts by who made them; passed and failed units by who made the last attempt"),
)


def yield_page(report: YieldReport) -> bytes:
    """Write a report as a page."""
    style = files(__package__).joinpath("page.css").read_text("utf-8")
    digest = base64.b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"Yield of {report.title()}"),
        tag("style", Markup(style)),  # our own file: it holds no "<"
    )
    body = tag("body", tag("header", *_header(report)), tag("main", *_main(report)), _footer(report))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n".encode()


def _header(report: YieldReport) -> Iterator[Markup]:
    place = report.place
    yield tag("h1", f"Yield of {report.title()}")
    where = f"Site {place['site']}, line {place['line']}, station {place['station']}"
    yield tag("p", f"{where} · made {report.local(report.made_at)} · times in {zone_name(report.zone)}", class_="quiet")


def _main(report: YieldReport) -> Iterator[Markup]:
    total = report.total
    yield _tiles(report)
    if any(part.passes + part.failures for part in report.by["hour"].values()):
        more = max(len(report.by["hour"]) - HOURS_SHOWN, 0)
        note = (tag("p", f"The last {HOURS_SHOWN} hours; {more} before them.", class_="quiet small"),) if more else ()
        key = tag("div", *_key("good", "passed"), *_key("bad", "failed"), class_="legend")
        yield _section("Attempts in each hour, with the first-pass yield", key, hours_plot(report.by["hour"]), *note)
    if total.cycle_ms or report.failures:
        spread = cycle_plot(report.spread, total.cycle_ms) if total.cycle_ms else tag("p", "No unit passed.")
        yield tag(
            "div", _section("Why attempts failed", _pareto(report)), _section("Cycle times", spread), class_="two"
        )
    if total.steps_ms:
        yield _section("Where the time goes", *_steps(report))
    if report.units:
        yield _section("Units that did not pass", *_units(report), class_="long")
    for name, title in _TITLES.items():
        parts = report.by[name]
        if parts and [*parts] != [""]:
            yield _section(title, *_parts(name, parts), class_="long")


def _tiles(report: YieldReport) -> Markup:
    total, orders, cycle = report.total, report.orders, report.total.cycle_ms
    pending = f"{total.failed} failed, {total.scrapped} scrapped, {total.waiting} waiting"
    tiles = [
        _tile("First-pass yield", percent(total.first_pass_yield), f"{total.first_pass} of {total.first_tried} units",
              f"lead {_judged(total.first_pass_yield)}"),
        _tile("Final yield", percent(total.final_yield), f"{total.passed} passed, {pending}",
              f"lead {_judged(total.final_yield)}"),
        _tile("Attempted", f"{total.units}", f"of {report.planned} units, {total.attempts} attempts"),
        _tile("Rework", percent(total.rework_rate),
              f"{total.reworked} units; {orders.retry} retries, {orders.reissue} re-issues"),
        _tile("Scrapped", f"{total.scrapped}", ", ".join(f"{name} {n}" for name, n in orders.reasons.items())),
        _tile("Units per hour", f"{total.per_hour:.0f}" if total.per_hour else NOBODY,
              f"{seconds(total.at_work_seconds * 1000)} at work"),
    ]  # fmt: skip
    if cycle:
        rest = f"p95 {seconds(cycle.p95_ms)}, p99 {seconds(cycle.p99_ms)}"
        tiles.append(_tile("Cycle time, p50", seconds(cycle.p50_ms), rest))
    enrolled = total.steps_ms.get("enrolled")
    told = f"enrolment p50 {seconds(enrolled.p50_ms)}, p99 {seconds(enrolled.p99_ms)}" if enrolled else ""
    tiles.append(_tile("EST's share", percent(total.est_share), told))
    return tag("div", *tiles, class_="tiles")


def _tile(name: str, value: str, told: str, kind: str = "") -> Markup:
    return tag(
        "div", tag("span", name, class_="name"), tag("b", value), tag("span", told), class_=f"tile {kind}".rstrip()
    )


def _judged(share: float | None) -> str:
    return "" if share is None else "ok" if share >= _GOOD else "warn" if share >= _FAIR else "wrong"


def _pareto(report: YieldReport) -> Markup:
    if not report.failures:
        return tag("p", "No attempt failed.", class_="quiet")
    most = report.failures[0].attempts
    rows = [
        (
            tag("td", inside(tag("b", fault.code), f" → {fault.step}" if fault.step else "")),
            tag("td", share_bar(fault.attempts / most, "bad"), class_="bar"),
            tag("td", f"{fault.attempts} on {fault.units} units", class_="tight"),
            tag("td", f"{percent(fault.upto)} so far", class_="tight quiet"),
        )
        for fault in report.failures
    ]
    advice = {fault.code: fault.advice for fault in report.failures[:5]}
    told = [inside(tag("dt", code), tag("dd", text)) for code, text in advice.items()]
    table = tag("table", *(tag("tr", *row) for row in rows), class_="words")
    return inside(
        tag("p", "Code → the step that failed", class_="quiet small"), table, tag("dl", *told, class_="small")
    )


def _steps(report: YieldReport) -> Iterator[Markup]:
    total = report.total
    yield tag("div", *(each for step in total.steps_ms for each in _key(f"step-{step}", step)), class_="legend")
    parts = {"all": total, **{f"slot {slot}": part for slot, part in report.by["slot"].items()}}
    parts = {name: part for name, part in [*parts.items()][:17] if part.steps_ms}
    sums = {name: sum(t.mean_ms for t in part.steps_ms.values()) for name, part in parts.items()}
    widest = max(sums.values()) or 1.0
    rows = [
        tag(
            "tr",
            tag("td", name),
            tag("td", steps_bar(part.steps_ms, widest), class_="bar wide"),
            tag("td", seconds(sums[name]), class_="tight"),
        )
        for name, part in parts.items()
    ]
    yield tag("table", *rows)
    yield tag("p", "The mean of each step, one behind the other.", class_="quiet small")
    times = [
        (step, str(t.count), *(seconds(ms) for ms in (t.mean_ms, t.p50_ms, t.p95_ms, t.p99_ms, t.max_ms)))
        for step, t in total.steps_ms.items()
    ]
    yield _table(("step", "count", "mean", "p50", "p95", "p99", "max"), times)


def _parts(name: str, parts: Mapping[str, Figures]) -> Iterator[Markup]:
    rows = [(value or NOBODY, *part_row(part)) for value, part in [*parts.items()][-PARTS_SHOWN:]]
    yield _table((name, *PART_HEADER), rows)
    if len(parts) > len(rows):
        yield tag("p", f"The last {len(rows)}; {len(parts) - len(rows)} before them.", class_="quiet small")


def _units(report: YieldReport) -> Iterator[Markup]:
    header = ("Unit", "Outcome", "Reason", "Next", "Last attempt")
    rows = []
    for unit in report.units:
        what = f"{unit.outcome} {unit.code}".strip() + (f" → {unit.step}" if unit.step else "")
        named = inside(
            tag("b", unit.device_id), tag("br"), tag("span", f"{unit.serial} · {unit.batch}", class_="quiet")
        )
        slot = "" if unit.slot is None else f"slot {unit.slot}"
        made = ", ".join(filter(None, (f"no. {unit.attempts}" if unit.attempts else "none", unit.operator, slot)))
        cells = (unit.reason, unit.next, made)
        kind = "wrong" if unit.outcome == "fail" else None
        rows.append(tag("tr", tag("td", named), tag("td", what, class_=kind), *(tag("td", cell) for cell in cells)))
    head = tag("thead", tag("tr", *(tag("th", name) for name in header)))
    yield tag("div", tag("table", head, tag("tbody", *rows), class_="words"), class_="scroll")
    if report.units_left_out:
        yield tag("p", f"And {report.units_left_out} more.", class_="quiet small")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Markup:
    head = tag("thead", tag("tr", *(tag("th", name) for name in header)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", head, body), class_="scroll")


def _key(kind: str, name: str) -> tuple[Markup, ...]:
    square = tag("rect", width=10, height=10, class_=kind)
    return (tag("span", tag("svg", square, viewBox="0 0 10 10", class_="key", aria_hidden="true"), name),)


def _section(title: str, *parts: str, class_: str | None = None) -> Markup:
    return tag("section", tag("h2", title), *parts, class_=class_)


def _footer(report: YieldReport) -> Markup:
    terms = [inside(tag("dt", term), tag("dd", meaning)) for term, meaning in _TERMS]
    head = report.head
    ledger = inside("Ledger: event ", str(head.seq), ", head ", tag("code", head.head))
    signed = f"The station's last checkpoint stands over {report.signed_up_to} events."
    return tag("footer", tag("dl", *terms), tag("p", ledger), tag("p", signed), class_="small")
