"""`devicesim announce status|flush|dead`: what a station owes its broker, and what the broker will not take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from devicesim.cli.line_files import CONFIG
from devicesim.cli.line_people import opened, world
from devicesim.cli.options import echo_json, json_option
from devicesim.errors import Backlog, ConfigInvalid, UsageProblem
from devicesim.line.assembly import mqtt_identity
from devicesim.line.ledger import Ledger
from devicesim.line.settings import Mqtt, Settings
from devicesim.mqtt import outbox
from devicesim.mqtt.announcer import Announcer
from devicesim.mqtt.connection import BrokerUrl

SHOWN_MAX = 1000


@contextmanager
def _spool(config: Path) -> Iterator[tuple[Settings, Mqtt, Ledger]]:
    with opened(config) as (settings, ledger):
        if settings.mqtt is None:
            raise ConfigInvalid(f"{config} names no broker", advice="this station announces nothing; see [mqtt]")
        yield settings, settings.mqtt, ledger


@click.command()
@CONFIG
@json_option
def status(config: Path, as_json: bool) -> int:
    """Show what the station owes its broker, and of that what the broker has refused for good. Ends with 9 if any.

    \b
    Example:
      devicesim announce status --config station/line.toml
    """
    with _spool(config) as (_, mqtt, ledger), ledger.spool() as conn:
        owed, dead = outbox.pending_count(conn), outbox.dead_count(conn)
        oldest = outbox.pending(conn, 1)
    reason = oldest[0].reason if oldest else None
    if as_json:
        echo_json({"owed": owed, "dead": dead, "spool_max": mqtt.spool_max, "reason": reason})
    else:
        click.echo(f"{owed} of at most {mqtt.spool_max} announcements owed, {dead} of them dead letters")
        if reason is not None:
            click.echo(f"the oldest: {reason}")
    return Backlog.exit_code if owed else 0


@click.command()
@click.option("--timeout", "seconds", type=click.FloatRange(min=0.1), default=60.0, show_default=True)
@CONFIG
@json_option
def flush(seconds: float, config: Path, as_json: bool) -> int:
    """Send what is owed now, without waiting for its next attempt; not while the line runs. Ends with 9 if any is left.

    \b
    Example:
      devicesim announce flush --config station/line.toml
    """
    with _spool(config) as (settings, mqtt, ledger), ledger.exclusive():
        with ledger.spool() as conn:
            outbox.hasten(conn)
            conn.commit()
        identity = mqtt_identity(settings, mqtt)
        with Announcer(ledger.connect, BrokerUrl.parse(mqtt.url), identity, clock=world().clock) as announcer:
            result = announcer.drain(seconds)
        ledger.settle_announced()
    if as_json:
        echo_json({"sent": result.sent, "owed": result.pending, "reason": result.reason})
    else:
        click.echo(f"{result.sent} sent, {result.pending} still owed")
        if result.reason is not None:
            click.echo(f"warning: {result.reason}", err=True)
    return Backlog.exit_code if result.pending else 0


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--retry", is_flag=True, help="Offer them to the broker again.")
@click.option("--all", "every", is_flag=True, help="With --retry: all of them.")
@CONFIG
@json_option
def dead(ids: tuple[str, ...], retry: bool, every: bool, config: Path, as_json: bool) -> None:
    """Show the announcements that the broker refused again and again, and why; with --retry they are offered again.

    None is ever dropped: what was announced in the ledger stays owed.

    \b
    Example:
      devicesim announce dead --config station/line.toml
      devicesim announce dead --retry --all --config station/line.toml
    """
    if retry != bool(ids or every) or (ids and every):
        raise UsageProblem("--retry needs ids, or --all", advice="without either, the dead letters are shown")
    with _spool(config) as (_, _, ledger), ledger.spool() as conn:
        if retry:
            count = outbox.revive(conn, ids or None)
            if count < len(ids):
                raise UsageProblem(f"{len(ids) - count} of these ids are no dead letters", advice="nothing was changed")
            conn.commit()
            _show({"revived": count}, f"{count} are offered again at the next run or flush", as_json=as_json)
            return
        rows = outbox.dead(conn, SHOWN_MAX)
    text = "\n".join(f"{row.id} {row.topic}: {row.reason}" for row in rows) or "no dead letter"
    letters = [{"id": row.id, "topic": row.topic, "tries": row.tries, "reason": row.reason} for row in rows]
    _show({"dead": letters}, text, as_json=as_json)


def _show(facts: Mapping[str, object], text: str, *, as_json: bool) -> None:
    if as_json:
        echo_json(facts)
    else:
        click.echo(text)
