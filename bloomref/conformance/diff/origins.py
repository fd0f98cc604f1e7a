"""Origins of the intermediates: the intermediates that each is computed from, and the clauses that say how."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """The computation of one intermediate.

    Args:
        clauses: the clauses that say how, the most likely to be broken first.
        inputs: what it is computed from: names of the same layer; STREAM is the output of the block before.
        over_cache: clauses that calls over a cache can break, too.
        adapted: clauses that a LoRA adapter can break, too.
    """

    clauses: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    over_cache: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()


STREAM = "stream"
"""The hidden states that enter a layer or the final norm."""
NORM = ("EMB-3", "EMB-4")
PROJECTED = ("LRA-3", "LRA-1", "LRA-12")
ADAPTED = ("LRA-1", "LRA-12")

ORIGINS: dict[str, Origin] = {
    "word_embedding": Origin(("EMB-5", "WGT-3"), adapted=("LRA-4", "LRA-12")),
    "embedding_norm": Origin(("EMB-5", *NORM), ("word_embedding",), ("KVC-7",)),
    "attention.norm": Origin(("ATT-1", *NORM), (STREAM,)),
    "attention.query": Origin(("ATT-2",), ("attention.norm",), ("KVC-7",), PROJECTED),
    "attention.key": Origin(("ATT-2",), ("attention.norm",), ("KVC-7",), PROJECTED),
    "attention.value": Origin(("ATT-2",), ("attention.norm",), ("KVC-7",), PROJECTED),
    "attention.scores": Origin(
        ("ATT-3", "ATT-4", "ALI-1", "ALI-2", "ALI-4"), ("attention.query", "attention.key"), ("KVC-1", "KVC-2")
    ),
    "attention.probabilities": Origin(("ATT-6", "ATT-5", "ATT-7"), ("attention.scores",), ("KVC-2", "KVC-3")),
    "attention.context": Origin(("ATT-9",), ("attention.probabilities", "attention.value"), ("KVC-1",)),
    "attention.output": Origin(("ATT-9",), ("attention.context",), adapted=ADAPTED),
    "attention_block": Origin(("ATT-10", "MOD-3"), ("attention.output", STREAM)),
    "mlp.norm": Origin(("MLP-1", *NORM), ("attention_block",)),
    "mlp.up": Origin(("MLP-3",), ("mlp.norm",), adapted=ADAPTED),
    "mlp.gelu": Origin(("MLP-2",), ("mlp.up",)),
    "mlp.output": Origin(("MLP-3",), ("mlp.gelu",), adapted=ADAPTED),
    "mlp_block": Origin(("MLP-4", "MOD-3"), ("mlp.output", "attention_block")),
    "final_norm": Origin(("MOD-4", *NORM), (STREAM,)),
    "logits": Origin(("MOD-5", "MOD-6"), ("final_norm",), adapted=("LRA-4",)),
}
"""Name of an intermediate without its layer -> its origin, in the order of computation."""


def split(name: str) -> tuple[int | None, str]:
    """Split `layers.3.mlp.up` into the layer and the name of the table; None: of no layer."""
    if not name.startswith("layers."):
        return None, name
    _, layer, bare = name.split(".", 2)
    return int(layer), bare


def clauses(name: str, over_cache: bool, adapted: bool) -> tuple[str, ...]:
    """Clauses that an implementation may break if this is its first wrong intermediate.

    Args:
        over_cache: True if one call without a cache is right.
        adapted: True for a model with a LoRA adapter.
    """
    origin = ORIGINS[split(name)[1]]
    return origin.adapted * adapted + origin.over_cache * over_cache + origin.clauses


def consumers(name: str, num_layers: int, names: Collection[str]) -> list[str]:
    """Those of `names` that are computed from this intermediate in one step."""
    return [other for other in names if name in _inputs(other, num_layers)]


def _inputs(name: str, num_layers: int) -> Iterator[str]:
    """Full names of the intermediates that one is computed from."""
    layer, bare = split(name)
    for entry in ORIGINS[bare].inputs:
        if entry == STREAM:
            before = num_layers - 1 if layer is None else layer - 1
            yield f"layers.{before}.mlp_block" if before >= 0 else "embedding_norm"
        else:
            yield entry if layer is None else f"layers.{layer}.{entry}"
