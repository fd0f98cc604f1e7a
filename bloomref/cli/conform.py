"""`bloomref conform`: test whether an implementation of BLOOM conforms to the specification."""

from importlib.util import find_spec
from typing import Annotated, Any

import typer

from bloomref.cli.shared import Json, Keep, Timeout
from bloomref.errors import InvalidInput, Unsupported, invalid


def command(
    extra: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    implementation: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="A Python class (docs/conformance.md).")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="A backend of bloomref: numpy, numba, cupy.")
    ] = None,
    program: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="A program in any language (docs/adapters.md).")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: every declared dtype.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PROPERTY", help="Ask only this property or topic of vectors. A pattern. Repeatable."),
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Ask only this fixed case. A pattern. Repeatable.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Number of cases drawn for each property. Default: 20.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn cases.")] = 0,
    waivers: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="TOML file of known failures. Repeatable.")
    ] = None,
    require: Annotated[
        bool, typer.Option("--require", help="Fail, not skip, if the implementation is not available.")
    ] = False,
    require_all: Annotated[
        bool, typer.Option("--require-all", help="As --require; also fail if a question is refused or cannot be asked.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List properties and fixed cases, and ask nothing.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Number of processes that ask at once.")] = 1,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the time of each question on stderr.")
    ] = False,
    timeout: Timeout = None,
    keep: Keep = None,
    json: Json = False,
) -> None:
    """Run the conformance kit on an implementation of BLOOM, and print a report: one row per property, one column per
    dtype.

    Exit code 0: conforms, perhaps with qualifications, or not checked; 1: does not conform, or a waiver is no longer
    needed; 2: wrong arguments.

    Example: bloomref conform --backend numba --dtype float32 --only gradients
    """
    if find_spec("hypothesis") is None:
        raise Unsupported("conform: hypothesis not installed; pip install 'bloomref[conformance]'")
    from bloomref.conformance.run.selection import Selection
    from bloomref.conformance.suite import command as suite
    from bloomref.conformance.suite.kit import Options

    if list_:
        typer.echo("\n".join(suite.names()))
        raise typer.Exit
    _check_target((implementation, backend, program), extra or [])
    stated: dict[str, Any] = {"examples": examples, "timeout": timeout}
    options = Options(
        implementation,
        backend,
        program,
        tuple(dtype or ()),
        seed=seed,
        waivers=tuple(waivers or ()),
        require=require,
        require_all=require_all,
        selection=Selection(tuple(only or ()), tuple(case or ())),
        keep=keep,
        **{name: value for name, value in stated.items() if value is not None},
    )
    try:
        code = suite.conform(options, json, verbose, jobs)
    except Unsupported as error:  # it cannot be imported or started
        raise InvalidInput(str(error)) from error
    raise typer.Exit(code)


def _check_target(options: tuple[str | None, ...], extra: list[str]) -> None:
    """Refuse a command line that does not name one implementation, and say which option it needs."""
    names = [name for name in options if name is not None]
    if extra:
        command = " ".join([*names[:1], *extra])
        hint = f"a program: --program {command!r}; a Python class: --implementation MODULE:NAME"
        raise invalid("what to test", "one of --implementation, --backend and --program", " ".join(extra), hint)
    if len(names) != 1:
        raise invalid("what to test", "one of --implementation, --backend and --program", "none or several")
