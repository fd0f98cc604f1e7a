"""Mistakes of a float32 model that rounds to fewer bits where it must not (NUM-2)."""

import numpy as np

from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.dtypes import floating_dtype
from bloomref.params import LayerParams
from bloomref.shapes import Array


def rounded(x: Array, dtype: str) -> Array:
    """x rounded to `dtype` and back; values beyond its range become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(np.float32).astype(floating_dtype(dtype)).astype(x.dtype)


def tf32(x: Array) -> Array:
    """x rounded to the ten fraction bits of TF32."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.round(fraction * 2.0**11), exponent - 11)


@mistake("softmax-in-bfloat16", "computes softmax in bfloat16", "ATT-6", "NUM-2", first="attention.probabilities")
class SoftmaxInBfloat16(InstrumentedModel):
    def softmax(self, scores: Array, visible: Array) -> Array:
        return rounded(super().softmax(rounded(scores, "bfloat16"), visible), "bfloat16")


@mistake(
    "probabilities-in-bfloat16", "rounds attention probabilities to bfloat16", "NUM-2", first="attention.probabilities"
)
class ProbabilitiesInBfloat16(InstrumentedModel):
    def softmax(self, scores: Array, visible: Array) -> Array:
        return rounded(super().softmax(scores, visible), "bfloat16")


@mistake("scores-in-float16", "rounds attention scores to float16", "ATT-6", "NUM-2", first="attention.scores")
class ScoresInFloat16(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return rounded(super().scores(query, keys, bias), "float16")


@mistake(
    "scores-before-scale-in-float16",
    "rounds query times key to float16 before the scaling, so it is infinite beyond 65504",
    "ATT-3",
    "NUM-5",
    first="attention.scores",
)
class ScoresBeforeScaleInFloat16(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return rounded(query @ keys.swapaxes(-1, -2), "float16") * self.scale() + bias


@mistake(
    "scores-in-tf32", "multiplies query and key in TF32, which has ten fraction bits", "NUM-2", first="attention.scores"
)
class ScoresInTf32(InstrumentedModel):
    def scores(self, query: Array, keys: Array, bias: Array) -> Array:
        return super().scores(tf32(query), tf32(keys), bias)


@mistake("norm-in-bfloat16", "computes layer norm in bfloat16", "EMB-3", "NUM-2", first="embedding_norm")
class NormInBfloat16(InstrumentedModel):
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        return rounded(super().layer_norm(rounded(x, "bfloat16"), weight, bias), "bfloat16")


@mistake(
    "residual-in-bfloat16",
    "stores the hidden states of a float32 model in bfloat16 between blocks",
    "NUM-2",
    first="attention_block",
)
class ResidualInBfloat16(InstrumentedModel):
    def residual(self, x: Array, normed: Array, output: Array) -> Array:
        return rounded(super().residual(x, normed, output), "bfloat16")


@mistake("inputs-in-bfloat16", "rounds the inputs of the MLP's matrix products to bfloat16", "NUM-2", first="mlp.up")
class InputsInBfloat16(InstrumentedModel):
    def mlp_up(self, layer: LayerParams, x: Array) -> Array:
        return super().mlp_up(layer, rounded(x, "bfloat16"))

    def mlp_down(self, layer: LayerParams, x: Array) -> Array:
        return super().mlp_down(layer, rounded(x, "bfloat16"))


@mistake("query-in-int8", "quantises queries to 8 bits", "NUM-2", first="attention.query")
class QueryInInt8(InstrumentedModel):
    def split(self, fused: Array) -> tuple[Array, Array, Array]:
        query, key, value = super().split(fused)
        step = np.maximum(np.abs(query).max(axis=-1, keepdims=True), 1e-30) / 127.0
        return np.round(query / step) * step, key, value
