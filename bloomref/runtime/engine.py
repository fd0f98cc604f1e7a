"""Runs a model on a backend: connects the blocks and records the mask of the cache.

Forms and dtypes of inputs are checked before. What a kernel uses as an index is checked here, whoever calls (BKD-14).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bloomref.config import IGNORED_LABEL, BloomConfig
from bloomref.dtypes import DTypePolicy, accumulation_dtype, cast
from bloomref.errors import Unsupported, invalid
from bloomref.params import Params
from bloomref.reference import lora, loss
from bloomref.runtime import interface_checks, registry
from bloomref.runtime.backend import (
    READ_ROWS,
    Backend,
    Cache,
    Choice,
    Hidden,
    Prepared,
    Step,
    SupportsAdapters,
    SupportsDropout,
    SupportsGradients,
    SupportsHostWeights,
    SupportsRearranging,
    SupportsStep,
    SupportsTokens,
    SupportsTrace,
)
from bloomref.runtime.inputs import TokenBatch, check_within
from bloomref.shapes import Array, Bool, Float, Int

# results that are not finite are for the caller to judge: NumPy's warnings about them reach no user
_quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")


@dataclass(frozen=True, eq=False)
class EngineCache:
    """A backend's cache, and the mask of its positions: True for a real token (KVC-3)."""

    blocks: Cache
    is_real: Bool[Array, "B P"]

    @property
    def capacity(self) -> int:
        return self.is_real.shape[1]

    def select(self, rows: Int[Array, " N"]) -> "EngineCache":
        """A copy with the given rows in that order. A row may be repeated (beam search).

        Raises:
            InvalidInput: for a row that the cache does not have.
        """
        check_within("rows", rows, len(self.is_real), "rows in {}, those of the cache")
        return EngineCache(self.blocks.select(rows), self.is_real[rows])

    def forget(self, start: int) -> None:
        """Mark the positions from `start` on as never written (KVC-6). Later calls overwrite their keys and values."""
        self.is_real[:, start:] = False

    def rearranged(self, rows: Int[Array, " N"], start: int, stop: int) -> "EngineCache":
        """As `select`, but in the memory of this cache where the backend can: this cache is not used any more.

        Args:
            start: first position at which a row may differ from the one that replaces it.
            stop: nothing is written from this position on.
        """
        check_within("rows", rows, len(self.is_real), "rows in {}, those of the cache")
        if len(rows) > len(self.is_real) or not isinstance(self.blocks, SupportsRearranging):
            return self.select(rows)
        return EngineCache(self.blocks.rearranged(rows, start, stop), self.is_real[rows])


class Engine:
    """One model on one backend.

    Args:
        params: the weights, in any dtype. The engine holds a reference to them for `params` and `word_embedding`;
            memory-mapped weights take no memory. With SupportsHostWeights and an unmixed policy,
            it refers to the arrays that the model runs on.
        backend: "numpy" (the reference), the name of an installed backend, "auto", or a backend itself.

    Raises:
        InvalidInput: no such backend, or weights of other sizes than the config's; Unsupported: it cannot run this
            model here, with its reason; BadBackend: it breaks its interface, also raised by every method.
    """

    def __init__(
        self, params: Params, config: BloomConfig, policy: DTypePolicy, backend: str | Backend = registry.REFERENCE
    ) -> None:
        _check_weights(params, config)
        self.config = config
        self.policy = policy
        self.runs_on = backend if isinstance(backend, Backend) else registry.choose(backend, config, policy)
        self._params = params
        _ = self.prepared

    @cached_property
    def prepared(self) -> Prepared:
        """The weights as the backend has prepared them."""
        prepared = _prepare(self.runs_on, self._params, self.config, self.policy)
        if isinstance(prepared, SupportsHostWeights) and self.policy.variable_dtype == self.policy.compute_dtype:
            self._params = prepared.params
        return prepared

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the weights. The backend prepares them at the copy's first use.

        Not before: where that fails, the caller of a worker process must get the error, rather than the one who reads
        its arguments, who would wait for ever.
        """
        is_registered = registry.is_loaded(self.backend, self.runs_on)
        return _unprepared, (self._params, self.config, self.policy, self.backend if is_registered else self.runs_on)

    @property
    def backend(self) -> str:
        """Name of the backend that the model runs on."""
        return self.runs_on.name

    def with_params(self, params: Params, config: BloomConfig | None = None) -> "Engine":
        """An engine for other weights, of the same config if no other is passed, on the same backend."""
        return Engine(params, config or self.config, self.policy, self.runs_on)

    @property
    def params(self) -> Params:
        """The weights in the variable dtype. Weights that are stored in another dtype are rounded at each call."""
        return self._params.astype(self.policy.variable_dtype)

    @property
    def stored_params(self) -> Params:
        """The stored weights, in any dtype, not copied: those given, or the host arrays that the model runs on."""
        return self._params

    # --- whole sequences -------------------------------------------------------------------------

    @_quiet
    def hidden(self, batch: TokenBatch, rng: np.random.Generator | None = None) -> Float[Array, "B T D"]:
        """Final hidden states of whole sequences, on the host.

        Args:
            rng: turns dropout on.

        Raises:
            Unsupported: dropout on a backend that has none.
        """
        if rng is None:
            cache = self.new_cache(*batch.token_ids.shape)
            return self.to_host(self.run(cache, 0, batch.token_ids, batch.is_real), batch.token_ids)
        check_within("token_ids", batch.token_ids, self.config.vocabulary_size)
        if not isinstance(self.prepared, SupportsDropout):
            raise Unsupported(f"training: expected a backend with dropout, such as 'numpy', got {self.backend!r}")
        hidden = self.prepared.hidden_with_dropout(batch.token_ids, batch.is_real, rng)
        return self.to_host(hidden, batch.token_ids)

    @_quiet
    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits of final hidden states, in float32 (float64 for a float64 model)."""
        logits = self.prepared.logits(self.prepared.from_host(hidden), False)
        return self._scores("logits", logits, hidden.shape[:-1])

    def to_host(self, hidden: Hidden, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Copy the hidden states of these tokens to the host, in the compute dtype."""
        states = self.prepared.to_host(hidden)
        shape, dtype = (*token_ids.shape, self.config.hidden_dim), self.policy.compute_dtype
        interface_checks.check_array(self.backend, "to_host", states, dtype, shape)
        return states

    def _scores(self, method: str, logits: Any, rows: interface_checks.Shape) -> Float[Array, "*B V"]:
        """Check the logits that a method of the backend has returned (BKD-13)."""
        shape, dtype = (*rows, self.config.vocabulary_size), accumulation_dtype(self.policy.compute_dtype)
        interface_checks.check_array(self.backend, method, logits, dtype, shape)
        return logits

    @_quiet
    def loss_and_gradients(
        self, batch: TokenBatch, labels: Int[Array, "B T"] | None, trainable: Callable[[str], bool] | None = None
    ) -> tuple[float, int, dict[str, Array]]:
        """Mean loss, number of tokens,
        and gradients (see `gradients`) at the engine's weights, in the compute dtype.
        """
        params = self._params.map(
            lambda array: cast(cast(array, self.policy.variable_dtype), self.policy.compute_dtype)
        )
        return gradients(self.runs_on, params, self.config, batch, labels, trainable=trainable)

    @_quiet
    def trace(self, batch: TokenBatch, select: Callable[[str], bool]) -> dict[str, Array]:
        """Intermediates of one forward pass whose name `select` accepts (MOD-8), in the order of computation.

        Raises:
            Unsupported: by a backend whose intermediates have no names.
        """
        if not isinstance(self.prepared, SupportsTrace):
            raise Unsupported(
                f"trace: expected a backend whose intermediates have names, such as 'numpy', got {self.backend!r}"
            )
        check_within("token_ids", batch.token_ids, self.config.vocabulary_size)
        return self.prepared.trace(batch.token_ids, batch.is_real, select)

    # --- piece by piece over a cache -------------------------------------------------------------

    def new_cache(self, batch: int, capacity: int) -> EngineCache:
        blocks = self.prepared.new_cache(batch, capacity)
        interface_checks.check_cache(self.backend, blocks)
        return EngineCache(blocks, np.zeros((batch, capacity), bool))

    def cache_bytes(self, batch: int, capacity: int) -> int:
        """Bytes of the keys and values of so many positions; 0 on a backend with a memory of its own."""
        if self.backend not in registry.ON_HOST:
            return 0
        return (
            2 * self.config.num_layers * batch * capacity * self.config.hidden_dim * self.policy.compute_dtype.itemsize
        )

    def extend(
        self, cache: EngineCache, start: int, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T D"]:
        """Run the model over the cache, and copy the final hidden states to the host in the compute dtype."""
        return self.to_host(self.run(cache, start, token_ids, is_real), token_ids)

    @_quiet
    def run(
        self, cache: EngineCache, start: int, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"] | None = None
    ) -> Hidden:
        """Run the T positions from `start` on,
        write their keys and values to the cache, and return final hidden states.

        The hidden states stay on the backend's device; `next_logits` and `prepared.to_host` read them. Repeating a call
        changes nothing.

        Args:
            start: first cache position that is written.
            is_real: True for tokens, False for padding; None: all are tokens.

        Raises:
            InvalidInput: when rows or positions do not fit into the cache. Clauses: KVC-1 ... KVC-6.
        """
        facts = self._facts(cache, start, token_ids, is_real)
        return self.blocks(self.prepared.embed(token_ids), cache, facts)

    def blocks(self, x: Hidden, cache: EngineCache, facts: Step) -> Hidden:
        """The blocks and the final norm, from what `embed` or `from_host` of the prepared model gives."""
        for layer in range(self.config.num_layers):
            x = self.prepared.attention_block(layer, x, cache.blocks, facts)
            x = self.prepared.mlp_block(layer, x)
        return self.prepared.final_norm(x)

    def _facts(
        self, cache: EngineCache, start: int, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"] | None
    ) -> Step:
        """Check that the positions fit, and record which of them are real."""
        stop = start + token_ids.shape[1]
        self._check(cache, start, token_ids, stop)
        cache.is_real[:, start:stop] = True if is_real is None else is_real
        return Step.at(start, cache.is_real[:, :stop].copy())

    def _check(self, cache: EngineCache, start: int, token_ids: Int[Array, "B *T"], stop: int) -> None:
        check_within("token_ids", token_ids, self.config.vocabulary_size)
        rows = len(token_ids)
        if rows != cache.is_real.shape[0]:
            raise invalid("token_ids", f"the {cache.is_real.shape[0]} rows of the cache", f"{rows} rows")
        if not 0 <= start <= stop <= cache.capacity:
            raise invalid("start", f"positions within the cache's capacity of {cache.capacity}", f"[{start}, {stop})")

    @_quiet
    def read(
        self, cache: EngineCache, start: int, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B V"]:
        """Run the T > 0 positions from `start` on, as `run`, and return the logits of the token that follows them.

        One position is a whole step on a backend that has it (BKD-17). Longer prompts run in chunks of about READ_ROWS
        positions over all rows, which bounds the memory of hidden states.

        Raises:
            InvalidInput: as `run`.
        """
        batch, time = token_ids.shape
        if time == 1 and isinstance(self.prepared, SupportsStep):
            facts = self._facts(cache, start, token_ids, is_real)
            return self._scores("step", self.prepared.step(token_ids[:, 0], cache.blocks, facts), (batch,))
        piece = max(1, READ_ROWS // max(1, batch))
        for begin in range(0, time, piece):
            part = slice(begin, begin + piece)
            hidden = self.run(cache, start + begin, token_ids[:, part], None if is_real is None else is_real[:, part])
        return self.next_logits(hidden)

    @_quiet
    def choose(
        self, cache: EngineCache, start: int, token_ids: Int[Array, " B"], choice: Choice, count: int
    ) -> Int[Array, "B N"] | None:
        """Decode `count` positions from `start` on:
        these tokens, then those that the backend chooses by itself (BKD-18).

        None where the backend does not choose so; the cache is unchanged then.

        Raises:
            InvalidInput: when rows or positions do not fit into the cache; BadWeights: when a score is not finite.
        """
        self._check(cache, start, token_ids, start + count)
        if not isinstance(self.prepared, SupportsTokens):
            return None
        is_real = np.concatenate([cache.is_real[:, :start], np.ones((len(token_ids), 1), bool)], axis=1)
        facts = Step.at(start, is_real)
        try:
            chosen = self.prepared.tokens(token_ids, cache.blocks, facts, choice, count)
        except Unsupported:
            return None
        interface_checks.check_tokens(self.backend, chosen, len(token_ids), count, self.config.vocabulary_size)
        cache.is_real[:, start : start + count] = True
        return chosen

    @_quiet
    def next_logits(self, hidden: Hidden) -> Float[Array, "B V"]:
        """Logits of the token that follows the last position of hidden states from `run`."""
        return self._scores("logits", self.prepared.logits(hidden, True), (None, 1))[:, 0]

    # --- the embedding matrix --------------------------------------------------------------------

    @cached_property
    def word_embedding(self) -> Float[Array, "V D"]:
        """The embedding matrix in the compute dtype, on the host."""
        return cast(cast(self._params.word_embedding, self.policy.variable_dtype), self.policy.compute_dtype)

    @_quiet
    def project(self, hidden: Any) -> Any:
        """(..., D) times the embedding matrix, tied or not: (..., V)."""
        dtype = accumulation_dtype(self.policy.compute_dtype)
        return hidden.astype(dtype, copy=False) @ self.word_embedding.astype(dtype, copy=False).T


@_quiet
def gradients(
    backend: Backend,
    params: Params,
    config: BloomConfig,
    batch: TokenBatch,
    labels: Int[Array, "B T"] | None,
    *,
    trainable: Callable[[str], bool] | None = None,
    rng: np.random.Generator | None = None,
    document: Int[Array, "B T"] | None = None,
) -> tuple[float, int, dict[str, Array]]:
    """Mean loss of whole sequences, number of tokens that it is the mean of, and its gradients.

    Args:
        params: weights in any dtype, with LoRA factors or without.
        labels: (B, T) token of each position, not shifted, -100 where it does not count; None: every real token counts.
        trainable: accepts the keys whose gradients are computed; None: all.
        rng: turns dropout on.
        document: (B, T) positions attend only to positions of the same number; None: one document a row.

    Raises:
        Unsupported: by a backend that has no gradients, or not in this dtype (GRD-13).
    """
    if not isinstance(backend, SupportsGradients):
        raise Unsupported(f"gradients: expected a backend that has them, such as 'numpy', got {backend.name!r}")
    ids, is_real = batch.token_ids, batch.is_real
    check_within("token_ids", ids, config.vocabulary_size)
    targets = loss.targets(ids, is_real, labels, document)
    check_within("labels", targets[targets != IGNORED_LABEL], config.vocabulary_size)
    numbers = np.where(is_real, 0 if document is None else document, -1)
    chosen = trainable or (lambda _: True)
    arrays = {key: array for key, _, array in params.named()} | lora.factors(params)
    if ids.size == 0:  # the mean of no tokens is 0 (GRD-2), and no backend need know it
        dtype = accumulation_dtype(params.word_embedding.dtype)
        return 0.0, 0, {key: np.zeros(array.shape, dtype) for key, array in arrays.items() if chosen(key)}
    value, by_key = backend.loss_and_gradients(params, config, ids, targets, numbers, chosen, rng)
    shapes = {key: array.shape for key, array in arrays.items() if chosen(key)}
    dtype = accumulation_dtype(params.word_embedding.dtype)
    interface_checks.check_gradients(backend.name, value, by_key, shapes, dtype)
    return value, int((targets != IGNORED_LABEL).sum()), by_key


def _unprepared(params: Params, config: BloomConfig, policy: DTypePolicy, backend: str | Backend) -> Engine:
    engine = Engine.__new__(Engine)
    engine.config, engine.policy, engine._params = config, policy, params
    engine.runs_on = backend if isinstance(backend, Backend) else registry.load(backend)
    return engine


def _check_weights(params: Params, config: BloomConfig) -> None:
    """Refuse weights of other sizes than the config's, beyond which a kernel would read."""
    if len(params.layers) != config.num_layers:
        raise invalid("params", f"{config.num_layers} layers, as the config has", f"{len(params.layers)}")
    for key, weight, array in params.named():
        if array.shape != weight.shape(config):
            raise invalid(f"params: {key}", f"shape {weight.shape(config)}, by the config", f"{array.shape}")


def _prepare(backend: Backend, params: Params, config: BloomConfig, policy: DTypePolicy) -> Prepared:
    """Prepare the weights, with their adapters or, on a backend without the capability, merged with them (LRA-8)."""
    prepare, method = backend.prepare, "prepare"
    if lora.is_adapted(params):
        if isinstance(backend, SupportsAdapters):
            prepare, method = backend.prepare_with_adapters, "prepare_with_adapters"
        else:
            params = lora.merged(params, policy.variable_dtype)
    if params.lm_head is not None and config.tie_word_embeddings:  # an adapted embedding leaves the head alone
        config = config.replace(tie_word_embeddings=False)
    prepared = prepare(params, config, policy)
    interface_checks.check_prepared(backend.name, method, prepared)
    return prepared
