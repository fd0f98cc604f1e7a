"""Bytes that a model needs on this backend, before any of them is allocated."""

from math import prod

import numpy as np

from accel.numba_cpu.attention import scratch_floats, scratch_operands
from accel.numba_cpu.linear import SUMS
from accel.numba_cpu.sharing import Sharing
from accel.numba_cpu.weight_packing import FORMATS, projection_bytes, up
from bloomref.config import BloomConfig
from bloomref.dtypes import DType, DTypePolicy
from bloomref.params import Weight, count_params, total
from bloomref.runtime.backend import Memory


def memory(config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> Memory:
    """`SupportsMemoryEstimate.memory`, from the sizes of packed weights, cache and buffers."""
    if policy.compute_dtype == np.float64:
        return _double(config, batch, length)
    weights = total(config, lambda weight: _weight_bytes(weight, config, policy))
    cache = (
        config.num_layers
        * sum(cache_elements(config, policy.compute_dtype, batch, length))
        * np.dtype(FORMATS[policy.compute_dtype].cache).itemsize
    )
    return Memory(weights, cache, _step_bytes(config, policy, batch, length))


def cache_elements(config: BloomConfig, compute: DType, batch: int, capacity: int) -> tuple[int, int]:
    """Elements of one layer's keys, and of its values, for a capacity rounded up to whole panels."""
    rows, form = batch * config.num_heads * up(capacity), FORMATS[compute]
    return rows * form.steps(config.head_dim) * form.width, rows * up(config.head_dim)


def _weight_bytes(weight: Weight, config: BloomConfig, policy: DTypePolicy) -> int:
    """Bytes of one weight: matrices are packed, each with a bias (the head's is zero); the norms stay vectors."""
    shape = weight.hf_shape(config)
    if len(shape) == 2:
        return projection_bytes(*shape, policy.compute_dtype)
    return 4 * prod(shape) if weight.attribute.startswith("ln_") else 0


def _step_bytes(config: BloomConfig, policy: DTypePolicy, batch: int, length: int) -> int:
    """Bytes of a decoding step: hidden states and packed rows, the threads' buffers, and the logits."""
    d, f, form = config.hidden_dim, config.intermediate_dim, FORMATS[policy.compute_dtype]
    rows = batch * (form.row_elements(1, d) + form.row_elements(1, f))
    sharing = Sharing(config, policy.compute_dtype.itemsize)
    threads = max(sharing.attention(batch, 1, length), sharing.mlp(batch), sharing.logits(batch))
    tiles = threads * scratch_operands(form.steps(config.head_dim), form.width)
    floats = batch * (3 * up(d) + up(3 * d) + up(config.vocabulary_size))
    floats += threads * (scratch_floats(config.head_dim) + SUMS)
    return 4 * floats + np.dtype(form.rows).itemsize * (rows + tiles)


def _double(config: BloomConfig, batch: int, length: int) -> Memory:
    """The estimate for float64."""
    cache = 2 * config.num_layers * batch * length * config.hidden_dim
    return Memory(8 * count_params(config), 8 * cache, 8 * batch * config.vocabulary_size)
