"""Random weights that are cheap to generate: each array is a different view of one periodic pool of numbers.

`init_params` draws every number, which takes minutes for 7e9 of them. Zeros or constants would be cheaper, but a GPU is
faster with them, and a check against the reference would detect less. On the device, every array is a separate copy.
"""

from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np

from benchmarks.floors import cores
from bloomref.dtypes import cast
from bloomref.params import Params, Weight, keys

PERIOD = 16_777_213
"""Numbers that are drawn: a prime, so that rows of a matrix only repeat after this many rows."""
_SPREAD = 1 << 20
"""Number of possible offsets of the largest array in the pool."""
_STEP = 40_503_211
"""Distance between the offsets of successive arrays, modulo the pool."""
_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def pool_of(config: Any, dtype: Any, seed: int = 0) -> Any:
    """Return normal numbers of mean 0 and the config's `initializer_range`, enough for its largest array."""
    count = max(prod(weight.shape(config)) for _, weight in keys(config)) + _SPREAD
    values = np.random.default_rng(seed).standard_normal(min(PERIOD, count), np.float32) * config.initializer_range
    drawn = cast(values.astype(np.float32), dtype)
    bits = drawn.view(_BITS[drawn.dtype.itemsize])  # NumPy copies foreign dtypes one by one
    filled = np.empty(count, bits.dtype)
    starts = range(0, count, len(bits))
    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(lambda start: _repeat(filled[start : start + len(bits)], bits), starts))
    return filled.view(drawn.dtype)


def _repeat(target: Any, bits: Any) -> None:
    target[:] = bits[: len(target)]


def pooled_params(config: Any, pool: Any) -> Params:
    """Return weights of this config as views of a pool. LayerNorm weights are 1 plus a number of the pool.

    The final LayerNorm's weights have both signs. Otherwise the tied head would always find the previous token again,
    and greedy tokens would test nothing.

    Args:
        config: The config.
        pool: Result of `pool_of` for this config, or for one that differs in the number of layers only.
    """
    starts = {key: number * _STEP for number, (key, _) in enumerate(keys(config))}

    def take(weight: Weight, key: str) -> Any:
        shape = weight.shape(config)
        start = starts[key] % (len(pool) - prod(shape) + 1)
        taken = pool[start : start + prod(shape)].reshape(shape)
        is_norm_weight = weight.axes == "D" and not key.endswith("bias")
        if not is_norm_weight:
            return taken
        norm_weight = 1 + taken.astype(np.float32)
        is_final = weight.attribute == "ln_final_weight"
        return cast(np.copysign(norm_weight, taken) if is_final else norm_weight, pool.dtype)

    return Params.build(config.num_layers, config.tie_word_embeddings, take)
