"""The command `devicesim`: groups that are loaded when they are used, and one way for every error to leave.

The command line is the only reader of clock, environment and arguments. A user's mistake is one line on standard error,
`error: what happened — what to do`, and the exit code of `devicesim.errors`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import click

from devicesim import __version__
from devicesim.errors import DeviceSimError, UsageProblem

_GROUPS = {
    "announce": "Watch, verify and flush what was announced over MQTT.",
    "broker": "Run a broker, or write the configuration of one.",
    "csr": "Make and explain certificate requests, offline.",
    "est": "Talk to an EST server.",
    "ledger": "Prove what a station has recorded.",
    "line": "Provision a batch of devices.",
}


def now() -> datetime:
    """Return the time of this machine."""
    return datetime.now(UTC)


class _LazyGroup(click.Group):
    """A group whose commands are modules beside this one, imported when they are asked for."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names of those that are installed."""
        return [name for name in _GROUPS if importlib.util.find_spec(f"{__name__}.{name}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one."""
        if cmd_name not in self.list_commands(ctx):
            return None
        try:
            module = importlib.import_module(f"{__name__}.{cmd_name}")
        except ModuleNotFoundError as error:
            raise UsageProblem(
                f"`devicesim {cmd_name}` needs {error.name}, which is not installed",
                advice="pip install 'estline[line]'",
            ) from error
        return getattr(module, cmd_name)  # type: ignore[no-any-return]  # each module's command has its name

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        rows = [(name, _GROUPS[name]) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="devicesim")
def cli() -> None:
    """Be the device's side of EST: requests, enrolment, the factory line, announcements.

    \b
    devicesim est cacerts --server https://est.example --fingerprint 5E:A0:… --out root.pem
    devicesim est enroll --server https://est.example --trust root.pem --subject sn-00042 --out sn-00042
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of what happened."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        result: Any = cli.main(args=arguments, prog_name="devicesim", standalone_mode=False)
    except DeviceSimError as error:
        return _end(f"error: {error.line}", error.exit_code)
    except click.exceptions.Abort:
        return _end("error: interrupted — run it again: nothing is lost", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        return _end(error.format_message(), UsageProblem.exit_code)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        see = f" — see {context.command_path} --help" if context else ""
        return _end(f"error: {error.format_message()}{see}", UsageProblem.exit_code)
    return result if isinstance(result, int) else 0


def _end(line: str, code: int) -> int:
    click.echo(line, err=True)
    return code
