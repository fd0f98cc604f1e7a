"""`bloomref score`: how likely a text is."""

from typing import Annotated

import typer

from bloomref.cli.shared import (
    DEFAULT_PRESET,
    Backend,
    DType,
    Json,
    Model,
    Revision,
    load_on,
    print_json,
    text_or_stdin,
)


def command(
    text: Annotated[str, typer.Argument(help="The text to score; - reads standard input.")],
    context: Annotated[str | None, typer.Option("--context", "-c", help="Score TEXT as its continuation.")] = None,
    model: Model = DEFAULT_PRESET,
    backend: Backend = "auto",
    dtype: DType = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Print the log-likelihood and the perplexity of TEXT.

    Example: bloomref score " education." --context "Everyone has the right to"
    """
    wanted = text_or_stdin(text, "text")
    language_model = load_on(backend, model, dtype, revision)
    score = language_model.score(wanted, context=context)
    if json:
        run = {"model": model, "backend": language_model.backbone.engine.backend}
        print_json(run | {"text": wanted, "context": context} | score.to_dict())
        return
    typer.echo(f"log-likelihood  {score.log_likelihood:.4f} nats over {len(score.log_probs)} tokens")
    typer.echo(f"perplexity      {score.perplexity:.4f} per token")
    typer.echo(f"bits per byte   {score.bits_per_byte:.4f}")
    typer.echo(f"greedy          {'yes' if score.is_greedy else 'no'}: greedy decoding would have written it")
