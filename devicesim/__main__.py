"""`python -m devicesim` is the command `devicesim`."""

from devicesim.cli import main

if __name__ == "__main__":
    main()
