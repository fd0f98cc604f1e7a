"""`bloomref info`: what a checkpoint is, and what it needs to run, without loading its weights."""

from typing import Annotated, Any

import typer

from bloomref.cli.shared import DEFAULT_PRESET, Json, Revision, print_json, size


def command(
    model: Annotated[str, typer.Argument(help="A preset's name, hf://user/repo, or a folder.")] = DEFAULT_PRESET,
    batch: Annotated[int, typer.Option(help="Rows generated at once, for the memory table.", min=1)] = 1,
    length: Annotated[int, typer.Option(help="Positions of prompt and continuation, likewise.", min=1)] = 2048,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Show a checkpoint's config, parameters, dtype, and the memory it needs by backend and dtype.

    Example: bloomref info bloom_560m_multi --length 512
    """
    report = _report(model, revision, batch, length)
    if json:
        print_json(report)
        return
    typer.echo(f"{model}: {report['parameters']:,} parameters, {report['layout']} layout, stored as {report['dtype']}")
    for name, value in report["config"].items():
        typer.echo(f"  {name:42} {value}")
    typer.echo(f"memory for {batch} x {length} positions (weights + cache + working space)")
    for row in report["memory"]:
        parts = " + ".join(size(row[part]) for part in ("weights", "cache", "working"))
        typer.echo(f"  {row['backend']:8} {row['dtype']:16} {size(row['total']):>8}  = {parts}")


def _report(model: str, revision: str | None, batch: int, length: int) -> dict[str, Any]:
    from bloomref.dtypes import POLICIES
    from bloomref.formats.checkpoint import open_checkpoint
    from bloomref.params import count_params
    from bloomref.presets.resolver import resolve
    from bloomref.runtime.memory import numpy_memory

    checkpoint = open_checkpoint(resolve(model, weights=False, revision=revision))
    config = checkpoint.config
    rows = [("numpy", name, numpy_memory(config, policy, batch, length)) for name, policy in POLICIES.items()]
    return {
        "model": model,
        "parameters": count_params(config),
        "layout": checkpoint.layout,
        "dtype": checkpoint.dtype_name,
        "config": {name: value for name, value in config.to_dict().items() if name != "extra"} | dict(config.extra),
        "memory": [
            {
                "backend": backend,
                "dtype": name,
                "weights": m.weights,
                "cache": m.cache,
                "working": m.working,
                "total": m.total,
            }
            for backend, name, m in rows
        ],
    }
