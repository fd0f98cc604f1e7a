"""`bloomref score`: compute the likelihood of a text under a model."""

from typing import Annotated

import typer

from bloomref.cli import shared


def command(
    text: Annotated[str, typer.Argument(help="The text to score; - reads standard input.")],
    context: Annotated[
        str | None, typer.Option("--context", "-c", help="Score TEXT as the continuation of this text.")
    ] = None,
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
    score = language_model.score(text, context=context)
    if json:
        run = {"model": model, "backend": language_model.backbone.engine.backend}
        shared.print_json(run | {"text": text, "context": context} | score.to_dict())
        return
    typer.echo(f"log-likelihood  {score.log_likelihood:.4f} nats over {len(score.log_probs)} tokens")
    typer.echo(f"perplexity      {score.perplexity:.4f} per token")
    typer.echo(f"bits per byte   {score.bits_per_byte:.4f}")
    typer.echo(f"greedy          {'yes' if score.is_greedy else 'no'} (yes: greedy search would generate this text)")
