"""Mistakes in the projections of attention, in its scores and in how heads are joined."""

import math

import numpy as np

from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.params import LayerParams
from bloomref.shapes import Array

Heads = tuple[Array, Array, Array]


@mistake(
    "qkv-in-blocks",
    "splits QKV in three blocks instead of per head",
    "ATT-2",
    "WGT-3",
    first="attention.query",
    needs="heads",
)
class QkvInBlocks(InstrumentedModel):
    def split(self, fused: Array) -> Heads:
        batch, time, _ = fused.shape
        blocks = fused.reshape(batch, time, 3, self.config.num_heads, self.config.head_dim)
        return blocks[:, :, 0].swapaxes(1, 2), blocks[:, :, 1].swapaxes(1, 2), blocks[:, :, 2].swapaxes(1, 2)


@mistake(
    "qkv-by-channel",
    "splits query, key and value channel by channel, reading the rows as (H, K, 3)",
    "ATT-2",
    "WGT-3",
    first="attention.query",
)
class QkvByChannel(InstrumentedModel):
    def split(self, fused: Array) -> Heads:
        batch, time, _ = fused.shape
        channels = fused.reshape(batch, time, self.config.num_heads, self.config.head_dim, 3).swapaxes(1, 2)
        return channels[..., 0], channels[..., 1], channels[..., 2]


@mistake("query-key-swapped", "swaps query and key", "ATT-2", first="attention.query")
class QueryKeySwapped(InstrumentedModel):
    def split(self, fused: Array) -> Heads:
        query, key, value = super().split(fused)
        return key, query, value


@mistake("key-value-swapped", "swaps key and value", "ATT-2", first="attention.key")
class KeyValueSwapped(InstrumentedModel):
    def split(self, fused: Array) -> Heads:
        query, key, value = super().split(fused)
        return query, value, key


@mistake("value-first", "reads the rows of a head as value, query, key", "ATT-2", first="attention.query")
class ValueFirst(InstrumentedModel):
    def split(self, fused: Array) -> Heads:
        query, key, value = super().split(fused)
        return key, value, query


@mistake(
    "qkv-bias-in-blocks",
    "splits the QKV weight per head, but its bias in three blocks",
    "ATT-2",
    "WGT-3",
    first="attention.query",
    needs="heads",
)
class QkvBiasInBlocks(InstrumentedModel):
    def qkv(self, layer: LayerParams, x: Array) -> Array:
        weight = layer.qkv_weight.reshape(-1, self.config.hidden_dim)
        return self.linear(x, weight, layer.qkv_bias.swapaxes(0, 1).reshape(-1))


@mistake("qkv-bias-dropped", "omits the QKV bias", "ATT-2", first="attention.query")
class QkvBiasDropped(InstrumentedModel):
    def qkv(self, layer: LayerParams, x: Array) -> Array:
        weight = layer.qkv_weight.reshape(-1, self.config.hidden_dim)
        return self.linear(x, weight, np.zeros(len(weight), self.dtype))


@mistake(
    "one-key-head",
    "uses the keys and values of the first head for every head, like multi-query attention",
    "ATT-2",
    first="attention.key",
    needs="heads",
)
class OneKeyHead(InstrumentedModel):
    def split(self, fused: Array) -> Heads:
        query, key, value = super().split(fused)
        return query, np.broadcast_to(key[:, :1], key.shape), np.broadcast_to(value[:, :1], value.shape)


@mistake(
    "scale-by-width",
    "scales the scores by 1/sqrt(D) instead of 1/sqrt(K)",
    "ATT-3",
    first="attention.scores",
    needs="heads",
)
class ScaleByWidth(InstrumentedModel):
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.config.hidden_dim)


@mistake("no-scale", "does not scale the scores", "ATT-3", first="attention.scores")
class NoScale(InstrumentedModel):
    def scale(self) -> float:
        return 1.0


@mistake("scale-without-root", "scales the scores by 1/K instead of 1/sqrt(K)", "ATT-3", first="attention.scores")
class ScaleWithoutRoot(InstrumentedModel):
    def scale(self) -> float:
        return 1.0 / self.config.head_dim


@mistake(
    "heads-not-transposed",
    "joins the heads without transposing them",
    "ATT-9",
    first="attention.context",
    needs="heads",
)
class HeadsNotTransposed(InstrumentedModel):
    def merge(self, context: Array) -> Array:
        batch, _, time, _ = context.shape
        return context.reshape(batch, time, self.config.hidden_dim)


@mistake(
    "heads-interleaved",
    "joins the heads channel by channel, at index k H + h instead of h K + k",
    "ATT-9",
    first="attention.context",
    needs="heads",
)
class HeadsInterleaved(InstrumentedModel):
    def merge(self, context: Array) -> Array:
        batch, _, time, _ = context.shape
        return context.transpose(0, 2, 3, 1).reshape(batch, time, self.config.hidden_dim)


@mistake(
    "attention-bias-dropped", "omits the bias of the attention output projection", "ATT-9", first="attention.output"
)
class AttentionBiasDropped(InstrumentedModel):
    def attention_output(self, layer: LayerParams, context: Array) -> Array:
        weight = layer.attn_out_weight.reshape(self.config.hidden_dim, -1)
        return self.linear(context, weight, np.zeros_like(layer.attn_out_bias))
