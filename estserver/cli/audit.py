"""`estserver audit`: the chain of everything that was issued, refused, revoked or changed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from estserver.cli.common import emit, home_option, json_option, open_inventory
from estserver.errors import StateError


@click.group()
def audit() -> None:
    """Check and export the audit chain."""


@audit.command("verify")
@home_option
@json_option
def verify(home: Path, as_json: bool) -> None:
    """Walk the whole chain; exit with 10 when a row was changed, removed or put in.

    Note the head down in another place: nobody can rewrite what came before it without changing it.

    \b
    estserver audit verify --home certs
    """
    with open_inventory(home) as inventory:
        report = inventory.audit_verify()
    values = {name: value for name, value in asdict(report).items() if as_json or value not in {None, ""}}
    emit(values, as_json=as_json)
    if not report.ok:
        raise StateError(
            f"the audit chain is broken: {report.reason}",
            code="not-verified",
            advice="keep the file as it is, and compare it with an earlier backup or export",
        )


@audit.command("export")
@home_option
def export(home: Path) -> None:
    """Print every row as one line of JSON, with what is needed to compute its hash again.

    hash = SHA-256 of previous_hash as 32 octets, then the row without hash and previous_hash as JSON with sorted keys,
    no white space and only ASCII.

    \b
    estserver audit export > audit.jsonl
    """
    with open_inventory(home) as inventory:
        for line in inventory.audit_lines():
            click.echo(line)
