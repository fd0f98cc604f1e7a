"""Catalogue of known mistakes: each is a model that makes one, with the clause it breaks and where it first shows.

The sources are bug reports against implementations of BLOOM and errors that are easy to make when writing one. The kit
is measured by how many it detects (docs/proof.md). `bloomref diff` tries them to explain a difference.
"""

from bloomref.conformance.mistakes import (
    alibi_bias,
    backward_pass,
    embedding,
    equivalent_arithmetic,
    equivalents,
    factor_gradients,
    head,
    inexact_functions,
    inexact_norms,
    inexact_softmax,
    input_validation,
    key_value_cache,
    loss_and_embedding,
    low_precision,
    low_rank,
    masks,
    merged_weights,
    mlp,
    norms,
    residual,
    self_attention,
    sharding,
    steps_and_draws,
    weights,
)
from bloomref.conformance.mistakes.mistake import NO_INTERMEDIATE, REGISTRY, Mistake
from bloomref.errors import invalid

__all__ = ["CATALOGUE", "EQUIVALENTS", "MISTAKES", "NO_INTERMEDIATE", "Mistake", "get_mistake"]

_MODULES = (
    alibi_bias,
    embedding,
    mlp,
    equivalents,
    head,
    input_validation,
    key_value_cache,
    low_precision,
    low_rank,
    masks,
    norms,
    residual,
    self_attention,
    sharding,
    weights,
    loss_and_embedding,
    backward_pass,
    factor_gradients,
    steps_and_draws,
    merged_weights,
    inexact_norms,
    inexact_softmax,
    inexact_functions,
    equivalent_arithmetic,
)
"""The order of the catalogue."""
CATALOGUE: tuple[Mistake, ...] = tuple(
    known for module in _MODULES for known in REGISTRY if known.model.__module__ == module.__name__
)
"""All known mistakes and equivalents."""
MISTAKES: tuple[Mistake, ...] = tuple(known for known in CATALOGUE if not known.equivalent)
"""Mistakes: a check must object to each."""
EQUIVALENTS: tuple[Mistake, ...] = tuple(known for known in CATALOGUE if known.equivalent)
"""Other ways of computing the same function: no check may object to one."""


def get_mistake(name: str) -> Mistake:
    """Return the known mistake or equivalent of that name.

    Raises:
        InvalidInput: there is none.
    """
    for known in CATALOGUE:
        if known.name == name:
            return known
    raise invalid("name", "the name of a known mistake (docs/proof.md lists them)", repr(name))
