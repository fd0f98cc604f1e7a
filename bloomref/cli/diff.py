"""`bloomref diff`: where do two implementations part, and which known mistake explains it?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bloomref.cli.shared import Json, Revision, load, note, print_json, tokenizer_of, working
from bloomref.errors import InvalidInput, invalid

if TYPE_CHECKING:
    from bloomref.conformance.cases import Case
    from bloomref.conformance.diff.compare import Difference

SIDE = "numpy, another backend, transformers, keras_hub, llama_cpp, ctranslate2, program:COMMAND, module:Adapter, mistake:NAME, oracle, or a trace file"


def command(
    a: Annotated[str, typer.Argument(help=f"{SIDE}. NAME@DTYPE computes in that dtype.", metavar="A")],
    b: Annotated[str, typer.Argument(help="The same. [default: oracle]", metavar="B", show_default=False)] = "oracle",
    dtype: Annotated[str, typer.Option("--dtype", help="float64, float32, float16 or bfloat16.")] = "float32",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A preset instead of a drawn model.", metavar="PRESET")
    ] = None,
    revision: Revision = None,
    text: Annotated[str, typer.Option(help="With --model: the input.")] = "Everyone has the right to education",
    tokens: Annotated[str | None, typer.Option(help="With --model: token ids instead, separated by commas.")] = None,
    seed: Annotated[int, typer.Option(help="Of a drawn model and its input.")] = 0,
    heads: Annotated[int, typer.Option(min=1)] = 6,
    head_dim: Annotated[int, typer.Option(min=1)] = 5,
    layers: Annotated[int, typer.Option(min=0)] = 2,
    vocabulary: Annotated[int, typer.Option(min=2)] = 31,
    rows: Annotated[int, typer.Option(min=1)] = 3,
    time: Annotated[int, typer.Option(min=1, help="Positions of each row.")] = 24,
    mask: Annotated[str, typer.Option(help="real, left, right, holes or 'padding row'.")] = "real",
    cuts: Annotated[str, typer.Option(help="Run in pieces over a cache, cut there: 5,8")] = "",
    post_layernorm: Annotated[bool, typer.Option("--post-layernorm", help="The other residual form.")] = False,
    untied: Annotated[bool, typer.Option("--untied", help="A head of its own.")] = False,
    embedding_std: Annotated[float, typer.Option(help="Below 3e-3 epsilon decides.")] = 1.0,
    html: Annotated[Path | None, typer.Option(help="Also write a page with plots.", metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """Compare A with B, intermediate by intermediate, and name the mistake that explains a difference.

    Example: bloomref diff mistake:qkv-in-blocks oracle --html difference.html

    Exit code 1 where they differ by more than rounding explains, 0 where they agree.
    """
    from bloomref.config import BloomConfig
    from bloomref.conformance.cases import MASKS, Case
    from bloomref.conformance.diff import operands
    from bloomref.conformance.diff.compare import diff

    if mask not in MASKS:
        raise invalid("mask", f"one of {', '.join(MASKS)}", repr(mask))
    if model is None and not any(map(operands.is_trace, (a, b))):
        config = BloomConfig(
            vocabulary_size=vocabulary,
            num_layers=layers,
            num_heads=heads,
            hidden_dim=heads * head_dim,
            intermediate_dim=4 * heads * head_dim,
            apply_residual_connection_post_layernorm=post_layernorm,
            tie_word_embeddings=not untied,
        )
        drawn = {"seed": seed, "batch": rows, "time": time, "kind": mask, "embedding_std": embedding_std}
        case = Case(config, **drawn, cuts=_cuts(cuts, time))  # type: ignore[arg-type]
        dtypes = [dtype, dtype]
    else:
        case, dtypes = _of_model((a, b), dtype, model, revision, text, tokens)
    with working("comparing"):
        found = diff(case, operands.side(a, dtypes[0], case), operands.side(b, dtypes[1], case))
    _report(found, html, json)
    raise typer.Exit(1 if found.differ else 0)


def _of_model(
    names: tuple[str, str], dtype: str, model: str | None, revision: str | None, text: str, tokens: str | None
) -> tuple["Case", list[str]]:
    """The case of a real model: the one that is named, or that of the trace files; and the dtype of each side."""
    from bloomref.conformance.diff import operands

    traced = {name: operands.metadata(Path(name)) for name in names if operands.is_trace(name)}
    if len({(told["model"], told["token_ids"]) for told in traced.values()}) > 1:
        raise InvalidInput("trace files: expected the same model and tokens in both, got different ones")
    dtypes = [
        operands.traced_dtype(Path(name)) if name in traced else operands.split_dtype(name, dtype)[1] for name in names
    ]
    told = next(iter(traced.values()), None)
    name = model or (told["model"] if told else "")
    ids = _numbers("token ids", told["token_ids"].replace(" ", ",")) if told else _ids(name, revision, text, tokens)
    return operands.case_of_model(name, ids, tuple(dtypes), revision), dtypes


def _ids(model: str, revision: str | None, text: str, tokens: str | None) -> list[int]:
    return _numbers("tokens", tokens) if tokens else tokenizer_of(load(model, None, revision)).tokenize(text)


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word]
    except ValueError:
        raise invalid(name, "integers, separated by commas", repr(text)) from None


def _cuts(text: str, time: int) -> tuple[int, ...]:
    cuts = tuple(_numbers("cuts", text))
    if list(cuts) != sorted({cut for cut in cuts if 0 < cut < time}):
        raise invalid("cuts", f"rising positions between 1 and {time - 1}", text)
    return cuts


def _report(found: "Difference", html: Path | None, json: bool) -> None:
    from rich.console import Console

    from bloomref.conformance.diff import report

    if html is not None:
        from bloomref.conformance.diff.html_page import page

        html.write_text(page(found), "utf-8")
        note(f"page written to {html}")
    if json:
        print_json(report.to_dict(found))
    else:
        report.show(found, Console(width=None if sys.stdout.isatty() else 120))
