"""`bloomref conform`: test whether an implementation of BLOOM conforms to the specification."""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from bloomref.cli.shared import Json
from bloomref.errors import Unsupported, invalid

EXITS = {0: 0, 1: 1, 2: 130, 4: 2}
"""Exit code of pytest -> exit code of the command: 1 does not conform, 2 wrong arguments, 130 interrupted."""


def command(
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
    json: Json = False,
) -> None:
    """Run the conformance kit on an implementation of BLOOM, and print a report: one row per property, one column per
    dtype.

    Exit code 0: conforms, or not checked; 1: does not conform, or a waiver is no longer needed; 2: wrong arguments.

    Example: bloomref conform --backend numba --dtype float32 --examples 5
    """
    if len([name for name in (implementation, backend, program) if name is not None]) != 1:
        raise invalid("what to test", "one of --implementation, --backend and --program", "none or several")
    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if missing:
        raise Unsupported(f"conform: {' and '.join(missing)} not installed; pip install 'bloomref[conformance]'")
    options = _options(implementation=implementation, backend=backend, program=program, examples=examples, seed=seed)
    options += [f"--dtype={name}" for name in dtype or []] + [f"--waivers={name}" for name in waivers or []]
    options += ["--require"] * require
    raise typer.Exit(_run(options, json))


def _options(**values: object) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def _run(options: list[str], json: bool) -> int:
    """Run the suite in a separate pytest without ini file, conftest and other plugins. Return the exit code."""
    command = [sys.executable, "-m", "pytest", "-p", "bloomref.conformance.plugin", "--pyargs", "bloomref.conformance"]
    command += [
        "-c",
        os.devnull,
        "--rootdir",
        str(Path.cwd()),
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "--disable-warnings",
    ]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command += [*options, f"--conformance-json={report}"]
        code = subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL if json else None)
        if json and report.exists():
            typer.echo(report.read_text("utf-8"))
    return EXITS.get(code.returncode, code.returncode)
