"""The `estserver` program, also as `python -m estserver`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say in one line what to install: the device side comes without the server's parts."""
    try:
        from estserver.cli import main as run  # noqa: PLC0415 - what is missing is to be told, not traced
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: the server needs {error.name}, which is not installed\n  pip install 'estline[server]'\n"
        )
        sys.exit(3)
    run()


if __name__ == "__main__":
    main()
