"""The `estserver` program; each command lives in a module of its own and is imported when it is called."""

from __future__ import annotations

import importlib
import sys

import click

from estserver.cli.common import Exit, fail
from estserver.errors import EstError

_COMMANDS = (
    "init",
    "serve",
    "responder",
    "credential",
    "trust",
    "station",
    "revoke",
    "block",
    "crl",
    "rollover",
    "policy",
    "inventory",
    "pending",
    "audit",
    "config",
)


class _Commands(click.Group):
    """Finds a command in the module of its name, so that `--help` does not import the whole server."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"estserver.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="estline")
def cli() -> None:
    """Estline: an EST server (RFC 7030) with its own CA, CSR policy and inventory.

    \b
    estserver init certs --host localhost
    estserver credential add line-1 --devices 'sn-*' --uses 100 --home certs
    estserver serve --home certs
    """


def main() -> None:
    """Run the program; a user's mistake ends in one line and an exit code, never in a traceback."""
    try:
        status = cli.main(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else Exit.DONE)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except EstError as error:
        sys.exit(fail(error))
    except BrokenPipeError:
        sys.exit(Exit.UNEXPECTED)
