"""BLOOM (arXiv:2211.05100), executed: embed -> L x (attention block, MLP block) -> final norm -> logits.

The hidden state x is (B, T, D) in the compute dtype, which is that of the weights. A block widens x to the accumulation
dtype, computes there, and rounds its result once (NUM-2). `tap` names an intermediate (MOD-8) and returns it. `rng`
turns dropout on; outside training it is None.
"""

import math
from dataclasses import dataclass

import numpy as np

from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.dtypes import DType, accumulation_dtype
from bloomref.params import LayerParams, Params
from bloomref.reference.cache import Cache, LayerCache
from bloomref.reference.lora_ops import low_rank
from bloomref.reference.ops import dropout, gelu, layer_norm, linear, softmax
from bloomref.reference.trace import in_layer, tap
from bloomref.shapes import Array, Bool, Float, Int

Rng = np.random.Generator | None


@dataclass(frozen=True, eq=False)
class View:
    """Visible keys of the T positions from `start` on, and their bias; the same for every layer."""

    start: int
    visible: Bool[Array, "B 1 T S"]
    bias: Float[Array, "H T S"]


def view(config: BloomConfig, is_real: Bool[Array, "B S"], start: int, dtype: DType) -> View:
    """A real position attends to the real positions up to itself; the bias is slope times signed distance.

    Clauses: ALI-4 (columns of the batch, holes included), ALI-5 (float32), ATT-5, ATT-7, ATT-8.
    """
    key = np.arange(is_real.shape[1])  # (S)
    query = key[start:, None]  # (T, 1)
    visible = (key <= query) & is_real[:, None, :] & is_real[:, start:, None]  # (B, T, S)
    slopes = alibi.slopes(config.num_heads, dtype)  # (H)
    return View(start, visible[:, None], slopes[:, None, None] * (key - query).astype(dtype))


# --- blocks ------------------------------------------------------------------------------------------------------


def embed(params: Params, config: BloomConfig, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """LN(E[token_ids]). Clauses: EMB-3 ... EMB-6."""
    x = tap("word_embedding", embedding_lookup(params, token_ids))  # (B, T, D)
    x = layer_norm(x, params.ln_embedding_weight, params.ln_embedding_bias, config.layer_norm_epsilon)
    return tap("embedding_norm", x.astype(params.word_embedding.dtype))


def attention_block(
    layer: LayerParams, config: BloomConfig, x: Float[Array, "B T D"], cache: LayerCache, view: View, rng: Rng = None
) -> Float[Array, "B T D"]:
    """x + attention(LN(x)). Clauses: ATT-1 ... ATT-10, MOD-3."""
    normed = layer_norm(widen(x), layer.ln_attn_weight, layer.ln_attn_bias, config.layer_norm_epsilon)
    normed = tap("attention.norm", normed)
    return residual(config, x, normed, attention(layer, config, normed, cache, view, rng), rng)


def attention(
    layer: LayerParams, config: BloomConfig, x: Float[Array, "B T D"], cache: LayerCache, view: View, rng: Rng = None
) -> Float[Array, "B T D"]:
    """softmax(q k^T / sqrt(K) + bias) v of every head, then the output projection."""
    query, key, value = split_heads(config, project(layer, "qkv", x, rng))  # (B, H, T, K) each
    keys, values = map(widen, cache.write(view.start, key, value))  # (B, H, S, K) each

    scale = 1.0 / math.sqrt(config.head_dim)
    scores = (scale * query) @ keys.swapaxes(2, 3) + view.bias  # (B, H, T, S); ATT-4: the bias is not scaled
    probabilities = softmax(tap("attention.scores", scores), view.visible)  # (B, H, T, S)
    weights = dropout(tap("attention.probabilities", probabilities), config.attention_dropout, rng)

    context = (weights @ values).swapaxes(1, 2).reshape(x.shape)  # (B, H, T, K) -> (B, T, H, K) -> (B, T, D)
    output = project(layer, "attn_out", tap("attention.context", context), rng)  # (B, T, D)
    return tap("attention.output", output)


def mlp_block(
    layer: LayerParams, config: BloomConfig, x: Float[Array, "B T D"], rng: Rng = None
) -> Float[Array, "B T D"]:
    """x + MLP(LN(x)). Clauses: MLP-1 ... MLP-4, MOD-3."""
    normed = layer_norm(widen(x), layer.ln_mlp_weight, layer.ln_mlp_bias, config.layer_norm_epsilon)
    normed = tap("mlp.norm", normed)
    return residual(config, x, normed, mlp(layer, normed, rng), rng)


def mlp(layer: LayerParams, x: Float[Array, "B T D"], rng: Rng = None) -> Float[Array, "B T D"]:
    """W_down GELU(W_up x)."""
    up = tap("mlp.up", project(layer, "mlp_up", x, rng))  # (B, T, F)
    inner = tap("mlp.gelu", gelu(up))  # (B, T, F)
    return tap("mlp.output", project(layer, "mlp_down", inner, rng))  # (B, T, D)


def final_norm(params: Params, config: BloomConfig, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """LN(x). Clauses: MOD-4, EMB-4."""
    y = layer_norm(widen(x), params.ln_final_weight, params.ln_final_bias, config.layer_norm_epsilon)
    return tap("final_norm", y.astype(x.dtype))


def logits(params: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """hidden E^T, in the accumulation dtype; an untied LM head replaces the embedding E. Clauses: MOD-5, MOD-6."""
    head = params.word_embedding if params.lm_head is None else params.lm_head  # (V, D)
    return tap("logits", widen(hidden) @ widen(head).T)


def forward(
    params: Params,
    config: BloomConfig,
    token_ids: Int[Array, "B T"],
    is_real: Bool[Array, "B T"],
    cache: Cache | None = None,
    start: int = 0,
    rng: Rng = None,
) -> Float[Array, "B T D"]:
    """The hidden states after the final norm. With a cache, the T positions from `start` on continue those before."""
    batch, time = token_ids.shape
    if cache is not None:
        cache.is_real[:, start : start + time] = is_real
        is_real = cache.is_real[:, : start + time]  # (B, S)
    x = embed(params, config, token_ids)  # (B, T, D)
    visible = view(config, is_real, start, accumulation_dtype(x.dtype))
    for i, layer in enumerate(params.layers):
        layer_cache = cache.layers[i] if cache else LayerCache.empty(config, batch, time, x.dtype)
        with in_layer(i):
            x = tap("attention_block", attention_block(layer, config, x, layer_cache, visible, rng))
            x = tap("mlp_block", mlp_block(layer, config, x, rng))
    return final_norm(params, config, x)


# --- parts of a block --------------------------------------------------------------------------------------------


def project(layer: LayerParams, name: str, x: Float[Array, "B T N"], rng: Rng = None) -> Float[Array, "B T M"]:
    """x W^T + b with the weight and bias of that name, plus the products of its LoRA factors. Clause: LRA-1."""
    weight, bias = getattr(layer, f"{name}_weight"), getattr(layer, f"{name}_bias")
    y = linear(x, widen(weight.reshape(bias.size, x.shape[-1])), bias.ravel())
    for factors in layer.adapters.get(f"{name}_weight", ()):
        y = y + low_rank(factors, x, rng)
    return y


def embedding_lookup(params: Params, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """E[token_ids] in the accumulation dtype, plus the terms of the embedding's LoRA adapters. Clause: LRA-4."""
    x = widen(params.word_embedding[token_ids])
    for factors in params.adapters.get("word_embedding", ()):
        x = x + low_rank(factors, token_ids)
    return x


def split_heads(config: BloomConfig, fused: Float[Array, "B T M"]) -> tuple[Array, Array, Array]:
    """Query, key and value, (B, H, T, K) each: the fused rows are (H, C, K), head by head. Clause: ATT-2."""
    batch, time, _ = fused.shape
    per_head = fused.reshape(batch, time, config.num_heads, 3, config.head_dim)  # (B, T, H, C, K)
    query, key, value = per_head.transpose(3, 0, 2, 1, 4)
    return tap("attention.query", query), tap("attention.key", key), tap("attention.value", value)


def residual(
    config: BloomConfig, x: Float[Array, "B T D"], normed: Float[Array, "B T D"], y: Float[Array, "B T D"], rng: Rng
) -> Float[Array, "B T D"]:
    """x + y, or normed + y in the post-layernorm form, rounded to the dtype of x. Clause: MOD-3."""
    base = normed if config.apply_residual_connection_post_layernorm else x
    return (base + dropout(y, config.hidden_dropout, rng)).astype(x.dtype)


def widen(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """x in its accumulation dtype, x itself if it has it (NUM-2)."""
    return x.astype(accumulation_dtype(x.dtype), copy=False)
