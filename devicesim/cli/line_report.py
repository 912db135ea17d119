"""`devicesim line report`: the yield, for the terminal, a program, a spreadsheet, a screen; signed."""

from __future__ import annotations

from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import click

from devicesim.cli import now
from devicesim.cli.line_files import CONFIG, FILE
from devicesim.cli.line_people import opened
from devicesim.cli.options import echo_json, json_option
from devicesim.durable import write_whole
from devicesim.errors import UsageProblem
from devicesim.line.assembly import take_the_seal
from devicesim.line.findings import read_bounded
from devicesim.line.ledger.disk import stamp
from devicesim.line.report import Selection, count_yield
from devicesim.line.report.sealed import REPORT_MAX_BYTES, sealed_json, sealed_page, verify_report
from devicesim.line.report.sheet import yield_csv
from devicesim.line.report.text import yield_text
from devicesim.line.station import Station
from devicesim.trust import TrustAnchors


class _ShowFirst(click.Group):
    """A group whose command may be left out: `report BATCH` is `report show BATCH`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ShowFirst)
def report() -> None:
    """Show the yield of batches or of a span of time, and verify a report that was signed.

    \b
    devicesim line report 2026w48-a --config station/line.toml
    devicesim line report --since 2026-11-24T06:00 --until 2026-11-24T14:00 --html shift.html
    devicesim line report verify shift.html --trust root.pem
    """


@report.command()
@click.argument("batch_ids", metavar="[BATCH]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every batch of this station.")
@click.option(
    "--since", metavar="TIME", help="Attempts from then on: 2026-11-24, 2026-11-24T06:00, of the site's clock."
)
@click.option("--until", metavar="TIME", help="Attempts before that.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: the whole, each part, each kind of failure.")
@click.option("--html", "page", type=FILE, metavar="FILE", help="Write one page with plots, with the station's seal.")
@click.option("--sealed", type=FILE, metavar="FILE", help="Write the JSON, signed by the station.")
@CONFIG
@json_option
def show(
    batch_ids: tuple[str, ...],
    everything: bool,
    since: str | None,
    until: str | None,
    as_csv: bool,
    page: Path | None,
    sealed: Path | None,
    config: Path,
    as_json: bool,
) -> None:
    """Show what became of batches, from the ledger: yield, failures, times; by operator, shift, slot, hour.

    \b
    Example:
      devicesim line report 2026w48-a --config station/line.toml
      devicesim line report --all --since 2026-11-24 --html yield.html --config station/line.toml
    """
    if not (batch_ids or everything or since or until) or (batch_ids and everything):
        raise UsageProblem("name batches, or a span with --since and --until, or --all")
    if as_csv and as_json:
        raise UsageProblem("--csv and --json are two forms of one output", advice="choose one")
    with opened(config) as (settings, ledger):
        shifts = settings.site.calendar()
        span = moment("--since", since, shifts.zone), moment("--until", until, shifts.zone)
        if span[0] and span[1] and span[0] >= span[1]:
            raise UsageProblem("--since is not before --until")
        if page or sealed:
            take_the_seal(ledger, Station.load(settings, file=config))
            ledger.checkpoint()
        made = count_yield(ledger, Selection(tuple(dict.fromkeys(batch_ids)), *span), now=now(), shifts=shifts)
        if page and ledger.seal:
            write_whole(page, sealed_page(made, ledger.seal))
        if sealed and ledger.seal:
            write_whole(sealed, sealed_json(made, ledger.seal))
    if as_json:
        echo_json(made.to_dict())
    elif as_csv:
        click.echo(yield_csv(made), nl=False)
    else:
        click.echo(yield_text(made))
    for path in (page, sealed):
        if path:
            click.echo(f"wrote {path}", err=True)


@report.command()
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--trust", type=FILE, required=True, help="The trust anchor of the station's certificate.")
@json_option
def verify(file: Path, trust: Path, as_json: bool) -> None:
    """Verify a report that was written with --html or --sealed: who signed it, when, over which ledger.

    \b
    Example:
      devicesim line report verify shift.html --trust root.pem
    """
    found = verify_report(read_bounded(file, REPORT_MAX_BYTES), TrustAnchors.from_file(trust))
    ledger: dict[str, Any] = found.fields["ledger"]
    if as_json:
        echo_json({"form": found.form, "station": found.station, "signed_at": stamp(found.at), "report": found.fields})
        return
    click.echo(f"{file}: yield of {found.title}, as station {'/'.join(found.station.values())} signed it")
    click.echo(f"at {stamp(found.at)}, of the ledger at {ledger['seq']}:{ledger['head']}")


def moment(option: str, text: str | None, zone: tzinfo) -> datetime | None:
    """Read a time of the site's clock, or with its offset."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(zone)
    except (ValueError, OverflowError) as error:
        raise UsageProblem(f"{option}: {text!r:.60} is no time", advice="write 2026-11-24T06:00") from error
