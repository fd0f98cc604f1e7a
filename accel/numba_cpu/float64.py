"""float64, for parity: BLAS products and plain loops, without packing and polynomials.

Only BLAS makes it fast. It shows that wiring, masks, positions and cache of this backend are right to 1e-13; the
rounding of float32 could hide a mistake.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import prange

from accel.numba_cpu.blas import limited
from accel.numba_cpu.jit import jit_parallel
from accel.numba_cpu.parallel import enters_kernels
from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.params import LayerParams, Params
from bloomref.runtime.backend import Prepared, Step
from bloomref.shapes import Array, Bool, Float, Int


@jit_parallel
def norm(
    x: Float[Array, "M D"],
    weight: Float[Array, " D"],
    bias: Float[Array, " D"],
    epsilon: float,
    out: Float[Array, "M D"],
) -> None:
    """Layer norm of every row (EMB-3, EMB-4)."""
    for i in prange(x.shape[0]):
        mean, variance = 0.0, 0.0
        for j in range(x.shape[1]):
            mean += x[i, j]
        mean /= x.shape[1]
        for j in range(x.shape[1]):
            variance += (x[i, j] - mean) ** 2
        variance /= x.shape[1]
        for j in range(x.shape[1]):
            out[i, j] = (x[i, j] - mean) / math.sqrt(variance + epsilon) * weight[j] + bias[j]


@jit_parallel
def gelu(x: Float[Array, "M F"]) -> None:
    """GELU in place (MLP-2)."""
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            v = x[i, j]
            x[i, j] = v * 0.5 * (1.0 + math.tanh(0.79788456 * v * (1.0 + 0.044715 * v * v)))


@jit_parallel
def attend(
    query: Float[Array, "B T H K"],
    keys: Float[Array, "B H P K"],
    values: Float[Array, "B H P K"],
    is_real: Bool[Array, "B S"],
    start: int,
    slopes: Float[Array, " H"],
    out: Float[Array, "B T H K"],
) -> None:
    """Attention with an online softmax, one key at a time; `start` is the cache position of the first query."""
    batch, time, heads, width = query.shape
    scale = 1.0 / math.sqrt(width)
    for item in prange(batch * heads):
        b, h = item // heads, item % heads
        for t in range(time):
            maximum, total = -math.inf, 0.0
            out[b, t, h, :] = 0.0
            for s in range(start + t + 1):
                if not (is_real[b, s] and is_real[b, start + t]):
                    continue
                score = 0.0
                for k in range(width):
                    score += query[b, t, h, k] * keys[b, h, s, k]
                score = score * scale + slopes[h] * (s - (start + t))
                high = max(maximum, score)
                factor, weight = math.exp(maximum - high), math.exp(score - high)
                total = total * factor + weight
                for k in range(width):
                    out[b, t, h, k] = out[b, t, h, k] * factor + weight * values[b, h, s, k]
                maximum = high
            if total > 0.0:
                for k in range(width):
                    out[b, t, h, k] /= total


def product(x: Float[Array, "*B K"], weight: Float[Array, "N K"]) -> Float[Array, "*B N"]:
    """x W^T."""
    with limited():
        return x @ weight.T


@dataclass(frozen=True, eq=False)
class DoubleCache:
    """One (B, H, P, K) array of keys and one of values a layer."""

    keys: list[Array]
    values: list[Array]

    def select(self, rows: Int[Array, " N"]) -> "DoubleCache":
        return DoubleCache([keys[rows] for keys in self.keys], [values[rows] for values in self.values])

    def rearranged(self, rows: Int[Array, " N"], start: int, stop: int) -> "DoubleCache":
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        for array in (*self.keys, *self.values):
            array[moved, :, start:stop] = array[rows[moved], :, start:stop]
        count = len(rows)
        return DoubleCache([keys[:count] for keys in self.keys], [values[:count] for values in self.values])


class DoublePrepared(Prepared):
    """The float64 counterpart of `NumbaPrepared`; hidden states are (B, T, D) arrays."""

    def __init__(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> None:
        self.config = config
        self._params = params.astype(policy.compute_dtype)
        self._slopes = alibi.slopes(config.num_heads, policy.compute_dtype)

    def _norm(self, x: Float[Array, "B T D"], weight: Array, bias: Array) -> Float[Array, "B T D"]:
        out = np.empty_like(x)
        d = self.config.hidden_dim
        norm(x.reshape(-1, d), weight, bias, self.config.layer_norm_epsilon, out.reshape(-1, d))
        return out

    def new_cache(self, batch: int, capacity: int) -> DoubleCache:
        shape = (batch, self.config.num_heads, capacity, self.config.head_dim)
        layers = range(self.config.num_layers)
        return DoubleCache([np.zeros(shape) for _ in layers], [np.zeros(shape) for _ in layers])

    @enters_kernels
    def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        params = self._params
        return self._norm(params.word_embedding[token_ids], params.ln_embedding_weight, params.ln_embedding_bias)

    @enters_kernels
    def attention_block(
        self, layer: int, x: Float[Array, "B T D"], cache: DoubleCache, step: Step
    ) -> Float[Array, "B T D"]:
        weights = self._params.layers[layer]
        normed = self._norm(x, weights.ln_attn_weight, weights.ln_attn_bias)
        context = self._attention(weights, normed, cache.keys[layer], cache.values[layer], step)
        y = product(context, weights.attn_out_weight.reshape(x.shape[-1], -1)) + weights.attn_out_bias
        return (normed if self.config.apply_residual_connection_post_layernorm else x) + y

    def _attention(
        self, weights: LayerParams, normed: Float[Array, "B T D"], keys: Array, values: Array, step: Step
    ) -> Float[Array, "B T D"]:
        batch, time, d = normed.shape
        fused = product(normed, weights.qkv_weight.reshape(-1, d)) + weights.qkv_bias.reshape(-1)
        heads = fused.reshape(batch, time, self.config.num_heads, 3, self.config.head_dim)
        stop = step.start + time
        keys[:, :, step.start : stop] = heads[:, :, :, 1].swapaxes(1, 2)
        values[:, :, step.start : stop] = heads[:, :, :, 2].swapaxes(1, 2)
        query = np.ascontiguousarray(heads[:, :, :, 0])
        out = np.empty_like(query)
        attend(query, keys, values, np.ascontiguousarray(step.key_is_real), step.start, self._slopes, out)
        return out.reshape(batch, time, d)

    @enters_kernels
    def mlp_block(self, layer: int, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        weights = self._params.layers[layer]
        normed = self._norm(x, weights.ln_mlp_weight, weights.ln_mlp_bias)
        inner = product(normed, weights.mlp_up_weight) + weights.mlp_up_bias
        gelu(inner.reshape(-1, inner.shape[-1]))
        y = product(inner, weights.mlp_down_weight) + weights.mlp_down_bias
        return (normed if self.config.apply_residual_connection_post_layernorm else x) + y

    @enters_kernels
    def final_norm(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self._norm(x, self._params.ln_final_weight, self._params.ln_final_bias)

    def logits(self, x: Float[Array, "B T D"], last_only: bool) -> Float[Array, "B _ V"]:
        head = self._params.word_embedding if self._params.lm_head is None else self._params.lm_head
        return product(x[:, -1:] if last_only else x, head)

    def copy_from_cache(
        self, cache: DoubleCache, row: int, stop: int
    ) -> tuple[Float[Array, "L H S K"], Float[Array, "L H S K"]]:
        return np.stack([k[row, :, :stop] for k in cache.keys]), np.stack([v[row, :, :stop] for v in cache.values])

    def copy_to_cache(
        self, cache: DoubleCache, row: int, start: int, keys: Float[Array, "L H S K"], values: Float[Array, "L H S K"]
    ) -> None:
        stop = start + keys.shape[2]
        for i in range(len(keys)):
            cache.keys[i][row, :, start:stop], cache.values[i][row, :, start:stop] = keys[i], values[i]

    def to_host(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x

    def from_host(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return np.asarray(x, np.float64)
