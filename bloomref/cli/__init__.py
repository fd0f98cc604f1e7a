"""The command `bloomref`. Each subcommand has its own module."""

import sys


def main() -> None:
    """Run the command line. A user's mistake ends with one message and an exit code, not with a traceback."""
    from bloomref.cli.app import run

    sys.exit(run(sys.argv[1:]))
