"""What the forward pass keeps for the backward pass. Clause: GRD-7.

The intermediates of a block are recorded under the names that clause MOD-8 gives them, while the block runs: so there is
one forward pass, `model`'s, with and without gradients.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from bloomref.reference.trace import observe
from bloomref.shapes import Array, Float

Rng = np.random.Generator | None
Block = Callable[[Array, Rng], Array]
_READ_BACKWARDS = {f"attention.{name}" for name in ("norm", "query", "key", "value", "probabilities", "context")}
_READ_BACKWARDS |= {f"mlp.{name}" for name in ("norm", "up", "gelu")}


@dataclass(frozen=True, eq=False)
class Kept:
    """What the forward pass leaves behind of one block: its input, and the generator as it was before the block drew."""

    run: Block
    x: Float[Array, "B T D"]
    rng: Rng
    intermediates: Mapping[str, Array] | None

    def recall(self) -> Mapping[str, Array]:
        """The intermediates, of another run of the block unless they were kept."""
        return _recorded(self.run, self.x, deepcopy(self.rng))[1] if self.intermediates is None else self.intermediates


def advance(
    tape: list[Kept], run: Block, x: Float[Array, "B T D"], rng: Rng, checkpoint: bool
) -> Float[Array, "B T D"]:
    """One block forwards; what its backward pass needs goes on the tape."""
    before = deepcopy(rng)
    if checkpoint:
        tape.append(Kept(run, x, before, None))
        return run(x, rng)
    y, intermediates = _recorded(run, x, rng)
    tape.append(Kept(run, x, before, intermediates))
    return y


def _recorded(run: Block, x: Float[Array, "B T D"], rng: Rng) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    seen: dict[str, Array] = {}

    def keep(name: str, value: Array) -> Array:
        if name in _READ_BACKWARDS:
            seen[name] = value  # no copy: the blocks overwrite none of these
        return value

    with observe(keep):
        return run(x, rng), seen
