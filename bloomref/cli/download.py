"""`bloomref download`: bring a checkpoint into the local cache."""

from typing import Annotated

import typer

from bloomref.cli.shared import Json, Revision, print_json


def command(
    model: Annotated[str, typer.Argument(help="A preset's name, hf://user/repo or kaggle://...")],
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Fetch a checkpoint, resuming what was begun, and print its folder.

    Example: bloomref download bloom_560m_multi
    """
    from bloomref.presets.resolver import resolve

    folder = resolve(model, revision=revision)
    if json:
        print_json({"model": model, "folder": str(folder)})
    else:
        typer.echo(folder)
