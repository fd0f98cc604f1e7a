"""`bloomref generate`: continue a text, and show it as it comes."""

import time
from typing import Annotated, Any

import typer

from bloomref.cli import shared


def command(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")],
    model: shared.Model = shared.DEFAULT_PRESET,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens to add at most.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="Sample; lower is safer. Without it: greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens that hold this mass.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest one.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 makes repeats less likely.")] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(help="No n-gram of this size twice.")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beam search with that many beams.")] = None,
    penalty_alpha: Annotated[float | None, typer.Option(help="Contrastive search; give --top-k too.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End at this string; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    adapter: shared.Adapter = None,
    backend: shared.Backend = "auto",
    dtype: shared.DType = None,
    revision: shared.Revision = None,
    json: shared.Json = False,
) -> None:
    """Continue PROMPT.

    Example: bloomref generate "Everyone has the right to" -n 40
    """
    asked = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "num_beams": num_beams,
        "penalty_alpha": penalty_alpha,
        "stop_strings": stop,
        "seed": seed,
    }
    options: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    text = shared.text_or_stdin(prompt, "prompt")
    language_model = shared.load_on(backend, model, dtype, revision, json, adapter)
    tokenizer = shared.tokenizer_of(language_model)
    stream = language_model.stream(text, max_new_tokens=max_new_tokens, **options)
    began = time.perf_counter()
    pieces = []
    if not json:
        typer.echo(text, nl=False)
    for piece in stream:
        pieces.append(piece)
        if not json:
            typer.echo(piece, nl=False)
    seconds = time.perf_counter() - began
    continuation = "".join(pieces)
    count = len(tokenizer.tokenize(continuation)) if continuation else 0
    if json:
        report = {"model": model, "prompt": text, "continuation": continuation, "tokens": count, "seconds": seconds}
        run = {"backend": language_model.backbone.engine.backend, "dtype": language_model.backbone.policy.name}
        shared.print_json(report | run | {"options": options})
        return
    typer.echo()
    shared.note(f"{count} tokens in {seconds:.2f} s, {count / max(seconds, 1e-9):.1f} tokens/s ({model})")
