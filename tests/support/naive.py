"""BLOOM once more, from the clauses and not from bloomref: plain loops in float64, for small sizes.

The weights come under their Hugging Face keys and in their stored shapes. Nothing of bloomref is imported.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def slopes(heads: int) -> list[float]:
    """ALI-1 and ALI-2, by the recursion of the ALiBi paper's published code."""
    if heads & (heads - 1) == 0:
        ratio = 2.0 ** (-8.0 / heads)
        return [ratio ** (i + 1) for i in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return slopes(below) + slopes(2 * below)[0::2][: heads - below]


def layer_norm(x: Array, gain: Array, shift: Array, epsilon: float) -> Array:
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        row = [float(v) for v in x[index]]
        mean = math.fsum(row) / len(row)
        variance = math.fsum((v - mean) ** 2 for v in row) / len(row)
        out[index] = [
            (v - mean) / math.sqrt(variance + epsilon) * g + s for v, g, s in zip(row, gain, shift, strict=True)
        ]
    return out


def gelu(u: float) -> float:
    return 0.5 * u * (1.0 + math.tanh(0.79788456 * u * (1.0 + 0.044715 * u * u)))


def softmax(scores: list[float]) -> list[float]:
    peak = max(scores)
    total = math.fsum(math.exp(s - peak) for s in scores)
    return [math.exp(s - peak) / total for s in scores]


def linear(x: Array, weight: Array, bias: Array) -> Array:
    out = np.empty((*x.shape[:-1], len(weight)))
    for index in np.ndindex(out.shape):
        out[index] = math.fsum(x[index[:-1]] * weight[index[-1]]) + bias[index[-1]]
    return out


def attention(z: Array, weights: Mapping[str, Array], heads: int, real: Array) -> Array:
    """`a` of ATT-9; the rows of padded positions are the output bias, since no key is visible to them."""
    batch, time, width = z.shape
    k_width = width // heads
    fused = linear(z, weights["self_attention.query_key_value.weight"], weights["self_attention.query_key_value.bias"])
    context = np.zeros_like(z)
    for b, h, t in np.ndindex(batch, heads, time):
        visible = [s for s in range(t + 1) if real[b, s]]
        if not real[b, t] or not visible:
            continue
        at = h * 3 * k_width
        query = fused[b, t, at : at + k_width]
        scores = [
            float(query @ fused[b, s, at + k_width : at + 2 * k_width]) / math.sqrt(k_width)
            + slopes(heads)[h] * (s - t)
            for s in visible
        ]
        for p, s in zip(softmax(scores), visible, strict=True):
            context[b, t, h * k_width : (h + 1) * k_width] += p * fused[b, s, at + 2 * k_width : at + 3 * k_width]
    return linear(context, weights["self_attention.dense.weight"], weights["self_attention.dense.bias"])


def mlp(z: Array, weights: Mapping[str, Array]) -> Array:
    up = linear(z, weights["mlp.dense_h_to_4h.weight"], weights["mlp.dense_h_to_4h.bias"])
    return linear(np.vectorize(gelu)(up), weights["mlp.dense_4h_to_h.weight"], weights["mlp.dense_4h_to_h.bias"])


def hidden_states(
    weights: Mapping[str, Array],
    token_ids: Array,
    real: Array,
    *,
    layers: int,
    heads: int,
    epsilon: float,
    post_norm_residual: bool,
) -> list[Array]:
    """The state after the embedding, after every half of a block, and after the final norm."""
    x = weights["word_embeddings.weight"][token_ids]
    norm = "word_embeddings_layernorm"
    states = [layer_norm(x, weights[f"{norm}.weight"], weights[f"{norm}.bias"], epsilon)]
    for i in range(layers):
        own = {key.removeprefix(f"h.{i}."): value for key, value in weights.items() if key.startswith(f"h.{i}.")}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            x = states[-1]
            z = layer_norm(x, own[f"{norm}.weight"], own[f"{norm}.bias"], epsilon)
            y = attention(z, own, heads, real) if norm == "input_layernorm" else mlp(z, own)
            states.append((z if post_norm_residual else x) + y)
    return [*states, layer_norm(states[-1], weights["ln_f.weight"], weights["ln_f.bias"], epsilon)]
