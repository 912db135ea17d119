"""`estserver policy show|test`: two of the four voices of a profile."""

from __future__ import annotations

from pathlib import Path

import click
from cryptography import x509

from estserver import csr as requests
from estserver.asn1 import decode_body
from estserver.assembly import PROFILES, inventory_of, load_certificates, load_profiles, rules_of
from estserver.cli.common import Exit, emit, home_option, json_option, now, read_file
from estserver.config import Settings, load_settings
from estserver.errors import NotFound, Refused, RequestError
from estserver.model import CertificateRecord, Csr, Der, Grant, Identity, IdentityKind, Operation, Serial
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
@click.option(
    "--renews",
    metavar="PEM",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The certificate of this CA that it is to renew.",
)
@home_option
@json_option
def test(csr: Path, profile: str, renews: Path | None, home: Path, as_json: bool) -> None:
    """Try a CSR (PEM, base64 or DER) against a profile, as if whoever may name its device had sent it.

    Exits 0 when it would be granted and 14 when not, with every reason. A renewal may be granted although the profile
    has become stricter: then it says what is tolerated.

    \b
    estserver policy test my.csr --profile gateway --home certs
    estserver policy test my.csr --renews old.pem --home certs
    """
    settings = load_settings(home)
    rules = rules_of(settings)
    if profile not in rules.profiles:
        raise NotFound(f"there is no profile {profile!r}", advice=f"there are: {', '.join(rules.profiles)}")
    previous = None if renews is None else _record(settings, renews)
    reasons: tuple[str, ...] = ()
    tolerated: tuple[str, ...] = ()
    try:
        request = requests.parse(_der(read_file(csr)), rules.bounds)
        tolerated = _try(rules.profiles[profile], request, previous).tolerated
    except (RequestError, Refused) as error:
        reasons = error.reasons
    if as_json:
        told = {"profile": profile, "granted": not reasons, "reasons": list(reasons), "tolerated": list(tolerated)}
        emit(told, as_json=True)
    else:
        outcome = "refused" if reasons else "granted at par" if tolerated else "granted"
        click.echo(f"{csr}: {outcome} by profile {profile}")
        for reason in reasons or tolerated:
            click.echo(f"  - {reason}{'' if reasons else ' (tolerated: the certificate has it)'}")
    raise click.exceptions.Exit(Exit.NO if reasons else Exit.DONE)


def _try(profile: Profile, request: Csr, previous: CertificateRecord | None) -> Grant:
    """Decide as at the door, for somebody who may name every device, or for the certificate that renews itself."""
    identity = Identity(profile.requesters[0], "policy-test", ("*",), tuple(map(str, request.san)))
    operation = Operation.SIMPLEENROLL
    if previous is not None:
        identity = Identity(IdentityKind.CERTIFICATE, previous.device, (previous.device,), certificate=previous)
        operation = Operation.SIMPLEREENROLL
    return decide(profile, Ask(operation, "", identity, request, previous, "absent", now(), NEVER))


def _record(settings: Settings, pem: Path) -> CertificateRecord:
    certificate, *_ = load_certificates(pem)
    serial = Serial(x509.load_der_x509_certificate(certificate).serial_number)
    with inventory_of(settings) as inventory:
        record = inventory.by_serial(serial)
    if record is None or record.certificate != certificate:
        raise NotFound(f"{pem} is no certificate of this CA", advice="see: estserver inventory list")
    return record


def _der(data: bytes) -> Der:
    return Der(data) if data[:1] == b"\x30" else decode_body(data)


def _profiles(home: Path) -> dict[str, Profile]:
    return load_profiles(load_settings(home).path(PROFILES))
