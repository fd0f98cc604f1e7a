"""Remarks on a model's folder, for people: what is stored in an unusual way, what is not read, what is missing."""

from collections.abc import Iterator
from pathlib import Path

from bloomref.errors import BadWeights, Unsupported
from bloomref.formats.files import weight_map
from bloomref.formats.folder_contents import kinds_of
from bloomref.formats.layouts.checkpoint import Checkpoint
from bloomref.formats.layouts.hf import INDEX, WEIGHTS, HfWeights
from bloomref.formats.layouts.tensor_names import check_names
from bloomref.head_params import HEAD_KINDS
from bloomref.params import LM_HEAD, WORD_EMBEDDING, keys

_SHOWN = 4
_NEEDS_LAYERS = 10_000  # more layers are not enumerated


def remarks(checkpoint: Checkpoint) -> list[str]:
    """Remarks on the folder of a checkpoint. Only headers of weights are read; nothing is raised for a damaged file."""
    try:
        weights = checkpoint.weights
    except (BadWeights, Unsupported) as error:
        return [f"weights: {error}", *_beside(checkpoint.folder)]
    stored = list(_stored(checkpoint, weights)) if isinstance(weights, HfWeights) else []
    return [*stored, *_beside(checkpoint.folder)]


def _stored(checkpoint: Checkpoint, weights: HfWeights) -> Iterator[str]:
    heads = [kind for kind in HEAD_KINDS if kind.weight_key in weights.files]
    for kind in heads:
        yield f"{kind.weight_key}: the head of a {kind.architecture}; a language model ignores it"
    if others := [name for name in weights.unused if not name.startswith(tuple(f"{kind.module}." for kind in heads))]:
        yield f"{_listed(others)}: ignored, a language model does not use them"
    tied = checkpoint.config.tie_word_embeddings
    if tied and weights.has_lm_head:
        embedded = WORD_EMBEDDING.hf_key in weights.files
        yield "the tied LM head is stored twice" if embedded else "the tied embedding is stored as lm_head.weight"
    if not tied and not weights.has_lm_head:
        yield f"config.json unties the LM head, but no {LM_HEAD.hf_key} is stored: only BloomBackbone loads it"
    yield from _index(checkpoint.folder, weights)
    if checkpoint.config.num_layers <= _NEEDS_LAYERS:
        expected = dict(keys(checkpoint.config))
        names = {key: name for key, (_, name) in weights.files.items() if key != LM_HEAD.hf_key or key in expected}
        if tied and weights.has_lm_head:
            names[WORD_EMBEDDING.hf_key] = WORD_EMBEDDING.hf_key
        try:
            check_names(expected, names)
        except (BadWeights, Unsupported) as error:
            yield str(error)


def _index(folder: Path, weights: HfWeights) -> Iterator[str]:
    if (folder / WEIGHTS).exists():
        if (folder / INDEX).exists():
            yield f"{INDEX} is not read, since {WEIGHTS} exists"
        return
    listed = weight_map(folder / INDEX)
    stored = {name for _, name in weights.files.values()}
    if absent := sorted(set(listed) - stored):
        yield f"{INDEX} names {_listed(absent)}, which no shard holds"
    if unlisted := sorted(stored - set(listed)):
        yield f"{INDEX} does not name {_listed(unlisted)}, which a shard holds"


def _beside(folder: Path) -> Iterator[str]:
    names = sorted(path.name for path in folder.iterdir())
    read = (WEIGHTS, "model.weights.h5", "task.weights.h5")
    others = [f"{name} ({kind.what})" for name, kind in kinds_of(names) if name not in read and "-of-" not in name]
    if others:
        yield f"{_listed(others)}: not read"
    if "adapter_config.json" in names:
        yield f"an adapter stands beside the model, and is not applied: `--adapter {folder}` applies it"
    if "tokenizer.json" not in names and "assets" not in names:
        yield "no tokenizer.json: text cannot be tokenized"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
