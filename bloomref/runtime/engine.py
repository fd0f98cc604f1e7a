"""Runs a prepared model on checked input: the wiring of the blocks, once, over whichever backend."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy, accumulation_dtype, cast
from bloomref.errors import Unsupported, invalid
from bloomref.params import Params
from bloomref.reference import model
from bloomref.reference.numpy_backend import NumpyPrepared
from bloomref.runtime import registry
from bloomref.runtime.backend import Cache, Hidden, step
from bloomref.runtime.inputs import TokenBatch
from bloomref.shapes import Array, Bool, Float, Int


@dataclass(frozen=True, eq=False)
class EngineCache:
    """A backend's cache, and which of its positions hold a real token: the mask of the prefix is remembered (KVC-3)."""

    blocks: Cache
    is_real: Bool[Array, "B P"]

    @property
    def capacity(self) -> int:
        return self.is_real.shape[1]

    def select(self, rows: Int[Array, " N"]) -> "EngineCache":
        """A copy that holds the given batch rows, in that order; a row may repeat (beam search)."""
        return EngineCache(self.blocks.select(rows), self.is_real[rows])


class Engine:
    """One model on one backend.

    Args:
        params: the weights, in any dtype. They are kept for `params` and `word_embedding`, as they are: a map of a file takes
            no memory. The reference in an unmixed policy keeps the arrays that it runs on instead.
        backend: "numpy" (the reference), the name of an installed backend, or "auto".

    Raises:
        InvalidInput: no such backend; Unsupported: it cannot run this model here, with its reason.
    """

    def __init__(
        self, params: Params, config: BloomConfig, policy: DTypePolicy, backend: str = registry.REFERENCE
    ) -> None:
        self.config = config
        self.policy = policy
        chosen = registry.choose(backend, config, policy)
        self.backend = chosen.name
        self.prepared = chosen.prepare(params, config, policy)
        self._params = params
        if isinstance(self.prepared, NumpyPrepared) and policy.variable_dtype == policy.compute_dtype:
            self._params = self.prepared.params

    @property
    def params(self) -> Params:
        """The weights in the variable dtype: rounded anew at each call where they are kept in another one."""
        return self._params.astype(self.policy.variable_dtype)

    # --- whole sequences -------------------------------------------------------------------------

    def hidden(self, batch: TokenBatch, rng: np.random.Generator | None = None) -> Float[Array, "B T D"]:
        """Final hidden states of whole sequences, on the host; `rng` turns dropout on, which the reference alone has."""
        if rng is None:
            cache = self.new_cache(*batch.token_ids.shape)
            return self.prepared.to_host(self.run(cache, 0, batch.token_ids, batch.is_real))
        if not isinstance(self.prepared, NumpyPrepared):
            raise Unsupported(f"training: expected backend 'numpy', the one with dropout, got {self.backend!r}")
        return model.forward(self.prepared.params, self.config, batch.token_ids, batch.is_real, rng=rng)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of every vocabulary entry from final hidden states, in float32 (float64 for a float64 model)."""
        return self.prepared.logits(self.prepared.from_host(hidden), False)

    # --- piece by piece over a cache -------------------------------------------------------------

    def new_cache(self, batch: int, capacity: int) -> EngineCache:
        return EngineCache(self.prepared.new_cache(batch, capacity), np.zeros((batch, capacity), bool))

    def extend(
        self, cache: EngineCache, start: int, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T D"]:
        """Final hidden states, on the host, of the T positions from `start` on; what `run` returns, brought over."""
        return self.prepared.to_host(self.run(cache, start, token_ids, is_real))

    def run(
        self, cache: EngineCache, start: int, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"] | None = None
    ) -> Hidden:
        """Final hidden states of the T positions from `start` on, written to the cache. Repeating it changes nothing.

        They stay on the backend's device; `next_logits` and `prepared.to_host` read them.

        Raises:
            InvalidInput: when rows or positions do not fit into the cache. Clauses: KVC-1 ... KVC-6.
        """
        stop = start + token_ids.shape[1]
        if token_ids.shape[0] != cache.is_real.shape[0]:
            raise invalid("token_ids", f"the {cache.is_real.shape[0]} rows of the cache", f"{token_ids.shape[0]} rows")
        if not 0 <= start <= stop <= cache.capacity:
            raise invalid("start", f"positions within the cache's capacity of {cache.capacity}", f"[{start}, {stop})")
        cache.is_real[:, start:stop] = True if is_real is None else is_real
        facts = step(start, cache.is_real[:, :stop].copy())
        x = self.prepared.embed(token_ids)
        for layer in range(self.config.num_layers):
            x = self.prepared.attention_block(layer, x, cache.blocks, facts)
            x = self.prepared.mlp_block(layer, x)
        return self.prepared.final_norm(x)

    def next_logits(self, hidden: Hidden) -> Float[Array, "B V"]:
        """Scores of the token that follows the last position of what `run` returned."""
        return self.prepared.logits(hidden, True)[:, 0]

    # --- the embedding matrix --------------------------------------------------------------------

    @cached_property
    def word_embedding(self) -> Float[Array, "V D"]:
        """The embedding matrix in the compute dtype, on the host."""
        return cast(cast(self._params.word_embedding, self.policy.variable_dtype), self.policy.compute_dtype)

    def project(self, hidden: Any) -> Any:
        """(..., D) times the embedding matrix, tied or not: (..., V)."""
        dtype = accumulation_dtype(self.policy.compute_dtype)
        return hidden.astype(dtype, copy=False) @ self.word_embedding.astype(dtype, copy=False).T
