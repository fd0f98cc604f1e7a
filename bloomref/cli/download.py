"""`bloomref download`: download a checkpoint to the local cache."""

from typing import Annotated

import typer

from bloomref.cli.shared import Json, Revision, print_json


def command(
    model: Annotated[str, typer.Argument(help="A preset's name, hf://user/repo or kaggle://...")],
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Download a checkpoint and print its folder. After an interruption, complete files are kept.

    Example: bloomref download bloom_560m_multi
    """
    from bloomref.presets.resolver import resolve

    folder = resolve(model, revision=revision)
    if json:
        print_json({"model": model, "folder": str(folder)})
    else:
        typer.echo(folder)
