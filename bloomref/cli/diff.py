"""`bloomref diff`: find the first intermediate in which two implementations differ, and a known mistake like it."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bloomref.cli.shared import Json, Keep, Revision, Timeout, load, note, print_json, tokenizer_of, working
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
    lora: Annotated[int, typer.Option(min=0, help="Rank of a LoRA adapter on a random model. 0: no adapter.")] = 0,
    lora_targets: Annotated[
        str, typer.Option(help="Adapted modules, separated by commas. Default: every linear layer.", metavar="NAMES")
    ] = "",
    case: Annotated[
        str | None,
        typer.Option(
            "--case", help="Instead of a random model: `Case(...)` as a failure prints it, or a fixed case's name."
        ),
    ] = None,
    vector: Annotated[
        str | None, typer.Option("--vector", help="Instead of a random model: a test vector.", metavar="ID")
    ] = None,
    capacity: Annotated[
        int, typer.Option(min=0, help="Positions of the cache. Default: those of the input.", show_default=False)
    ] = 0,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Compare the loss and its gradients, in backward order.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every row of a long table.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page with plots.", metavar="FILE")] = None,
    timeout: Timeout = None,
    keep: Keep = None,
    json: Json = False,
) -> None:
    """Compare A with B, intermediate by intermediate, and name the known mistake that explains a difference.

    Example: bloomref diff mistake:qkv-in-blocks oracle --html difference.html

    Exit code 1 if they differ by more than rounding explains, 0 if they agree.
    """
    from bloomref.conformance.cases import Case
    from bloomref.conformance.diff import backward, named_cases, operands, trace_files
    from bloomref.conformance.diff.case_expression import case_of
    from bloomref.conformance.diff.compare import diff

    named_cases.check_mask(mask)
    sources = {
        "--model": model,
        "--case": case,
        "--vector": vector,
        "a trace file": trace_files.is_trace(a) or trace_files.is_trace(b),
    }
    named = [option for option, value in sources.items() if value]
    if len(named) > 1 and set(named) != {"--model", "a trace file"}:
        raise invalid("input", "one of --case, --vector, --model and a trace file", " and ".join(named))
    if html is not None and gradients:
        raise InvalidInput("--html: expected intermediates, got --gradients; leave out one of the two")
    dtypes = [dtype, dtype]
    if case is not None:
        chosen = case_of(case)
    elif vector is not None:
        chosen = named_cases.case_of_vector(vector)
    elif named:
        chosen, dtypes = _case_of_model((a, b), dtype, model, revision, text, tokens)
    else:
        config = named_cases.random_config(heads, head_dim, layers, vocabulary, post_layernorm, untied)
        adapter = named_cases.random_adapter(lora, lora_targets)
        chosen = Case(config, seed, rows, time, mask, embedding_std=embedding_std, lora=adapter)
    if cuts:
        chosen = replace(chosen, cuts=_cuts(cuts, chosen.time))
    with working("comparing"), operands.program_settings(timeout, keep):
        if gradients:
            one, two = (backward.operand(name, own, chosen) for name, own in zip((a, b), dtypes, strict=True))
            difference = backward.difference(chosen, one, two)
        else:
            size = _capacity(capacity, chosen)
            one, two = (operands.operand(name, own, chosen, size) for name, own in zip((a, b), dtypes, strict=True))
            difference = diff(chosen, one, two)
    _report(difference, html, json, every)
    raise typer.Exit(1 if difference.differ else 0)


def _case_of_model(
    names: tuple[str, str], dtype: str, model: str | None, revision: str | None, text: str, tokens: str | None
) -> tuple["Case", list[str]]:
    """Return the case of a preset or of trace files, and the dtype of each operand.

    Raises:
        InvalidInput: when two trace files have different models or token ids.
    """
    from bloomref.conformance.diff import named_cases, operands, trace_files

    traces = {name: trace_files.metadata(Path(name)) for name in names if trace_files.is_trace(name)}
    if len({(trace["model"], trace["token_ids"]) for trace in traces.values()}) > 1:
        raise InvalidInput("trace files: expected the same model and tokens in both, got different ones")
    dtypes = [
        trace_files.traced_dtype(Path(name)) if name in traces else operands.split_dtype(name, dtype)[1]
        for name in names
    ]
    trace = next(iter(traces.values()), None)
    name = model or (trace["model"] if trace else "")
    ids = _integers("token ids", trace["token_ids"].replace(" ", ",")) if trace else _ids(name, revision, text, tokens)
    return named_cases.case_of_model(name, ids, tuple(dtypes), revision), dtypes


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


def _capacity(capacity: int, case: "Case") -> int:
    if capacity and capacity < case.time:
        raise invalid("capacity", f"at least the {case.time} positions of the input", capacity)
    return capacity


def _report(difference: "Difference", html: Path | None, json: bool, every: bool) -> None:
    from rich.console import Console

    from bloomref.conformance.diff import report

    if html is not None:
        from bloomref.conformance.diff.html_page import page
        from bloomref.formats.staging import staged_file

        with staged_file(html) as stage:
            stage.write_text(page(difference), "utf-8")
        note(f"page written to {html}")
    if json:
        print_json(report.to_dict(difference))
    else:
        report.show(difference, Console(width=None if sys.stdout.isatty() else 120), every)
