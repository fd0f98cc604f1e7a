"""`bloomref trace`: write the named intermediates of one forward pass to a safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bloomref.cli.shared import (
    DEFAULT_PRESET,
    DType,
    Json,
    Model,
    Revision,
    load,
    print_json,
    size,
    text_or_stdin,
    tokenizer_of,
)
from bloomref.errors import BadWeights, invalid
from bloomref.shapes import Array
from bloomref.wider_dtypes import overflow_hint


def command(
    text: Annotated[str, typer.Argument(help="The input; - reads standard input.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    names: Annotated[str, typer.Option(help="Pattern of the names to write, such as 'layers.0.*'.")] = "*",
    model: Model = DEFAULT_PRESET,
    dtype: DType = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Write the named intermediates of one forward pass over TEXT.

    Example: bloomref trace "Everyone has" -o trace.safetensors --names "layers.0.attention.*"
    """
    from bloomref.formats.safetensors_io import write_safetensors

    language_model = load(model, dtype, revision)
    ids = tokenizer_of(language_model).tokenize(text_or_stdin(text, "text"))
    intermediates = language_model.backbone.trace({"token_ids": [ids]}, names)
    if not intermediates:
        raise invalid("names", "a pattern that matches an intermediate, such as 'layers.0.*'", names)
    write_safetensors(output, intermediates, {"model": model, "token_ids": " ".join(map(str, ids))})
    _check_finite(intermediates, output, language_model.backbone.policy.name)
    if json:
        shapes = {name: list(x.shape) for name, x in intermediates.items()}
        print_json({"output": str(output), "token_ids": ids, "shapes": shapes})
        return
    for name, array in intermediates.items():
        typer.echo(f"{name:36} {array.dtype!s:9} {array.shape}")
    total = size(sum(x.nbytes for x in intermediates.values()))
    typer.echo(f"{len(intermediates)} intermediates, {total}, written to {output}")


def _check_finite(intermediates: Mapping[str, Array], output: Path, dtype: str) -> None:
    """Refuse a trace with NaN or infinities: it is written, so that its reader finds where they begin.

    Raises:
        BadWeights: naming the first intermediate with such a number.
    """
    for name, array in intermediates.items():
        numbers = array.astype(np.float64)
        if not np.isfinite(numbers).all():
            first = numbers[~np.isfinite(numbers)][0]
            problem = f"{name}: expected finite numbers, got {first}: they overflow in {dtype}, or the weights hold NaN"
            raise BadWeights(f"{problem}; the trace is in {output}{overflow_hint(dtype)}")
