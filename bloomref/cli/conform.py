"""`bloomref conform`: does an implementation of BLOOM conform to the specification?"""

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
"""pytest's exit code -> ours: 1 does not conform, 2 wrong arguments."""


def command(
    implementation: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="An adapter in Python (docs/conformance.md).")
    ] = None,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="A backend of bloomref: numpy, numba.")] = None,
    program: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="A program in any language that speaks the protocol.")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Repeatable.  [default: all that it declares]")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Cases drawn for each property.")] = None,
    seed: Annotated[int, typer.Option(help="Another one draws other cases.")] = 0,
    waivers: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Known failures, with reasons.")] = None,
    require: Annotated[bool, typer.Option("--require", help="Fail if it is not available here.")] = False,
    json: Json = False,
) -> None:
    """Ask an implementation everything that the conformance kit knows, and print what it does and does not.

    Exit code 1: it does not conform, or a waiver is not needed any more.

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
    """The suite, in a pytest of its own that reads no ini file, no conftest and no other plugin. The exit code."""
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
        card = Path(folder) / "card.json"
        command += [*options, f"--conformance-json={card}"]
        code = subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL if json else None)
        if json and card.exists():
            typer.echo(card.read_text("utf-8"))
    return EXITS.get(code.returncode, code.returncode)
