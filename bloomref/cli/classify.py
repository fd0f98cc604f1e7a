"""`bloomref classify`: label texts with a classifier."""

import sys
from typing import Annotated

import typer

from bloomref.cli import shared
from bloomref.errors import invalid


def command(
    texts: Annotated[list[str], typer.Argument(help="The texts to label; - reads one from each line of stdin.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A classifier's folder, or hf://user/repo.", metavar="PRESET")
    ],
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Labels to show, the best first. Default: all.", min=1)
    ] = None,
    backend: shared.Backend = "auto",
    dtype: shared.DType = None,
    revision: shared.Revision = None,
    json: shared.Json = False,
) -> None:
    """Print the labels of each text with their scores, by a model of transformers' BloomForSequenceClassification.

    Example: bloomref classify "I would buy it again." --model my_classifier --top-k 1
    """
    from bloomref.heads.sequence_classification import BloomForSequenceClassification

    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
        if not texts:
            raise invalid("texts", "at least one line on standard input", "none")
    with shared.working(f"loading {model}"):
        classifier = BloomForSequenceClassification.from_preset(model, dtype=dtype, revision=revision, backend=backend)
    engine = classifier.backbone.engine
    shared.note(f"backend {engine.backend}")
    shared.compile_kernels(engine.runs_on, engine.policy, json)
    with shared.working(f"labelling {len(texts)} texts"):
        ranked = classifier.classify(list(texts), top_k)
    if json:
        results = [{"text": text, "labels": labels} for text, labels in zip(texts, ranked, strict=True)]
        shared.print_json({"model": model, "backend": engine.backend, "results": results})
        return
    for text, labels in zip(texts, ranked, strict=True):
        typer.echo("  ".join(f"{entry['label']} {entry['score']:.4f}" for entry in labels) + f"  {text}")
