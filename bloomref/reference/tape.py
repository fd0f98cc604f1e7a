"""Intermediates of the forward pass, recorded for the backward pass. Clause: GRD-7.

The blocks of `model` run unchanged; an observer records their intermediates under the names of MOD-8.
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
class BlockRecord:
    """One block of the forward pass: its input, the generator before its draws,
    and its intermediates unless checkpointed.
    """

    run: Block
    x: Float[Array, "B T D"]
    rng: Rng
    intermediates: Mapping[str, Array] | None

    def recall(self) -> Mapping[str, Array]:
        """The intermediates; a checkpointed block runs again for them."""
        return _recorded(self.run, self.x, deepcopy(self.rng))[1] if self.intermediates is None else self.intermediates


def advance(
    tape: list[BlockRecord], run: Block, x: Float[Array, "B T D"], rng: Rng, checkpoint: bool
) -> Float[Array, "B T D"]:
    """Run one block and append its record to the tape.

    Args:
        checkpoint: record the input alone.
    """
    before = deepcopy(rng)
    if checkpoint:
        tape.append(BlockRecord(run, x, before, None))
        return run(x, rng)
    y, intermediates = _recorded(run, x, rng)
    tape.append(BlockRecord(run, x, before, intermediates))
    return y


def _recorded(run: Block, x: Float[Array, "B T D"], rng: Rng) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    intermediates: dict[str, Array] = {}

    def store(name: str, value: Array) -> Array:
        if name in _READ_BACKWARDS:
            intermediates[name] = value  # no copy: the blocks overwrite nothing
        return value

    with observe(store):
        return run(x, rng), intermediates
