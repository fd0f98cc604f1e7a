"""Runs a model on checked input: whole sequences, or piece by piece over a cache."""

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.errors import invalid
from bloomref.params import Params
from bloomref.reference import model
from bloomref.reference.cache import Cache
from bloomref.runtime.inputs import TokenBatch
from bloomref.shapes import Array, Bool, Float, Int


class Engine:
    """One model, ready to run: the weights rounded to the compute dtype once."""

    def __init__(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> None:
        self.config = config
        self.policy = policy
        self.params = params.astype(policy.compute_dtype)

    def hidden(self, batch: TokenBatch, rng: np.random.Generator | None = None) -> Float[Array, "B T D"]:
        """Final hidden states of whole sequences; `rng` turns dropout on."""
        return model.forward(self.params, self.config, batch.token_ids, batch.is_real, rng=rng)

    def new_cache(self, batch: int, capacity: int) -> Cache:
        return Cache.empty(self.config, batch, capacity, self.policy.compute_dtype)

    def extend(
        self, cache: Cache, start: int, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T D"]:
        """Final hidden states of the T positions from `start` on, written to the cache. Repeating it changes nothing.

        Raises:
            InvalidInput: when rows or positions do not fit into the cache. Clauses: KVC-1 ... KVC-6.
        """
        stop = start + token_ids.shape[1]
        if token_ids.shape[0] != cache.is_real.shape[0]:
            raise invalid("token_ids", f"the {cache.is_real.shape[0]} rows of the cache", f"{token_ids.shape[0]} rows")
        if not 0 <= start <= stop <= cache.capacity:
            raise invalid("start", f"positions within the cache's capacity of {cache.capacity}", f"[{start}, {stop})")
        real = np.ones(token_ids.shape, bool) if is_real is None else is_real
        return model.forward(self.params, self.config, token_ids, real, cache, start)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of every vocabulary entry, in float32 (float64 for a float64 model)."""
        return model.logits(self.params, hidden)

    def project(self, hidden: Array) -> Array:
        """(..., D) times the embedding matrix, tied or not: (..., V)."""
        table = model.widen(self.params.word_embedding)
        return hidden.astype(table.dtype, copy=False) @ table.T
