"""`devicesim announce`: watch what is announced, and verify it; see to what a station still owes."""

from __future__ import annotations

import csv
import importlib
import json
import queue
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from devicesim.errors import ConfigInvalid, VerificationFailed
from devicesim.mqtt import verdict as verdicts
from devicesim.mqtt.collector import Verdict
from devicesim.mqtt.connection import BrokerUrl, MqttIdentity, common_name
from devicesim.mqtt.events import EVENT_MAX_BYTES, read_event, utc_text, verify_event
from devicesim.mqtt.subscriber import Watcher
from devicesim.trust import TrustAnchors

FILE = click.Path(path_type=Path, dir_okay=False)
FILE_MAX_BYTES = 64 * 1024 * 1024
ANNOUNCER = click.option(
    "--announcer", default="estserver", show_default=True, help="The name that may speak for the CA."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


class _WithSpool(click.Group):
    """The commands about a station's own outbox too, where what reads a station's settings is installed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), *_OF_THE_SPOOL])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one."""
        if cmd_name not in _OF_THE_SPOOL:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module("devicesim.cli.announce_spool")
        return getattr(module, cmd_name)  # type: ignore[no-any-return]  # each command has its name


_OF_THE_SPOOL = ("dead", "flush", "status")


@click.group(cls=_WithSpool)
def announce() -> None:
    """Watch and verify announcements, and see to those that a station owes.

    \b
    devicesim announce status --config station/line.toml
    devicesim announce tail --broker mqtts://localhost:8883 --cert registry.pem --key registry.key --trust root.pem
    """


@announce.command()
@click.option("--broker", "broker_url", required=True, metavar="mqtts://HOST:PORT")
@click.option("--cert", "certificate", type=FILE, required=True, help="The certificate to connect with, PEM.")
@click.option("--key", type=FILE, required=True, help="Its key, PEM.")
@click.option("--trust", type=FILE, required=True, help="The trust anchor of the broker and of all who sign, PEM.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@click.option("--timeout", "timeout_seconds", type=click.FloatRange(min=0), help="End after so many seconds.")
@click.option("--domain", default="est", show_default=True, help="First level of all topics.")
@ANNOUNCER
@AS_JSON
def tail(
    broker_url: str,
    certificate: Path,
    key: Path,
    trust: Path,
    count: int | None,
    timeout_seconds: float | None,
    domain: str,
    announcer: str,
    as_json: bool,
) -> int:
    """Print every event with its verdict, one a line, as it comes; ends with 10 when one of them was refused.

    \b
    Example:
      devicesim announce tail --broker mqtts://localhost:8883 --cert registry.pem --key registry.key --trust root.pem
    """
    heard: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
    identity = MqttIdentity.from_files(certificate, key, trust)
    watcher = Watcher(
        BrokerUrl.parse(broker_url),
        identity,
        TrustAnchors.from_file(trust),
        announcer,
        domain=domain,
        clock=lambda: datetime.now(UTC),
        on_verdict=heard.put,
    )
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    shown, refused = 0, False
    with watcher:
        while count is None or shown < count:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            try:
                verdict = heard.get(timeout=left)
            except queue.Empty:
                break
            if not verdict.duplicate:
                click.echo(_line(verdict, as_json=as_json))
                shown, refused = shown + 1, refused or not verdict.ok
    return VerificationFailed.exit_code if refused else 0


@announce.command()
@click.option("--broker", "broker_url", required=True, metavar="mqtts://HOST:PORT")
@click.option("--cert", "certificate", type=FILE, required=True, help="The certificate to connect with, PEM.")
@click.option("--key", type=FILE, required=True, help="Its key, PEM.")
@click.option("--trust", type=FILE, required=True, help="The trust anchor of the broker and of all who sign, PEM.")
@click.option("--devices", type=FILE, required=True, help="units.csv, or a file with one device id a line.")
@click.option("--timeout", "timeout_seconds", type=click.FloatRange(min=0), default=300.0, show_default=True)
@click.option("--domain", default="est", show_default=True, help="First level of all topics.")
@ANNOUNCER
@AS_JSON
def match(
    broker_url: str,
    certificate: Path,
    key: Path,
    trust: Path,
    devices: Path,
    timeout_seconds: float,
    domain: str,
    announcer: str,
    as_json: bool,
) -> int:
    """Wait until station, device and server agree about every device: announced, born, and current.

    Start it before the line: events are not retained. It prints `ready` when it listens; ends with 10 when an event was
    refused, one is missing, or a device does not match in time.

    \b
    Example:
      devicesim announce match --broker mqtts://localhost:8883 --cert registry.pem --key registry.key \\
          --trust root.pem --devices units.csv
    """
    names = _device_ids(devices)
    identity = MqttIdentity.from_files(certificate, key, trust)
    watcher = Watcher(
        BrokerUrl.parse(broker_url), identity, TrustAnchors.from_file(trust), announcer, domain=domain, clock=_now
    )
    with watcher:
        click.echo("ready", err=as_json)
        watcher.wait(names, timeout_seconds)
        matches, heard = [watcher.matched(name) for name in names], watcher.report()
    problems = [f"{found.device_id}: {text}" for found in matches for text in found.problems]
    problems += [f"refused on {verdict.topic}: {'; '.join(verdict.problems)}" for verdict in heard.refused]
    problems += [f"events of {source} that never came: {len(missing)}" for source, missing in heard.gaps.items()]
    matched = sum(found.ok for found in matches)
    if as_json:
        click.echo(
            json.dumps({"devices": len(names), "matched": matched, "events": heard.events, "problems": problems})
        )
    else:
        for text in problems:
            click.echo("".join(c if c.isprintable() else "?" for c in text))
        click.echo(f"{matched} of {len(names)} devices match; {heard.events} signed events verified")
    return VerificationFailed.exit_code if problems else 0


def _now() -> datetime:
    return datetime.now(UTC)


def _device_ids(path: Path) -> list[str]:
    """Read device ids from the column device_id of a CSV, or from a plain list."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigInvalid(f"cannot read {path}: {fault}") from fault
    header = lines[0].split(",") if lines else []
    if "device_id" in header:
        return [row["device_id"] for row in csv.DictReader(lines) if row["device_id"]]
    return [line.strip() for line in lines if line.strip()]


@announce.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--trust", type=FILE, required=True, help="The trust anchor of all who sign, PEM.")
@ANNOUNCER
@AS_JSON
def verify(file: Path, trust: Path, announcer: str, as_json: bool) -> int:
    """Verify events from a file, or standard input (`-`): one JSON event, or one a line. Ends with 10 on any refusal.

    \b
    Example:
      devicesim announce verify events.jsonl --trust root.pem
    """
    anchors, now = TrustAnchors.from_file(trust), datetime.now(UTC)
    found = [_judge(payload, anchors, announcer, now) for payload in _events(file)]
    if not found:
        raise ConfigInvalid(f"{file} holds no event", advice="give one JSON event, or one a line")
    for verdict in found:
        click.echo(_line(verdict, as_json=as_json))
    return 0 if all(verdict.ok for verdict in found) else VerificationFailed.exit_code


def _events(file: Path) -> list[bytes]:
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(FILE_MAX_BYTES + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(FILE_MAX_BYTES + 1)
    except OSError as fault:
        raise ConfigInvalid(f"cannot read {file}: {fault.strerror}") from fault
    if len(data) > FILE_MAX_BYTES:
        raise ConfigInvalid(f"{file} is too large to be a file of events", advice="split it")
    if len(data) <= EVENT_MAX_BYTES:
        try:
            json.loads(data)  # one event, over several lines perhaps
        except (ValueError, RecursionError):
            pass
        else:
            return [data]
    return [line for line in data.splitlines() if line.strip()]


def _judge(payload: bytes, trust: TrustAnchors, announcer: str, now: datetime) -> Verdict:
    try:
        verified = verify_event(payload, trust=trust, now=now)
    except VerificationFailed as fault:
        try:
            return Verdict("", read_event(payload), (str(fault),))
        except VerificationFailed:
            return Verdict("", None, (str(fault),))
    found = verdicts.problems(verified, None, announcer=announcer, now=now)
    return Verdict("", verified.event, found, common_name(verified.signer))


def _line(verdict: Verdict, *, as_json: bool) -> str:
    event = verdict.event
    if as_json:
        facts = {
            "verdict": "ok" if verdict.ok else "refused",
            "topic": verdict.topic or None,
            "type": event.type if event else None,
            "id": event.id if event else None,
            "source": event.source if event else None,
            "subject": event.subject if event else None,
            "time": utc_text(event.time) if event else None,
            "signer": verdict.signer,
            "note": verdict.note,
            "problems": list(verdict.problems),
            "data": event.data if event else None,
        }
        return json.dumps(facts, ensure_ascii=False)
    what = f"{utc_text(event.time)} {event.type} {event.subject}" if event else verdict.note or "-"
    told = "; ".join(verdict.problems) if verdict.problems else f"signed by {verdict.signer}" if verdict.signer else ""
    words = ("ok" if verdict.ok else "REFUSED", verdict.topic, what, f"— {told}" if told else "")
    return "".join(c if c.isprintable() else "?" for c in " ".join(word for word in words if word))
