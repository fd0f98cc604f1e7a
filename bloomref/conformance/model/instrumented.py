"""Instrumented BLOOM: every decision is an overridable method, and every rounding goes through a hook.

In float64 and without overrides it equals the reference bit for bit; a test asserts that. A known mistake overrides one
method (`conformance.mistakes`). Monte-Carlo arithmetic and the rounding profile of another implementation replace
`Arithmetic`.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.model.decoding_hooks import DecodingHooks
from bloomref.conformance.model.gradient_hooks import GradientHooks
from bloomref.conformance.model.pieces import join
from bloomref.lora.adapter import Adapter
from bloomref.params import LayerParams, Params
from bloomref.reference import ops_vjp
from bloomref.runtime.inputs import token_batch
from bloomref.shapes import Array, Bool, Float, Int

GELU_CONSTANT, GELU_CUBIC = ops_vjp.C, ops_vjp.A


class Arithmetic:
    """Hooks on the result of every operation. They return it; a subclass rounds it, or adds a random error."""

    def stored(self, x: Array) -> Array:
        """A result that is stored in the dtype of the model."""
        return x

    def operand(self, x: Array) -> Array:
        """A result that enters a product or a sum of the same block. It rounds as `stored`, or as `wide`."""
        return self.stored(x)

    def returned(self, x: Array) -> Array:
        """An operand that leaves its block, too: stored, if it was not before."""
        return x

    def wide(self, x: Array) -> Array:
        """A result inside an operation that works in float32 (layer norm, softmax)."""
        return x

    def score(self, x: Array) -> Array:
        """A result among the attention scores. Depending on the tier, it rounds as `wide` or as `stored`."""
        return x

    def matmul(self, a: Array, b: Array) -> Array:
        """A matrix product, before its result is stored."""
        return a @ b


EXACT = Arithmetic()


@dataclass(eq=False)
class InstrumentedCache:
    """Keys and values of one layer; P is the capacity in positions."""

    keys: Float[Array, "B H P K"]
    values: Float[Array, "B H P K"]


class InstrumentedModel(DecodingHooks, GradientHooks):
    """A model whose `run` returns every named intermediate (MOD-8).

    Args:
        config: the sizes of the model.
        params: its weights, in any dtype.
        arithmetic: hooks on the result of every operation.
        dtype: the dtype of the computation; the weights are cast to it.
        adapter: a LoRA adapter that is added to the products of the weights.

    While it runs, `start` is the first column of the chunk, and `index` the layer.
    """

    anchor: int | None = None
    """Column that ALiBi counts from: None is that of the query (the reference); a fixed one is equivalent."""

    def __init__(
        self,
        config: BloomConfig,
        params: Params,
        arithmetic: Arithmetic = EXACT,
        dtype: Any = np.float64,
        adapter: Adapter | None = None,
    ) -> None:
        self.config = config
        self.dtype = np.dtype(dtype)
        self.adapter = adapter
        self.arithmetic = arithmetic
        self.params = self.adapted(self.load(params.astype(self.dtype)))
        self.intermediates: dict[str, Array] = {}
        self.prefix = ""
        self.start = 0
        self.index = 0

    @classmethod
    def of(cls, case: Case, arithmetic: Arithmetic = EXACT, dtype: Any = np.float64) -> Self:
        """Return the model of a case, with its adapter."""
        return cls(case.config, case.params, arithmetic, dtype, case.adapter)

    def load(self, params: Params) -> Params:
        """Return the weights that the model computes with."""
        return params

    # --- forward pass ----------------------------------------------------------------------------

    def accept(self, token_ids: Any, padding_mask: Any = None) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
        """Validate the input of a user (EMB-2, ATT-11).

        Raises:
            InvalidInput: the specification refuses it.
        """
        batch = token_batch({"token_ids": token_ids, "padding_mask": padding_mask}, self.config.vocabulary_size)
        return batch.token_ids, batch.is_real

    def run(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int] = (), capacity: int = 0
    ) -> dict[str, Array]:
        """Return every intermediate by name.

        Args:
            cuts: positions at which a new call over the cache begins; the result has the shapes of one call (`join`).
            capacity: of the caches, in positions; at least T.
        """
        batch, time = token_ids.shape
        caches = [self.new_cache(batch, max(capacity, time)) for _ in self.params.layers]
        chunks = [
            self.chunk(caches, token_ids[:, start:stop], is_real[:, :stop], start)
            for start, stop in pairwise((0, *cuts, time))
        ]
        return join(chunks, time)

    def chunk(
        self, caches: list[InstrumentedCache], token_ids: Int[Array, "B T"], is_real: Bool[Array, "B S"], start: int
    ) -> dict[str, Array]:
        """Run one call: the positions from `start` on."""
        self.intermediates, self.prefix, self.start = {}, "", start
        x = self.embed(token_ids)
        is_real = self.key_is_real(is_real, start)
        visible, bias = self.visible(is_real, start), self.bias(is_real, start)
        for i, (layer, cache) in enumerate(zip(self.params.layers, caches, strict=True)):
            self.index, self.prefix = i, f"layers.{i}."
            x = self.block(layer, x, cache, start, visible, bias)
        self.prefix = ""
        hidden = self.record("final_norm", self.final_norm(x))
        self.record("logits", self.head(hidden))
        return self.intermediates

    def block(
        self, layer: LayerParams, x: Array, cache: InstrumentedCache, start: int, visible: Array, bias: Array
    ) -> Float[Array, "B T D"]:
        return self.mlp_block(layer, self.attention_block(layer, x, cache, start, visible, bias))

    def attention_block(
        self, layer: LayerParams, x: Array, cache: InstrumentedCache, start: int, visible: Array, bias: Array
    ) -> Float[Array, "B T D"]:
        normed = self.record("attention.norm", self.attention_norm(layer, x))
        output = self.attention(layer, normed, cache, start, visible, bias)
        return self.record("attention_block", self.attention_residual(x, normed, output))

    def mlp_block(self, layer: LayerParams, x: Array) -> Float[Array, "B T D"]:
        normed = self.record("mlp.norm", self.mlp_norm(layer, x))
        return self.record("mlp_block", self.mlp_residual(x, normed, self.mlp(layer, normed)))

    def attention(
        self, layer: LayerParams, x: Array, cache: InstrumentedCache, start: int, visible: Array, bias: Array
    ) -> Float[Array, "B T D"]:
        query, key, value = self.split(self.adapt(layer, "qkv_weight", x, self.qkv(layer, x)))
        query, key, value = (
            self.record("attention.query", query),
            self.record("attention.key", key),
            self.record("attention.value", value),
        )
        returned = self.arithmetic.returned
        keys, values = self.update_cache(cache, start, returned(key), returned(value))
        scores = self.record("attention.scores", self.scores(query, keys, bias))
        probabilities = self.record("attention.probabilities", self.softmax(scores, visible))
        context = self.record("attention.context", self.merge(self.context(probabilities, values)))
        output = self.adapt(layer, "attn_out_weight", context, self.attention_output(layer, context))
        return self.record("attention.output", output)

    def mlp(self, layer: LayerParams, x: Array) -> Float[Array, "B T D"]:
        up = self.record("mlp.up", self.adapt(layer, "mlp_up_weight", x, self.mlp_up(layer, x)))
        inner = self.record("mlp.gelu", self.gelu(up))
        return self.record("mlp.output", self.adapt(layer, "mlp_down_weight", inner, self.mlp_down(layer, inner)))

    def record(self, name: str, value: Array) -> Array:
        """Store an intermediate under its name, and return it."""
        self.intermediates[self.prefix + name] = value
        return value

    # --- embedding and norms ---------------------------------------------------------------------

    def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        x = self.adapt(self.params, "word_embedding", token_ids, self.embedding_lookup(token_ids))
        x = self.record("word_embedding", x)
        return self.record("embedding_norm", self.embedding_norm(x))

    def embedding_lookup(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.params.word_embedding[token_ids]

    def embedding_norm(self, x: Array) -> Array:
        y = self.layer_norm(x, self.params.ln_embedding_weight, self.params.ln_embedding_bias)
        return self.arithmetic.returned(y)

    def attention_norm(self, layer: LayerParams, x: Array) -> Array:
        return self.layer_norm(x, layer.ln_attn_weight, layer.ln_attn_bias)

    def mlp_norm(self, layer: LayerParams, x: Array) -> Array:
        return self.layer_norm(x, layer.ln_mlp_weight, layer.ln_mlp_bias)

    def final_norm(self, x: Array) -> Array:
        return self.arithmetic.returned(self.layer_norm(x, self.params.ln_final_weight, self.params.ln_final_bias))

    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        wide = self.arithmetic.wide
        centred = self.centred(x)
        variance = wide(self.variance(centred))
        normed = wide(centred / wide(self.deviation(variance)))
        return self.arithmetic.operand(wide(normed * weight) + bias)

    def centred(self, x: Array) -> Array:
        wide = self.arithmetic.wide
        return wide(x - wide(x.mean(axis=-1, keepdims=True)))

    def variance(self, centred: Array) -> Array:
        return np.square(centred).mean(axis=-1, keepdims=True)

    def deviation(self, variance: Array) -> Array:
        return np.sqrt(variance + self.epsilon())

    def epsilon(self) -> float:
        return self.config.layer_norm_epsilon

    # --- attention -------------------------------------------------------------------------------

    def qkv(self, layer: LayerParams, x: Array) -> Float[Array, "B T N"]:
        return self.linear(x, layer.qkv_weight.reshape(-1, self.config.hidden_dim), layer.qkv_bias.reshape(-1))

    def split(self, fused: Float[Array, "B T N"]) -> tuple[Array, Array, Array]:
        """Split into query, key and value, each (B, H, T, K). The fused rows are head by head (ATT-2)."""
        batch, time, _ = fused.shape
        per_head = fused.reshape(batch, time, self.config.num_heads, 3, self.config.head_dim)
        query, key, value = (per_head[:, :, :, c].swapaxes(1, 2) for c in range(3))
        return query, key, value

    def new_cache(self, batch: int, capacity: int) -> InstrumentedCache:
        shape = (batch, self.config.num_heads, capacity, self.config.head_dim)
        return InstrumentedCache(np.zeros(shape, self.dtype), np.zeros(shape, self.dtype))

    def update_cache(self, cache: InstrumentedCache, start: int, key: Array, value: Array) -> tuple[Array, Array]:
        stop = start + key.shape[2]
        cache.keys[:, :, start:stop] = key
        cache.values[:, :, start:stop] = value
        return cache.keys[:, :, :stop], cache.values[:, :, :stop]

    def key_is_real(self, is_real: Bool[Array, "B S"], start: int) -> Bool[Array, "B S"]:  # noqa: ARG002
        """Mask of all columns so far, including those of earlier calls (KVC-3)."""
        return is_real

    def slopes(self) -> Float[Array, " H"]:
        return alibi.slopes(self.config.num_heads, self.dtype)

    def positions(self, is_real: Bool[Array, "B S"]) -> Float[Array, "#B S"]:
        """Position of each key in ALiBi: its column (ALI-4)."""
        return np.arange(is_real.shape[1])[None]

    def bias(self, is_real: Bool[Array, "B S"], start: int) -> Float[Array, "#B H T S"]:
        position = self.positions(is_real)
        if self.anchor is None:
            distance = position[:, None, :] - position[:, start:, None]
        else:
            distance = np.broadcast_to(
                (position - self.anchor)[:, None, :], (len(position), is_real.shape[1] - start, is_real.shape[1])
            )
        return self.arithmetic.score(self.slopes()[:, None, None] * distance[:, None].astype(self.dtype))

    def visible(self, is_real: Bool[Array, "B S"], start: int) -> Bool[Array, "B 1 T S"]:
        key = np.arange(is_real.shape[1])
        return (self.causal(key, key[start:, None]) & is_real[:, None, :] & is_real[:, start:, None])[:, None]

    def causal(self, key: Int[Array, " S"], query: Int[Array, "T 1"]) -> Bool[Array, "T S"]:
        return key <= query

    def scale(self) -> float:
        return 1.0 / math.sqrt(self.config.head_dim)

    def scores(self, query: Array, keys: Array, bias: Array) -> Float[Array, "B H T S"]:
        score = self.arithmetic.score
        return score(score(self.arithmetic.matmul(query * self.scale(), keys.swapaxes(-1, -2))) + bias)

    def softmax(self, scores: Array, visible: Array) -> Float[Array, "B H T S"]:
        wide = self.arithmetic.wide
        masked = self.hide(scores, visible)
        maximum = masked.max(axis=-1, keepdims=True, initial=np.finfo(self.dtype).min)
        powers = wide(np.exp(wide(masked - maximum)))
        total = wide(self.total(powers))
        total[total == 0.0] = 1.0
        return self.arithmetic.operand(powers / total)

    def hide(self, scores: Array, visible: Array) -> Array:
        return np.where(visible, scores, -math.inf)

    def total(self, powers: Array) -> Array:
        return powers.sum(axis=-1, keepdims=True)

    def context(self, probabilities: Array, values: Array) -> Float[Array, "B H T K"]:
        return self.arithmetic.operand(self.arithmetic.matmul(probabilities, values))

    def merge(self, context: Float[Array, "B H T K"]) -> Float[Array, "B T D"]:
        batch, _, time, _ = context.shape
        return context.swapaxes(1, 2).reshape(batch, time, self.config.hidden_dim)

    def attention_output(self, layer: LayerParams, context: Array) -> Array:
        return self.linear(context, layer.attn_out_weight.reshape(self.config.hidden_dim, -1), layer.attn_out_bias)

    def attention_residual(self, x: Array, normed: Array, output: Array) -> Array:
        return self.residual(x, normed, output)

    def mlp_residual(self, x: Array, normed: Array, output: Array) -> Array:
        return self.residual(x, normed, output)

    def residual(self, x: Array, normed: Array, output: Array) -> Array:
        base = normed if self.config.apply_residual_connection_post_layernorm else x
        return self.arithmetic.stored(base + output)

    # --- MLP and LM head ---------------------------------------------------------------------

    def mlp_up(self, layer: LayerParams, x: Array) -> Array:
        return self.linear(x, layer.mlp_up_weight, layer.mlp_up_bias)

    def gelu(self, x: Array) -> Array:
        operand = self.arithmetic.operand
        y = operand(operand(operand(x * x) * GELU_CUBIC) + 1.0)
        y = np.tanh(operand(operand(y * x) * GELU_CONSTANT))
        return operand(operand(operand(y) + 1.0) * x) * 0.5

    def mlp_down(self, layer: LayerParams, x: Array) -> Array:
        return self.linear(x, layer.mlp_down_weight, layer.mlp_down_bias)

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        return self.arithmetic.operand(self.arithmetic.matmul(x, weight.T) + bias)

    def head(self, hidden: Array) -> Float[Array, "B T V"]:
        head = self.params.word_embedding if self.params.lm_head is None else self.params.lm_head
        return self.arithmetic.matmul(hidden, head.T)


def __getattr__(name: str) -> Any:
    if name == "Lab":  # the name of 0.1.0
        warnings.warn("Lab is now called InstrumentedModel", DeprecationWarning, stacklevel=2)
        return InstrumentedModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
