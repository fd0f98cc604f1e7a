"""The catalogue of known mistakes: each a model that makes it, with the clause that it breaks and where it first shows.

Gathered from bug reports against implementations of BLOOM and from what goes wrong when one is written. The kit is
measured by how many it finds; `bloomref diff` tries them on the reference to say which one explains a difference.
"""

from bloomref.conformance.mistakes import (  # noqa: F401  (each plants its own)
    alibi_bias,
    embedding,
    equivalents,
    head,
    input_validation,
    key_value_cache,
    low_precision,
    low_rank,
    masks,
    mlp,
    norms,
    residual,
    self_attention,
    sharding,
    weights,
)
from bloomref.conformance.mistakes.mistake import FRONT_DOOR, PLANTED, Mistake
from bloomref.errors import invalid

__all__ = ["CATALOGUE", "EQUIVALENTS", "FRONT_DOOR", "MISTAKES", "Mistake", "by_name"]

CATALOGUE: tuple[Mistake, ...] = tuple(PLANTED)
"""All of them."""
MISTAKES: tuple[Mistake, ...] = tuple(m for m in CATALOGUE if not m.equivalent)
"""Those that a check must object to."""
EQUIVALENTS: tuple[Mistake, ...] = tuple(m for m in CATALOGUE if m.equivalent)
"""Other ways of computing the same, to which no check may object."""


def by_name(name: str) -> Mistake:
    """The one of that name.

    Raises:
        InvalidInput: when there is none.
    """
    for known in CATALOGUE:
        if known.name == name:
            return known
    raise invalid("name", "the name of a known mistake (docs/proof.md lists them)", repr(name))
