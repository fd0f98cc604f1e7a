"""`bloomref convert`: write a checkpoint or an adapter in the other layout, or in another dtype."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bloomref.cli.shared import Json, Revision, print_json, working
from bloomref.errors import invalid


class Layout(StrEnum):
    """Layouts of a checkpoint that bloomref reads and writes."""

    hf = "hf"
    keras = "keras"


def command(
    source: Annotated[str, typer.Argument(help="A preset's name, hf://user/repo, or a folder.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[Layout, typer.Option("--to", help="hf for transformers, keras for KerasHub.")],
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: bit for bit as stored.")] = "auto",
    base: Annotated[str | None, typer.Option(help="For an adapter: its base model.", metavar="PRESET")] = None,
    expand: Annotated[bool, typer.Option("--expand", help="For an adapter: raise its rank if needed.")] = False,
    revision: Revision = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the model in TARGET. Files that no earlier save wrote stay.")
    ] = False,
    json: Json = False,
) -> None:
    """Write SOURCE as a folder that transformers (hf) or KerasHub (keras) loads, including its tokenizer.

    An adapter is written as a PEFT folder (hf) or as a .lora.h5 file of KerasHub (keras).

    Example: bloomref convert bloom_tiny_udhr ./tiny-keras --to keras
    """
    from bloomref.dtypes import floating_dtype
    from bloomref.formats import hf, keras
    from bloomref.formats.checkpoint import open_checkpoint
    from bloomref.lora.adapter_files import is_adapter
    from bloomref.presets.resolver import resolve

    if is_adapter(Path(source)):
        _convert_adapter(Path(source), target, to, base, expand, force, json)
        return
    folder = resolve(source, revision=revision)
    checkpoint = open_checkpoint(folder)
    params = checkpoint.params(None if dtype == "auto" else floating_dtype(dtype))
    with working(f"writing {target}"):
        save = hf.save if to is Layout.hf else keras.save
        save(target, checkpoint.config, params, tokenizer_from=folder, overwrite=force)
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


def _convert_adapter(
    source: Path, target: Path, to: Layout, base: str | None, expand: bool, force: bool, json: bool
) -> None:
    from bloomref.dtypes import FLOAT32
    from bloomref.formats.checkpoint import open_checkpoint
    from bloomref.lora import adapter_files
    from bloomref.presets.resolver import resolve

    if base is None:
        raise invalid("--base", "the adapter's base model", "nothing")
    if (to is Layout.keras) is not target.name.endswith(".lora.h5"):
        raise invalid("target", "a name that ends in .lora.h5 for keras, a folder for hf", str(target))
    config = open_checkpoint(resolve(base, weights=False)).config
    adapter = adapter_files.load(source, "default", config, FLOAT32)
    adapter_files.save(target, adapter, config, expand, force)
    report = {"source": str(source), "target": str(target), "layout": to.value, **adapter_files.describe_files(target)}
    if json:
        print_json(report)
    else:
        typer.echo(f"{target}: {report['format']} adapter, {report['parameters']:,} parameters")
