"""`devicesim line label`: a label to look at, and one printed by hand."""

from __future__ import annotations

from pathlib import Path

import click
from cryptography import x509

from devicesim.cli import now
from devicesim.cli.line_files import CONFIG, FILE
from devicesim.cli.line_people import OPERATOR, opened
from devicesim.cli.line_rework import reason_of
from devicesim.cli.options import echo_json, json_option
from devicesim.durable import write_whole
from devicesim.errors import ConfigInvalid, UsageProblem
from devicesim.labels.label import Label
from devicesim.labels.template import FIELDS, load_template
from devicesim.line.crew import Act
from devicesim.line.labelling import Labels, open_labels
from devicesim.line.ledger import Ledger
from devicesim.line.reasons import Reason
from devicesim.line.settings import Settings
from devicesim.line.steps import open_device

REASONS = tuple(reason.value for reason in Reason)
_SAMPLE = {"device_id": "sn-0001", "serial": "SEN-1", "cert_serial": "7b" * 20, "product": "sensor", "hw_rev": "c"}
_DATES = {"not_before": "2027-01-01", "not_after": "2037-01-01", "cert_sha256": "a5" * 32, "spki_sha256": "5a" * 32}


@click.group("label")
def label_group() -> None:
    """Look at labels, and print one by hand.

    \b
    devicesim line label render --template gw2.label --out sample.png
    devicesim line label print sn-0001 --reprint --reason label-damaged --operator op-113
    """


@label_group.command()
@click.argument("device", metavar="[DEVICE]", required=False)
@click.option("--template", type=FILE, help="A template to try with sample values; no station is needed.")
@click.option("--dpi", type=click.Choice(["203", "300", "600"]), default="203", help="With --template: the printer's.")
@click.option("--out", type=FILE, required=True, help="Where it is written: NAME.png or NAME.zpl.")
@CONFIG
@json_option
def render(device: str | None, template: Path | None, dpi: str, out: Path, config: Path, as_json: bool) -> None:
    """Write a label as PNG or ZPL: of a unit, from what its device says; or a sample of a template.

    \b
    Example:
      devicesim line label render sn-0001 --out sn-0001.png --config station/line.toml
      devicesim line label render --template gw2.label --out sample.png
    """
    if (device is None) == (template is None):
        raise UsageProblem("name either a DEVICE or a --template")
    if out.suffix not in {".png", ".zpl"}:
        raise UsageProblem(f"--out {out} ends neither in .png nor in .zpl")
    if device is None:
        made = Label(load_template(template), {name: name for name in FIELDS} | _SAMPLE | _DATES, int(dpi))
    else:
        with opened(config) as (settings, ledger):
            made = _label(settings, ledger, _labels(settings), device)
    write_whole(out, made.png() if out.suffix == ".png" else made.zpl().encode())
    if as_json:
        echo_json({"file": str(out), "text": made.text})
    else:
        click.echo(f"{out}: its QR code says {made.text}")


@label_group.command("print")
@click.argument("device", metavar="DEVICE")
@click.option("--reprint", is_flag=True, help="It was printed before.")
@click.option(
    "--reason", type=click.Choice(REASONS), metavar="CODE", help=f"Why it is printed again: {', '.join(REASONS)}."
)
@click.option("--note", default="", metavar="TEXT", help="What else there is to say; needed for `other`.")
@OPERATOR
@CONFIG
@json_option
def print_label(
    device: str, reprint: bool, reason: str | None, note: str, operator: str, config: Path, as_json: bool
) -> None:
    """Print a unit's label by hand; a second one of the same unit has a reason, and both are in the ledger.

    \b
    Example:
      devicesim line label print sn-0001 --reprint --reason label-damaged --operator op-113
          --config station/line.toml
    """
    if reprint != (reason is not None):
        raise UsageProblem("--reprint and --reason belong together")
    why = reason_of(reason, note) if reason else None
    with opened(config, operator=operator) as (settings, ledger):
        settings.crew().admit(Act.REPRINT if why else Act.RUN, operator)
        labels = _labels(settings)
        made = _label(settings, ledger, labels, device)
        ledger.printed(device, made.text, why)  # first: no label leaves the printer by hand without a row of the chain
        labels.print(device, made)
    if as_json:
        echo_json({"device_id": device, "text": made.text, "reprint": reprint})
    else:
        click.echo(f"{device}: its label was printed and says {made.text}")


def _labels(settings: Settings) -> Labels:
    if settings.label is None:
        raise ConfigInvalid("this station prints no labels", advice="name a printer in [label] of line.toml")
    return open_labels(settings.label, settings.site)


def _label(settings: Settings, ledger: Ledger, labels: Labels, device: str) -> Label:
    """Return the label of a unit, from what its device holds now."""
    unit, held = ledger.unit(device), open_device(settings, device, now)[0].identity
    if unit.certificate is None or held is None:
        raise UsageProblem(f"{device} has no certificate yet: it is {unit.state}", advice=f"run batch {unit.batch}")
    if held.certificate != x509.load_der_x509_certificate(unit.certificate):
        raise UsageProblem(f"{device} does not hold the certificate that the ledger has", advice="run its batch")
    return labels.of(unit, held.certificate)
