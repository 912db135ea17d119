"""`python -m estserver` is the `estserver` program."""

from estserver.cli import main

if __name__ == "__main__":
    main()
