"""`bloomref convert`: rewrite a checkpoint in the other layout, or in another dtype."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bloomref.cli.shared import Json, Revision, print_json, working


class Layout(StrEnum):
    """The folder layouts that bloomref reads and writes."""

    hf = "hf"
    keras = "keras"


def command(
    source: Annotated[str, typer.Argument(help="A preset's name, hf://user/repo, or a folder.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[Layout, typer.Option("--to", help="hf for transformers, keras for KerasHub.")],
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: bit for bit as stored.")] = "auto",
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Write SOURCE as a folder that transformers (hf) or KerasHub (keras) loads, tokenizer included.

    Example: bloomref convert bloom_tiny_udhr ./tiny-keras --to keras
    """
    from bloomref.dtypes import floating_dtype
    from bloomref.formats import hf, keras
    from bloomref.formats.checkpoint import open_checkpoint
    from bloomref.presets.resolver import resolve

    folder = resolve(source, revision=revision)
    checkpoint = open_checkpoint(folder)
    params = checkpoint.params(None if dtype == "auto" else floating_dtype(dtype))
    with working(f"writing {target}"):
        save = hf.save if to is Layout.hf else keras.save
        save(target, checkpoint.config, params, tokenizer_from=folder)
    report = {
        "source": str(folder),
        "target": str(target),
        "layout": to.value,
        "dtype": params.word_embedding.dtype.name,
    }
    if json:
        print_json(report)
    else:
        typer.echo(f"{target}: {to.value} layout, {report['dtype']}")
