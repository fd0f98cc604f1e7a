"""`bloomref convert`: write a checkpoint or an adapter in the other layout, or in another dtype."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bloomref.cli.shared import Json, Revision, note, print_json, progress_bar, working
from bloomref.cli.shared import size as format_size
from bloomref.errors import invalid


class Layout(StrEnum):
    """Layouts of a checkpoint that bloomref reads and writes."""

    hf = "hf"
    keras = "keras"


def command(
    source: Annotated[str, typer.Argument(help="A preset's name, hf://user/repo, or a folder.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[Layout, typer.Option("--to", help="hf for transformers, keras for KerasHub.")] = Layout.hf,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: bit for bit as stored.")] = "auto",
    base: Annotated[str | None, typer.Option(help="For an adapter: its base model.", metavar="PRESET")] = None,
    expand: Annotated[bool, typer.Option("--expand", help="For an adapter: raise its rank if needed.")] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", help="Merge this adapter into the model; for several, give it again.", metavar="PATH"
        ),
    ] = None,
    from_pickle: Annotated[
        bool,
        typer.Option(
            "--from-pickle", help="SOURCE is a folder of .bin or .pt files of torch; none of their code runs."
        ),
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="With --from-pickle: the model's config.json.", metavar="FILE")
    ] = None,
    revision: Revision = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the model in TARGET. Files that no earlier save wrote stay.")
    ] = False,
    json: Json = False,
) -> None:
    """Write SOURCE as a folder that transformers (hf) or KerasHub (keras) loads, including its tokenizer.

    An adapter is written as a PEFT folder (hf) or as a .lora.h5 file of KerasHub (keras). With --adapter, SOURCE is a
    model, and the written model equals it with these adapters, which it no longer needs.
    With --from-pickle, pytorch_model.bin, adapter_model.bin and layer files of Megatron-DeepSpeed become safetensors.

    Example: bloomref convert bloom_tiny_udhr ./tiny-keras --to keras
    """
    if from_pickle:
        if adapter:
            hint = f"convert the pickles first, then run bloomref convert NEW {target} --adapter PATH"
            raise invalid("--adapter", "a model in safetensors or of Keras", "--from-pickle", hint)
        _convert_pickle(Path(source), target, to, dtype, config, force, json)
        return
    if config is not None:
        raise invalid("--config", "--from-pickle beside it", "--config alone")
    if adapter:
        _convert_merged(source, adapter, target, to, dtype, revision, force, json)
        return
    from bloomref.lora.adapter_files import is_adapter
    from bloomref.presets.resolver import resolve

    if is_adapter(Path(source)):
        _convert_adapter(Path(source), target, to, base, expand, force, json)
        return
    folder = resolve(source, revision=revision)
    with working(f"writing {target}"):
        written_dtype, left_out = _convert_model(folder, target, to, dtype, force)
    if left_out:
        note(f"left out: {', '.join(left_out)}; KerasHub has no classification head for BLOOM")
    report = {"source": str(folder), "target": str(target), "layout": to.value, "dtype": written_dtype}
    if json:
        print_json(report)
    else:
        typer.echo(f"{target}: {to.value} layout, {written_dtype}")


def _convert_model(folder: Path, target: Path, to: Layout, dtype: str, force: bool) -> tuple[str, list[str]]:
    """Write a model, and return its dtype and the tensors of heads that the layout has no place for."""
    from bloomref.dtypes import floating_dtype
    from bloomref.formats.layouts import hf, hf_heads, keras
    from bloomref.formats.layouts.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    stored_as = None if dtype == "auto" else floating_dtype(dtype)
    heads = hf_heads.stored_heads(folder, stored_as) if checkpoint.layout == "hf" else {}
    config = checkpoint.config
    if heads and not checkpoint.has_lm_head:
        config = config.replace(tie_word_embeddings=True)
    params = checkpoint.replace_config(config).params(stored_as)
    if to is Layout.keras:
        keras.save(target, config, params, tokenizer_from=folder, overwrite=force)
        return params.word_embedding.dtype.name, list(heads)
    config = hf_heads.config_of_copy(folder, config) if heads else config
    hf.save(target, config, params, head=heads, tokenizer_from=folder, overwrite=force)
    return params.word_embedding.dtype.name, []


def _convert_merged(
    source: str,
    adapters: list[str],
    target: Path,
    to: Layout,
    dtype: str,
    revision: str | None,
    force: bool,
    json: bool,
) -> None:
    from bloomref.dtypes import floating_dtype

    policy = dtype if dtype == "auto" else floating_dtype(dtype).name
    with working(f"merging into {source}"):
        model = _merge_target(source, adapters, to, policy, revision)
        for number, path in enumerate(adapters, start=1):
            model.load_adapter(path, f"adapter {number}")
        model.set_adapter(dict.fromkeys(model.adapters, 1.0))
        model.save_to_preset(target, overwrite=force, **({} if to is Layout.hf else {"format": to.value}))
    report = {
        "source": source,
        "target": str(target),
        "layout": to.value,
        "dtype": model.adapter_set.policy.variable_dtype.name,
        "merged": adapters,
    }
    if json:
        print_json(report)
    else:
        typer.echo(f"{target}: {to.value} layout, {report['dtype']}, merged: {', '.join(adapters)}")


def _merge_target(source: str, adapters: list[str], to: Layout, dtype: str, revision: str | None) -> Any:
    """The model that adapters are merged into: a classifier if it or one of them has a head."""
    import bloomref
    from bloomref.formats.layouts import hf_heads
    from bloomref.presets.adapted_models import locate
    from bloomref.presets.resolver import resolve_adapter

    folder = locate(source, revision=revision).folder
    head = hf_heads.kind_of(folder, [resolve_adapter(path) for path in adapters])
    if head is None:
        return bloomref.BloomCausalLM.from_preset(source, dtype=dtype, revision=revision)
    kind, num_labels = head
    if to is not Layout.hf:
        raise invalid(
            "--to", f"hf for a {kind.architecture}", to.value, "KerasHub has no classification head for BLOOM"
        )
    model_class = getattr(bloomref, kind.architecture)
    return model_class.from_preset(source, dtype=dtype, revision=revision, num_labels=num_labels)


def _convert_pickle(
    source: Path, target: Path, to: Layout, dtype: str, config: Path | None, force: bool, json: bool
) -> None:
    from bloomref.formats.pickles.from_pickle import convert, size

    if to is not Layout.hf or dtype != "auto":
        hint = f"then run bloomref convert {target} NEW --to keras, or with --dtype"
        raise invalid("--from-pickle", "--to hf and --dtype auto: bit for bit as stored", f"{to.value}, {dtype}", hint)
    with progress_bar(f"writing {target}", size(source)) as advance:
        result = convert(source, target, config, force, advance)
    report = {"source": str(source), "target": str(target), "layout": to.value, "kind": result.kind}
    if json:
        print_json({**report, "tensors": result.tensors, "bytes": result.bytes})
    else:
        typer.echo(f"{target}: {result.kind}, {result.tensors} tensors, {format_size(result.bytes)}, as safetensors")


def _convert_adapter(
    source: Path, target: Path, to: Layout, base: str | None, expand: bool, force: bool, json: bool
) -> None:
    from bloomref.dtypes import FLOAT32
    from bloomref.formats.layouts.checkpoint import open_checkpoint
    from bloomref.lora import adapter_files
    from bloomref.presets.adapted_models import known_base
    from bloomref.presets.resolver import resolve

    model = base or (known_base(source) if source.is_dir() else None)
    if model is None:
        raise invalid("--base", "the adapter's base model", "nothing")
    if (to is Layout.keras) is not target.name.endswith(".lora.h5"):
        raise invalid("target", "a name that ends in .lora.h5 for keras, a folder for hf", str(target))
    config = open_checkpoint(resolve(model, weights=False)).config
    adapter = adapter_files.load(source, "default", config, FLOAT32)
    adapter_files.save(target, adapter, config, expand, force)
    report = {"source": str(source), "target": str(target), "layout": to.value, **adapter_files.describe_files(target)}
    if json:
        print_json(report)
    else:
        typer.echo(f"{target}: {report['format']} adapter, {report['parameters']:,} parameters")
