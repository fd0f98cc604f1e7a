"""The command `bloomref`: one file for each subcommand."""

import sys


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and an exit code, never in a traceback."""
    from bloomref.cli.app import run

    sys.exit(run(sys.argv[1:]))
