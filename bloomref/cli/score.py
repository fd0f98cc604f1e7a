"""`bloomref score`: compute the likelihood of a text under a model."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomref.cli import shared

if TYPE_CHECKING:
    from bloomref.generation.scoring import Score
    from bloomref.tokenizer import BloomTokenizer

LONG_TEXT = 10_000
"""Characters of a text whose scoring shows a progress bar."""


def command(
    text: Annotated[str, typer.Argument(help="The text to score; - reads standard input.")],
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            "-c",
            help="Score TEXT as the continuation of this text. Without it the first token is not scored, since no token "
            "predicts it; an empty one predicts the first token from <s>. Special tokens are added nowhere else; write "
            "them into the text.",
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Score a long text in windows of so many tokens, as published perplexities do.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between the starts of two windows, at most a window. Default: half a window."),
    ] = None,
    top_logprobs: Annotated[
        int, typer.Option(metavar="K", help="With --json: the K likeliest tokens in the place of each scored token.")
    ] = 0,
    model: shared.Model = shared.DEFAULT_PRESET,
    adapter: shared.AdapterOption = None,
    backend: shared.Backend = "auto",
    dtype: shared.DType = None,
    revision: shared.Revision = None,
    json: shared.Json = False,
) -> None:
    """Print log-likelihood, perplexity and bits per byte of TEXT.

    Example: bloomref score " education." --context "Everyone has the right to"
    """
    text = shared.text_or_stdin(text, "text")
    language_model = shared.load_on(backend, model, dtype, revision, json, adapter)
    tokenizer = shared.tokenizer_of(language_model)
    score = language_model.score(
        text,
        context=context,
        window=window,
        stride=stride,
        top_logprobs=top_logprobs,
        progress=sys.stderr.isatty() and len(text) > LONG_TEXT,
    )
    if json:
        run = {"model": model, "backend": language_model.backbone.engine.backend}
        shared.print_json(run | {"text": text, "context": context} | _report(score, tokenizer))
        return
    typer.echo(f"log-likelihood  {score.log_likelihood:.4f} nats over {len(score.log_probs)} tokens")
    typer.echo(f"perplexity      {score.perplexity:.4f} per token")
    typer.echo(f"bits per byte   {score.bits_per_byte:.4f}")
    typer.echo(f"greedy          {'yes' if score.is_greedy else 'no'} (yes: greedy search would generate this text)")


def _report(score: "Score", tokenizer: "BloomTokenizer") -> dict[str, Any]:
    """The score; the likeliest tokens have the keys that llama.cpp's server gives them."""
    report = score.to_dict()
    for row in report.get("top_logprobs", []):
        row[:] = [token_report(tokenizer, entry) for entry in row]
    return report


def token_report(tokenizer: "BloomTokenizer", entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of `top_logprobs` with the text and the bytes of its token, or None for an id without one."""
    token_id = entry["id"]
    if not tokenizer.has_token(token_id):
        return entry | {"token": None, "bytes": None}
    return entry | {"token": tokenizer.detokenize([token_id]), "bytes": list(tokenizer.token_bytes(token_id))}
