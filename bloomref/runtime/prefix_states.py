"""Keys and values of a sequence that many prompts begin with: computed once, then copied into the cache of each prompt.

Keys and values do not depend on the column at which a sequence begins, since ALiBi biases scores by distances alone
(ALI-4). So they are copied to any column, behind the padding of a row. Clauses: KVC-9, KVC-10, BKD-25.
"""

from dataclasses import dataclass

import numpy as np

from bloomref.runtime import interface_checks
from bloomref.runtime.backend import SupportsCacheCopy
from bloomref.runtime.engine import Engine, EngineCache
from bloomref.runtime.inputs import TokenBatch
from bloomref.shapes import Array, Float, Int


@dataclass(frozen=True, eq=False)
class PrefixStates:
    """Token ids, and their keys and values of every layer on the host, in the compute dtype.

    Args:
        keys, values: without positions on a backend whose caches cannot be copied; prompts are then read whole.
    """

    token_ids: Int[Array, " S"]
    keys: Float[Array, "L H S K"]
    values: Float[Array, "L H S K"]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values: 2 L S D numbers."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def stored(self) -> int:
        """Number of positions whose keys and values are there: all or none."""
        return self.keys.shape[2]

    def shared(self, batch: TokenBatch) -> Int[Array, " B"]:
        """Number of stored positions that each row begins with, from its first token on."""
        counts = np.zeros(len(batch.token_ids), np.int64)
        for row, (ids, real) in enumerate(zip(batch.token_ids, batch.is_real, strict=True)):
            first = int(real.argmax())
            length = min(self.stored, len(ids) - first)
            span = slice(first, first + length)
            same = (ids[span] == self.token_ids[:length]) & real[span]
            counts[row] = length if same.all() else same.argmin()
        return counts


def read_prefix(engine: Engine, token_ids: Int[Array, " S"]) -> PrefixStates:
    """Run the model on a sequence, and copy its keys and values to the host."""
    cache = engine.new_cache(1, len(token_ids))
    engine.read(cache, 0, token_ids[None])
    if not isinstance(engine.prepared, SupportsCacheCopy):
        return PrefixStates(token_ids, *(_none(engine) for _ in range(2)))
    keys, values = engine.prepared.copy_from_cache(cache.blocks, 0, len(token_ids))
    for array in (keys, values):
        _check(engine, array, len(token_ids))
    return PrefixStates(token_ids, keys, values)


def load_prefix(engine: Engine, cache: EngineCache, batch: TokenBatch, states: PrefixStates, limit: int) -> int:
    """Copy what the rows of a batch share with the prefix into the first columns of an empty cache.

    Args:
        limit: the largest number of columns that may be copied.

    Returns:
        The first column that is still to be computed, the same for all rows. Shorter rows compute some of their prefix.
    """
    first = batch.is_real.argmax(axis=1)
    begin = min(limit, int((first + states.shared(batch)).min(initial=limit)))
    if begin <= 0 or not isinstance(engine.prepared, SupportsCacheCopy):
        return 0
    for row, column in enumerate(first):
        if (count := begin - int(column)) > 0:
            keys, values = states.keys[:, :, :count], states.values[:, :, :count]
            engine.prepared.copy_to_cache(cache.blocks, row, int(column), keys, values)
    cache.is_real[:, :begin] = batch.is_real[:, :begin]
    return begin


def _none(engine: Engine) -> Float[Array, "L H S K"]:
    config = engine.config
    return np.zeros((config.num_layers, config.num_heads, 0, config.head_dim), engine.policy.compute_dtype)


def _check(engine: Engine, array: Array, length: int) -> None:
    config = engine.config
    shape = (config.num_layers, config.num_heads, length, config.head_dim)
    interface_checks.check_array(engine.backend, "copy_from_cache", array, engine.policy.compute_dtype, shape)
