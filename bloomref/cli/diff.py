"""`bloomref diff`: find the first intermediate in which two implementations differ, and a known mistake like it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bloomref.cli.shared import Json, Revision, load, note, print_json, tokenizer_of, working
from bloomref.errors import InvalidInput, invalid

if TYPE_CHECKING:
    from bloomref.conformance.cases import Case
    from bloomref.conformance.diff.compare import Difference

OPERAND = (
    "A backend (numpy, numba, ...), transformers, keras_hub, llama_cpp, ctranslate2, program:COMMAND, module:Name, "
    "mistake:NAME, oracle, or a trace file. NAME@DTYPE computes in that dtype."
)


def command(
    a: Annotated[str, typer.Argument(help=OPERAND, metavar="A")],
    b: Annotated[str, typer.Argument(help="As A. Default: oracle.", metavar="B", show_default=False)] = "oracle",
    dtype: Annotated[
        str, typer.Option("--dtype", help="float64, float32, float16 or bfloat16, for names without @DTYPE.")
    ] = "float32",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A preset or model folder instead of random weights.", metavar="PRESET"),
    ] = None,
    revision: Revision = None,
    text: Annotated[str, typer.Option(help="Input text; only with --model.")] = "Everyone has the right to education",
    tokens: Annotated[
        str | None, typer.Option(help="Token ids instead of a text, separated by commas; only with --model.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights and token ids.")] = 0,
    heads: Annotated[int, typer.Option(min=1, help="Heads of a random model.")] = 6,
    head_dim: Annotated[int, typer.Option(min=1, help="Head width of a random model.")] = 5,
    layers: Annotated[int, typer.Option(min=0, help="Layers of a random model.")] = 2,
    vocabulary: Annotated[int, typer.Option(min=2, help="Vocabulary size of a random model.")] = 31,
    rows: Annotated[int, typer.Option(min=1, help="Batch size of random token ids.")] = 3,
    time: Annotated[int, typer.Option(min=1, help="Positions of each row of random token ids.")] = 24,
    mask: Annotated[
        str, typer.Option(help="Padding mask: real (no padding), left, right, holes or 'padding row'.")
    ] = "real",
    cuts: Annotated[
        str, typer.Option(help="Run in several calls over a cache, which begin at these positions: 5,8")
    ] = "",
    post_layernorm: Annotated[
        bool, typer.Option("--post-layernorm", help="Random model with post-layernorm residual.")
    ] = False,
    untied: Annotated[bool, typer.Option("--untied", help="Random model with an untied LM head.")] = False,
    embedding_std: Annotated[
        float, typer.Option(help="Standard deviation of random embeddings; below 3e-3, epsilon matters.")
    ] = 1.0,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page with plots.", metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """Compare A with B, intermediate by intermediate, and name the known mistake that explains a difference.

    Example: bloomref diff mistake:qkv-in-blocks oracle --html difference.html

    Exit code 1 if they differ by more than rounding explains, 0 if they agree.
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
        case = Case(
            config,
            seed=seed,
            batch=rows,
            time=time,
            kind=mask,
            embedding_std=embedding_std,
            cuts=_cuts(cuts, time),
        )
        dtypes = [dtype, dtype]
    else:
        case, dtypes = _case_of_model((a, b), dtype, model, revision, text, tokens)
    with working("comparing"):
        difference = diff(case, operands.operand(a, dtypes[0], case), operands.operand(b, dtypes[1], case))
    _report(difference, html, json)
    raise typer.Exit(1 if difference.differ else 0)


def _case_of_model(
    names: tuple[str, str], dtype: str, model: str | None, revision: str | None, text: str, tokens: str | None
) -> tuple["Case", list[str]]:
    """Return the case of a preset or of trace files, and the dtype of each operand.

    Raises:
        InvalidInput: when two trace files have different models or token ids.
    """
    from bloomref.conformance.diff import operands

    traces = {name: operands.metadata(Path(name)) for name in names if operands.is_trace(name)}
    if len({(trace["model"], trace["token_ids"]) for trace in traces.values()}) > 1:
        raise InvalidInput("trace files: expected the same model and tokens in both, got different ones")
    dtypes = [
        operands.traced_dtype(Path(name)) if name in traces else operands.split_dtype(name, dtype)[1] for name in names
    ]
    trace = next(iter(traces.values()), None)
    name = model or (trace["model"] if trace else "")
    ids = _integers("token ids", trace["token_ids"].replace(" ", ",")) if trace else _ids(name, revision, text, tokens)
    return operands.case_of_model(name, ids, tuple(dtypes), revision), dtypes


def _ids(model: str, revision: str | None, text: str, tokens: str | None) -> list[int]:
    return _integers("tokens", tokens) if tokens else tokenizer_of(load(model, None, revision)).tokenize(text)


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word]
    except ValueError:
        raise invalid(name, "integers, separated by commas", repr(text)) from None


def _cuts(text: str, time: int) -> tuple[int, ...]:
    cuts = tuple(_integers("cuts", text))
    if list(cuts) != sorted({cut for cut in cuts if 0 < cut < time}):
        raise invalid("cuts", f"increasing positions between 1 and {time - 1}", text)
    return cuts


def _report(difference: "Difference", html: Path | None, json: bool) -> None:
    from rich.console import Console

    from bloomref.conformance.diff import report

    if html is not None:
        from bloomref.conformance.diff.html_page import page

        html.write_text(page(difference), "utf-8")
        note(f"page written to {html}")
    if json:
        print_json(report.to_dict(difference))
    else:
        report.show(difference, Console(width=None if sys.stdout.isatty() else 120))
