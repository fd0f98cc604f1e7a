"""The application: registers the subcommands, and converts errors to messages and exit codes."""

import os
import sys
import warnings
from contextlib import suppress
from typing import Annotated, Any

import typer

import bloomref
from bloomref.cli import (
    backends,
    classify,
    conform,
    convert,
    diff,
    download,
    finetune,
    generate,
    info,
    option_names,
    presets,
    score,
    system_errors,
    vectors,
    write_trace,
)
from bloomref.errors import BadBackend, BadWeights, BloomrefError, BloomrefWarning, InvalidInput, Unsupported, visible

EXIT_CODES: dict[type[BaseException], int] = {
    InvalidInput: 2,
    Unsupported: 3,
    BadWeights: 4,
    BadBackend: 5,
    KeyboardInterrupt: 130,
}

EPILOG = (
    "Exit codes: 0 done, 1 they differ or fail, 2 wrong arguments or input, 3 not possible here, 4 bad weights, "
    "5 broken backend, 130 interrupted."
)

app = typer.Typer(
    name="bloomref",
    help="BLOOM, by the book: a NumPy reference implementation that defines the specification.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = {
    "generate": generate,
    "score": score,
    "classify": classify,
    "finetune": finetune,
    "presets": presets,
    "backends": backends,
    "info": info,
    "trace": write_trace,
    "diff": diff,
    "download": download,
    "convert": convert,
    "conform": conform,
    "vectors": vectors,
}
"""Name of a subcommand -> its module, in the order of `--help`."""
for name, module in COMMANDS.items():
    app.command(name=name, cls=option_names.Command)(module.command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"bloomref {bloomref.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """BLOOM, by the book: a NumPy reference implementation that defines the specification."""


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        with warnings.catch_warnings():
            _show_own_warnings()
            code = _exit_code(arguments)
        sys.stdout.flush()
    except BloomrefError as error:
        return _fail(str(error), next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1))
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_CODES[KeyboardInterrupt])
    except BrokenPipeError:  # the reader of the output has closed it: `bloomref presets | head -1`
        _discard_output()
        return 0
    except Exception as error:
        known = system_errors.sentence(error)
        if known is None:
            raise
        if isinstance(error, OSError):
            _discard_output()
        return _fail(*known)
    return code


def _exit_code(arguments: list[str]) -> int:
    try:
        app(arguments)
    except SystemExit as leave:  # typer has printed the help, an error in the options, or has taken an interrupt
        if isinstance(leave.__context__, BrokenPipeError):
            raise leave.__context__ from None
        return leave.code if isinstance(leave.code, int) else 1
    return 0


def _show_own_warnings() -> None:
    """Print the warnings of bloomref as one line each. NumPy's are about numbers that every command checks itself."""
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    show = warnings.showwarning

    def one_line(message: Any, category: type[Warning], *place: Any, **where: Any) -> None:
        if issubclass(category, BloomrefWarning):
            print(f"bloomref: warning: {visible(str(message))}", file=sys.stderr)
        else:
            show(message, category, *place, **where)

    warnings.showwarning = one_line


def _discard_output() -> None:
    """Send what standard output cannot take to nowhere: it would fail again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    with suppress(OSError, ValueError):  # nobody may be able to read it
        print(f"bloomref: {message}", file=sys.stderr, flush=True)
    return code
