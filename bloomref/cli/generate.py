"""`bloomref generate`: continue a text, and print the continuation as it is generated."""

import time
from collections.abc import Generator
from typing import Annotated

import typer

from bloomref.cli import shared
from bloomref.generation.options import GenerationArguments


def command(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")],
    model: shared.Model = shared.DEFAULT_PRESET,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Largest number of new tokens.")] = 64,
    temperature: Annotated[
        float | None, typer.Option(help="Sample; lower is closer to greedy. Without a sampling option: greedy search.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the fewest tokens whose probabilities sum to p.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Sample among tokens at least p times as likely as the most likely one.")
    ] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 makes repeated tokens less likely.")] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(help="No n-gram of this size occurs twice.")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beam search with this number of beams.")] = None,
    penalty_alpha: Annotated[float | None, typer.Option(help="Contrastive search; needs --top-k.")] = None,
    stop_strings: Annotated[
        list[str] | None, typer.Option("--stop", help="Stop string, which ends the text; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    adapter: shared.AdapterOption = None,
    backend: shared.Backend = "auto",
    dtype: shared.DType = None,
    revision: shared.Revision = None,
    json: shared.Json = False,
) -> None:
    """Continue PROMPT.

    Example: bloomref generate "Everyone has the right to" -n 40 --temperature 0.8 --seed 1
    """
    names = GenerationArguments.__annotations__.keys() - {"max_new_tokens"}
    options = {name: value for name, value in locals().items() if name in names and value is not None}
    text = shared.text_or_stdin(prompt, "prompt")
    language_model = shared.load_on(backend, model, dtype, revision, json, adapter)
    shared.tokenizer_of(language_model)
    stream = language_model.stream(text, max_new_tokens=max_new_tokens, **options)
    began = time.perf_counter()
    if not json:
        typer.echo(text, nl=False)
    continuation, count = _show(stream, quiet=json)
    seconds = time.perf_counter() - began
    if json:
        report = {"model": model, "prompt": text, "continuation": continuation, "tokens": count, "seconds": seconds}
        run = {"backend": language_model.backbone.engine.backend, "dtype": language_model.backbone.policy.name}
        shared.print_json(report | run | {"options": options})
        return
    typer.echo()
    shared.note(f"{count} tokens in {seconds:.2f} s, {count / max(seconds, 1e-9):.1f} tokens/s ({model})")


def _show(stream: Generator[str, None, int], quiet: bool) -> tuple[str, int]:
    """Print each chunk unless `quiet`. Returns the continuation and the number of generated tokens."""
    pieces: list[str] = []
    while True:
        try:
            piece = next(stream)
        except StopIteration as end:
            return "".join(pieces), end.value
        pieces.append(piece)
        if not quiet:
            typer.echo(piece, nl=False)
