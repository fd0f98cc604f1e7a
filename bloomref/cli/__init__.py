"""The command `bloomref`. Each subcommand has its own module."""

import os
import signal
import sys

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def main() -> None:
    """Run the command line. A user's mistake ends with one message and an exit code, not with a traceback."""
    open_closed_streams()
    catches = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where a shell has it ignored
    if catches:
        signal.signal(signal.SIGINT, _leave)  # an exception in the middle of imports would be a traceback
    from bloomref.cli.app import run

    if catches:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(sys.argv[1:])
    if catches:
        signal.signal(signal.SIGINT, _leave)  # the interpreter still has to shut down
    sys.exit(code)


def open_closed_streams() -> None:
    """Open the null device in place of a standard stream that the caller has closed.

    Otherwise the next file that is opened would get its number, and what is meant for the terminal its content.
    """
    for number, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _leave(*_: object) -> None:
    os.write(2, b"bloomref: interrupted\n")
    os._exit(130)
