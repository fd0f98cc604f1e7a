"""Gradients of BLOOM: the backward pass of `model`, block by block. Read `ops_vjp` and `loss` first.

The forward pass is that of `model`; a block's backward pass reads the intermediates that `tape` recorded.
`dx` is the gradient of the loss by x.
Everything is computed and returned in the accumulation dtype; nothing is rounded.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np

from bloomref.config import IGNORED_LABEL, BloomConfig
from bloomref.dtypes import DType, accumulation_dtype
from bloomref.params import LAYER_WEIGHTS, LM_HEAD, MODEL_WEIGHTS, LayerParams, LoraFactors, Params, layer_key
from bloomref.reference import loss, model
from bloomref.reference.cache import LayerCache
from bloomref.reference.lora_vjp import LowRankGradients, low_rank_vjp
from bloomref.reference.model import Rng, View, embedding_lookup, widen
from bloomref.reference.ops import dropout, layer_norm
from bloomref.reference.ops_vjp import (
    add_rows,
    bias_vjp,
    gelu_vjp,
    layer_norm_vjp,
    linear_vjp,
    linear_weight_vjp,
    normalised,
    softmax_vjp,
)
from bloomref.reference.tape import Block, BlockRecord, advance
from bloomref.shapes import Array, Bool, Float, Int

_MODEL_KEYS = {weight.attribute: weight.hf_key for weight in (*MODEL_WEIGHTS, LM_HEAD)}


@dataclass(frozen=True, eq=False)
class LossGradients:
    """The loss and its gradients, in the accumulation dtype."""

    loss: float
    """Mean cross-entropy over the counted tokens; 0 if there are none."""
    counted: int
    """Number of tokens in the mean."""
    gradients: dict[str, Array]
    """Hugging Face key of a weight -> gradient, in the weight's shape here (`Weight.hf_shape` is a reshape away); and
    name of an adapter's factor, as in `lora.factors` -> gradient, in the factor's shape."""
    inputs: Float[Array, "B T D"]
    """The gradient by the result of the embedding lookup."""


@dataclass(frozen=True, eq=False)
class Collector:
    """Gradients by Hugging Face key. The gradient of a frozen weight is never computed (GRD-6)."""

    is_trainable: Callable[[str], bool]
    keys: Mapping[str, str]
    """Attribute of a weight -> its Hugging Face key, of one layer or of the model."""
    arrays: dict[str, Array]

    def of_layer(self, index: int) -> "Collector":
        return replace(self, keys={weight.attribute: layer_key(index, weight) for weight in LAYER_WEIGHTS})

    def add(self, attribute: str, compute: Callable[[], Array]) -> None:
        if self.is_trainable(key := self.keys[attribute]):
            self.arrays[key] = compute()

    def add_factors(self, attribute: str, factors: LoraFactors, gradients: LowRankGradients) -> None:
        for name, gradient in (("a", gradients.da), ("b", gradients.db)):
            if self.is_trainable(key := factors.key(self.keys[attribute], name)):
                self.arrays[key] = gradient

    def total(self, attribute: str, weight: Array) -> Array | None:
        """The array in which the weight's gradient is summed, zeros at first; None for a frozen weight."""
        if not self.is_trainable(key := self.keys[attribute]):
            return None
        if key not in self.arrays:
            self.arrays[key] = np.zeros(weight.shape, accumulation_dtype(weight.dtype))
        return self.arrays[key]


# --- blocks ------------------------------------------------------------------------------------------------------


def attention_block_vjp(
    layer: LayerParams, config: BloomConfig, record: BlockRecord, dy: Float[Array, "B T D"], into: Collector
) -> Float[Array, "B T D"]:
    """y = x + dropout(attention(z)), z = LN(x); in the post-layernorm form, z + ..."""
    batch, time, width = dy.shape
    intermediates, rng = record.recall(), deepcopy(record.rng)
    z, context = intermediates["attention.norm"], intermediates["attention.context"]
    query, key, value, probabilities = (
        intermediates[f"attention.{name}"] for name in ("query", "key", "value", "probabilities")
    )
    at_qkv = _past_adapters(layer, "qkv_weight", z, rng)  # the draws of the forward pass once more, in its order
    at_probabilities = deepcopy(rng)
    weighting = dropout(probabilities, config.attention_dropout, rng)
    at_output = _past_adapters(layer, "attn_out_weight", context, rng)
    doutput = dropout(dy, config.hidden_dropout, rng)  # linear in y, so it is its own VJP

    dcontext = _linear_vjp(layer, "attn_out", context, doutput, at_output, into)
    dcontext = dcontext.reshape(batch, time, config.num_heads, config.head_dim).swapaxes(1, 2)
    dfused = np.empty((batch, time, config.num_heads, 3, config.head_dim), dy.dtype)
    dquery, dkey, dvalue = (dfused[:, :, :, c].swapaxes(1, 2) for c in range(3))  # ATT-2
    # context = weighting value, weighting = dropout(softmax(scores)), scores = query key^T / sqrt(K) + bias
    dvalue[...] = weighting.swapaxes(-1, -2) @ dcontext
    dweighting = dropout(dcontext @ value.swapaxes(-1, -2), config.attention_dropout, at_probabilities)
    dscores = softmax_vjp(probabilities, dweighting) * (1.0 / math.sqrt(config.head_dim))
    dquery[...] = dscores @ key
    dkey[...] = dscores.swapaxes(-1, -2) @ query

    dz = _linear_vjp(layer, "qkv", z, dfused.reshape(batch, time, 3 * width), at_qkv, into)
    return _residual_vjp(layer, config, "ln_attn_weight", "ln_attn_bias", record.x, dy, dz, into)


def mlp_block_vjp(
    layer: LayerParams, config: BloomConfig, record: BlockRecord, dy: Float[Array, "B T D"], into: Collector
) -> Float[Array, "B T D"]:
    """y = x + dropout(down(gelu(up(z)))), z = LN(x); in the post-layernorm form, z + ..."""
    intermediates, rng = record.recall(), deepcopy(record.rng)
    z, inner = intermediates["mlp.norm"], intermediates["mlp.gelu"]
    at_up = _past_adapters(layer, "mlp_up_weight", z, rng)
    at_down = _past_adapters(layer, "mlp_down_weight", inner, rng)
    doutput = dropout(dy, config.hidden_dropout, rng)

    dinner = _linear_vjp(layer, "mlp_down", inner, doutput, at_down, into)
    dup = gelu_vjp(intermediates["mlp.up"], dinner)
    dz = _linear_vjp(layer, "mlp_up", z, dup, at_up, into)
    return _residual_vjp(layer, config, "ln_mlp_weight", "ln_mlp_bias", record.x, dy, dz, into)


def _linear_vjp(
    layer: LayerParams, name: str, x: Float[Array, "B T N"], dy: Float[Array, "B T M"], rng: Rng, into: Collector
) -> Float[Array, "B T N"]:
    """y = x W^T + b + the terms of the weight's adapters; `rng` is the generator before their draws."""
    weight: Array = getattr(layer, f"{name}_weight")
    bias: Array = getattr(layer, f"{name}_bias")
    into.add(f"{name}_weight", lambda: linear_weight_vjp(x, dy).reshape(weight.shape))
    into.add(f"{name}_bias", lambda: bias_vjp(dy).reshape(bias.shape))
    dx = linear_vjp(weight.reshape(dy.shape[-1], x.shape[-1]), dy)
    for factors in layer.adapters.get(f"{name}_weight", ()):
        gradients = low_rank_vjp(factors, x, dy, rng)
        dx += gradients.dx
        into.add_factors(f"{name}_weight", factors, gradients)
    return dx


def _past_adapters(layer: LayerParams, name: str, x: Float[Array, "B T N"], rng: Rng) -> Rng:
    """A copy of the generator before the draws of a weight's adapters; `rng` itself advances past them."""
    before = deepcopy(rng)
    for factors in layer.adapters.get(name, ()):
        dropout(x, factors.dropout, rng)
    return before


def _residual_vjp(
    layer: LayerParams,
    config: BloomConfig,
    weight: str,
    bias: str,
    x: Float[Array, "B T D"],
    dy: Float[Array, "B T D"],
    dz: Float[Array, "B T D"],
    into: Collector,
) -> Float[Array, "B T D"]:
    """y = x + f(z), z = LN(x): dx = dy + LN'(dz). y = z + f(z): dx = LN'(dy + dz). Clause: MOD-3."""
    if config.apply_residual_connection_post_layernorm:
        return _layer_norm_vjp(layer, config, weight, bias, x, dy + dz, into)
    return dy + _layer_norm_vjp(layer, config, weight, bias, x, dz, into)


def _layer_norm_vjp(
    owner: LayerParams | Params,
    config: BloomConfig,
    weight: str,
    bias: str,
    x: Float[Array, "B T D"],
    dy: Float[Array, "B T D"],
    into: Collector,
) -> Float[Array, "B T D"]:
    n, s = normalised(x, config.layer_norm_epsilon)
    into.add(weight, lambda: bias_vjp(dy * n))
    into.add(bias, lambda: bias_vjp(dy))
    return layer_norm_vjp(n, s, getattr(owner, weight), dy)


# --- the model ---------------------------------------------------------------------------------------------------


def loss_and_gradients(
    params: Params,
    config: BloomConfig,
    token_ids: Int[Array, "B T"],
    is_real: Bool[Array, "B T"],
    labels: Int[Array, "B T"] | None = None,
    *,
    trainable: Callable[[str], bool] | None = None,
    rng: Rng = None,
    document: Int[Array, "B T"] | None = None,
    checkpoint: bool = True,
    view: Callable[[BloomConfig, Bool[Array, "B S"], int, DType], View] = model.view,
) -> LossGradients:
    """The mean cross-entropy of the next tokens, and its gradient by every weight. Clauses: GRD-1 ... GRD-12.

    Args:
        labels: the token at each column, not shifted: column t predicts `labels[:, t + 1]`; -100 is not counted. None:
            `token_ids`. Not counted either:
            the first column, padding, a column after padding or after another document.
        trainable: True for the keys whose gradients are computed; None: all.
        rng: turns dropout on, with the draws of `model.forward`.
        document: number of the document of each position; positions attend within their document only.
        checkpoint: record the blocks' inputs only and run each block twice; False:
            record all that the backward pass reads.
        view: computes the mask and the bias; a constant added to a row of the bias changes no result (ALI-4).
    """
    into = Collector(trainable or (lambda _: True), _MODEL_KEYS, {})
    embedded = embedding_lookup(params, token_ids)
    x = layer_norm(embedded, params.ln_embedding_weight, params.ln_embedding_bias, config.layer_norm_epsilon)
    visible = _within(document, view(config, is_real, 0, x.dtype))
    tape: list[BlockRecord] = []
    for layer in params.layers:
        for run in _blocks(layer, config, visible):
            x = advance(tape, run, x, rng, checkpoint)

    targets = loss.targets(token_ids, is_real, labels, document)
    value, dx = _head_vjp(params, config, x, targets, into)
    for index in reversed(range(config.num_layers)):
        of_layer = into.of_layer(index)
        dx = mlp_block_vjp(params.layers[index], config, tape.pop(), dx, of_layer)
        dx = attention_block_vjp(params.layers[index], config, tape.pop(), dx, of_layer)

    dx = _layer_norm_vjp(params, config, "ln_embedding_weight", "ln_embedding_bias", embedded, dx, into)
    _lookup_vjp(params, token_ids, dx, into)
    return LossGradients(value, int((targets != IGNORED_LABEL).sum()), into.arrays, dx)


def _lookup_vjp(params: Params, token_ids: Int[Array, "B T"], dx: Float[Array, "B T D"], into: Collector) -> None:
    """x = E[token_ids] + the terms of its adapters. A tied head has added to dE before (GRD-4)."""
    if (total := into.total("word_embedding", params.word_embedding)) is not None:
        add_rows(total, token_ids, dx)
    for factors in params.adapters.get("word_embedding", ()):
        into.add_factors("word_embedding", factors, low_rank_vjp(factors, token_ids, dx))


def _blocks(layer: LayerParams, config: BloomConfig, view: View) -> tuple[Block, Block]:
    """The two blocks of a layer, as functions of their input and the generator."""

    def attention_block(x: Float[Array, "B T D"], rng: Rng) -> Float[Array, "B T D"]:
        batch, time, _ = x.shape
        cache = LayerCache.empty(config, batch, time, x.dtype)
        return model.attention_block(layer, config, x, cache, view, rng)

    return attention_block, lambda x, rng: model.mlp_block(layer, config, x, rng)


def _within(document: Int[Array, "B T"] | None, view: View) -> View:
    """The view restricted to documents. ALiBi needs no change, since its distances are relative."""
    if document is None:
        return view
    is_same = document[:, :, None] == document[:, None, :]  # (B, T, T)
    return replace(view, visible=view.visible & is_same[:, None])


def _head_vjp(
    params: Params, config: BloomConfig, x: Float[Array, "B T D"], targets: Int[Array, "B T"], into: Collector
) -> tuple[float, Float[Array, "B T D"]]:
    """The loss of the last block's output, and dx. Positions without a target skip the head. Clauses: MOD-4 ...

    MOD-6.
    """
    counted = targets != IGNORED_LABEL
    hidden = model.final_norm(params, config, x)[counted]
    tied = params.lm_head is None
    head = params.word_embedding if params.lm_head is None else params.lm_head
    dhead = into.total("word_embedding" if tied else "lm_head", head)
    value, dcounted = loss.head_vjp(hidden, widen(head), targets[counted], dhead)
    dhidden = np.zeros_like(x)
    dhidden[counted] = dcounted
    return value, _layer_norm_vjp(params, config, "ln_final_weight", "ln_final_bias", x, dhidden, into)
