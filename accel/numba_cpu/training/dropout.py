"""Dropout with the draws of the reference, and its backward pass. Clauses: MOD-7, MOD-10."""

from typing import Any

import numpy as np

Rng = np.random.Generator | None


def drop(x: Any, rate: float, rng: Rng) -> tuple[Any, Any]:
    """x with entries dropped at `rate` and the rest divided by 1 - rate; and the mask of dropped entries.

    Without a generator, or at rate 0, this is x itself and None.
    """
    if rng is None or rate == 0.0:
        return x, None
    dropped = rng.random(x.shape, np.float32) < rate
    return undrop(x, dropped, rate), dropped


def undrop(dy: Any, dropped: Any, rate: float) -> Any:
    """The gradient by the input of `drop`, from its mask and the gradient by its output."""
    return dy if dropped is None else np.where(dropped, np.float32(0.0), dy / np.float32(1.0 - rate))
