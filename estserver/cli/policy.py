"""`estserver policy show|test`: two of the four voices of a profile."""

from __future__ import annotations

from pathlib import Path

import click

from estserver import csr as requests
from estserver.asn1 import decode_body
from estserver.assembly import PROFILES, bounds_of, load_profiles
from estserver.cli.common import Exit, emit, home_option, json_option, now, read_file
from estserver.config import load_settings
from estserver.errors import NotFound, Refused, RequestError
from estserver.model import Csr, Der, Identity, Operation
from estserver.policy import Ask, Profile, decide, explain
from estserver.policy.decide import NEVER


@click.group()
def policy() -> None:
    """Read the profiles and try a CSR against them."""


@policy.command()
@click.argument("profile", required=False)
@home_option
def show(profile: str | None, home: Path) -> None:
    """Say in plain words what a profile takes and gives; without a name, every profile.

    \b
    estserver policy show device --home certs
    """
    profiles = _profiles(home)
    if profile is not None and profile not in profiles:
        raise NotFound(f"there is no profile {profile!r}", advice=f"there are: {', '.join(profiles)}")
    for name in [profile] if profile is not None else profiles:
        click.echo("\n".join(explain(profiles[name])))


@policy.command()
@click.argument("csr", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--profile", default="device", show_default=True)
@home_option
@json_option
def test(csr: Path, profile: str, home: Path, as_json: bool) -> None:
    """Try a CSR (PEM, base64 or DER) against a profile, as if whoever may name its device had sent it.

    Exits 0 when it would be granted and 14 when not, with every reason.

    \b
    estserver policy test my.csr --profile gateway --home certs
    """
    profiles = _profiles(home)
    if profile not in profiles:
        raise NotFound(f"there is no profile {profile!r}", advice=f"there are: {', '.join(profiles)}")
    reasons: tuple[str, ...] = ()
    try:
        request = requests.parse(_der(read_file(csr)), bounds_of(load_settings(home)))
        _try(profiles[profile], request)
    except (RequestError, Refused) as error:
        reasons = error.reasons
    if as_json:
        emit({"profile": profile, "granted": not reasons, "reasons": list(reasons)}, as_json=True)
    else:
        click.echo(f"{csr}: {'granted' if not reasons else 'refused'} by profile {profile}")
        for reason in reasons:
            click.echo(f"  - {reason}")
    raise click.exceptions.Exit(Exit.NO if reasons else Exit.DONE)


def _try(profile: Profile, request: Csr) -> None:
    identity = Identity(profile.requesters[0], "policy-test", ("*",), tuple(map(str, request.san)))
    moment = now()
    decide(profile, Ask(Operation.SIMPLEENROLL, "", identity, request, None, "absent", moment, NEVER))


def _der(data: bytes) -> Der:
    return Der(data) if data[:1] == b"\x30" else decode_body(data)


def _profiles(home: Path) -> dict[str, Profile]:
    return load_profiles(load_settings(home).path(PROFILES))
