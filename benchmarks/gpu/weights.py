"""Random weights that cost little to make: one pool of normal numbers that repeat, of which each array is a view of its own.

`init_params` draws each number: minutes for 7e9 of them. Zeros or constants would be cheaper still, but a chip is faster over them,
and a check against the reference would see less. On the device, every array is a copy of its own.
"""

from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np

from benchmarks.floors import cores
from bloomref.dtypes import cast
from bloomref.params import Params, Weight, keys

PERIOD = 16_777_213
"""Numbers drawn: a prime, so that no row of a matrix is equal to another one before so many rows."""
_SPREAD = 1 << 20
"""So many places are there for the largest array to begin at."""
_STEP = 40_503_211
_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def pool_of(config: Any, dtype: Any, seed: int = 0) -> Any:
    """Numbers of mean 0 and the config's `initializer_range`, enough for its largest array."""
    count = max(prod(weight.shape(config)) for _, weight in keys(config)) + _SPREAD
    values = np.random.default_rng(seed).standard_normal(min(PERIOD, count), np.float32) * config.initializer_range
    drawn = cast(values.astype(np.float32), dtype)
    bits = drawn.view(_BITS[drawn.dtype.itemsize])  # NumPy copies a foreign dtype one by one
    filled = np.empty(count, bits.dtype)
    starts = range(0, count, len(bits))
    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(lambda start: _repeat(filled[start : start + len(bits)], bits), starts))
    return filled.view(drawn.dtype)


def _repeat(target: Any, bits: Any) -> None:
    target[:] = bits[: len(target)]


def pooled_params(config: Any, pool: Any) -> Params:
    """Weights of this config as views of a pool: matrices and biases begin at other places of it, gains are 1 and a little.

    The final gains are of both signs. Else the best token is always the one before, whose embedding the head finds again, and
    greedy tokens would show nothing.

    Args:
        pool: of `pool_of` this config, or one that differs from it in the number of layers alone.
    """
    starts = {key: number * _STEP for number, (key, _) in enumerate(keys(config))}

    def take(weight: Weight, key: str) -> Any:
        shape = weight.shape(config)
        start = starts[key] % (len(pool) - prod(shape) + 1)
        taken = pool[start : start + prod(shape)].reshape(shape)
        is_gain = weight.axes == "D" and not key.endswith("bias")
        if not is_gain:
            return taken
        gain = 1 + taken.astype(np.float32)
        return cast(np.copysign(gain, taken) if weight.attribute == "ln_final_weight" else gain, pool.dtype)

    return Params.build(config.num_layers, config.tie_word_embeddings, take)
