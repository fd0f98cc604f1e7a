"""`bloomref info`: describe a checkpoint and its memory needs without loading its weights."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomref.cli.shared import DEFAULT_PRESET, Json, Revision, print_json, size
from bloomref.config import BloomConfig
from bloomref.errors import BadWeights, Unsupported, visible
from bloomref.runtime import interface_checks, registry
from bloomref.runtime.backend import SupportsMemoryEstimate

if TYPE_CHECKING:
    from bloomref.formats.layouts.checkpoint import Checkpoint


def command(
    model: Annotated[str, typer.Argument(help="A preset's name, hf://user/repo, or a folder.")] = DEFAULT_PRESET,
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="Memory on this backend, or auto. Default: all that work here.", metavar="NAME"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch size for the memory table.", min=1, max=2**31 - 1)] = 1,
    length: Annotated[
        int, typer.Option(help="Positions of prompt and continuation, for the memory table.", min=1, max=2**31 - 1)
    ] = 2048,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Show a checkpoint's config, parameters and dtype, and its memory by backend and dtype; or describe an adapter.

    Example: bloomref info bloom_560m_multi --length 512
    """
    from bloomref.lora import adapter_files
    from bloomref.presets.adapted_models import is_only_adapter
    from bloomref.presets.preset_registry import ADAPTERS

    path = ADAPTERS[model].folder if model in ADAPTERS else Path(model)
    if adapter_files.is_adapter(path) and (path.is_file() or is_only_adapter(path)):
        _show_adapter(path, json)
        return
    report = _report(model, revision, backend, batch, length)
    if json:
        print_json(report)
        return
    stored = f"stored as {report['dtype']}" if report["dtype"] else f"known without reading {report['source']}"
    typer.echo(f"{model}: {report['parameters']:,} parameters, {report['layout']} layout, {stored}")
    for name, value in report["config"].items():
        typer.echo(f"  {visible(name, 120):42} {visible(_plain(value), 120)}")
    typer.echo(f"memory for {batch} x {length} positions (weights + cache + working space)")
    for row in report["memory"]:
        parts = " + ".join(size(row[part]) for part in ("weights", "cache", "working"))
        typer.echo(f"  {row['backend']:8} {row['dtype']:16} {size(row['total']):>8}  = {parts}")
    for remark in report["remarks"]:
        typer.echo(f"remark: {visible(remark, 1000)}")


def _plain(value: object) -> object:
    """A number or a flag as text; `visible` shows anything else as Python writes it."""
    return str(value) if isinstance(value, (int, float)) or value is None else value


def _show_adapter(path: Path, json: bool) -> None:
    from bloomref.lora import foreign_adapters
    from bloomref.lora.adapter_files import describe_files

    try:
        report = {"method": "LORA", **describe_files(path)}
    except (Unsupported, BadWeights) as error:
        if not path.is_dir():
            raise
        report = foreign_adapters.facts(path) | {"cannot be run": str(error)}
    if json:
        print_json(report)
        return
    method = "LoRA" if report["method"] == "LORA" else visible(report["method"], 60)
    count = "no readable weights" if report["parameters"] is None else f"{report['parameters']:,} parameters"
    typer.echo(f"{path}: {method} adapter, {count}")
    for name, value in report.items():
        if name not in ("parameters", "method"):
            typer.echo(f"  {visible(name, 120):42} {visible(_plain(value), 400)}")


def _report(model: str, revision: str | None, backend: str | None, batch: int, length: int) -> dict[str, Any]:
    from bloomref.params import count_params

    if backend not in (None, registry.AUTO):
        registry.load(backend)  # refuse an unknown name before any download
    source = _registered(model, revision) or _opened(model, revision)
    config = source.pop("config")
    return {
        "model": model,
        "parameters": count_params(config),
        **source,
        "config": {name: value for name, value in config.to_dict().items() if name != "extra"} | dict(config.extra),
        "memory": _chosen(backend, config, batch, length) if backend else _all(config, batch, length),
    }


def _registered(model: str, revision: str | None) -> dict[str, Any] | None:
    """Facts of a built-in preset, from the registry: without a network. None for any other model or revision."""
    from bloomref.presets.preset_registry import PRESETS

    preset = PRESETS.get(model)
    if preset is None or preset.folder is not None or revision not in (None, preset.revision):
        return None
    source = f"hf://{preset.source}@{preset.revision}"
    return {"layout": "hf", "dtype": None, "config": preset.config, "source": source, "remarks": []}


def _opened(model: str, revision: str | None) -> dict[str, Any]:
    from bloomref.formats.layouts.checkpoint import open_checkpoint
    from bloomref.formats.layouts.oddities import remarks
    from bloomref.presets.resolver import resolve

    folder = resolve(model, weights=False, revision=revision)
    checkpoint = open_checkpoint(folder)
    seen_whole = checkpoint.has_weights or "://" not in model  # of a repository only the small files are fetched
    return {
        "layout": checkpoint.layout,
        "dtype": _dtype(checkpoint),
        "config": checkpoint.config,
        "source": str(folder),
        "remarks": remarks(checkpoint) if seen_whole else [],
    }


def _dtype(checkpoint: "Checkpoint") -> str:
    """Stored dtype, or the declared one where the weights cannot be read: a remark says why."""
    try:
        return checkpoint.dtype_name
    except (BadWeights, Unsupported):
        return checkpoint.declared_dtype or "unknown"


def _all(config: BloomConfig, batch: int, length: int) -> list[dict[str, Any]]:
    """Memory rows of every backend that works here and reports its memory."""
    rows = []
    for name in registry.names():
        try:
            rows += _chosen(name, config, batch, length)
        except Unsupported:
            continue
    return rows


def _chosen(name: str, config: BloomConfig, batch: int, length: int) -> list[dict[str, Any]]:
    """Memory rows of one backend, one for each dtype policy in which it runs the model."""
    from bloomref.dtypes import POLICIES, dtype_policy

    backend = registry.choose(name, config, dtype_policy()) if name == registry.AUTO else registry.load(name)
    if not isinstance(backend, SupportsMemoryEstimate):
        hint = "docs/writing-a-backend.md shows how its author can add it"
        raise Unsupported(f"backend {backend.name!r}: it has no method `memory`, which reports its memory; {hint}")
    reasons = {policy: registry.reason_of(backend, config, policy) for policy in POLICIES.values()}
    if None not in reasons.values():
        raise Unsupported(f"backend {backend.name!r}: {reasons[dtype_policy()]}")
    rows = []
    for policy in (policy for policy, reason in reasons.items() if reason is None):
        need = backend.memory(config, policy, batch, length)
        interface_checks.check_memory(backend.name, need)
        rows.append({"backend": backend.name, "dtype": policy.name} | asdict(need) | {"total": need.total})
    return rows
