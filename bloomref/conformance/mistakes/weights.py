"""Mistakes in loading weights: arrays in the wrong place, order or dtype."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedCache, InstrumentedModel
from bloomref.params import LayerParams, Params
from bloomref.shapes import Array


def in_every_layer(params: Params, change: Callable[[LayerParams], LayerParams]) -> Params:
    return replace(params, layers=tuple(change(layer) for layer in params.layers))


@mistake(
    "attention-output-transposed", "reads the attention output projection transposed", "WGT-9", first="attention.output"
)
class AttentionOutputTransposed(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            weight = layer.attn_out_weight
            flat = weight.reshape(len(weight), -1)
            return replace(layer, attn_out_weight=flat.T.reshape(weight.shape))

        return in_every_layer(params, change)


@mistake(
    "qkv-transposed",
    "reads the matrices of query, key and value transposed, each as D by H K",
    "WGT-9",
    first="attention.query",
)
class QkvTransposed(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            heads, _, channels, width = layer.qkv_weight.shape
            square = layer.qkv_weight.swapaxes(0, 1).reshape(3, width, width).swapaxes(1, 2)
            return replace(layer, qkv_weight=square.reshape(3, heads, channels, width).swapaxes(0, 1))

        return in_every_layer(params, change)


@mistake(
    "qkv-heads-reversed",
    "has the heads of QKV in another order than those of the output projection",
    "WGT-3",
    first="attention.query",
    needs="heads",
)
class QkvHeadsReversed(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            return replace(layer, qkv_weight=layer.qkv_weight[::-1], qkv_bias=layer.qkv_bias[::-1])

        return in_every_layer(params, change)


@mistake(
    "qkv-scaled-whole",
    "rescales query and key together with the values, and undoes that only in the output projection",
    "ATT-2",
    first="attention.query",
)
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


@mistake("norms-exchanged", "swaps the layer norms of attention and MLP", "WGT-1", first="attention.norm")
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


@mistake("output-biases-exchanged", "swaps the output biases of attention and MLP", "WGT-1", first="attention.output")
class OutputBiasesExchanged(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            return replace(layer, attn_out_bias=layer.mlp_down_bias, mlp_down_bias=layer.attn_out_bias)

        return in_every_layer(params, change)


@mistake(
    "final-norm-of-embedding",
    "uses the layer norm weights of the embedding in the final layer norm",
    "MOD-4",
    first="final_norm",
)
class FinalNormOfEmbedding(InstrumentedModel):
    def load(self, params: Params) -> Params:
        return replace(params, ln_final_weight=params.ln_embedding_weight, ln_final_bias=params.ln_embedding_bias)


@mistake(
    "first-layer-repeated",
    "uses the weights of the first layer in every layer",
    "MOD-2",
    first="layers.1.attention.norm",
    needs="deep",
)
class FirstLayerRepeated(InstrumentedModel):
    def load(self, params: Params) -> Params:
        return replace(params, layers=params.layers[:1] * len(params.layers))


@mistake("layers-reversed", "runs the layers in reverse order", "MOD-2", first="attention.norm", needs="deep")
class LayersReversed(InstrumentedModel):
    def load(self, params: Params) -> Params:
        return replace(params, layers=params.layers[::-1])


@mistake("last-layer-skipped", "skips the last layer", "MOD-2", first="final_norm")
class LastLayerSkipped(InstrumentedModel):
    def block(
        self, layer: LayerParams, x: Array, cache: InstrumentedCache, start: int, visible: Array, bias: Array
    ) -> Array:
        y = super().block(layer, x, cache, start, visible, bias)
        return x if self.index == len(self.params.layers) - 1 else y


def in_int8(x: Array, axis: int | None = None) -> Array:
    """x as whole multiples of 1/127 of its largest magnitude, along an axis. In float64, so that a tie is one."""
    wide = x.astype(np.float64)
    largest = np.maximum(np.abs(wide).max(axis=axis, keepdims=True, initial=0.0), 1e-30)
    return (np.round(wide * 127.0 / largest) * (largest / 127.0)).astype(x.dtype)


@mistake(
    "weights-in-int8",
    "quantises weights to 8 bits, with one scale for each array",
    "WGT-6",
    "NUM-1",
    first="word_embedding",
)
class WeightsInInt8(InstrumentedModel):
    def load(self, params: Params) -> Params:
        return params.map(in_int8)


@mistake(
    "matrices-in-int8",
    "quantises the matrices of the blocks to 8 bits, with one scale for each row",
    "WGT-6",
    "NUM-1",
    first="attention.query",
)
class MatricesInInt8(InstrumentedModel):
    def load(self, params: Params) -> Params:
        def change(layer: LayerParams) -> LayerParams:
            out = layer.attn_out_weight
            return replace(
                layer,
                qkv_weight=in_int8(layer.qkv_weight, -1),
                attn_out_weight=in_int8(out.reshape(len(out), -1), -1).reshape(out.shape),
                mlp_up_weight=in_int8(layer.mlp_up_weight, -1),
                mlp_down_weight=in_int8(layer.mlp_down_weight, -1),
            )

        return in_every_layer(params, change)
