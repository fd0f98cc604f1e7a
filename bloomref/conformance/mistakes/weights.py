"""Mistakes in reading the weights: each array is there, but not where it belongs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedCache, InstrumentedModel
from bloomref.params import LayerParams, Params
from bloomref.shapes import Array


def in_every_layer(params: Params, change: Callable[[LayerParams], LayerParams]) -> Params:
    return replace(params, layers=tuple(change(layer) for layer in params.layers))


@mistake("attention-output-transposed", "the output projection of attention read transposed", "WGT-9", first="attention.output")  # fmt: skip
class AttentionOutputTransposed(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            weight = layer.attn_out_weight
            flat = weight.reshape(len(weight), -1)
            return replace(layer, attn_out_weight=flat.T.reshape(weight.shape))

        return in_every_layer(params, change)


@mistake("qkv-transposed", "the matrices of query, key and value each read transposed, as if D by H K", "WGT-9", first="attention.query")  # fmt: skip
class QkvTransposed(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            heads, _, channels, width = layer.qkv_weight.shape
            square = layer.qkv_weight.swapaxes(0, 1).reshape(3, width, width).swapaxes(1, 2)
            return replace(layer, qkv_weight=square.reshape(3, heads, channels, width).swapaxes(0, 1))

        return in_every_layer(params, change)


@mistake("qkv-heads-reversed", "the heads of QKV in another order than those of the output projection", "WGT-3", first="attention.query", needs="heads")  # fmt: skip
class QkvHeadsReversed(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            return replace(layer, qkv_weight=layer.qkv_weight[::-1], qkv_bias=layer.qkv_bias[::-1])

        return in_every_layer(params, change)


@mistake("qkv-scaled-whole", "a rescaling of the values, undone in the output projection, applied to query and key as well", "ATT-2", first="attention.query")  # fmt: skip
class QkvScaledWhole(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            return replace(
                layer,
                qkv_weight=layer.qkv_weight * 2.0,
                qkv_bias=layer.qkv_bias * 2.0,
                attn_out_weight=layer.attn_out_weight / 2.0,
            )

        return in_every_layer(params, change)


@mistake("norms-exchanged", "the layer norms of attention and MLP exchanged", "WGT-1", first="attention.norm")
class NormsExchanged(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            return replace(
                layer,
                ln_attn_weight=layer.ln_mlp_weight,
                ln_attn_bias=layer.ln_mlp_bias,
                ln_mlp_weight=layer.ln_attn_weight,
                ln_mlp_bias=layer.ln_attn_bias,
            )

        return in_every_layer(params, change)


@mistake("output-biases-exchanged", "the biases of the output projection and of the MLP exchanged", "WGT-1", first="attention.output")  # fmt: skip
class OutputBiasesExchanged(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            return replace(layer, attn_out_bias=layer.mlp_down_bias, mlp_down_bias=layer.attn_out_bias)

        return in_every_layer(params, change)


@mistake(
    "final-norm-of-embedding", "the final layer norm with the weights of the embedding's", "MOD-4", first="final_norm"
)
class FinalNormOfEmbedding(InstrumentedModel):
    def load(self, params: Params) -> Params:
        return replace(params, ln_final_weight=params.ln_embedding_weight, ln_final_bias=params.ln_embedding_bias)


@mistake("first-layer-repeated", "the weights of the first layer in every layer", "MOD-2", first="layers.1.attention.norm", needs="deep")  # fmt: skip
class FirstLayerRepeated(InstrumentedModel):
    def load(self, params: Params) -> Params:
        return replace(params, layers=params.layers[:1] * len(params.layers))


@mistake("layers-reversed", "the layers in another order", "MOD-2", first="attention.norm", needs="deep")
class LayersReversed(InstrumentedModel):
    def load(self, params: Params) -> Params:
        return replace(params, layers=params.layers[::-1])


@mistake("last-layer-skipped", "the last layer left out", "MOD-2", first="final_norm")
class LastLayerSkipped(InstrumentedModel):
    def block(
        self, layer: LayerParams, x: Array, cache: InstrumentedCache, start: int, visible: Array, bias: Array
    ) -> Array:
        y = super().block(layer, x, cache, start, visible, bias)
        return x if self.index == len(self.params.layers) - 1 else y


@mistake("weights-in-int8", "weights quantised to 8 bits", "WGT-6", "NUM-1", first="word_embedding")
class WeightsInInt8(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def quantised(x: Array) -> Array:
            step = np.maximum(np.abs(x).max(initial=0.0), 1e-30) / 127.0
            return (np.round(x / step) * step).astype(x.dtype)

        return params.map(quantised)
