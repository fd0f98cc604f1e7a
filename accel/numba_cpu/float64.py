"""float64, for parity: BLAS products and plain loops, no packing, no polynomial.

Nothing here is made for speed beyond what BLAS gives; it shows that the wiring, the masks, the positions and the cache of this
backend are right to 1e-13, where float32 could hide a mistake in its noise.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange

from accel.numba_cpu.blas import limited
from accel.numba_cpu.jit import jit_parallel
from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.params import LayerParams, Params
from bloomref.runtime.backend import Step


@jit_parallel
def norm(x: Any, weight: Any, bias: Any, epsilon: float, out: Any) -> None:
    """EMB-3, EMB-4."""
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
def gelu(x: Any) -> None:
    """MLP-2, in place."""
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            v = x[i, j]
            x[i, j] = v * 0.5 * (1.0 + math.tanh(0.79788456 * v * (1.0 + 0.044715 * v * v)))


@jit_parallel
def attend(query: Any, keys: Any, values: Any, real: Any, start: int, slopes: Any, out: Any) -> None:
    """query (B, T, H, K) against keys and values (B, H, P, K); real (B, S). Online softmax, one key at a time."""
    batch, time, heads, width = query.shape
    scale = 1.0 / math.sqrt(width)
    for item in prange(batch * heads):
        b, h = item // heads, item % heads
        for t in range(time):
            peak, total = -math.inf, 0.0
            out[b, t, h, :] = 0.0
            for s in range(start + t + 1):
                if not (real[b, s] and real[b, start + t]):
                    continue
                score = 0.0
                for k in range(width):
                    score += query[b, t, h, k] * keys[b, h, s, k]
                score = score * scale + slopes[h] * (s - (start + t))
                high = max(peak, score)
                shrink, weight = math.exp(peak - high), math.exp(score - high)
                total = total * shrink + weight
                for k in range(width):
                    out[b, t, h, k] = out[b, t, h, k] * shrink + weight * values[b, h, s, k]
                peak = high
            if total > 0.0:
                for k in range(width):
                    out[b, t, h, k] /= total


def product(x: Any, weight: Any) -> Any:
    """x W^T."""
    with limited():
        return x @ weight.T


@dataclass(frozen=True, eq=False)
class DoubleCache:
    """One (B, H, P, K) array of keys and one of values a layer."""

    keys: list[Any]
    values: list[Any]

    def select(self, rows: Any) -> "DoubleCache":
        return DoubleCache([keys[rows] for keys in self.keys], [values[rows] for values in self.values])


class DoublePrepared:
    """The float64 counterpart of `NumbaPrepared`; a hidden state is a (B, T, D) array."""

    def __init__(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> None:
        self.config = config
        self._params = params.astype(policy.compute_dtype)
        self._slopes = alibi.slopes(config.num_heads, policy.compute_dtype)

    def _norm(self, x: Any, weight: Any, bias: Any) -> Any:
        out = np.empty_like(x)
        d = self.config.hidden_dim
        norm(x.reshape(-1, d), weight, bias, self.config.layer_norm_epsilon, out.reshape(-1, d))
        return out

    def new_cache(self, batch: int, capacity: int) -> DoubleCache:
        shape = (batch, self.config.num_heads, capacity, self.config.head_dim)
        layers = range(self.config.num_layers)
        return DoubleCache([np.zeros(shape) for _ in layers], [np.zeros(shape) for _ in layers])

    def embed(self, token_ids: Any) -> Any:
        params = self._params
        return self._norm(params.word_embedding[token_ids], params.ln_embedding_weight, params.ln_embedding_bias)

    def attention_block(self, layer: int, x: Any, cache: DoubleCache, step: Step) -> Any:
        weights = self._params.layers[layer]
        normed = self._norm(x, weights.ln_attn_weight, weights.ln_attn_bias)
        context = self._attention(weights, normed, cache.keys[layer], cache.values[layer], step)
        y = product(context, weights.attn_out_weight.reshape(x.shape[-1], -1)) + weights.attn_out_bias
        return (normed if self.config.apply_residual_connection_post_layernorm else x) + y

    def _attention(self, weights: LayerParams, normed: Any, keys: Any, values: Any, step: Step) -> Any:
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

    def mlp_block(self, layer: int, x: Any) -> Any:
        weights = self._params.layers[layer]
        normed = self._norm(x, weights.ln_mlp_weight, weights.ln_mlp_bias)
        inner = product(normed, weights.mlp_up_weight) + weights.mlp_up_bias
        gelu(inner.reshape(-1, inner.shape[-1]))
        y = product(inner, weights.mlp_down_weight) + weights.mlp_down_bias
        return (normed if self.config.apply_residual_connection_post_layernorm else x) + y

    def final_norm(self, x: Any) -> Any:
        return self._norm(x, self._params.ln_final_weight, self._params.ln_final_bias)

    def logits(self, x: Any, last_only: bool) -> Any:
        head = self._params.word_embedding if self._params.lm_head is None else self._params.lm_head
        return product(x[:, -1:] if last_only else x, head)

    def to_host(self, x: Any) -> Any:
        return x

    def from_host(self, x: Any) -> Any:
        return np.asarray(x, np.float64)
