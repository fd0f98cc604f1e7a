"""BLOOM (arXiv:2211.05100), executed: embed -> L x (attention block, mlp block) -> final norm -> logits.

x, the hidden state, is (B, T, D) in the compute dtype, which is the dtype of the weights. Each block widens it to the
accumulation dtype, computes, and rounds once what it returns (NUM-2). `tap` names an intermediate and returns it.
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
    """What the T positions from `start` on see: the same for every layer."""

    start: int
    visible: Bool[Array, "B 1 T S"]
    bias: Float[Array, "H T S"]


def view(config: BloomConfig, is_real: Bool[Array, "B S"], start: int, dtype: DType) -> View:
    """A real position sees the real positions up to itself, at a bias of slope times signed distance.

    Clauses: ALI-4 (columns of the batch, holes included), ALI-5 (float32), ATT-5, ATT-7, ATT-8.
    """
    key = np.arange(is_real.shape[1])
    query = key[start:, None]
    visible = (key <= query) & is_real[:, None, :] & is_real[:, start:, None]
    slopes = alibi.slopes(config.num_heads, dtype)
    return View(start, visible[:, None], slopes[:, None, None] * (key - query).astype(dtype))


def embed(params: Params, config: BloomConfig, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Look up, then normalise. Clauses: EMB-3 ... EMB-6."""
    x = adapt(widen(params.word_embedding[token_ids]), params, "word_embedding", token_ids)
    x = tap("word_embedding", x)
    x = layer_norm(x, params.ln_embedding_weight, params.ln_embedding_bias, config.layer_norm_epsilon)
    return tap("embedding_norm", x.astype(params.word_embedding.dtype))


def attention_block(
    layer: LayerParams, config: BloomConfig, x: Float[Array, "B T D"], cache: LayerCache, seen: View, rng: Rng = None
) -> Float[Array, "B T D"]:
    """Layer norm, self-attention, residual. Clauses: ATT-1 ... ATT-10."""
    normed = layer_norm(widen(x), layer.ln_attn_weight, layer.ln_attn_bias, config.layer_norm_epsilon)
    return _residual(config, x, normed, attention(layer, config, tap("attention.norm", normed), cache, seen, rng), rng)


def attention(
    layer: LayerParams, config: BloomConfig, x: Float[Array, "B T D"], cache: LayerCache, seen: View, rng: Rng
) -> Float[Array, "B T D"]:
    batch, time, width = x.shape
    fused = linear(x, layer.qkv_weight.reshape(-1, width), layer.qkv_bias.reshape(-1))
    fused = adapt(fused, layer, "qkv_weight", x, rng)
    per_head = fused.reshape(batch, time, config.num_heads, 3, config.head_dim)  # ATT-2: query, key, value of each head
    query, key, value = (
        tap(f"attention.{name}", per_head[:, :, :, c].swapaxes(1, 2))
        for c, name in enumerate(("query", "key", "value"))
    )
    keys, values = cache.write(seen.start, key, value)

    scores = (query * (1.0 / math.sqrt(config.head_dim))) @ widen(keys).swapaxes(-1, -2)
    scores += seen.bias  # ATT-4: after the scaling
    probabilities = softmax(tap("attention.scores", scores), seen.visible)
    probabilities = dropout(tap("attention.probabilities", probabilities), config.attention_dropout, rng)

    context = (probabilities @ widen(values)).swapaxes(1, 2).reshape(batch, time, width)
    context = tap("attention.context", context)
    output = linear(context, layer.attn_out_weight.reshape(width, -1), layer.attn_out_bias)
    return tap("attention.output", adapt(output, layer, "attn_out_weight", context, rng))


def mlp_block(
    layer: LayerParams, config: BloomConfig, x: Float[Array, "B T D"], rng: Rng = None
) -> Float[Array, "B T D"]:
    """Layer norm, two-layer perceptron with GELU, residual. Clauses: MLP-1 ... MLP-4."""
    normed = layer_norm(widen(x), layer.ln_mlp_weight, layer.ln_mlp_bias, config.layer_norm_epsilon)
    return _residual(config, x, normed, mlp(layer, tap("mlp.norm", normed), rng), rng)


def mlp(layer: LayerParams, x: Float[Array, "B T D"], rng: Rng = None) -> Float[Array, "B T D"]:
    up = adapt(linear(x, layer.mlp_up_weight, layer.mlp_up_bias), layer, "mlp_up_weight", x, rng)
    inner = tap("mlp.gelu", gelu(tap("mlp.up", up)))
    down = adapt(linear(inner, layer.mlp_down_weight, layer.mlp_down_bias), layer, "mlp_down_weight", inner, rng)
    return tap("mlp.output", down)


def _residual(
    config: BloomConfig, x: Float[Array, "B T D"], normed: Float[Array, "B T D"], y: Float[Array, "B T D"], rng: Rng
) -> Float[Array, "B T D"]:
    """Add the block's input, or its normalised input in the other residual form. Clause: MOD-3."""
    base = normed if config.apply_residual_connection_post_layernorm else x
    return (base + dropout(y, config.hidden_dropout, rng)).astype(x.dtype, copy=False)


def final_norm(params: Params, config: BloomConfig, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Clauses: MOD-4, EMB-4."""
    y = layer_norm(widen(x), params.ln_final_weight, params.ln_final_bias, config.layer_norm_epsilon)
    return tap("final_norm", y.astype(x.dtype))


def logits(params: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Scores of every vocabulary entry, in the accumulation dtype; the head is the embedding if tied. Clauses: MOD-5, MOD-6."""
    head = params.word_embedding if params.lm_head is None else params.lm_head
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
        is_real = cache.is_real[:, : start + time]
    x = embed(params, config, token_ids)
    seen = view(config, is_real, start, accumulation_dtype(x.dtype))
    for i, layer in enumerate(params.layers):
        layer_cache = cache.layers[i] if cache else LayerCache.empty(config, batch, time, x.dtype)
        with in_layer(i):
            x = tap("attention_block", attention_block(layer, config, x, layer_cache, seen, rng))
            x = tap("mlp_block", mlp_block(layer, config, x, rng))
    return final_norm(params, config, x)


def adapt(y: Array, owner: LayerParams | Params, attribute: str, x: Array, rng: Rng = None) -> Array:
    """y plus the term of every adapter of the weight; y itself without any (LRA-2)."""
    for factors in owner.adapters.get(attribute, ()):
        y = y + low_rank(factors, x, rng)
    return y


def widen(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """x in its accumulation dtype (NUM-2)."""
    return x.astype(accumulation_dtype(x.dtype), copy=False)
